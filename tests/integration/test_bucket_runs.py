"""Runs in buckets survive kills and failing servers, and leave nothing behind on local disks."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fake_gcs import Fault

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
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
    if (trace := options.pop("trace", None)) is not None:
        calls = "trace=openat,creat,mkdir,mkdirat,rename,renameat,renameat2,symlink,symlinkat"
        command = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(trace), *command]
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


def test_property_a_killed_run_is_resumed_exported_and_scored_as_a_local_one(
    bucket: Bucket, local: tuple[str, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run, url = f"{bucket.scheme}://bucket/run", f"{bucket.scheme}://bucket"
    victims: list[subprocess.Popen[str]] = []

    def kill(count: int, method: str, name: str) -> Fault | None:
        if "checkpoints/9/" in name and method != "GET" and bucket.count > 3:
            victims[0].kill()
        return None

    bucket.arm(kill)
    victims.append(start(*TRAIN, "--out", run))
    _, err = victims[0].communicate(timeout=300)
    bucket.disarm()
    assert victims[0].returncode == -signal.SIGKILL, err
    assert max(bucket.whole_steps()) == 6
    done = rpo(*TRAIN, "--out", run, "--resume")
    assert "resumed from step 6" in done.stderr
    assert json.loads(done.stdout)["parameters_sha256"] == local[0]
    data = ("--data", ROOT / "examples/preferences.jsonl", "--tokenizer", "bytes")
    assert rpo("export", run, "--out", f"{url}/policy").returncode == 0
    assert rpo("export", run, "--out", tmp_path / "policy").returncode == 0
    for path in (tmp_path / "policy").iterdir():
        assert bucket.server.read(f"bucket/policy/{path.name}") == path.read_bytes()
    for out in (f"{url}/scores.jsonl", tmp_path / "scores.jsonl"):
        done = rpo("score", "--model", tmp_path / "policy", *data, "--out", out)
        assert done.returncode == 0, done.stderr
    scores = bucket.server.read("bucket/scores.jsonl")
    assert scores == (tmp_path / "scores.jsonl").read_bytes()


def test_property_one_of_eight_runs_takes_a_folder(
    bucket: Bucket, local: tuple[str, list[dict[str, Any]]]
) -> None:
    run = f"{bucket.scheme}://bucket/run"
    processes = [start(*TRAIN, "--out", run) for _ in range(8)]
    done = [process.communicate(timeout=500) for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0, *[2] * 7], [err for _, err in done]
    rules = r"another process uses this folder, process \d+ on|a run is there already"
    for process, (out, err) in zip(processes, done, strict=True):
        if process.returncode == 0:
            assert json.loads(out)["parameters_sha256"] == local[0]
        else:
            assert re.search(rules, one_line(err))
    assert bucket.metrics() == local[1]


@pytest.mark.parametrize("seed", range(3))
def test_property_faults_are_retried_or_refused_and_never_change_a_byte(
    bucket: Bucket, seed: int, local: tuple[str, list[dict[str, Any]]]
) -> None:
    draws, left = random.Random(seed), [35]
    kinds = [("status", 500), ("status", 503), ("status", 429), ("gone", 0), ("slow", 0.5)]
    kinds += [("truncated", 0)] + ([("lost", 0), ("short", 0)] if bucket.scheme == "gs" else [])

    def fail(count: int, method: str, name: str) -> Fault | None:
        if not left[0] or draws.random() > 0.08:
            return None
        left[0] -= 1
        return Fault(*draws.choice(kinds))  # type: ignore[arg-type]

    run = f"{bucket.scheme}://bucket/run"
    bucket.arm(fail)
    while (done := rpo(*TRAIN, "--out", run, "--resume")).returncode != 0:
        one_line(done.stderr)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters_sha256"] == local[0]
    assert bucket.metrics() == local[1]


def test_extreme_a_store_that_stays_away_ends_the_run_in_one_line(
    bucket: Bucket, local: tuple[str, list[dict[str, Any]]]
) -> None:
    bucket.arm(lambda count, method, name: Fault("gone") if count > 400 else None)
    begun = time.monotonic()
    done = rpo(*TRAIN, "--out", f"{bucket.scheme}://bucket/run")
    assert done.returncode == 2
    assert f"{bucket.scheme}://bucket" in one_line(done.stderr)
    assert time.monotonic() - begun < 240
    bucket.disarm()
    done = rpo(*TRAIN, "--out", f"{bucket.scheme}://bucket/run", "--resume")
    assert json.loads(done.stdout)["parameters_sha256"] == local[0]


def created_paths(trace: Path) -> set[Path]:
    """Return the files and folders that a traced process and its children have created."""
    paths = set()
    for line in trace.read_text(errors="replace").splitlines():
        makes = "O_CREAT" in line or "mkdir" in line or "rename" in line
        if makes and " = -1 " not in line and "unfinished" not in line:
            paths |= {Path(name) for name in re.findall(r'"([^"]+)"', line)[-1:]}
    return paths


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("fails", [False, True])
def test_property_no_file_outside_the_named_folders(
    bucket: Bucket, fails: bool, tmp_path: Path
) -> None:
    """Named folders: the one for temporary files and the cache of compiled programs."""
    work, staged, cache = tmp_path / "work", tmp_path / "tmp", tmp_path / "cache"
    for folder in (work, staged, cache):
        folder.mkdir()
    environment = {"TMPDIR": str(staged), "HOME": str(work), "XDG_CACHE_HOME": str(cache)}
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
    if fails:
        bucket.arm(lambda count, method, name: Fault("status", 403) if count > 200 else None)
    run = f"{bucket.scheme}://bucket/run"
    commands: list[list[Any]] = [[*TRAIN, "--out", run]]
    if not fails:
        commands.append(["export", run, "--out", f"{run}2"])
    for command in commands:
        trace = tmp_path / "trace"
        done = rpo(*command, trace=trace, cwd=work, environment=environment)
        assert done.returncode == (2 if fails else 0), done.stderr
        paths = created_paths(trace)
        assert any(cache in path.parents for path in paths), "nothing was traced"
        allowed = (staged, cache, Path("/dev"), Path("/proc"))
        assert [path for path in paths if not any(a in path.parents for a in allowed)] == []
    assert list(work.iterdir()) == list(staged.iterdir()) == []


def run_pair(tmp_path: Path, *arguments: str) -> None:
    """Run a command in two processes of two devices each; both must succeed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    processes = []
    for index in range(2):
        temporary = tmp_path / f"host{index}"  # hosts share no disk
        temporary.mkdir(exist_ok=True)
        group = ["--coordinator-address", address, "--num-processes", "2"]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "rpo", *arguments, *group, "--process-id", str(index)],
                env={**os.environ, "TMPDIR": str(temporary), "XLA_FLAGS": flags},
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, messages = process.communicate(timeout=300)
        assert process.returncode == 0, messages


def test_roundtrip_two_hosts_train_resume_and_export(bucket: Bucket, tmp_path: Path) -> None:
    """Both write files of one checkpoint, some of them under the same name."""
    out = f"{bucket.scheme}://bucket/run"
    train = ["train", "configs/rpo_tiny.yaml", "--trainer.save_steps", "2", "--out", out]
    run_pair(tmp_path, *train, "--trainer.max_steps", "4")
    run_pair(tmp_path, *train, "--trainer.max_steps", "6", "--resume")
    assert bucket.whole_steps() == [4, 6]
    assert bucket.metrics()[-1]["step"] == 6
    run_pair(tmp_path, "export", out, "--out", f"{bucket.scheme}://bucket/policy")
    names = sorted(name for name in bucket.server.names() if name.startswith("policy/"))
    assert names == ["policy/README.md", "policy/config.json", "policy/model.safetensors"]
