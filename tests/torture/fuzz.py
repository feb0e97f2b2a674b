"""A million damaged files through the readers that the commands use.

    python tests/torture/fuzz.py --inputs 1000000 [--target NAME] [--seconds S] [--out DIR]

Every input ends as good data or as one error of the package's own, which names it, within five
seconds and 2 GiB. Half of the inputs are good ones with damaged bytes, half are damaged by what
they mean. ``--coverage-guided`` looks for inputs that reach new code instead, with atheris. Each
kind is read in a process of its own, which leaves what it reads in a file: of whatever ends it, the
input is known. Prints a table, saves what went wrong, and exits with 1 if anything did.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import mmap
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

import fuzz_targets
import mutations
from fuzz_target import NAME, Target
from peak_memory import peak_memory

LEAST = 20_000
"""Inputs of a kind at least, of a million."""
MAX_SECONDS = 5
"""Of a processor: others may share it."""
PATIENCE = 600
"""Seconds without progress; a busy machine gives a reader few of them."""
MAX_BYTES = 2 * 2**30
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where inputs are written for readers of files: a disk would be what is measured."""


class Tally(NamedTuple):
    """What became of the inputs of a kind."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0


FORM = struct.Struct("QQQddQQ")
"""A tally and the length of the present input, which follows."""


class Journal:
    """A file shared by two processes, in which a tally and the present input survive the reader."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(FORM.size + mutations.LARGEST))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def write(self, tally: Tally, data: bytes) -> None:
        self._map[FORM.size : FORM.size + len(data)] = data
        self._map[: FORM.size] = FORM.pack(*tally, len(data))

    def read(self) -> tuple[Tally, bytes]:
        *tally, length = FORM.unpack(self._map[: FORM.size])
        return Tally(*tally), self._map[FORM.size : FORM.size + length]


class TooSlowError(BaseException):
    """An input takes too long; no reader may catch it."""


def attempt(target: Target, data: bytes) -> bool:
    """Read an input.

    Args:
        target: its kind.
        data: the input.

    Returns:
        Whether it is good.

    Raises:
        AssertionError: the error is none of the package's own, or does not name the input.
    """
    try:
        target.feed(data)
    except target.errors as error:
        check_error(target, error)
        return False
    return True


def check_error(target: Target, error: Exception) -> None:
    """Whether an error is the package's own, and not just of its kind."""
    assert type(error) in target.errors, f"{type(error).__name__} is no error of the package"
    assert NAME in str(error), f"the message does not name the input: {error}"


def next_input(target: Target, rng: Random) -> bytes:
    """An input, spoilt by bytes or by what it means, or both."""
    choice = rng.random()
    if choice < 0.5:
        return mutations.mutate(rng, target.seeds, target.pieces)
    data = target.spoil(rng)[: mutations.LARGEST]
    return data if choice < 0.95 else mutations.mutate(rng, [data], target.pieces)


def limit_resources() -> None:
    """Warnings are faults, an alarm ends an input, and memory a process that takes far too much."""

    def too_slow(*_: Any) -> NoReturn:
        raise TooSlowError(f"takes longer than {MAX_SECONDS} seconds")

    warnings.simplefilter("error")
    signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_DATA, (2 * MAX_BYTES, 2 * MAX_BYTES))


def read_one(target: Target, data: bytes, tally: Tally, journal: Journal) -> Tally:
    """Read an input and count it."""
    journal.write(tally, data)
    start, busy = time.monotonic(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    accepted = attempt(target, data)
    signal.setitimer(signal.ITIMER_PROF, 0)
    took, busy = time.monotonic() - start, time.process_time() - busy
    peak = peak_memory()
    assert peak < MAX_BYTES, f"memory has grown to {peak / 2**20:.0f} MiB"
    return Tally(
        tally.inputs + 1,
        tally.accepted + accepted,
        tally.refused + (not accepted),
        tally.seconds + took,
        max(tally.slowest, busy),
        peak,
    )


def fuzz(name: str, inputs: int, seed: int, seconds: float, journal: Journal) -> None:
    """Read inputs of a kind, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        target = fuzz_targets.TARGETS[name][0](Path(folder))
        for good in target.seeds:
            target.feed(good)
        limit_resources()
        rng, tally, end = Random(f"{seed} {name}"), Tally(), time.monotonic() + seconds
        while tally.inputs < inputs and time.monotonic() < end:
            tally = read_one(target, next_input(target, rng), tally, journal)
        journal.write(tally, b"")


def fuzz_guided(name: str, inputs: int, seed: int, seconds: float, journal: Journal) -> None:
    """Read inputs of a kind that atheris makes, in this process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["rpo", "llm", "bandits"]):
        folder = Path(tempfile.mkdtemp())
        target = fuzz_targets.TARGETS[name][0](folder)
    for number, good in enumerate(target.seeds):
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / str(number)).write_bytes(good)
        target.feed(good)
    limit_resources()
    state = [Tally()]

    def read(data: bytes) -> None:
        data = bytes(data[: mutations.LARGEST])
        try:
            state[0] = read_one(target, data, state[0], journal)
        except BaseException:
            traceback.print_exc()
            raise
        journal.write(state[0], data)

    options = [f"-runs={inputs}", f"-seed={seed + 1}", "-verbosity=0", "-rss_limit_mb=2048"]
    options += [f"-max_total_time={seconds:.0f}", f"-max_len={mutations.LARGEST}", "-handle_alrm=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", f"{folder}/corpus"], read)
    atheris.Fuzz()


