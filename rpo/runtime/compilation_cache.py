"""Compiled programs are kept between runs, so that a run that is resumed compiles nothing again."""

from __future__ import annotations

import os
from pathlib import Path

LEAST = 0.1
"""Seconds of compilation below which a program is not kept."""


def cache_folder() -> Path:
    """Folder of compiled programs: ``$XDG_CACHE_HOME/rpo``, or ``~/.cache/rpo``.

    Returns:
        The folder; it need not exist.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpo" / "compiled"


def keep_compiled_programs() -> None:
    """Have JAX keep compiled programs that took a while, unless it was told where.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder; ``JAX_ENABLE_COMPILATION_CACHE=false`` turns
    the cache off. Where the folder cannot be written nothing is kept, and nothing fails.
    """
    import jax

    given = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if given is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST)
