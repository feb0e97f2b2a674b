"""Large studies and data, prompts of 100,000 tokens, long work: nothing grows without bound.

    python tests/torture/load.py --fits 10000000 --pairs 1000000 --minutes 30 [--only study,...]

Every part runs the ``rpo`` command or its own data path in a process of its own, whose largest
resident memory is printed. Exits with 1 if a bar is missed.
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
MOST_OF_A_STUDY = 2 * 2**30
MOST_OF_DATA = 2 * 2**30
METHODS = ("behavior_cloning", "greedy_mle", "two_stage", "dpo")
COMPARISONS = (10, 30, 100, 300, 1000)
ACTIONS = 3
LONG = 100_000
WORDS = ("the", "of", "to", "and", "a", "in", "is", "it", "you", "that", "he", "was", "for", "on")
ARCHITECTURE = {
    "vocab_size": 261,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


class Outcome(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit code.
        seconds: that it took.
        worked: seconds of processors.
        peak: its largest resident memory, bytes.
        out: what it printed.
        err: what it said.
    """

    code: int
    seconds: float
    worked: float
    peak: int
    out: str
    err: str


def child(*command: str, folder: Path) -> Outcome:
    """Run a Python program to its end, and measure it."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], cwd=folder, stdout=out, stderr=err)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        worked, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
        return Outcome(process.returncode, seconds, worked, peak, out.read(), err.read())


def told(what: str, outcome: Outcome, more: str, *, holds: bool) -> bool:
    """Print a line of the table."""
    peak = f"{outcome.peak / MEBIBYTE:7,.0f} MiB"
    times = f"{outcome.seconds:8,.0f} s {outcome.worked:8,.0f} s"
    print(f"{what:34}{times} {peak}  {'ok' if holds else 'MISSED'}  {more}")
    sys.stdout.flush()
    if not holds:
        print(outcome.err[-2000:], file=sys.stderr)
    return holds


def study(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """A study of many small fits, and one of a tenth of them, to see what grows."""
    import pyarrow.parquet as pq

    cells = len(METHODS) * len(COMPARISONS)
    for share, name in ((10, "tenth"), (1, "whole")):
        config = {
            "name": name,
            "methods": [{"method": method} for method in METHODS],
            "comparisons": list(COMPARISONS),
            "seeds": -(-options.fits // share // cells),
            "design": {"contexts": 1, "actions": ACTIONS, "rare": 1},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(config))
        ended = child("-m", "rpo", "study", "study.yaml", "--out", name, folder=folder)
        path = folder / name / "records.parquet"
        rows = pq.read_metadata(path).num_rows if path.exists() else 0
        holds = ended.code == 0 and rows == config["seeds"] * cells
        size = path.stat().st_size if rows else 0
        rate = f"{rows / ended.worked:,.0f} a second of work, {size / MEBIBYTE:,.0f} MiB"
        holds = holds and ended.peak < MOST_OF_A_STUDY
        yield told(f"study of {rows:,} fits", ended, rate, holds=holds)


def data(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Many pairs, read, tokenized and packed into every batch of an epoch; then trained on."""
    write_pairs(folder / "pairs.jsonl", options.pairs)
    size = (folder / "pairs.jsonl").stat().st_size
    write_run(folder, "pairs.jsonl", max_length=256)
    ended = child(__file__, "--stream", "run.yaml", folder=folder)
    streamed = json.loads(ended.out or "{}")
    more = (
        f"{size / MEBIBYTE:,.0f} MiB of JSON lines, {streamed.get('tokens', 0):,} tokens in "
        f"{streamed.get('steps', 0):,} batches; loaded after {streamed.get('loaded', 0):,.0f} s"
    )
    holds = ended.code == 0 and streamed.get("pairs") == options.pairs - 100
    holds = holds and ended.peak < MOST_OF_DATA
    yield told(f"{options.pairs:,} pairs streamed", ended, more, holds=holds)
    command = ("-m", "rpo", "train", "run.yaml", "--out", "trained", "--trainer.max_steps", "20")
    ended = child(*command, folder=folder)
    holds = ended.code == 0 and ended.peak < MOST_OF_DATA
    yield told(f"{options.pairs:,} pairs, 20 steps", ended, "rpo train", holds=holds)


