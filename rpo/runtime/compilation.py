"""How JAX starts and compiles in a process of the command line.

Functions of ``rpo.api`` change nothing of this.
"""

from __future__ import annotations

import glob
import importlib.util
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import UsageError

MAX_CACHE_BYTES = 2 * 2**30
"""Size beyond which the oldest half of the compiled programs is removed."""
TPU_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
"""Device files of TPUs."""
WITHOUT_TPU = {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
"""Variables without which libtpu, where there is no TPU, reports that it cannot find them."""
READ_XLA_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


def prepare_jax(*, check_devices: bool = True) -> None:
    """Set up JAX for a command, before it is imported: variables of the environment are checked.

    Args:
        check_devices: whether to start the devices that ``JAX_PLATFORMS`` names, so that a wrong
            name is reported; not before several processes are connected.

    Raises:
        UsageError: if ``XLA_FLAGS`` or ``JAX_PLATFORMS`` is wrong.
    """
    # Containers may run as a user without a home; libraries then look for files in the root.
    if not os.environ.get("HOME"):
        os.environ["HOME"] = _home() or "/"
    os.environ["MPLBACKEND"] = "agg"  # figures are written to files
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where it keeps fonts is no news
    # Worker processes warn as well.
    ignored = (f"ignore:Error {act} persistent compilation cache" for act in ("reading", "writing"))
    filters = [*filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")), *ignored]
    os.environ["PYTHONWARNINGS"] = ",".join(dict.fromkeys(filters))
    _check_xla_flags()
    has_tpu = "JAX_FORCE_TPU_INIT" in os.environ or any(map(glob.glob, TPU_DEVICES))
    if not has_tpu and _has_libtpu():
        for name, value in WITHOUT_TPU.items():
            os.environ.setdefault(name, value)
    keep_compiled_programs()
    platforms = os.environ.get("JAX_PLATFORMS", "").strip()
    if check_devices and platforms not in ("", "cpu"):
        _start_devices(platforms)


def cache_folder() -> Path | None:
    """Return the folder of compiled programs: ``$XDG_CACHE_HOME/rpo`` or ``~/.cache/rpo``.

    Returns:
        The folder, which need not exist; None where the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    home = os.environ.get("HOME") or _home()
    if not cache and not home:
        return None
    return Path(cache or Path(home or "") / ".cache") / "rpo" / "compiled"


def keep_compiled_programs() -> None:
    """Let JAX keep all compiled programs between processes, so that a second run starts faster.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder; ``JAX_ENABLE_COMPILATION_CACHE=false``
    turns the cache off. If the folder is not writable, nothing is kept and nothing fails.
    """
    jax: Any = sys.modules.get("jax")
    # A program that compiles in no time is kept as well: a later process finds every one.
    settings: dict[str, Any] = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    given = None if jax is None else jax.config.jax_compilation_cache_dir
    if not (given or os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        folder = cache_folder()
        if folder is None or not _can_keep(folder):
            return
        settings["jax_compilation_cache_dir"] = str(folder)
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            if jax is not None:
                jax.config.update(name, value)


@contextmanager
def silent_cache() -> Iterator[None]:
    """Leave warnings about kept programs out of a block; remove kept programs that are damaged."""
    damaged = False
    show = warnings.showwarning

    def show_others(message: Warning | str, *args: Any, **options: Any) -> None:
        nonlocal damaged
        text = str(message)
        if re.match("Error (reading|writing) persistent compilation cache", text):
            damaged = damaged or text.startswith("Error reading")
        else:
            show(message, *args, **options)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message="Error .* persistent compilation cache")
        warnings.showwarning = show_others
        yield
    folder = cache_folder()
    # JAX never replaces a damaged program.
    if (
        damaged
        and folder is not None
        and os.environ.get("JAX_COMPILATION_CACHE_DIR") == str(folder)
    ):
        for path in folder.glob("*-cache"):
            with suppress(OSError):
                path.unlink()


def setup_error(error: Exception) -> str | None:
    """Return the line that explains an error in which JAX could not start or had no memory.

    Args:
        error: an error that ended a command.

    Returns:
        One line; None for every other error, which is a bug.
    """
    text = str(error).strip()
    if isinstance(error, RuntimeError) and text.startswith("Unable to initialize backend"):
        return _platform_rule(os.environ.get("JAX_PLATFORMS", ""), text)
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in text:
        return f"the device has not enough memory: {text.splitlines()[0]}: use smaller batches"
    if isinstance(error, MemoryError):
        return f"not enough memory{f': {text}' if text else ''}: use smaller sizes"
    if isinstance(error, ValueError) and _is_raised_in(error.__traceback__, "jax/_src/config.py"):
        return f"a variable of the environment is wrong: {text}"
    return None


def _is_raised_in(traceback: TracebackType | None, file: str) -> bool:
    """Return whether the innermost frame of a traceback lies in a file."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_code.co_filename.endswith(file)


def _home() -> str | None:
    with suppress(RuntimeError):
        return str(Path.home())
    return None


def _has_libtpu() -> bool:
    return (
        bool(os.environ.get("TPU_LIBRARY_PATH")) or importlib.util.find_spec("libtpu") is not None
    )


def _check_xla_flags() -> None:
    """Refuse flags that XLA does not know: it would end the process with a list of all flags.

    Raises:
        UsageError: if another process that reads the flags is ended.
    """
    if not os.environ.get("XLA_FLAGS", "").strip():
        os.environ.pop("XLA_FLAGS", None)  # blanks would be read as the name of a file
        return
    if "jax" in sys.modules:
        return
    command = [sys.executable, "-c", READ_XLA_FLAGS]
    try:
        done = subprocess.run(
            command, env=dict(os.environ), capture_output=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    if done.returncode != 0 and b"flag" in done.stderr.lower():
        lines = done.stderr.decode(errors="replace").splitlines()
        # The line is marked as an error (E) or as fatal (F), with time and source.
        found = next(filter(None, (re.match(r"[EF]\d{4} [^\]]*\] (.*)", x) for x in lines)), None)
        raise UsageError(f"XLA_FLAGS: {found[1] if found else 'a flag is wrong'}")


def _start_devices(platforms: str) -> None:
    """Start the devices that the user asks for.

    Raises:
        UsageError: if there are none, or nothing of this name is known.
    """
    try:
        import jax

        jax.devices()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(_platform_rule(platforms, str(error))) from error


def _platform_rule(platforms: str, text: str) -> str:
    reason = text.partition(" (set JAX_PLATFORMS")[0].partition(" (you may need")[0]
    reason = " ".join(reason.split()) or "there is no such device"
    reason = reason.rstrip(".")
    return f"JAX_PLATFORMS={platforms}: {reason}: set it to cpu, or leave it out"


def _can_keep(folder: Path) -> bool:
    """Return whether programs can be kept in a folder, which is created and limited in size."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _limit_size(folder)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def _limit_size(folder: Path) -> None:
    """Remove the programs that were not used for the longest time if the folder is too large."""
    with os.scandir(folder) as entries:
        files = [(entry.stat(), entry.path) for entry in entries if entry.is_file()]
    size = sum(status.st_size for status, _ in files)
    if size <= MAX_CACHE_BYTES:
        return
    for status, path in sorted(files, key=lambda item: max(item[0].st_atime, item[0].st_mtime)):
        with suppress(OSError):
            os.unlink(path)
        size -= status.st_size
        if size <= MAX_CACHE_BYTES // 2:
            return


def prefer_fast_compilation() -> None:
    """Set JAX up for one small float64 problem: on the CPU, with few compiler optimizations.

    Variables of the environment that are set stay, and so does a JAX that is imported already.
    """
    if "jax" not in sys.modules:
        os.environ.update(worker_environment(fast_compilation=True))


def worker_environment(*, fast_compilation: bool = False) -> dict[str, str]:
    """Return the variables with which worker processes start JAX.

    Args:
        fast_compilation: whether to compile with few optimizations, for small problems.

    Returns:
        Values of variables that are not set in this process: workers compute on the CPU, and keep
        compiled programs where this process does.
    """
    # JAX starts on the CPU in a fraction of the time that an accelerator takes.
    variables = {"JAX_PLATFORMS": "cpu"}
    if fast_compilation:
        # Solving takes milliseconds; compilation takes seconds, half as long without optimizations.
        variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if jax := sys.modules.get("jax"):
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"):
            if (value := getattr(jax.config, name)) is not None:
                variables[name.upper()] = str(value)
    return {name: value for name, value in variables.items() if name not in os.environ}
