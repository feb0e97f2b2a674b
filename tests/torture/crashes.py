"""Kill trainings and studies, resume them, and compare the results with an uninterrupted run.

Half of the kills come at random moments of the CPU time of the process, including its imports. The
others come shortly after an unfinished file appears in the folder. Then SIGTERM and SIGINT are sent
at random moments, and a second process is started in the folder of a running one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PATIENCE = 600.0  # seconds for a whole run on a busy machine
KILLS_OF_A_RUN = 6  # then the run may end and is compared
LONGEST_STOP = 10.0
RUN = """
name: crashes
model:
  architecture:
    vocab_size: 261
    hidden_size: 64
    intermediate_size: 128
    num_hidden_layers: 2
    num_attention_heads: 2
data: {train: rows.jsonl, tokenizer: bytes, max_length: 16, eval_rows: 4}
objective: {method: rpo, beta: 0.5, eta: 0.05}
optimizer: {learning_rate: 1.0e-2}
trainer: {max_steps: 60, save_steps: 4, eval_steps: 10, per_device_train_batch_size: 3}
"""
STUDY = """
name: crashes
methods: [{method: rpo, options: {baseline: given}}, {method: dpo}]
comparisons: [100]
seeds: 1000
design: {actions: [4, 5, 6, 7, 8], rare: 2, rare_comparisons: 1.0}
"""
REPLIES = ("yes", "no", "maybe", "never")


class Subject(NamedTuple):
    """A command to kill.

    Attributes:
        name: name of the command.
        unfinished: glob patterns of files that exist only while they are written, by kind.
        outcome: digest of the results, which must not depend on kills.
    """

    name: str
    unfinished: dict[str, tuple[str, ...]]
    outcome: Callable[[Path], str]


@dataclass
class Tally:
    """Counts of kills, writes and results."""

    moments: list[float] = field(default_factory=list)
    writes: Counter[str] = field(default_factory=Counter)
    resumes: int = 0
    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    stops: list[float] = field(default_factory=list)


def trained(out: Path) -> str:
    """Return the digest of the metrics and parameters of a run, without its speed."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("perf/tokens_per_second", None)
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def studied(out: Path) -> str:
    """Return the digest of the records and the summary of a study."""
    content = (out / "records.parquet").read_bytes() + (out / "summary.json").read_bytes()
    return hashlib.sha256(content).hexdigest()


SUBJECTS = {
    "train": Subject(
        "train",
        {
            "checkpoint": ("checkpoints/*.orbax-checkpoint-tmp*",),
            "record": ("*.part",),
        },
        trained,
    ),
    "study": Subject("study", {"record": ("parts/*.part", "*.part")}, studied),
}


