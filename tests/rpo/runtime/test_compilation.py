"""Claims about the start of JAX: wrong variables in one line, kept programs without noise."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

from rpo.runtime import compilation
from rpo.runtime.compilation import (
    WITHOUT_TPU,
    cache_folder,
    keep_compiled_programs,
    prepare_jax,
    setup_error,
    silent_cache,
)
from rpo.runtime.errors import UsageError

CACHE = "JAX_COMPILATION_CACHE_DIR"
LEAST_SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process in which JAX is not imported, with an empty home and its own environment."""
    monkeypatch.setattr(os, "environ", {**os.environ, "HOME": str(tmp_path)})
    for name in (CACHE, LEAST_SECONDS, "XLA_FLAGS", "JAX_PLATFORMS", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    monkeypatch.delitem(sys.modules, "jax", raising=False)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--nonsense", "--nonsense"),
        ("--xla_gpu_deterministic_ops=true --xla_nonsense=1", "--xla_nonsense=1"),
        ("--xla_force_host_platform_device_count=abc", "abc"),
        ("flags.txt", 'Could not open file "flags.txt"'),
    ],
)
def test_raises_for_flags_that_would_end_the_process(flags: str, reason: str) -> None:
    os.environ["XLA_FLAGS"] = flags
    with pytest.raises(UsageError, match=r"^XLA_FLAGS: .*") as caught:
        prepare_jax()
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_property_good_flags_and_blanks_are_accepted() -> None:
    for flags in ("--xla_force_host_platform_device_count=2", "  ", ""):
        os.environ["XLA_FLAGS"] = flags
        prepare_jax(check_devices=False)
    assert "XLA_FLAGS" not in os.environ
    before = dict(os.environ)
    prepare_jax()
    assert os.environ == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("Unable to initialize backend 'x': no 'x'. (set JAX_PLATFORMS='' ...)"),
            "JAX_PLATFORMS=x: Unable to initialize backend 'x': no 'x': set it to cpu",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), "has not enough memory"),
        (MemoryError("Unable to allocate 9 GiB"), "not enough memory: Unable to allocate 9 GiB"),
        (RuntimeError("something else"), None),
        (ValueError("invalid truth value"), None),
    ],
)
def test_closed_form_errors_of_the_machine_are_one_line(error: Exception, line: str | None) -> None:
    os.environ["JAX_PLATFORMS"] = "x"
    found = setup_error(error)
    assert (found is None) == (line is None)
    if line is not None and found is not None:
        assert line in found
        assert "\n" not in found


def test_property_every_program_is_kept_in_the_folder_of_the_user(tmp_path: Path) -> None:
    keep_compiled_programs()
    assert os.environ[CACHE] == str(tmp_path / ".cache" / "rpo" / "compiled")
    assert float(os.environ[LEAST_SECONDS]) == 0.0
    assert Path(os.environ[CACHE]).is_dir()
    os.environ |= {CACHE: "elsewhere", LEAST_SECONDS: "3"}
    keep_compiled_programs()
    assert (os.environ[CACHE], os.environ[LEAST_SECONDS]) == ("elsewhere", "3")


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME"])
def test_extreme_nothing_is_kept_where_nothing_can_be_written(name: str) -> None:
    os.environ[name] = "/proc"
    keep_compiled_programs()
    assert CACHE not in os.environ
    assert LEAST_SECONDS not in os.environ


def test_extreme_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    del os.environ["HOME"]
    assert cache_folder() is None
    keep_compiled_programs()
    assert CACHE not in os.environ
    prepare_jax()
    assert os.environ["HOME"] == "/"


def test_limit_the_oldest_half_of_too_many_programs_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "MAX_CACHE_BYTES", 100)
    folder = tmp_path / ".cache" / "rpo" / "compiled"
    folder.mkdir(parents=True)
    for index in range(8):
        (folder / f"{index}-cache").write_bytes(b"x" * 15)
        os.utime(folder / f"{index}-cache", (index, index))
    keep_compiled_programs()
    assert sorted(path.name[0] for path in folder.iterdir()) == ["5", "6", "7"]


def test_property_a_damaged_cache_is_emptied_without_a_message(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    keep_compiled_programs()
    program = Path(os.environ[CACHE]) / "jit_step-cache"
    foreign = Path(os.environ[CACHE]) / "notes.txt"
    for path in (program, foreign):
        path.write_text("garbage")
    with silent_cache():
        warnings.warn("Error writing persistent compilation cache entry for 'a'", stacklevel=1)
    assert program.exists()
    with silent_cache():
        warnings.warn("Error reading persistent compilation cache entry for 'a'", stacklevel=1)
    assert not program.exists()
    assert foreign.exists()
    assert not recwarn.list


def test_property_libtpu_is_silent_where_there_is_no_tpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in WITHOUT_TPU:
        os.environ.pop(name, None)
    prepare_jax()
    assert WITHOUT_TPU.keys().isdisjoint(os.environ)  # without libtpu nothing is set
    (tmp_path / "libtpu.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compilation, "TPU_DEVICES", (str(tmp_path / "*.py"),))
    prepare_jax()
    assert WITHOUT_TPU.keys().isdisjoint(os.environ)  # beside a TPU neither
    monkeypatch.setattr(compilation, "TPU_DEVICES", (str(tmp_path / "absent"),))
    prepare_jax()
    assert WITHOUT_TPU.items() <= os.environ.items()
