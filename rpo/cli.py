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
import difflib
import importlib
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .runtime.errors import UsageError, error_message, user_input
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
WITHOUT_GROUP = ("dry_run", "part", "merge", "scheduler")
"""Options with which a command needs no other process."""
SHELLS = ("bash", "zsh", "tcsh")
MAX_MESSAGE_CHARACTERS = 2000


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors, so that :func:`main` prints them in one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, _StoreOnce)
        self.register("action", "store", _StoreOnce)
        # The numbers of argparse have no exponents, so that -1e5 would be an unknown option.
        self._negative_number_matcher = re.compile(
            r"-([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|-(inf|nan)$"
        )

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of printing the usage and exiting.

        Args:
            message: the message of argparse.

        Raises:
            UsageError: always.
        """
        wrong = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message, re.DOTALL)
        if wrong:
            names = re.findall(r"[\w-]+", wrong[2])
            hint = ": see rpo --help" if message.startswith("argument COMMAND:") else ""
            message += _did_you_mean(wrong[1], names) or hint
        ignored = re.match(r"(argument --[\w-]+).*: ignored explicit argument '(.*)'", message)
        if ignored:
            message = f"{ignored[1]}: takes no value, got {ignored[2]!r}"
        raise UsageError(message)


class _StoreOnce(argparse.Action):
    """An action that stores a value and refuses a second one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        given = vars(namespace).setdefault("_given", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


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


def main(argv: Sequence[str]) -> int:
    """Run a command and print its errors in one line.

    Args:
        argv: arguments after the name of the program.

    Returns:
        The exit code.
    """
    try:
        check_packages()
        with messages_to_stderr():
            return run_command(list(argv))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return report_error(error)


def report_error(error: Exception) -> int:
    """Print an error in one line.

    Args:
        error: the error of a command.

    Returns:
        The exit code.

    Raises:
        Exception: the error itself, if it is not one of the input but a bug.
    """
    if isinstance(error, BrokenPipeError):
        return 141
    if isinstance(error, UsageError | OSError):
        text = error_message(error)
    else:
        from .runtime.compilation import setup_error

        text = setup_error(error)
        if text is None:
            raise error
    sys.stderr.write(f"rpo: error: {_one_line(text)}\n")
    return 2


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
    takes_overrides = getattr(module, "TAKES_OVERRIDES", False)
    options = _options_of(parser, name) if name else parser._option_string_actions
    overrides: list[str] = []
    if takes_overrides:
        argv, overrides = _split_overrides(argv, options)
    else:
        _refuse_unknown(argv, options, see=f"rpo {name} --help" if name else "rpo --help")
    try:
        args, unknown = parser.parse_known_args(argv)
    except SystemExit as exit_:  # --help
        return int(exit_.code or 0)
    if args.version:
        sys.stdout.write(f"rpo {_version()}\n")
        return 0
    if args.print_completion:
        import shtab

        sys.stdout.write(shtab.complete(make_parser(COMMANDS), args.print_completion) + "\n")
        return 0
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}")
    if module is None:
        raise UsageError(f"a command must come first: {', '.join(COMMANDS)}; see rpo --help")
    args.overrides = overrides
    from rpo_io.staging import staged_files

    from .runtime.clusters import may_be_launched
    from .runtime.compilation import prepare_jax, silent_cache
    from .runtime.progress import progress_bars

    # Estimates, and jobs of an array, need no other process, also where srun starts them.
    needs_no_group = any(getattr(args, name, None) for name in WITHOUT_GROUP)
    environment = {} if needs_no_group else os.environ
    has_group = getattr(args, "distributed", "off") == "auto"
    n_processes = args.num_processes if has_group else 1
    is_single = n_processes == 1 or (n_processes is None and not may_be_launched(environment))
    # Devices must not start before processes are connected.
    prepare_jax(check_devices=is_single)
    with progress_bars(), silent_cache(), staged_files():
        return _run_in_group(module, args, environment)


def _run_in_group(module: Any, args: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run a command as a process of its group, whose others are informed of a mistake."""
    if not hasattr(args, "distributed"):
        return module.run(args)
    from .runtime.processes import group_from

    with user_input():
        args.group = group_from(args, environment=environment)
    try:
        return module.run(args)
    except UsageError as error:
        if args.group.num_processes > 1:
            from .runtime.meeting import report_failure

            report_failure(args.group, str(error))
        raise


def _options_of(parser: Parser, name: str) -> dict[str, argparse.Action]:
    """Return the options of a command by their names, ``--help`` included."""
    (commands,) = (action for action in parser._actions if action.dest == "command")
    choices: Any = commands.choices
    return choices[name]._option_string_actions


def _split_overrides(
    argv: list[str], options: dict[str, argparse.Action]
) -> tuple[list[str], list[str]]:
    """Separate the options of a command from overrides, which may stand anywhere.

    Args:
        argv: arguments, with the name of the command.
        options: options of the command by name.

    Returns:
        The arguments of the command, and ``--KEY=VALUE`` or ``--KEY VALUE`` of the overrides.

    Raises:
        UsageError: if an option is misspelled.
    """
    known, overrides = [], []
    remaining = list(argv)
    while remaining:
        argument = remaining.pop(0)
        option, equals, _ = argument.partition("=")
        if option in options or not re.match(r"--[^=]", argument):
            known.append(argument)
            takes_value = option in options and options[option].nargs != 0
            if takes_value and not equals and remaining:
                known.append(remaining.pop(0))
            continue
        meant = _did_you_mean(option, options, cutoff=0.8)
        if meant and "." not in option:
            raise UsageError(f"unrecognized arguments: {argument}{meant}")
        overrides.append(argument)
        if not equals and remaining and not remaining[0].startswith("--"):
            overrides.append(remaining.pop(0))
    return known, overrides


def _refuse_unknown(argv: list[str], options: dict[str, argparse.Action], *, see: str) -> None:
    """Refuse an unknown option before argparse misses a required one; name the help to see."""
    for argument in itertools.takewhile(lambda given: given != "--", argv):
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in options:
            hint = _did_you_mean(option, options) or f": see {see}"
            raise UsageError(f"unrecognized arguments: {argument}{hint}")


def _did_you_mean(given: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return a question that names the most similar name; empty if none is similar."""
    found = difflib.get_close_matches(given.replace("_", "-"), list(names), 1, cutoff)
    return f": did you mean {found[0]}?" if found else ""


def _version() -> str:
    """Return the version of the installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError as error:
        raise UsageError(f"{DISTRIBUTION} is not installed: run pip install -e .") from error


def _one_line(text: str) -> str:
    """Return a text without line breaks and control characters, cut to a reasonable length."""
    text = "".join(character if character.isprintable() else " " for character in text)
    # A message may quote a value that is as long as a file.
    limit = MAX_MESSAGE_CHARACTERS
    return text if len(text) <= limit else f"{text[:limit]} ..."