def watch(argv: list[str], journal: Journal) -> str:
    """Run a reader in a process of its own.

    Args:
        argv: of this program.
        journal: that it writes to.

    Returns:
        What ended it, if anything went wrong; otherwise nothing.
    """
    command = [sys.executable, __file__, *argv]
    quiet = os.environ | {"RUST_BACKTRACE": "0"}  # hundreds of lines, and as many milliseconds
    reader = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=quiet)
    last, since = -1, time.monotonic()
    while True:
        try:
            _, said = reader.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            count = journal.read()[0].inputs
            if count != last:
                last, since = count, time.monotonic()
            # Inside of a library no alarm is heard.
            if time.monotonic() - since > PATIENCE:
                reader.kill()
            continue
        if reader.returncode == 0:
            return ""
        return said[-1500:] or f"ended with {reader.returncode}: it hangs or crashes"


def share(name: str, inputs: int) -> int:
    """How many inputs of all are of a kind."""
    least = min(LEAST, inputs // 50)
    return max(least, round(inputs * fuzz_targets.TARGETS[name][1]))


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all kinds together")
    parser.add_argument("--target", action="append", choices=fuzz_targets.TARGETS)
    parser.add_argument("--seconds", type=float, default=1e6, help="most for a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coverage-guided", action="store_true", help="needs atheris")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="for what went wrong")
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.journal:
        tempfile.tempdir = str(args.journal.parent)  # removed however the reader ends
        run = fuzz_guided if args.coverage_guided else fuzz
        run(args.target[0], args.inputs, args.seed, args.seconds, Journal(args.journal))
        return 0
    print(
        f"{'target':16} {'inputs':>9} {'accepted':>9} {'refused':>9} {'seconds':>8} "
        f"{'cpu s':>8} {'peak MiB':>8}",
        flush=True,
    )
    tallies, faults = [], 0
    for name in args.target or fuzz_targets.TARGETS:
        wanted = args.inputs if args.target else share(name, args.inputs)
        tally, fault = run_target(name, wanted, args)
        tallies.append(tally)
        faults += bool(fault)
        print(row(name, tally), flush=True)
    print(
        row(
            "all",
            Tally(*(sum(column) for column in zip(*tallies, strict=True)))._replace(
                slowest=max(t.slowest for t in tallies), peak=max(t.peak for t in tallies)
            ),
        )
    )
    print(f"{faults} faults")
    return int(faults > 0)


def run_target(name: str, inputs: int, args: argparse.Namespace) -> tuple[Tally, str]:
    """Fuzz a kind; the input that ended it is saved."""
    folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    try:
        journal = Journal(folder / "journal")
        argv = ["--target", name, "--inputs", str(inputs), "--seed", str(args.seed)]
        argv += ["--seconds", str(args.seconds), "--journal", str(folder / "journal")]
        fault = watch([*argv, *(["--coverage-guided"] if args.coverage_guided else [])], journal)
        tally, data = journal.read()
    finally:
        shutil.rmtree(folder)
    if fault:
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(data)
        print(f"{name}: input {tally.inputs}, saved as {path}:\n{fault}", flush=True)
    return tally, fault


def row(name: str, tally: Tally) -> str:
    """A line of the table."""
    return (
        f"{name:16} {tally.inputs:9,} {tally.accepted:9,} {tally.refused:9,} {tally.seconds:8.1f} "
        f"{tally.slowest:8.2f} {tally.peak / 2**20:8.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
