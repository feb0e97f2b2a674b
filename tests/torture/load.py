"""Load test: large studies and data, prompts of 100,000 tokens, long runs with flat memory.

    python tests/torture/load.py --fits 10000000 --pairs 1000000 --minutes 30 [--only study,...]

Every part runs the ``rpo`` command, or its data path, in a separate process and prints the peak of
its resident memory. The program exits with 1 if a limit is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import soak
import yaml

MEBIBYTE = 2**20
MAX_STUDY_BYTES = 2 * 2**30
MAX_DATA_BYTES = 2 * 2**30
METHODS = ("behavior_cloning", "greedy_mle", "two_stage", "dpo")
COMPARISONS = (10, 30, 100, 300, 1000)
ACTIONS = 3
LONG_PROMPT = 100_000
COMMON_TERMS = (
    "the",
    "of",
    "to",
    "and",
    "a",
    "in",
    "is",
    "it",
    "you",
    "that",
    "he",
    "was",
    "for",
    "on",
)
ARCHITECTURE = {
    "vocab_size": 261,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


class Outcome(NamedTuple):
    """Exit code, times, memory and output of a process.

    Attributes:
        code: exit code.
        seconds: wall-clock time.
        cpu_seconds: processor time.
        peak: peak resident memory, bytes.
        stdout: standard output.
        stderr: standard error.
    """

    code: int
    seconds: float
    cpu_seconds: float
    peak: int
    stdout: str
    stderr: str


def run_python(*command: str, folder: Path) -> Outcome:
    """Run a Python program to its end and measure it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        cpu_seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
        return Outcome(process.returncode, seconds, cpu_seconds, peak, out.read(), err.read())


def report(part: str, outcome: Outcome, details: str, *, holds: bool) -> bool:
    """Print a line of the table and return whether the limits hold."""
    peak = f"{outcome.peak / MEBIBYTE:7,.0f} MiB"
    times = f"{outcome.seconds:8,.0f} s {outcome.cpu_seconds:8,.0f} s"
    print(f"{part:34}{times} {peak}  {'ok' if holds else 'MISSED'}  {details}")
    sys.stdout.flush()
    if not holds:
        print(outcome.stderr[-2000:], file=sys.stderr)
    return holds


