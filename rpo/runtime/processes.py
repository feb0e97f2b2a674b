"""Several processes, on one machine or many, that do one command's work together."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from .errors import whole_number

    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="address of the first of several processes that share the folder",
    )
    parser.add_argument(
        "--processes",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="how many there are (default 1)",
    )
    parser.add_argument(
        "--process",
        type=whole_number(0),
        default=0,
        metavar="K",
        help="which of them this one is, from 0 on (default 0)",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together.

    Raises:
        ValueError: there is no such process, or no address to meet at.
    """
    if args.process >= args.processes:
        rule = f"must be less than --processes {args.processes}, got {args.process}"
        raise ValueError(f"argument --process: {rule}")
    if (args.processes > 1) != (args.coordinator is not None):
        raise ValueError(
            "argument --coordinator: is needed with --processes 2 or more, and only then"
        )


@contextmanager
def together(args: argparse.Namespace, folder: Path) -> Iterator[None]:
    """Meet the other processes, if there are any, and say what to do if one of them is lost.

    Args:
        args: the options.
        folder: that they share.
    """
    if args.processes == 1:
        yield
        return
    import jax

    from .errors import UsageError
    from .watcher import watch

    farewell = watch(folder)
    try:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
        yield
    except (UsageError, KeyboardInterrupt):
        farewell()
        raise
    farewell()
