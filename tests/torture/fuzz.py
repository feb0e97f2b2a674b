"""Fuzz the readers that the commands use with a million damaged files.

    python tests/torture/fuzz.py --inputs 1000000 [--target NAME] [--seconds S] [--out DIR]

Every input must give data, or one of the package's errors that names the input, within five
seconds and 2 GiB. Half of the inputs are valid files with damaged bytes, half have damaged meaning.
``--coverage-guided`` searches for inputs that reach new code instead, with atheris. A separate
process reads each target and writes its current input to a journal, so that the input that ends the
process is known. The program prints a table, saves failing inputs, and exits with 1 if there is
one.
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

MIN_INPUTS = 20_000
"""Least number of inputs of a target in a run of a million."""
MAX_SECONDS = 5
"""Limit of processor time for one input."""
MAX_STALL_SECONDS = 600
"""Limit of wall-clock time without progress; it is long, since the machine may be busy."""
MAX_BYTES = 2 * 2**30
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Folder of input files; a disk would dominate the measured time."""


class Tally(NamedTuple):
    """Counts, times in seconds and peak memory in bytes of the inputs of a target."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    peak: int = 0


RECORD = struct.Struct("QQQddQQ")
"""A tally and the length of the current input, which follows."""


class Journal:
    """A memory-mapped file with tally and current input, which outlives the reading process."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(RECORD.size + mutations.MAX_INPUT_BYTES))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)

    def write(self, tally: Tally, data: bytes) -> None:
        self._map[RECORD.size : RECORD.size + len(data)] = data
        self._map[: RECORD.size] = RECORD.pack(*tally, len(data))

    def read(self) -> tuple[Tally, bytes]:
        *tally, length = RECORD.unpack(self._map[: RECORD.size])
        return Tally(*tally), self._map[RECORD.size : RECORD.size + length]


class TooSlowError(BaseException):
    """An input takes too long; a BaseException, which readers do not catch."""


def attempt(target: Target, data: bytes) -> bool:
    """Read an input.

    Args:
        target: the fuzz target.
        data: the input.

    Returns:
        True if the input was accepted, False if it was refused with a proper error.

    Raises:
        AssertionError: if the error is not one of the target's, or does not name the input.
    """
    try:
        target.read(data)
    except target.errors as error:
        check_error(target, error)
        return False
    return True


def check_error(target: Target, error: Exception) -> None:
    """Check that an error has exactly a type of the target and names the input."""
    assert type(error) in target.errors, f"{type(error).__name__} is not an error of the package"
    assert NAME in str(error), f"the message does not name the input: {error}"


def next_input(target: Target, rng: Random) -> bytes:
    """Make an input with damaged bytes, damaged meaning, or both."""
    draw = rng.random()
    if draw < 0.5:
        return mutations.mutate(rng, target.seeds, target.fragments)
    data = target.damage(rng)[: mutations.MAX_INPUT_BYTES]
    return data if draw < 0.95 else mutations.mutate(rng, [data], target.fragments)


def limit_resources() -> None:
    """Turn warnings into errors, and limit the time of an input and the memory of the process."""

    def too_slow(*_: Any) -> NoReturn:
        raise TooSlowError(f"takes longer than {MAX_SECONDS} seconds")

    warnings.simplefilter("error")
    signal.signal(signal.SIGPROF, too_slow)
    resource.setrlimit(resource.RLIMIT_DATA, (2 * MAX_BYTES, 2 * MAX_BYTES))


def read_one(target: Target, data: bytes, tally: Tally, journal: Journal) -> Tally:
    """Read an input and add it to the tally."""
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
    """Read random inputs of a target in this process."""
    with tempfile.TemporaryDirectory() as folder:
        target = fuzz_targets.TARGETS[name][0](Path(folder))
        for seed_input in target.seeds:
            target.read(seed_input)
        limit_resources()
        rng, tally, end = Random(f"{seed} {name}"), Tally(), time.monotonic() + seconds
        while tally.inputs < inputs and time.monotonic() < end:
            tally = read_one(target, next_input(target, rng), tally, journal)
        journal.write(tally, b"")


