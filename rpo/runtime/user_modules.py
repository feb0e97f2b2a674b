"""Modules of the user's own, which options name."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType


def import_user_module(name: str) -> ModuleType:
    """Import a module, which may lie in the current folder.

    Args:
        name: dotted name of the module.

    Returns:
        The module. What it prints while it is imported goes to stderr.

    Raises:
        ImportError: if there is no such module. The module itself may raise anything.

    Examples:
        >>> import_user_module("math").pi > 3
        True
    """
    # At the end, so that no file of the current folder takes the place of an installed module.
    if "" not in sys.path:
        sys.path.append("")
    with printing_to_stderr():
        return importlib.import_module(name)


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Keep what the user's code prints out of the JSON on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