def prompts(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Prompts of 100,000 tokens: cut from the end that is configured, or refused."""
    del options
    row = {"prompt": "x" * LONG, "chosen": "yes", "rejected": "no"}
    given = {**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}
    (folder / "long.jsonl").write_text((json.dumps(row) + "\n") * 8)
    (folder / "given.jsonl").write_text((json.dumps(given) + "\n") * 8)
    write_run(folder, "long.jsonl", max_length=256)
    base = ("-m", "rpo", "train", "run.yaml", "--trainer.max_steps", "2")
    for mode in ("keep_end", "keep_start"):
        ended = child(*base, "--out", mode, "--data.truncation_mode", mode, folder=folder)
        holds = ended.code == 0 and "prompts_cut: 8" in ended.err
        yield told(f"prompts of {LONG:,}, {mode}", ended, "8 of 8 cut", holds=holds)
    ended = child(*base, "--out", "given", "--data.train", "given.jsonl", folder=folder)
    holds = ended.code == 2 and "given.jsonl:1: reference log-prob" in ended.err
    more = ended.err.strip().splitlines()[-1][:90] if ended.err else ""
    yield told("with reference of the whole row", ended, more, holds=holds)
    long = ("--data.max_length", "110000")
    ended = child(*base, "--out", "beyond", *long, folder=folder)
    holds = ended.code == 2 and "`data.max_length` must be at most 2048" in ended.err
    more = ended.err.strip().splitlines()[-1][:90] if ended.err else ""
    yield told("longer than the model's positions", ended, more, holds=holds)


def write_pairs(path: Path, count: int) -> None:
    """Short pairs of common words, the same for the same count."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt, chosen, rejected = (
                " ".join(rng.choices(WORDS, k=rng.randint(2, most))) for most in (12, 9, 9)
            )
            row = {"prompt": prompt, "chosen": f"{chosen} {number}", "rejected": rejected}
            file.write(json.dumps(row) + "\n")


def write_run(folder: Path, train: str, *, max_length: int) -> None:
    """Configuration of a run on a tiny model."""
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
    """In a process of its own: every batch of an epoch, as training reads them."""
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
    schedule = BatchSampler(loaded.train, run.data.layout, run.trainer.per_device_train_batch_size)
    tokens = pairs = 0
    for _, batch in iterate_batches(schedule, 0, schedule.steps_per_epoch):
        tokens += int(np.count_nonzero(batch.rows.segments))
        pairs += int(np.count_nonzero(batch.present))
    found = {"tokens": tokens, "pairs": pairs, "steps": schedule.steps_per_epoch}
    print(json.dumps(found | {"loaded": seconds}))
    return 0


def soaked(folder: Path, *length: str) -> Outcome:
    """Soak on a tiny model."""
    write_pairs(folder / "soak.jsonl", 64)
    write_run(folder, "soak.jsonl", max_length=128)
    return child(soak.__file__, *length, folder=folder)


def long_training(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """One training of many steps with checkpoints, whose memory must not grow."""
    ended = soaked(folder, "--steps", str(options.steps))
    yield told(f"{options.steps:,} steps", ended, ended.out.strip(), holds=ended.code == 0)


def long_soak(options: argparse.Namespace, folder: Path) -> Iterator[bool]:
    """Every command again and again in one process, whose memory must not grow."""
    ended = soaked(folder, "--minutes", str(options.minutes))
    yield told(f"{options.minutes} minutes", ended, ended.out.strip(), holds=ended.code == 0)


PARTS: dict[str, Callable[[argparse.Namespace, Path], Iterator[bool]]] = {
    "prompts": prompts,
    "data": data,
    "study": study,
    "training": long_training,
    "soak": long_soak,
}


def main() -> int:
    """Run the parts and print the table; 0 if every bar is met."""
    parser = argparse.ArgumentParser(description="large studies and data, and a soak")
    parser.add_argument("--fits", type=int, default=10_000_000)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--stream", metavar="CONFIG.yaml", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream:
        return stream(options.stream)
    well = True
    print(f"{'what':37}{'took':>7} {'worked':>10} {'peak':>11}")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="load") as folder:
            for holds in PARTS[name](options, Path(folder)):
                well = well and holds
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
