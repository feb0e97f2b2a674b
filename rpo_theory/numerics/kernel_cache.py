"""Kernels from source code: compiled by Numba once and kept on disk for later processes.

A kernel is the text of a module whose functions have explicit types, so that executing the module
compiles them. Numba is imported at the first call.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
import threading
import types
from contextlib import suppress
from pathlib import Path

_lock = threading.Lock()


def load_kernel(name: str, source: str) -> types.ModuleType:
    """Return a module with compiled functions; one thread compiles at a time.

    Args:
        name: name of the kernel, an identifier.
        source: Python code of the module. Its global ``CACHE`` says whether Numba keeps files.

    Returns:
        The module. Callers keep it: another call loads it again.

    Examples:
        >>> load_kernel("doubled", "doubled = lambda x: 2 * x").doubled(3)
        6
    """
    with _lock:
        folder = _cache_folder()
        if folder is not None:
            # Whatever is wrong with a folder or a file in it, the kernel compiles without them.
            with suppress(Exception):
                path = _stored(folder / _digest(source) / f"{name}.py", source)
                return _run(name, source, filename=str(path), cache=True)
        return _run(name, source, filename=f"<{name}>", cache=False)


def _run(name: str, source: str, *, filename: str, cache: bool) -> types.ModuleType:
    """Execute the source code as a module; Numba reads or writes its cache beside the file."""
    module = types.ModuleType(f"{__name__}.{name}")  # replaces no module of a file
    module.__file__ = filename
    module.__dict__["CACHE"] = cache
    sys.modules[module.__name__] = module  # Numba looks the functions of its cache up by name
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


def _cache_folder() -> Path | None:
    """Return the folder of compiled kernels, or None for a user without a home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache and not os.environ.get("HOME", "unset"):
        return None
    with suppress(RuntimeError):
        return (Path(cache) if cache else Path.home() / ".cache") / "rpo" / "kernels"
    return None


def _digest(source: str) -> str:
    """Return a name for the code and for everything that the compiled code depends on."""
    import llvmlite
    import llvmlite.binding as llvm
    import numba

    facts = [
        source,
        *(numba.__version__, llvmlite.__version__, platform.python_version()),
        *(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()),
    ]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:20]


def _stored(path: Path, source: str) -> Path:
    """Write the source code once; a process that reads it never sees a part of it."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source)
        os.replace(part, path)
    return path
