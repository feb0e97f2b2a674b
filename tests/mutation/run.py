"""Put one fault at a time into the formulas and masks, and check that the tests fail.

    python tests/mutation/run.py [--only NAME ...] [--jobs N]

All work happens in temporary copies of the checkout. First, the tests that the mutants name must
pass without any mutant. Then the tests of each mutant must fail with it. The exit status is 1 if a
mutant survives.
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

NOT_COPIED = (".*", "__pycache__", "out", "node_modules")
PYTEST = ("-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "mutated_copy")
TESTS_FAILED = 1
"""Exit status of pytest if tests ran and one failed; no other status counts as a kill."""
TIMEOUT = 1800
"""Seconds after which a run is stopped; a mutant that hangs does not count as killed."""


class Outcome(NamedTuple):
    """The result of a run of tests.

    Attributes:
        status: exit status of pytest; -1 after a timeout.
        seconds: duration.
        output: stdout and stderr together.
    """

    status: int
    seconds: float
    output: str

    @property
    def failure(self) -> str:
        """The line that names the failed test, or the last line."""
        lines = self.output.strip().splitlines()
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        return (failed or lines or [""])[-1]


class Copy:
    """A copy of the checkout in which tests run.

    Args:
        folder: where the copy is written, beside a link to the shared data.
        compiled: folder of compiled programs, shared by all runs.
    """

    def __init__(self, folder: Path, compiled: Path) -> None:
        self._root, self._compiled = folder / "main", compiled
        shutil.copytree(CHECKOUT, self._root, ignore=shutil.ignore_patterns(*NOT_COPIED))
        shared = CHECKOUT.parent / "shared"
        if shared.is_dir():
            (folder / "shared").symlink_to(shared)

    def run(self, tests: Iterable[str], module: str | None = None) -> Outcome:
        """Run tests in the copy.

        Args:
            tests: node IDs of pytest.
            module: dotted name of a module that must be imported from this copy; None for any.
        """
        path = os.pathsep.join([str(self._root), str(self._root / "tests" / "mutation")])
        environment = {**os.environ, "PYTHONPATH": path, "MUTATION_COMPILED": str(self._compiled)}
        environment["COLUMNS"] = "200"  # pytest reports each failure in one line
        if module is not None:
            environment["MUTATION_MODULE"] = module
        start = time.perf_counter()
        try:
            process = subprocess.run(
                [sys.executable, *PYTEST, *tests],
                cwd=self._root,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Outcome(-1, TIMEOUT, "timeout")
        return Outcome(process.returncode, time.perf_counter() - start, process.stdout)

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
        # Python compares bytecode by second and length only, and both may be equal.
        for bytecode in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            bytecode.unlink()


def split_tests(mutants: list[Mutant], jobs: int) -> list[list[str]]:
    """Return all tests that the mutants name, once each, divided by file among the jobs."""
    files: dict[str, dict[str, None]] = {}
    for test in (test for mutant in mutants for test in mutant.tests):
        files.setdefault(test.partition("::")[0], {})[test] = None
    shares = [list(files.values())[job::jobs] for job in range(jobs)]
    return [[test for tests in share for test in tests] for share in shares if share]


def main() -> int:
    """Parse the options, judge the mutants and print one line each and the counts."""
    parser = argparse.ArgumentParser(description="Check that the tests detect faults.")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of mutants (default: all)")
    parser.add_argument(
        "--jobs", type=int, default=1, help="number of runs at the same time (default: 1)"
    )
    options = parser.parse_args()
    names = options.only
    mutants = [mutant for mutant in read_mutants() if not names or mutant.name in names]
    if not mutants or options.jobs < 1:
        parser.error("`--only` must name a mutant, and `--jobs` must be at least 1")
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        return judge_all(mutants, Path(folder), options.jobs)


def judge_all(mutants: list[Mutant], folder: Path, jobs: int) -> int:
    """Run the tests without mutants, which must pass, then with each mutant, which must fail.

    Returns:
        The exit status: 0 if all mutants are killed.
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
        works = [lambda copy, tests=tests: copy.run(tests) for tests in split_tests(mutants, jobs)]
        broken = [outcome for outcome in pool.map(in_a_copy, works) if outcome.status != 0]
        for outcome in broken:
            print(f"tests fail without a mutant:\n{outcome.output}")
        if broken:
            return 1
        print(f"all tests of {len(mutants)} mutants pass without them", flush=True)
        killed = 0
        works = [lambda copy, mutant=mutant: copy.judge(mutant) for mutant in mutants]
        for mutant, outcome in zip(mutants, pool.map(in_a_copy, works), strict=True):
            is_killed = outcome.status == TESTS_FAILED
            killed += is_killed
            verdict = "killed  " if is_killed else "SURVIVES"
            print(f"{verdict} {outcome.seconds:5.1f} s  {mutant.file}  {mutant.name}", flush=True)
            print(f"    {outcome.failure[:200]}", flush=True)
    print(f"{len(mutants)} mutants, {killed} killed")
    return 0 if killed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
