"""Modules of the user's own, whose objects options and configurations name as ``module:name``."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

MAX_ERROR = 300
"""Characters of an error of the user's code that messages show."""
_folders: list[str] = []
"""Folders of modules; that of the configuration that was read last is at the end."""
_first_texts: MutableMapping[Any, str] = WeakKeyDictionary()
"""Texts of the files of objects, when they were asked for first."""
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_reference(text: str) -> bool:
    """Return whether a text has the form ``module:name``.

    Args:
        text: any text.

    Examples:
        >>> is_reference("my_methods:shrunk_mle"), is_reference("rpo")
        (True, False)
    """
    return _REFERENCE.fullmatch(text) is not None


def add_module_folder(folder: Path) -> None:
    """Let modules of a folder be imported, such as those beside a configuration.

    The folder is searched after all installed modules, so that none of its files takes the place
    of one.

    Args:
        folder: a folder.
    """
    path = str(folder.resolve())
    if path in _folders and path in sys.path:
        sys.path.remove(path)
    if path not in sys.path:
        # Before the folders of other configurations, whose modules may have the same names.
        earlier = [sys.path.index(item) for item in _folders if item in sys.path]
        sys.path.insert(min(earlier, default=len(sys.path)), path)
    _folders[:] = [*(item for item in _folders if item != path), path]


def import_user_module(name: str) -> ModuleType:
    """Import a module, which may lie in the current folder.

    Args:
        name: dotted name of the module.

    Returns:
        The module. What it prints while it is imported goes to stderr.

    Raises:
        ImportError: if there is no such module, or one of this name was imported from the folder of
            another configuration. The module itself may raise anything.

    Examples:
        >>> import_user_module("math").pi > 3
        True
    """
    if name in sys.modules:
        _refuse_other_folder(name.partition(".")[0])
        return sys.modules[name]
    if "" not in sys.path:  # last, for the same reason as the folders above
        sys.path.append("")
    with printing_to_stderr():
        return importlib.import_module(name)


def _refuse_other_folder(name: str) -> None:
    """Raise an error if a module was imported from the folder of another configuration."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None or not _folders:
        return
    path = Path(file).resolve()
    root = path.parents[1] if path.name == "__init__.py" else path.parent
    if str(root) not in _folders[:-1]:
        return
    folder = Path(_folders[-1])
    for beside in (folder / f"{name}.py", folder / name / "__init__.py"):
        if beside.is_file() and beside.read_bytes() != path.read_bytes():
            raise ImportError(
                f"this process has imported {path}, which has the same name as {beside}: rename "
                "one of them, or start another process"
            )


def load_object(reference: str, kind: str) -> Any:
    """Load an object of a module.

    Args:
        reference: ``module:name``.
        kind: what the object is, for messages, such as "class" or "method".

    Returns:
        The object.

    Raises:
        ValueError: if the reference has another form, the module cannot be imported, or it has no
            such object; the message has no key in front.

    Examples:
        >>> load_object("math:sqrt", "function")(9.0)
        3.0
    """
    if not is_reference(reference):
        form = f"module:{'Class' if kind == 'class' else 'name'}"
        raise ValueError(f"must be of the form {form}, got {reference!r}")
    module_name, _, name = reference.partition(":")
    try:
        module = import_user_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module may raise anything, or exit
        hint = ": leave out .py" if module_name.endswith(".py") else ""
        raise ValueError(f"cannot import {module_name}: {describe_error(error)}{hint}") from error
    if not hasattr(module, name):
        # The file shows that an installed module has the name of one beside a configuration.
        file = getattr(module, "__file__", None)
        where = f": it is the file {file}" if file else ""
        raise ValueError(f"the module {module_name} has no {kind} {name}{where}")
    return getattr(module, name)


def describe_error(error: BaseException) -> str:
    r"""Return an error of the user's code in one short line.

    Args:
        error: any error.

    Returns:
        Its type and the first line of its message, of at most :data:`MAX_ERROR` characters.

    Examples:
        >>> describe_error(RuntimeError("no license\nsee the manual"))
        'RuntimeError: no license'
    """
    name = type(error).__name__
    first = next(iter(str(error).splitlines()), "")
    text = f"{name}: {first}" if first else name
    return text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "..."


def source_text(function: Any) -> str:
    """Return the source code that an object of the user's own depends on first of all.

    Args:
        function: a function or a class.

    Returns:
        The text of its file; without a file, that of the object; without either, its name.

    Raises:
        ValueError: if the file has another text than when it was asked for first: the object
            then runs code that is not in the file.

    Examples:
        >>> "def source_text" in source_text(source_text)
        True
    """
    with contextlib.suppress(OSError, TypeError):
        path = Path(inspect.getsourcefile(function) or "")
        text = path.read_text(encoding="utf-8")
        if _first_texts.setdefault(function, text) != text:
            raise ValueError(
                f"{path} has changed since this process imported it: start another process, or "
                "reload the module"
            )
        return text
    with contextlib.suppress(OSError, TypeError):  # a cell of a notebook
        return inspect.getsource(function)
    return f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', function)}"


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """Keep what the user's code prints out of the JSON on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
