"""Claims about ``rpo study --scheduler``: a Dask cluster leaves the bytes of one process."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bandits.study.records import RecordStore
from rpo.cli import main
from rpo.jobs import dask_study
from rpo.jobs.dask_study import _check_workers
from rpo.runtime.errors import UsageError

STUDY = """
name: shared
methods: [behavior_cloning, 'dask_methods:towards_winners']
environments: [design]
comparisons: [20]
seeds: 6
design: {actions: 3, target_coverage: 2.0, reward_max: 2.0}
"""
METHOD = """
def towards_winners(wins, reference):
    policy = reference + wins.sum(2) / wins.sum((1, 2))[:, None].clip(1)
    return policy / policy.sum(1, keepdims=True)
"""
ROOT = Path(__file__).resolve().parents[3]
MESSAGE = "rpo: error: argument --scheduler: "


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 2)
    (tmp_path / "dask_methods.py").write_text(METHOD)
    monkeypatch.delitem(sys.modules, "dask_methods", raising=False)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.fixture
def threads() -> Iterator[Any]:
    """A scheduler with two workers in this process."""
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster


def records(folder: Path) -> str:
    return hashlib.sha256((folder / "records.parquet").read_bytes()).hexdigest()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["study", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rpo: error: ")
    assert message.count("\n") == 1
    return message


def test_roundtrip_a_cluster_leaves_the_bytes_of_one_process(
    study: Path, threads: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, out = tmp_path / "one", tmp_path / "dask"
    assert main(["study", str(study), "--out", str(one)]) == 0
    address = ["--scheduler", threads.scheduler_address]
    assert main(["study", str(study), "--out", str(out), *address]) == 0
    assert records(out) == records(one)
    assert "continue with --resume" in refused(capsys, study, "--out", out, *address)
    (tmp_path / "dask_methods.py").write_text(METHOD + "\n# another text\n")
    message = refused(capsys, study, "--out", tmp_path / "new", *address)
    assert "dask_methods.py has changed since this process imported it" in message


def test_raises_one_line_if_no_scheduler_answers_or_none_has_workers(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra dask")
    monkeypatch.setattr(dask_study, "SECONDS_TO_ANSWER", 0.5)
    out = tmp_path / "out"
    for address in ("tcp://127.0.0.1:1", "127.0.0.1:1", "no such host", "ftp://a:1"):
        message = refused(capsys, study, "--out", out, "--scheduler", address)
        assert message.startswith(f"{MESSAGE}no Dask scheduler answers at {address}")
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        message = refused(capsys, study, "--out", out, "--scheduler", address)
        assert message.startswith(f"{MESSAGE}{address} has no workers that answer")
    assert not out.exists()


def test_raises_one_line_without_dask_and_for_two_ways_at_once(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    arguments = [study, "--out", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:1"]
    assert "pip install rpo-theory[dask]" in refused(capsys, *arguments)
    assert "not allowed with argument --part" in refused(capsys, *arguments, "--part", "1/2")


class FakeClient:
    """A client of a cluster whose only worker has some other versions."""

    def __init__(self, **others: str) -> None:
        packages = {"python": "3.11.7.final.0", "rpo-theory": "1.2.3+g1", "jax": "1", "jaxlib": "1"}
        packages |= {"numpy": "2", "scipy": "1", "pyarrow": "1"}
        worker = packages | {name.replace("_", "-"): value for name, value in others.items()}
        self.versions = {
            "client": {"packages": packages},
            "workers": {"tcp://w:1": {"packages": worker}},
        }

    def wait_for_workers(self, n_workers: int, timeout: float) -> None:
        pass

    def get_versions(self, packages: list[str]) -> dict[str, Any]:
        return self.versions


def test_raises_workers_of_other_versions_are_refused_by_name() -> None:
    _check_workers(FakeClient(rpo_theory="1.2.3+g2"), "tcp://s:1")  # another commit of a release
    for name, version in {
        "python": "3.12.1",
        "jax": "2",
        "numpy": "3",
        "rpo_theory": "2.0",
    }.items():
        rule = rf"the worker tcp://w:1 has {name.replace('_', '-')} {version}(\.0)? installed"
        with pytest.raises(UsageError, match=rule):
            _check_workers(FakeClient(**{name: version}), "tcp://s:1")


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a program of Dask; it ends with this process at the latest."""
    command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, cwd="/", stderr=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_roundtrip_a_worker_that_is_killed_midway_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")
    (tmp_path / "dask_methods.py").write_text(METHOD)
    study, one, out = tmp_path / "study.yaml", tmp_path / "one", tmp_path / "dask"
    # A part for each number of actions.
    study.write_text(STUDY.replace("actions: 3", "actions: [3, 4, 5, 6, 7]"))
    assert main(["study", str(study), "--out", str(one)]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    worker = ("dask_worker", address, "--nthreads", "1", "--no-nanny")
    processes = [
        start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port)),
        start(*worker),
        start(*worker),
    ]
    write_part = RecordStore.write_part

    def kill_a_worker(store: RecordStore, number: int, *tables: Any) -> None:
        write_part(store, number, *tables)
        processes[1].kill()

    monkeypatch.setattr(RecordStore, "write_part", kill_a_worker)
    try:
        assert main(["study", str(study), "--out", str(out), "--scheduler", address]) == 0
        assert processes[1].wait(10) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert records(out) == records(one)
