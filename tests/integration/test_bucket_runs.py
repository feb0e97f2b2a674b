"""Runs in buckets survive kills and failing servers, and leave nothing behind on local disks."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_gcs import Fault

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
COMMITS = {"gs": "commit_success.txt", "s3": "COMMIT"}
STEPS = 24
TRAIN = [
    *("train", str(ROOT / "configs/rpo_tiny.yaml"), "--json"),
    *("--data.train", str(ROOT / "examples/preferences.jsonl"), "--trainer.save_steps", "3"),
    *("--trainer.max_steps", str(STEPS), "--trainer.eval_steps", "6"),
    *("--trainer.save_total_limit", "2"),
]


class Bucket:
    """A fake store of either scheme, seen alike.

    Attributes:
        scheme: ``gs`` or ``s3``.
        server: the fake.
        hook: called with the number of the request and its method, name and whether it carries
            content; returns a fault or None.
    """

    def __init__(self, scheme: str, server: Any) -> None:
        self.scheme, self.server, self.count = scheme, server, 0
        self.hook: Callable[[int, str, str], Fault | None] = lambda count, method, name: None

    def arm(self, hook: Callable[[int, str, str], Fault | None]) -> None:
        self.hook, self.count = hook, 0
        self.server.faults = self._gcs if self.scheme == "gs" else self._s3

    def disarm(self) -> None:
        self.server.faults = None

    def whole_steps(self, run: str = "run") -> list[int]:
        pattern = re.compile(rf"{run}/checkpoints/(\d+)/{COMMITS[self.scheme]}")
        return sorted(int(m[1]) for n in self.server.names() if (m := pattern.fullmatch(n)))

    def metrics(self, run: str = "run") -> list[dict[str, Any]]:
        return read_lines(self.server.read(f"bucket/{run}/metrics.jsonl").decode())

    def _gcs(self, request: Any) -> Fault | None:
        self.count += 1
        return self.hook(self.count, request.method, request.name)

    def _s3(self, method: str, path: str) -> Fault | None:
        self.count += 1
        return self.hook(self.count, method, path.removeprefix("/bucket/"))


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    name = {"gs": "gcs", "s3": "s3"}[request.param]
    return Bucket(request.param, request.getfixturevalue(name))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    """Digest and metrics of the same run in a local folder, which is never killed."""
    out = tmp_path_factory.mktemp("local") / "run"
    done = rpo(*TRAIN, "--out", out)
    assert done.returncode == 0, done.stderr
    lines = read_lines((out / "metrics.jsonl").read_text())
    return json.loads(done.stdout)["parameters_sha256"], lines


def read_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a log without measured times."""
    rows = [json.loads(line) for line in text.splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rpo", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | options.pop("environment", {})
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, **options
    )


def rpo(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def one_line(stderr: str) -> str:
    """Return the only line of an error; libraries in C++ may log lines of their own."""
    lines = [line for line in stderr.splitlines() if line.startswith("rpo: error")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def train_with_kills(
    bucket: Bucket, kills: int, seed: int, *, last: int, run: str = "run"
) -> tuple[subprocess.CompletedProcess[str], int]:
    """Train, kill the process at random requests, resume; return the last process.

    Every process continues from the last step that was whole when the one before was killed.
    """
    draws, resumed = random.Random(seed), 0
    whole: list[int] = []
    while True:
        # A count of 0 is never reached.
        done = train_until(bucket, draws.randint(20, last) if kills else 0, run)
        assert "Traceback" not in done.stderr, done.stderr
        found = re.search(r"resumed from step (\d+)|already finished: step (\d+)", done.stderr)
        if found:
            assert int(found[1] or found[2]) == max(whole), done.stderr
            resumed += 1
        elif whole:
            assert "pairs, 32 held out" not in done.stderr, "the run started over"
        before, whole = whole, bucket.whole_steps(run)
        assert max(whole, default=0) >= max(before, default=0), "a whole step was lost"
        if not kills:
            assert done.returncode == 0, done.stderr
            return done, resumed
        kills -= 1


def train_until(bucket: Bucket, target: int, run: str) -> subprocess.CompletedProcess[str]:
    """Train or resume; kill the process when it makes its request number ``target``."""
    victims: list[subprocess.Popen[str]] = []

    def kill(count: int, method: str, name: str) -> Fault | None:
        if victims and count == target:
            victims[0].kill()
        return None

    bucket.arm(kill)
    process = start(*TRAIN, "--out", f"{bucket.scheme}://bucket/{run}", "--resume")
    victims.append(process)
    out, err = process.communicate(timeout=300)
    bucket.disarm()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_property_twenty_random_kills_lose_nothing(
    bucket: Bucket, local: tuple[str, list[dict[str, Any]]]
) -> None:
    done, resumed = train_with_kills(bucket, 20, seed=1, last=600)
    assert resumed >= 10
    assert json.loads(done.stdout)["parameters_sha256"] == local[0]
    assert bucket.metrics() == local[1]
    names = bucket.server.names()
    assert not [name for name in names if ".parts/" in name or name.endswith(".lease")]
    steps = {name.split("/")[2] for name in names if name.startswith("run/checkpoints/")}
    assert steps == {str(step) for step in bucket.whole_steps()} == {str(STEPS), str(STEPS - 3)}
