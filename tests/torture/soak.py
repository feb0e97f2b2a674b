"""Soak test: does memory grow in one long training, or in many commands in one process?

    python tests/torture/soak.py --steps 100000    in a folder with run.yaml and its data
    python tests/torture/soak.py --minutes 30      solve, study, train and score

The program fits lines to the samples after the first third: to the resident memory and, on Linux,
to the memory that malloc has allocated. The difference of the two slopes is fragmentation, which
multi-threaded compilation causes. A few rounds are not enough, since caches fill first.
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

MAX_SLOPES = {"rounds": 0.1, "thousand steps": 0.5}
"""Largest slopes in MiB per unit; a leak of one training, study or step would exceed them."""
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
    """Run an rpo command in this process and discard its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = rpo(command.split())
    if code:
        raise SystemExit(f"rpo {command} ended with exit code {code}: {output.getvalue()}")


def resident() -> float:
    """Return the resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class _MallocInfo(ctypes.Structure):
    """The C library's ``struct mallinfo2``."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    )  # fmt: skip


def allocated() -> float:
    """Return the memory allocated by malloc, MiB; NaN without glibc's ``mallinfo2``."""
    try:
        mallinfo2 = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return float("nan")
    mallinfo2.restype = _MallocInfo
    info = mallinfo2()
    return (info.uordblks + info.hblkhd) / 2**20


Samples = list[tuple[float, float, float, float]]
"""Seconds, rounds or thousands of steps done, and resident and allocated memory in MiB."""


def train_long(steps: int) -> Samples:
    """Run one training with twenty checkpoints; sample twice a second after the first step."""
    finished, samples = threading.Event(), Samples()
    metrics = Path("long/metrics.jsonl")

    def sample() -> None:
        done = read = 0
        while not finished.wait(0.5):
            if metrics.exists():
                with metrics.open("rb") as file:
                    file.seek(read)
                    done += file.read().count(b"\n")
                    read = file.tell()
                samples.append((time.monotonic(), done / 1000, resident(), allocated()))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        save_steps = max(1, steps // 20)
        length = f"--trainer.max_steps {steps} --trainer.save_steps {save_steps}"
        call(f"train run.yaml --out long {length} --trainer.logging_steps 1")
    finally:
        finished.set()
        sampler.join()
    return samples


def call_all(minutes: float) -> Samples:
    """Run all commands repeatedly; sample after every round."""
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
        samples.append((time.monotonic(), len(samples) + 1.0, resident(), allocated()))
        minutes_done = (samples[-1][0] - start) / 60
        print(f"{minutes_done:.1f} min: {samples[-1][2]:,.0f} MiB", file=sys.stderr)
    return samples


def main() -> int:
    """Run the soak test and return 0 if the memory is flat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the rounds")
    parser.add_argument("--steps", type=int, help="run one training of this length instead")
    options = parser.parse_args()
    units = "thousand steps" if options.steps else "rounds"
    samples = train_long(options.steps) if options.steps else call_all(options.minutes)
    seconds, done, memory, malloc = np.array(samples[len(samples) // 3 :]).T
    slope, malloc_slope = (float(np.polyfit(done, values, 1)[0]) for values in (memory, malloc))
    per_hour = 3600 * (done[-1] - done[0]) / (seconds[-1] - seconds[0])
    print(
        f"{done[-1]:,.0f} {units}: {memory.min():,.0f} to {memory.max():,.0f} MiB after the "
        f"first third, slope {slope * per_hour:+,.1f} MiB per hour, {1024 * slope:+.1f} KiB each "
        f"(of which {1024 * malloc_slope:+.1f} is allocated)"
    )
    return 0 if slope < MAX_SLOPES[units] else 1


if __name__ == "__main__":
    sys.exit(main())