def study(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Run a study of many small fits, and one of a tenth of them, to compare their memory."""
    import pyarrow.parquet as pq

    cells = len(METHODS) * len(COMPARISONS)
    for divisor, name in ((10, "tenth"), (1, "full")):
        config = {
            "name": name,
            "methods": [{"method": method} for method in METHODS],
            "comparisons": list(COMPARISONS),
            "seeds": -(-options.fits // divisor // cells),
            "design": {"contexts": 1, "actions": ACTIONS, "rare": 1},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(config))
        ended = run_python("-m", "rpo", "study", "study.yaml", "--out", name, folder=folder)
        path = folder / name / "records.parquet"
        rows = pq.read_metadata(path).num_rows if path.exists() else 0
        holds = ended.code == 0 and rows == config["seeds"] * cells
        size = path.stat().st_size if rows else 0
        rate = f"{rows / ended.cpu_seconds:,.0f} fits per CPU second, {size / MEBIBYTE:,.0f} MiB"
        holds = holds and ended.peak < MAX_STUDY_BYTES
        yield report(f"study of {rows:,} fits", ended, rate, holds=holds)


def data(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Read, tokenize and pack many pairs into the batches of an epoch, then train on them."""
    write_pairs(folder / "pairs.jsonl", options.pairs)
    size = (folder / "pairs.jsonl").stat().st_size
    write_run(folder, "pairs.jsonl", max_length=256)
    ended = run_python(__file__, "--stream", "run.yaml", folder=folder)
    streamed = json.loads(ended.stdout or "{}")
    details = (
        f"{size / MEBIBYTE:,.0f} MiB of JSON lines, {streamed.get('tokens', 0):,} tokens in "
        f"{streamed.get('steps', 0):,} batches; loaded after {streamed.get('loaded', 0):,.0f} s"
    )
    holds = ended.code == 0 and streamed.get("pairs") == options.pairs - 100
    holds = holds and ended.peak < MAX_DATA_BYTES
    yield report(f"{options.pairs:,} pairs streamed", ended, details, holds=holds)
    command = ("-m", "rpo", "train", "run.yaml", "--out", "trained", "--trainer.max_steps", "20")
    ended = run_python(*command, folder=folder)
    holds = ended.code == 0 and ended.peak < MAX_DATA_BYTES
    yield report(f"{options.pairs:,} pairs, 20 steps", ended, "rpo train", holds=holds)


def prompts(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Train on prompts of 100,000 tokens, which are truncated as configured, or refused."""
    del options
    row = {"prompt": "x" * LONG_PROMPT, "chosen": "yes", "rejected": "no"}
    with_reference = {**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    (folder / "long.jsonl").write_text((json.dumps(row) + "\n") * 8)
    (folder / "reference.jsonl").write_text((json.dumps(with_reference) + "\n") * 8)
    write_run(folder, "long.jsonl", max_length=256)
    base = ("-m", "rpo", "train", "run.yaml", "--trainer.max_steps", "2")
    for mode in ("keep_end", "keep_start"):
        ended = run_python(*base, "--out", mode, "--data.truncation_mode", mode, folder=folder)
        holds = ended.code == 0 and "prompts_cut: 8" in ended.stderr
        yield report(f"prompts of {LONG_PROMPT:,}, {mode}", ended, "8 of 8 truncated", holds=holds)
    ended = run_python(
        *base, "--out", "reference", "--data.train", "reference.jsonl", folder=folder
    )
    holds = ended.code == 2 and "reference.jsonl:1: the reference log-prob" in ended.stderr
    details = ended.stderr.strip().splitlines()[-1][:90] if ended.stderr else ""
    yield report("with reference log-probabilities", ended, details, holds=holds)
    too_long = ("--data.max_length", "110000")
    ended = run_python(*base, "--out", "beyond", *too_long, folder=folder)
    holds = ended.code == 2 and "`data.max_length` must be at most 2048" in ended.stderr
    details = ended.stderr.strip().splitlines()[-1][:90] if ended.stderr else ""
    yield report("longer than the model's positions", ended, details, holds=holds)


def write_pairs(path: Path, count: int) -> None:
    """Write short pairs of common terms, the same ones for the same count."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt, chosen, rejected = (
                " ".join(rng.choices(COMMON_TERMS, k=rng.randint(2, limit))) for limit in (12, 9, 9)
            )
            row = {"prompt": prompt, "chosen": f"{chosen} {number}", "rejected": rejected}
            file.write(json.dumps(row) + "\n")


def write_run(folder: Path, train: str, *, max_length: int) -> None:
    """Write the configuration of a run on a tiny model."""
    config = {
        "name": "load",
        "model": {"architecture": ARCHITECTURE},
        "data": {"train": train, "tokenizer": "bytes", "max_length": max_length},
        "objective": {"method": "rpo", "beta": 0.5, "eta": 0.05},
        "optimizer": {"learning_rate": 1e-3},
        "trainer": {"per_device_train_batch_size": 8},
    }
    config["data"]["eval_rows"] = 100 if train == "pairs.jsonl" else 0
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def stream(config: str) -> int:
    """Read every batch of an epoch as training does; runs in a separate process."""
    import numpy as np

    from llm.config import TrainConfig
    from llm.data.loader import BatchSampler, iterate_batches
    from llm.hf.factory import resolve_model
    from llm.train.dataset import load_training_data
    from rpo.runtime.config_files import read_config

    start = time.perf_counter()
    run = read_config(Path(config), TrainConfig, [])
    loaded = load_training_data(run.data, resolve_model(run.model))
    seconds = time.perf_counter() - start
    sampler = BatchSampler(loaded.train, run.data.layout, run.trainer.per_device_train_batch_size)
    tokens = pairs = 0
    for _, batch in iterate_batches(sampler, 0, sampler.steps_per_epoch):
        tokens += int(np.count_nonzero(batch.rows.segments))
        pairs += int(np.count_nonzero(batch.present))
    counts = {"tokens": tokens, "pairs": pairs, "steps": sampler.steps_per_epoch}
    print(json.dumps(counts | {"loaded": seconds}))
    return 0


def run_soak(folder: Path, *length: str) -> Outcome:
    """Run the soak test on a tiny model."""
    write_pairs(folder / "soak.jsonl", 64)
    write_run(folder, "soak.jsonl", max_length=128)
    return run_python(soak.__file__, *length, folder=folder)


def long_training(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Run one training of many steps with checkpoints; its memory must not grow."""
    ended = run_soak(folder, "--steps", str(options.steps))
    yield report(f"{options.steps:,} steps", ended, ended.stdout.strip(), holds=ended.code == 0)


def long_soak(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Run all commands repeatedly in one process; its memory must not grow."""
    ended = run_soak(folder, "--minutes", str(options.minutes))
    yield report(f"{options.minutes} minutes", ended, ended.stdout.strip(), holds=ended.code == 0)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[bool]]] = {
    "prompts": prompts,
    "data": data,
    "study": study,
    "training": long_training,
    "soak": long_soak,
}


def main() -> int:
    """Run the parts, print the table, and return 0 if all limits hold."""
    parser = argparse.ArgumentParser(
        description="load test with large studies, large data and a soak test"
    )
    parser.add_argument("--fits", type=int, default=10_000_000)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", default=",".join(PARTS), help="comma-separated parts")
    parser.add_argument("--stream", metavar="CONFIG.yaml", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        return stream(options.stream)
    passed = True
    print(f"{'part':37}{'time':>7} {'cpu time':>10} {'peak':>11}")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="load") as folder:
            for holds in PARTS[name](options, Path(folder)):
                passed = passed and holds
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
