"""Disks that are too small or fill up while a command runs, and read-only folders.

A command must end with one line that names its folder. When there is room again, it must resume and
end with the bits of a run that always had room.
"""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crashes import PATIENCE, Subject, start, wait_for_a_write, work

ROOM = "64m"
FILLER = "filler"


@contextmanager
def mounted(point: Path, size: str) -> Iterator[Path]:
    """Mount a disk of a given size, in memory."""
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)
        point.rmdir()


def remount(point: Path, options: str) -> None:
    """Change the options of a disk."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(point)], check=True)


def may_mount(folder: Path) -> str | None:
    """Return why disks cannot be mounted here; None if they can."""
    try:
        with mounted(folder / "probe", "64k"):
            return None
    except (subprocess.CalledProcessError, OSError) as error:
        return f"no disk can be mounted here: {error}"


def complaint(subject: Subject, code: int, stderr: str, out: Path) -> str | None:
    """Return what is wrong with the end of a command that had no room; None if nothing is."""
    lines = stderr.strip().splitlines()
    if code != 2:
        return f"{subject.name}: exit code {code}: {stderr[-1000:]}"
    errors = [line for line in lines if line.startswith("rpo: error: ")]
    if errors != lines[-1:] or str(out) not in errors[0] or "Traceback" in stderr:
        return f"{subject.name}: not one line that names {out}: {stderr[-3000:]}"
    return None


def resume(subject: Subject, folder: Path, out: Path, expected: str) -> str | None:
    """Resume a command when there is room; return what is wrong with its result, or None."""
    process = start(subject, folder, out)
    stderr = process.communicate(timeout=PATIENCE)[1]
    if process.returncode != 0 or "Traceback" in stderr:
        return f"{subject.name}: does not resume, exit code {process.returncode}: {stderr[-1000:]}"
    if subject.outcome(out) != expected:
        return f"{subject.name}: not the bits of the run that had room"
    return None


def settle(
    subject: Subject, folder: Path, out: Path, expected: str, process: subprocess.Popen[str]
) -> tuple[str, str | None]:
    """Return how a command with little room ended, and what is wrong with that."""
    stderr = process.communicate(timeout=PATIENCE)[1]
    remount(out.parent, f"size={ROOM}")
    (out.parent / FILLER).unlink(missing_ok=True)
    if process.returncode == 0 and subject.outcome(out) == expected:
        return "harmless", None
    wrong = complaint(subject, process.returncode, stderr, out)
    wrong = wrong or resume(subject, folder, out, expected)
    return ("detected", None) if wrong is None else ("silently wrong", wrong)


def small_disk(
    subject: Subject, folder: Path, expected: str, kilobytes: int
) -> tuple[str, str | None]:
    """Run a command on a disk of a given size."""
    with mounted(folder / "disk", f"{kilobytes}k") as disk:
        out = disk / "out"
        return settle(subject, folder, out, expected, start(subject, folder, out))


def filling_disk(
    subject: Subject, folder: Path, expected: str, rng: random.Random, life: float
) -> tuple[str, str | None]:
    """Run a command on a disk that is filled while it runs, often during a write."""
    with mounted(folder / "disk", ROOM) as disk:
        out = disk / "out"
        process = start(subject, folder, out)
        if rng.random() < 0.7:
            wait_for_a_write(subject, out, process, rng)
        else:
            work(process, rng.uniform(0.2, 1.0) * life)
        fill(disk / FILLER)
        return settle(subject, folder, out, expected, process)


def fill(path: Path) -> None:
    """Fill the disk."""
    block = bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        while block:
            try:
                file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]


def read_only(subject: Subject, folder: Path, expected: str) -> tuple[str, str | None]:
    """Run a command on a read-only disk, with a finished run and without one."""
    for finished in (True, False):
        with mounted(folder / "disk", ROOM) as disk:
            out = disk / "out"
            if finished:
                start(subject, folder, out).communicate(timeout=PATIENCE)
            remount(disk, "ro")
            process = start(subject, folder, out)
            stderr = process.communicate(timeout=PATIENCE)[1]
            remount(disk, "rw")
            wrong = complaint(subject, process.returncode, stderr, out)
            wrong = wrong or resume(subject, folder, out, expected)
            if wrong is not None:
                return "silently wrong", wrong
    return "detected", None


def torture(
    subject: Subject, folder: Path, sizes: int, fillings: int, seed: int
) -> dict[str, tuple[Counter[str], list[str]]]:
    """Run all trials of one command; return the counts by kind of fault."""
    rng = random.Random(seed)
    for name in ("compiles", "whole"):
        began = sum(os.times()[2:4])
        out = folder / f"{subject.name}-{name}"
        start(subject, folder, out).communicate(timeout=PATIENCE)
    life, expected = sum(os.times()[2:4]) - began, subject.outcome(out)
    used = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) // 1024
    trials = {
        "disk too small": [
            lambda k=k: small_disk(subject, folder, expected, 8 + used * k // sizes)
            for k in range(1, sizes + 1)
        ],
        "disk that fills up": [lambda: filling_disk(subject, folder, expected, rng, life)]
        * fillings,
        "read-only folder": [lambda: read_only(subject, folder, expected)],
    }
    results = {}
    for kind, runs in trials.items():
        ended = [trial() for trial in runs]
        tally = Counter(outcome for outcome, _ in ended)
        results[f"{kind}, rpo {subject.name}"] = tally, [wrong for _, wrong in ended if wrong]
    return results