def start(subject: Subject, folder: Path, out: Path) -> subprocess.Popen[str]:
    """Start a process; the same command begins a run and resumes it."""
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    kept["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    config = f"{subject.name}.yaml"
    return subprocess.Popen(
        [sys.executable, "-m", "rpo", subject.name, config, "--out", str(out), "--resume"],
        cwd=folder,
        env=os.environ | kept,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def being_written(subject: Subject, out: Path) -> dict[tuple[Path, int], str]:
    """Return the kind of every unfinished file, by its path and the time of its last write."""
    kinds = {}
    for kind, patterns in subject.unfinished.items():
        for path in (path for pattern in patterns for path in out.glob(pattern)):
            with suppress(FileNotFoundError):  # the file is complete by now
                kinds[path, path.stat().st_mtime_ns] = kind
    return kinds


def wait_for_a_write(
    subject: Subject, out: Path, process: subprocess.Popen[str], rng: random.Random
) -> None:
    """Wait until shortly after a file begins to be written, possibly not the first one."""
    seen, left = set(being_written(subject, out)), rng.choice((1, 1, 2, 3, 5, 8, 13))
    while process.poll() is None:
        new = set(being_written(subject, out)) - seen
        left -= len(new)
        seen |= new
        if left <= 0:
            time.sleep(rng.choice((0.0, 0.0, 0.001, 0.005, 0.02)))
            return
        time.sleep(0.0002)


def seconds_of(process: subprocess.Popen[str]) -> float:
    """Return the CPU time of a process, which does not depend on the load of the machine."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def work(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a process has used an amount of CPU time, or has ended."""
    while process.poll() is None and seconds_of(process) < seconds:
        time.sleep(0.002)


def kill(
    subject: Subject, folder: Path, out: Path, life: float, rng: random.Random, tally: Tally
) -> bool:
    """Start and kill a process; return False if it ended before the kill."""
    before = being_written(subject, out)
    process = start(subject, folder, out)
    if rng.random() < 0.5:
        wait_for_a_write(subject, out, process, rng)
    else:
        work(process, rng.uniform(0.0, life))
    worked = seconds_of(process) if process.poll() is None else life
    process.kill()
    stderr = process.communicate()[1]
    if process.returncode != -signal.SIGKILL:
        check(process.returncode, stderr, tally)
        return False
    tally.moments.append(worked / life)
    # Files that an earlier kill left are not counted again.
    after = being_written(subject, out)
    tally.writes.update({kind for key, kind in after.items() if key not in before})
    return True


def check(code: int, stderr: str, tally: Tally) -> None:
    """Record a process that failed or printed a traceback or a warning."""
    if code != 0 or "Traceback" in stderr or "Warning" in stderr:
        tally.wrong.append(f"exit code {code}: {stderr.strip()[-2000:]}")


def finish(subject: Subject, folder: Path, out: Path, expected: str, tally: Tally) -> None:
    """Let a run end and compare its results."""
    process = start(subject, folder, out)
    stderr = process.communicate(timeout=PATIENCE)[1]
    check(process.returncode, stderr, tally)
    compare(subject, out, expected, tally)


def compare(subject: Subject, out: Path, expected: str, tally: Tally) -> None:
    """Record results that differ, and unfinished files that are left."""
    tally.compared += 1
    if subject.outcome(out) != expected:
        tally.wrong.append(f"{out.name}: not the bits of the uninterrupted run")
    tally.wrong += [f"{path}: left behind" for path, _ in being_written(subject, out)]


def torture(subject: Subject, folder: Path, kills: int, stops: int, seed: int) -> Tally:
    """Run all kills and stops for one command."""
    rng, tally = random.Random(seed), Tally()
    life, finish_first = 0.0, [folder / f"{subject.name}-{name}" for name in ("compiles", "whole")]
    for out in finish_first:
        began = sum(os.times()[2:4])
        process = start(subject, folder, out)
        check(process.wait(PATIENCE), process.communicate()[1], tally)
        life = sum(os.times()[2:4]) - began
    if tally.wrong:  # the command does not run at all
        return tally
    expected = subject.outcome(finish_first[1])
    compare(subject, finish_first[0], expected, tally)
    number = 0
    while len(tally.moments) < kills:
        out, number, ended = folder / f"{subject.name}-{number}", number + 1, False
        for _ in range(min(KILLS_OF_A_RUN, kills - len(tally.moments))):
            ended = not kill(subject, folder, out, life, rng, tally)
            tally.resumes += 1
            if ended:
                compare(subject, out, expected, tally)
                break
        if not ended:
            finish(subject, folder, out, expected, tally)
            tally.resumes += 1
        print(f"{subject.name}: {len(tally.moments)} of {kills} kills", file=sys.stderr, flush=True)
    for trial in range(stops):
        stop(subject, folder, folder / f"{subject.name}-stop-{trial}", expected, life, rng, tally)
    second_is_refused(subject, folder, expected, tally)
    return tally


def stop(
    subject: Subject,
    folder: Path,
    out: Path,
    expected: str,
    life: float,
    rng: random.Random,
    tally: Tally,
) -> None:
    """Ask a process to stop, then let the run end."""
    kind = rng.choice((signal.SIGTERM, signal.SIGINT))
    process = start(subject, folder, out)
    work(process, rng.uniform(0.0, life))
    asked = time.monotonic()
    process.send_signal(kind)
    stderr = process.communicate(timeout=PATIENCE)[1]
    tally.stops.append(time.monotonic() - asked)
    if tally.stops[-1] > LONGEST_STOP:
        tally.wrong.append(f"took {tally.stops[-1]:.1f} s to stop: {stderr[-500:]}")
    # While it loads there is nothing to save, and the signal ends it.
    if process.returncode not in (0, 143, -kind):
        tally.wrong.append(f"exit code {process.returncode} after {kind.name}: {stderr[-2000:]}")
    finish(subject, folder, out, expected, tally)


def second_is_refused(subject: Subject, folder: Path, expected: str, tally: Tally) -> None:
    """Start a second process in the folder of a running one."""
    out = folder / f"{subject.name}-shared"
    first = start(subject, folder, out)
    while not (out / ".lock").exists() and first.poll() is None:
        time.sleep(0.001)
    second = start(subject, folder, out)
    stderr = second.communicate(timeout=PATIENCE)[1]
    if second.returncode != 2 or "another process uses this folder" not in stderr:
        tally.wrong.append(
            f"the second process was not refused, exit code {second.returncode}: {stderr}"
        )
    check(first.wait(PATIENCE), first.communicate()[1], tally)
    compare(subject, out, expected, tally)


def report(subject: Subject, tally: Tally) -> None:
    """Print the counts."""
    moments = sorted(tally.moments)
    tenths = Counter(min(int(10 * moment), 10) for moment in moments)
    by_tenth = " ".join(str(tenths[tenth]) for tenth in range(11))
    print(f"rpo {subject.name}")
    print(f"  kills                            {len(moments)}")
    print(f"  by tenth of the work, and later  {by_tenth}")
    for kind in subject.unfinished:
        print(f"  {f'during a {kind} write':33}{tally.writes[kind]}")
    print(f"  starts with --resume             {tally.resumes}")
    print(f"  runs compared at their end       {tally.compared}")
    if tally.stops:
        print(f"  SIGTERM and SIGINT               {len(tally.stops)}")
        print(f"  longest time to stop             {max(tally.stops):.1f} s")
    print(f"  bit-identical                    {'no' if tally.wrong else 'yes'}", flush=True)
    for wrong in tally.wrong:
        print(f"  WRONG: {wrong}")


def prepare(folder: Path) -> None:
    """Write the configurations and the data."""
    rows = [
        {"prompt": f"q{i % 5}", "chosen": REPLIES[i % 4], "rejected": REPLIES[(i + 1 + i % 3) % 4]}
        for i in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.yaml").write_text(RUN)
    (folder / "study.yaml").write_text(STUDY)


def main() -> int:
    """Run the torture test and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each (default 50)")
    parser.add_argument("--stops", type=int, default=10, help="of each (default 10)")
    parser.add_argument("--what", choices=(*SUBJECTS, "both"), default="both")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    # A shell makes background processes and their children ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wrong = 0
    for name, subject in SUBJECTS.items():
        if args.what in (name, "both"):
            with tempfile.TemporaryDirectory(prefix="crashes") as folder:
                prepare(Path(folder))
                tally = torture(subject, Path(folder), args.kills, args.stops, args.seed)
                report(subject, tally)
                wrong += len(tally.wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
