"""How JAX compiles in a process of the command line; functions of ``rpo.api`` change nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MIN_COMPILE_SECONDS = 0.1
"""Programs that compile faster than this are not kept."""


def cache_folder() -> Path:
    """Return the folder of compiled programs: ``$XDG_CACHE_HOME/rpo`` or ``~/.cache/rpo``.

    Returns:
        The folder; it need not exist.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rpo" / "compiled"


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs between processes, so that a resumed run starts faster.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder; ``JAX_ENABLE_COMPILATION_CACHE=false``
    turns the cache off. If the folder is not writable, nothing is kept and nothing fails.
    """
    import jax

    current = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if current is not None:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


def prefer_fast_compilation() -> None:
    """Set JAX up for one small float64 problem: on the CPU, with few compiler optimizations.

    Variables of the environment that are set stay, and so does a JAX that is imported already.
    """
    if "jax" in sys.modules:
        return
    # JAX starts on the CPU in a fraction of the time that an accelerator takes.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Solving takes milliseconds; compilation takes seconds, half as long without optimizations.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