def fuzz_guided(name: str, inputs: int, seed: int, seconds: float, journal: Journal) -> None:
    """Read inputs that atheris makes for a target in this process."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["rpo", "llm", "bandits"]):
        folder = Path(tempfile.mkdtemp())
        target = fuzz_targets.TARGETS[name][0](folder)
    for number, seed_input in enumerate(target.seeds):
        (folder / "corpus").mkdir(exist_ok=True)
        (folder / "corpus" / str(number)).write_bytes(seed_input)
        target.read(seed_input)
    limit_resources()
    state = [Tally()]

    def read(data: bytes) -> None:
        data = bytes(data[: mutations.MAX_INPUT_BYTES])
        try:
            state[0] = read_one(target, data, state[0], journal)
        except BaseException:
            traceback.print_exc()
            raise
        journal.write(state[0], data)

    options = [f"-runs={inputs}", f"-seed={seed + 1}", "-verbosity=0", "-rss_limit_mb=2048"]
    options += [
        f"-max_total_time={seconds:.0f}",
        f"-max_len={mutations.MAX_INPUT_BYTES}",
        "-handle_alrm=0",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", f"{folder}/corpus"], read)
    atheris.Fuzz()


def run_reader(argv: list[str], journal: Journal) -> str:
    """Run this program as a reader in a separate process, and wait for its end.

    Args:
        argv: command-line arguments of the reader.
        journal: journal that the reader writes.

    Returns:
        The end of its standard error if it failed; otherwise an empty string.
    """
    command = [sys.executable, __file__, *argv]
    environment = os.environ | {"RUST_BACKTRACE": "0"}  # a backtrace takes 100 ms
    reader = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    last, since = -1, time.monotonic()
    while True:
        try:
            _, stderr = reader.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            count = journal.read()[0].inputs
            if count != last:
                last, since = count, time.monotonic()
            # The timer's signal is not handled while a library's native code runs.
            if time.monotonic() - since > MAX_STALL_SECONDS:
                reader.kill()
            continue
        if reader.returncode == 0:
            return ""
        return stderr[-1500:] or f"ended with exit code {reader.returncode}: a hang or a crash"


def share(name: str, inputs: int) -> int:
    """Return the number of inputs of a target in a run of all targets."""
    least = min(MIN_INPUTS, inputs // 50)
    return max(least, round(inputs * fuzz_targets.TARGETS[name][1]))


def main() -> int:
    """Parse the command line and fuzz the targets."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--inputs", type=int, default=1_000_000, help="number of inputs of all targets together"
    )
    parser.add_argument("--target", action="append", choices=fuzz_targets.TARGETS)
    parser.add_argument("--seconds", type=float, default=1e6, help="time limit of a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--coverage-guided", action="store_true", help="let atheris choose the inputs"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/fuzz"), help="folder of failing inputs"
    )
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.journal:
        tempfile.tempdir = str(args.journal.parent)  # the parent process removes it
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
        inputs = args.inputs if args.target else share(name, args.inputs)
        tally, fault = run_target(name, inputs, args)
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
    """Fuzz a target in a separate process; save the input that ended it."""
    folder = Path(tempfile.mkdtemp(dir=IN_MEMORY))
    try:
        journal = Journal(folder / "journal")
        argv = ["--target", name, "--inputs", str(inputs), "--seed", str(args.seed)]
        argv += ["--seconds", str(args.seconds), "--journal", str(folder / "journal")]
        fault = run_reader(
            [*argv, *(["--coverage-guided"] if args.coverage_guided else [])], journal
        )
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
    """Format a line of the table."""
    return (
        f"{name:16} {tally.inputs:9,} {tally.accepted:9,} {tally.refused:9,} {tally.seconds:8.1f} "
        f"{tally.slowest:8.2f} {tally.peak / 2**20:8.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
