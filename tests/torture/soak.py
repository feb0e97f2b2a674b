"""Solve, study, train and score again and again in one process, and see whether memory grows.

    python tests/torture/soak.py --minutes 30      in a folder with run.yaml and its data

The slope is that of a line through the resident memory after the first third, in MiB an hour.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from rpo.cli import main as rpo

STEEPEST = 60.0
"""MiB an hour: one a round would be hundreds, and a line through half an hour is not exact."""
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


def main() -> int:
    """Soak; 0 if the memory is flat."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    minutes = parser.parse_args().minutes
    Path("study.yaml").write_text(yaml.safe_dump(STUDY))
    Path("problem.json").write_text(json.dumps(PROBLEM))
    call("train run.yaml --out first --trainer.max_steps 2")
    call("export first --out exported")
    start, samples = time.monotonic(), []
    while time.monotonic() - start < 60 * minutes:
        for command in COMMANDS:
            call(command)
        for name in ("study", "run"):
            shutil.rmtree(name)
        Path("scores.jsonl").unlink()
        gc.collect()
        samples.append(((time.monotonic() - start) / 3600, resident()))
        print(f"{60 * samples[-1][0]:.1f} min: {samples[-1][1]:,.0f} MiB", file=sys.stderr)
    hours, memory = np.array(samples[len(samples) // 3 :]).T
    slope = float(np.polyfit(hours, memory, 1)[0])
    print(
        f"{len(samples)} times solve, study, train and score: {memory.min():,.0f} to "
        f"{memory.max():,.0f} MiB after the first third, slope {slope:+,.1f} MiB an hour"
    )
    return 0 if slope < STEEPEST else 1


if __name__ == "__main__":
    sys.exit(main())
