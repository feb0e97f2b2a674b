"""Dispatch of the ``rpo`` command, one-line errors, exit codes.

Each command is a module of this package with ``add_arguments(parser)`` and ``run(args) -> int``,
imported only when it is called, so that ``rpo --help`` loads neither JAX nor NumPy.

==== ===================================================================================
code meaning
==== ===================================================================================
0    done
1    a claim of ``rpo verify`` failed, or ``rpo solve`` has no answer
2    a mistake in what was given; one line on stderr says which
130  interrupted
141  the reader of standard output went away
==== ===================================================================================
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from .runtime.errors import UsageError, sentence

PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")
COMMANDS = {
    "demo": "everything in small: the theorem checked, overoptimization cured, a report",
    "verify": "check the theorem on random instances, and see it fail where it must",
    "solve": "solve one problem of yours, or rank systems from votes, with a certificate",
    "train": "fine-tune a transformer on preferences: SFT, RPO, DPO and others",
    "plan": "compile a training step for a TPU slice without one: does it fit",
    "score": "log-probabilities of the responses of preference data, row by row",
    "generate": "answer prompts, also for AlpacaEval and MT-Bench",
    "evaluate": "rewards, margins and win rates of a model against another",
    "export": "write a trained policy as a Hugging Face folder",
    "study": "run a simulation study of every method on bandits, and draw its figures",
}


LONGEST = 2000
"""Characters of an error message at most."""
RESUMABLE = ("train", "study")
SHELLS = ("bash", "zsh", "tcsh")


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are raised, for :func:`main` to tell in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise UsageError(message)


def check_packages() -> None:
    """Refuse to run with a package of the same name from another distribution.

    Nothing is imported. ``bandits`` also exists on PyPI.

    Raises:
        UsageError: a package does not lie beside this one.
    """
    home = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UsageError(f"package `{package}` is missing beside `rpo`: install rpo again")
        if Path(spec.origin).resolve().parents[1] != home:
            raise UsageError(
                f"another distribution provides `{package}` ({spec.origin}): "
                "use a fresh environment"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments after the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    if argv is None and words[:1] and words[0] in RESUMABLE:
        _leave_interrupts_to_the_system()
    try:
        check_packages()
        code = run_command(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered must not be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (UsageError, OSError) as error:
        sys.stderr.write(f"rpo: error: {_one_line(sentence(error))}\n")
        return 2
    return code


def make_parser(declared: Iterable[str]) -> Parser:
    """The parser of the program.

    Args:
        declared: commands whose options are declared too, which imports their modules.

    Returns:
        The parser.
    """
    parser = Parser(
        prog="rpo",
        description="Regularized Preference Optimization: the adversarial problem, the RPO loss, "
        "and the proof that they agree.",
        epilog="rpo COMMAND --help lists the options of a command and shows examples.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print what completes commands and options in a shell: {', '.join(SHELLS)}",
    )
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        child = commands.add_parser(
            name, help=summary, allow_abbrev=False, formatter_class=_HelpFormatter
        )
        if name in declared:
            declare(name, child)
    return parser


def declare(name: str, parser: argparse.ArgumentParser) -> None:
    """Declare what a command takes, and show how it is used.

    Args:
        name: of the command.
        parser: receives its options, description and examples.
    """
    module = importlib.import_module(f".commands.{name}", __package__)
    module.add_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object on standard output, and what is for people on standard error",
    )
    parser.description = module.__doc__
    parser.epilog = "examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES)


class _HelpFormatter(argparse.HelpFormatter):
    """Paragraphs are filled, examples stay a line each."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        return super()._fill_text(text, width, indent)


def run_command(argv: list[str]) -> int:
    """Run a command, its mistakes raised.

    Args:
        argv: arguments after the program's name.

    Returns:
        The exit code.

    Raises:
        UsageError: a mistake in what was given.
    """
    known = argv[0] if argv and argv[0] in COMMANDS else None
    parser = make_parser([known] if known else [])
    module = importlib.import_module(f".commands.{known}", __package__) if known else None
    try:
        args, rest = parser.parse_known_args(argv)
    except SystemExit as done:  # --help
        return int(done.code or 0)
    if args.version:
        from importlib.metadata import version

        sys.stdout.write(f"rpo {version('rpo')}\n")
        return 0
    if args.print_completion:
        import shtab

        sys.stdout.write(shtab.complete(make_parser(COMMANDS), args.print_completion) + "\n")
        return 0
    if rest and not getattr(module, "OVERRIDES", False):
        raise UsageError(f"unrecognized arguments: {' '.join(rest)}")
    if module is None:
        raise UsageError(f"a command must come first: {', '.join(COMMANDS)}; see rpo --help")
    args.overrides = rest
    return module.run(args)


def _leave_interrupts_to_the_system() -> None:
    """As exceptions they get lost in callbacks of libraries; what can go on need not be told."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _one_line(text: str) -> str:
    """Text without line breaks or other characters that a terminal would act on, not too long."""
    text = "".join(character if character.isprintable() else " " for character in text)
    # What is repeated of a file can be as long as the file.
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
