"""The ``rpo`` command: its parser, one-line errors, and exit codes.

A command is a module of :mod:`rpo.commands` with ``add_arguments(parser)`` and ``run(args)``. Only
the module of the given command is imported, so that ``rpo --help`` loads neither JAX nor NumPy.

==== ===================================================================================
code meaning
==== ===================================================================================
0    success
1    a claim of ``rpo verify`` fails, ``rpo solve`` has no solution, or ``rpo plan`` does not fit
2    the input is invalid; one line on stderr says why
130  interrupted
141  stdout was closed
143  ``rpo train`` was asked to stop and has saved its state
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

from .runtime.errors import UsageError, error_message
from .runtime.output import messages_to_stderr

DISTRIBUTION = "rpo-theory"
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")
COMMANDS = {
    "demo": "run every part at small scale and write a report",
    "verify": "check the theorem on random bandits and on negative controls",
    "solve": "solve one problem, or rank systems from votes, with a certificate",
    "train": "train a transformer on preferences: SFT, RPO, DPO and others",
    "plan": "compile a training step for a TPU slice, without a TPU, and report its memory",
    "score": "compute the log-probabilities of the responses of preference data",
    "generate": "generate replies to prompts, also for AlpacaEval and MT-Bench",
    "evaluate": "measure rewards, margins and win rates of a model against another",
    "export": "write a trained policy as a Hugging Face folder",
    "study": "run a simulation study of the methods on bandits and draw its figures",
}
RESUMABLE = ("train", "study")
SHELLS = ("bash", "zsh", "tcsh")
MAX_MESSAGE_CHARACTERS = 2000


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors, so that :func:`main` prints them in one line."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing the usage and exiting.

        Args:
            message: the message of argparse.

        Raises:
            UsageError: always.
        """
        raise UsageError(message)


def check_packages() -> None:
    """Refuse to run if another distribution provides a package of this one.

    ``bandits`` also exists on PyPI. Nothing is imported.

    Raises:
        UsageError: if a package is missing, or does not lie beside this one.
    """
    root = Path(__file__).resolve().parents[1]
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise UsageError(
                f"package `{package}` is missing beside `rpo`: install {DISTRIBUTION} again"
            )
        if Path(spec.origin).resolve().parents[1] != root:
            raise UsageError(
                f"another distribution provides `{package}` ({spec.origin}): use a new environment"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and print its errors in one line.

    Args:
        argv: arguments after the name of the program; None for those of the process.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    if argv is None and arguments[:1] and arguments[0] in RESUMABLE:
        _use_default_interrupt()
    try:
        check_packages()
        with messages_to_stderr():
            code = run_command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # At exit, Python must not flush what is still buffered into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    except (UsageError, OSError) as error:
        sys.stderr.write(f"rpo: error: {_one_line(error_message(error))}\n")
        return 2
    return code


def make_parser(commands: Iterable[str]) -> Parser:
    """Build the parser of the program.

    Args:
        commands: names of the commands whose options are declared, which imports their modules.

    Returns:
        The parser; it knows the names and summaries of all commands.
    """
    parser = Parser(
        prog="rpo",
        description="Regularized Preference Optimization: the adversarial problem, the RPO loss, "
        "and the proof that they agree.",
        epilog="rpo COMMAND --help shows the options and examples of a command.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "--print-completion",
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the completion script of a shell: {', '.join(SHELLS)}",
    )
    subparsers = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, allow_abbrev=False, formatter_class=_HelpFormatter
        )
        if name in commands:
            declare(name, subparser)
    return parser


def declare(name: str, parser: argparse.ArgumentParser) -> None:
    """Add the options, the description and the examples of a command to a parser.

    Args:
        name: name of the command.
        parser: receives them.
    """
    module = importlib.import_module(f".commands.{name}", __package__)
    module.add_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object to stdout; the human-readable summary goes to stderr",
    )
    parser.description = module.__doc__
    parser.epilog = "examples:\n" + "\n".join(f"  {line}" for line in module.EXAMPLES)


class _HelpFormatter(argparse.HelpFormatter):
    """A help formatter that wraps paragraphs but keeps the lines of examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return text
        paragraphs = text.strip().split("\n\n")
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in paragraphs)


def run_command(argv: list[str]) -> int:
    """Parse the arguments and run the command; errors are raised.

    Args:
        argv: arguments after the name of the program.

    Returns:
        The exit code.

    Raises:
        UsageError: if the input is invalid.
    """
    name = argv[0] if argv and argv[0] in COMMANDS else None
    parser = make_parser([name] if name else [])
    module = importlib.import_module(f".commands.{name}", __package__) if name else None
    try:
        args, overrides = parser.parse_known_args(argv)
    except SystemExit as exit_:  # --help
        return int(exit_.code or 0)
    if args.version:
        sys.stdout.write(f"rpo {_version()}\n")
        return 0
    if args.print_completion:
        import shtab

        sys.stdout.write(shtab.complete(make_parser(COMMANDS), args.print_completion) + "\n")
        return 0
    if overrides and not getattr(module, "TAKES_OVERRIDES", False):
        raise UsageError(f"unrecognized arguments: {' '.join(overrides)}")
    if module is None:
        raise UsageError(f"a command must come first: {', '.join(COMMANDS)}; see rpo --help")
    args.overrides = overrides
    from .runtime.progress import progress_bars

    with progress_bars():
        return module.run(args)


def _version() -> str:
    """Return the version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise UsageError(f"{DISTRIBUTION} is not installed: run pip install -e .") from error


def _use_default_interrupt() -> None:
    """Let SIGINT end the process; as an exception, callbacks of libraries can swallow it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _one_line(text: str) -> str:
    """Return a text without line breaks and control characters, cut to a reasonable length."""
    text = "".join(character if character.isprintable() else " " for character in text)
    # A message may quote a value that is as long as a file.
    limit = MAX_MESSAGE_CHARACTERS
    return text if len(text) <= limit else f"{text[:limit]} ..."
