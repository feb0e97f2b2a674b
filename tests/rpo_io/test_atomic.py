"""Claims about atomic writes: complete or absent, whatever happens in between."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rpo_io.atomic import (
    atomic_file,
    atomic_folder,
    is_temporary,
    refuse_special_file,
    special_kind,
    write_atomic,
)

BEGIN = """
import os, signal, sys
from pathlib import Path
from rpo_io.atomic import atomic_file, atomic_folder
with atomic_file(Path("a.txt")) as file, atomic_folder(Path("model")) as folder:
    file.write_text("half")
    (folder / "config.json").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def temporary(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if is_temporary(path.name)]


def test_roundtrip_bytes_are_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.bin", b"one")
    write_atomic(tmp_path / "a.bin", b"two", durable=True)
    assert (tmp_path / "a.bin").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_extreme_an_error_in_the_block_keeps_the_old_file_and_removes_the_new(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail_half_way() -> None:
        with atomic_file(tmp_path / "a.txt", durable=True) as part:
            part.write_text("ne")
            assert (tmp_path / "a.txt").read_text() == "old"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_raises_with_the_final_name_where_the_disk_is_full(tmp_path: Path) -> None:
    def fill(error: OSError) -> None:
        with atomic_file(tmp_path / "a.txt"):
            raise error

    for named in (OSError(28, "No space left on device"), OSError(28, "no", "other.txt")):
        with pytest.raises(OSError, match=r"No space left|no") as raised:
            fill(named)
        assert raised.value.filename in (str(tmp_path / "a.txt"), "other.txt")
    assert not list(tmp_path.iterdir())


def test_roundtrip_a_folder_appears_complete_and_readable_by_others(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "model") as part:
        (part / "config.json").write_text("{}")
        assert not (tmp_path / "new" / "model").exists()
    assert (tmp_path / "new" / "model" / "config.json").read_text() == "{}"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]


def test_extreme_an_error_in_the_block_leaves_no_folder(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with atomic_folder(tmp_path / "model") as part:
            (part / "config.json").write_text("{}")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_property_permissions_follow_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "new" / "a.bin", b"one")
        with atomic_folder(tmp_path / "model") as part:
            (part / "config.json").write_text("{}")
    finally:
        os.umask(before)
    for path in (tmp_path / "new" / "a.bin", tmp_path / "model" / "config.json"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    for path in (tmp_path / "new", tmp_path / "model"):
        assert path.stat().st_mode & 0o777 == 0o777 & ~umask


def test_property_a_file_of_the_user_with_a_temporary_name_is_never_touched(
    tmp_path: Path,
) -> None:
    with atomic_file(tmp_path / "a.txt") as first:
        ours = first.name
    mine = {"a.txt.part": "mine", "a.txt.tmp": "mine", "b.part": "mine"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    # Even under our own temporary name a link is not followed, and a pipe not opened.
    (tmp_path / "target").write_text("kept")
    (tmp_path / ours).symlink_to("target")
    write_atomic(tmp_path / "a.txt", b"one")
    with atomic_folder(tmp_path / "a"):
        pass
    assert {name: (tmp_path / name).read_text() for name in mine} == mine
    assert (tmp_path / "target").read_text() == "kept"
    assert (tmp_path / ours).is_symlink()
    (tmp_path / ours).unlink()
    os.mkfifo(tmp_path / ours)
    write_atomic(tmp_path / "a.txt", b"two")
    assert (tmp_path / "a.txt").read_bytes() == b"two"
    assert (tmp_path / ours).is_fifo()


def make_link(path: Path) -> None:
    path.with_name("target").write_text("kept")
    path.symlink_to("target")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_link, "a symbolic link"),
        (lambda path: path.symlink_to("absent"), "a symbolic link"),
        (lambda path: os.mkfifo(path), "a pipe"),
        (lambda path: path.mkdir(), "a folder"),
    ],
)
def test_raises_for_anything_but_a_regular_file(
    make: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    assert special_kind(tmp_path / "a.txt") is None
    make(tmp_path / "a.txt")
    assert special_kind(tmp_path / "a.txt") == kind
    with pytest.raises(FileExistsError, match=kind):
        refuse_special_file(tmp_path / "a.txt")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match=f"is {kind}, which is never replaced"):
        write_atomic(tmp_path / "a.txt", b"one")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(FileExistsError, match="is a device"):
        write_atomic(Path("/dev/null"), b"one")


def test_property_the_next_write_removes_what_a_killed_process_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", BEGIN], check=False).returncode < 0
    assert len(temporary(tmp_path)) == 2
    write_atomic(tmp_path / "b.txt", b"another name")
    assert len(temporary(tmp_path)) == 2
    write_atomic(tmp_path / "a.txt", b"one")
    assert len(temporary(tmp_path)) == 1
    with atomic_folder(tmp_path / "model") as part:
        assert not list(part.iterdir())
    assert temporary(tmp_path) == []


def test_property_two_writers_of_one_name_do_not_disturb_each_other(tmp_path: Path) -> None:
    def writers() -> Iterator[None]:
        with ExitStack() as stack:
            parts = [stack.enter_context(atomic_file(tmp_path / "a.txt")) for _ in range(3)]
            assert len(set(parts)) == 3
            for number, part in enumerate(parts):
                part.write_text(f"writer {number}")
            yield

    for _ in writers():
        assert len(temporary(tmp_path)) == 3
    assert temporary(tmp_path) == []
    assert (tmp_path / "a.txt").read_text() == "writer 0"  # the last to end


def test_extreme_a_folder_behind_a_link_and_a_name_of_full_length(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    with atomic_folder(tmp_path / "link") as part:
        (part / "config.json").write_text("{}")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "config.json").exists()
    write_atomic(tmp_path / ("x" * 255), b"one")
    assert (tmp_path / ("x" * 255)).read_bytes() == b"one"
