"""One long training, or all commands again and again in one process: does memory grow?

    python tests/torture/soak.py --steps 100000    in a folder with run.yaml and its data
    python tests/torture/soak.py --minutes 30      solve, study, train and score

The slopes are those of lines through what is measured after the first third: the resident memory,
and on Linux what malloc has lent out of it. The rest of a rise is holes between what is lent, which
compilers in many threads leave. A few rounds are not enough: programs and caches fill first.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import numpy as np
import yaml

from rpo.cli import main as rpo

STEEPEST = {"rounds": 0.1, "thousand steps": 0.5}
"""MiB for each: whatever were kept of a training, a study, a model or a step would be more."""
STUDY = {
    "name": "small",
    "methods": [{"method": "rpo"}, {"method": "dpo"}, {"method": "two_stage"}],
    "comparisons": [100, 1000],
    "seeds": 50,
}
PROBLEM = {
    "context_weights": [1.0],
    "reference_policy": [[0.5, 0.3, 0.2]],
    "baseline_policy": "chosen",
    "comparisons": [[0, 0, 1, 5], [0, 1, 0, 2], [0, 1, 2, 3]],
    "beta": 0.5,
    "eta": 0.01,
    "reward_class": {"kind": "tabular", "max": 2.0},
}
COMMANDS = (
    "solve problem.json",
    "solve problem.json --formulation maximin",
    "study study.yaml --out study",
    "train run.yaml --out run --trainer.max_steps 8",
    "score --model exported --tokenizer bytes --data soak.jsonl --out scores.jsonl",
)


def call(command: str) -> None:
    """A command of rpo, in this process; what it says is dropped."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = rpo(command.split())
    if code:
        raise SystemExit(f"rpo {command} ended with {code}: {said.getvalue()}")


def resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class _Lent(ctypes.Structure):
    """``struct mallinfo2`` of the C library."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def lent() -> float:
    """Memory that malloc has given out and not got back, MiB; nan where it cannot be asked."""
    try:
        ask = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return float("nan")
    ask.restype = _Lent
    found = ask()
    return (found.uordblks + found.hblkhd) / 2**20


Samples = list[tuple[float, float, float, float]]
"""Seconds, rounds or thousands of steps done, resident memory and what malloc has lent, MiB."""


def train_long(steps: int) -> Samples:
    """One training, with twenty checkpoints, looked at twice a second after its first step."""
    over, samples = threading.Event(), Samples()
    metrics = Path("long/metrics.jsonl")

    def look() -> None:
        done = read = 0
        while not over.wait(0.5):
            if metrics.exists():
                with metrics.open("rb") as file:
                    file.seek(read)
                    done += file.read().count(b"\n")
                    read = file.tell()
                samples.append((time.monotonic(), done / 1000, resident(), lent()))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        every = max(1, steps // 20)
        length = f"--trainer.max_steps {steps} --trainer.save_steps {every}"
        call(f"train run.yaml --out long {length} --trainer.logging_steps 1")
    finally:
        over.set()
        watcher.join()
    return samples


def call_all(minutes: float) -> Samples:
    """Every command, again and again."""
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    Path("problem.json").write_text(json.dumps(PROBLEM))
    call("train run.yaml --out first --trainer.max_steps 2")
    call("export first --out exported")
    start, samples = time.monotonic(), Samples()
    while time.monotonic() - start < 60 * minutes:
        for command in COMMANDS:
            call(command)
        for name in ("study", "run"):
            shutil.rmtree(name)
        Path("scores.jsonl").unlink()
        gc.collect()
        samples.append((time.monotonic(), len(samples) + 1.0, resident(), lent()))
        passed = (samples[-1][0] - start) / 60
        print(f"{passed:.1f} min: {samples[-1][2]:,.0f} MiB", file=sys.stderr)
    return samples


def main() -> int:
    """Soak; 0 if the memory is flat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--steps", type=int, help="of one training, instead")
    options = parser.parse_args()
    units = "thousand steps" if options.steps else "rounds"
    samples = train_long(options.steps) if options.steps else call_all(options.minutes)
    seconds, done, memory, kept = np.array(samples[len(samples) // 3 :]).T
    slope, of_kept = (float(np.polyfit(done, values, 1)[0]) for values in (memory, kept))
    an_hour = 3600 * (done[-1] - done[0]) / (seconds[-1] - seconds[0])
    print(
        f"{done[-1]:,.0f} {units}: {memory.min():,.0f} to {memory.max():,.0f} MiB after the "
        f"first third, slope {slope * an_hour:+,.1f} MiB an hour, {1024 * slope:+.1f} KiB each "
        f"(of which malloc has lent {1024 * of_kept:+.1f})"
    )
    return 0 if slope < STEEPEST[units] else 1


if __name__ == "__main__":
    sys.exit(main())
