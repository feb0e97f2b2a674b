"""Put one fault after another into the formulas and masks, and see that the tests fail each time.

    python tests/mutation/run.py [--only NAME ...] [--jobs N]

Everything happens in temporary copies of the checkout. The tests that the mutants name must pass
without any of them; then each mutant's own must fail. Exit status 1 where one survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import NamedTuple

from mutants import CHECKOUT, Mutant, read_mutants

LEFT_OUT = (".*", "__pycache__", "out", "node_modules")
PYTEST = ("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "mutated_copy")
FAILED = 1
"""Exit status of pytest where tests ran and one failed: no other counts as a kill."""
LONGEST = 1800
"""Seconds after which a run is given up; a mutant that hangs is not killed."""


class Outcome(NamedTuple):
    """How a run of tests ended.

    Attributes:
        status: exit status of pytest; negative if it was given up.
        seconds: it took.
        output: what it printed.
    """

    status: int
    seconds: float
    output: str

    @property
    def failure(self) -> str:
        """The line that names the failed test, or the last one."""
        lines = self.output.strip().splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return (failed or lines or [""])[-1]


class Copy:
    """A copy of the checkout that tests are run in.

    Args:
        folder: to lay it in, beside a link to the shared data.
        compiled: folder of compiled programs that all runs share.
    """

    def __init__(self, folder: Path, compiled: Path) -> None:
        self._root, self._compiled = folder / "main", compiled
        shutil.copytree(CHECKOUT, self._root, ignore=shutil.ignore_patterns(*LEFT_OUT))
        shared = CHECKOUT.parent / "shared"
        if shared.is_dir():
            (folder / "shared").symlink_to(shared)

    def run(self, tests: Iterable[str], module: str | None = None) -> Outcome:
        """Run tests.

        Args:
            tests: node ids.
            module: that must be imported from this copy.
        """
        path = os.pathsep.join([str(self._root), str(self._root / "tests" / "mutation")])
        environment = {**os.environ, "PYTHONPATH": path, "MUTATION_COMPILED": str(self._compiled)}
        environment["COLUMNS"] = "200"  # failures are told in one line
        if module is not None:
            environment["MUTATION_MODULE"] = module
        start = time.perf_counter()
        try:
            done = subprocess.run(
                [sys.executable, *PYTEST, *tests],
                cwd=self._root,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(-1, LONGEST, "given up")
        return Outcome(done.returncode, time.perf_counter() - start, done.stdout)

    def judge(self, mutant: Mutant) -> Outcome:
        """Run the tests of a mutant with its fault in the copy."""
        with self._mutated(mutant):
            return self.run(mutant.tests, mutant.module)

    @contextmanager
    def _mutated(self, mutant: Mutant) -> Iterator[None]:
        path = self._root / mutant.file
        text = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutant.applied(text))
            yield
        finally:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        # Bytecode is told apart by second and length only, and both may be the same.
        for bytecode in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            bytecode.unlink()


def without_mutants(mutants: list[Mutant], jobs: int) -> list[list[str]]:
    """All tests that the mutants name, once each, dealt to so many runs by file."""
    files: dict[str, dict[str, None]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        files.setdefault(test.partition("::")[0], {})[test] = None
    hands = [list(files.values())[job::jobs] for job in range(jobs)]
    return [[test for tests in hand for test in tests] for hand in hands if hand]


def main() -> int:
    """Read the options, judge the mutants, print a table and the counts."""
    parser = argparse.ArgumentParser(description="Show that the tests see faults.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants by name; default all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    options = parser.parse_args()
    mutants = [one for one in read_mutants() if not options.only or one.name in options.only]
    if not mutants or options.jobs < 1:
        parser.error("there must be a mutant of such a name and at least one job")
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        return judge_all(mutants, Path(folder), options.jobs)


def judge_all(mutants: list[Mutant], folder: Path, jobs: int) -> int:
    """Run what must pass, then what must fail.

    Returns:
        Exit status: 0 if all mutants are killed.
    """
    copies: Queue[Copy] = Queue()
    for number in range(jobs):
        copies.put(Copy(folder / str(number), folder / "compiled"))

    def in_a_copy(work: Callable[[Copy], Outcome]) -> Outcome:
        copy = copies.get()
        try:
            return work(copy)
        finally:
            copies.put(copy)

    with ThreadPoolExecutor(jobs) as pool:
        works = [lambda copy, one=one: copy.run(one) for one in without_mutants(mutants, jobs)]
        broken = [outcome for outcome in pool.map(in_a_copy, works) if outcome.status != 0]
        for outcome in broken:
            print(f"fails without a mutant:\n{outcome.output}")
        if broken:
            return 1
        print(f"all tests of {len(mutants)} mutants pass without them", flush=True)
        killed = 0
        works = [lambda copy, one=one: copy.judge(one) for one in mutants]
        for mutant, outcome in zip(mutants, pool.map(in_a_copy, works), strict=True):
            dead = outcome.status == FAILED
            killed += dead
            said = "killed  " if dead else "SURVIVES"
            print(f"{said} {outcome.seconds:5.1f} s  {mutant.file}  {mutant.name}", flush=True)
            print(f"    {outcome.failure[:200]}", flush=True)
    print(f"{len(mutants)} mutants, {killed} killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
