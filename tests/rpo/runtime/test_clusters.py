"""Claims about processes that Slurm or Open MPI started."""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpo.runtime import processes
from rpo.runtime.clusters import Launch, detect_launch
from rpo.runtime.errors import UsageError
from rpo.runtime.processes import ProcessGroup, add_arguments, group_from

ROOT = Path(__file__).resolve().parents[3]
STEP = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
}
STUDY = """
name: shared
methods: [behavior_cloning]
comparisons: [20]
seeds: 6
design: {actions: [3, 4], target_coverage: 2.0, reward_max: 2.0}
"""


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


def test_closed_form_only_a_launcher_of_several_processes_is_detected() -> None:
    assert detect_launch({}) is None
    assert detect_launch(STEP) == Launch("Slurm", "slurm", 2, 1)
    batch_script = {name: value for name, value in STEP.items() if "STEP" not in name}
    assert detect_launch(batch_script) is None
    assert detect_launch(STEP | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert detect_launch(STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}) is None
    ranks = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
    version_4 = ranks | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
    assert detect_launch(STEP | version_4) == Launch("Open MPI", "ompi", 4, 3)
    assert detect_launch(ranks) == Launch("Open MPI", None, 4, 3)
    assert detect_launch(ranks | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_closed_form_options_that_are_given_win_over_the_launcher() -> None:
    launch = detect_launch(STEP)
    group = group_from(parsed(), launch=launch)
    assert group == ProcessGroup(num_processes=2, process_id=1, detection="slurm")
    assert group_from(parsed("--num-processes", "1"), launch=launch) == ProcessGroup()
    address = ("--coordinator-address", "h:1")
    group = group_from(parsed(*address), launch=launch)
    assert group == ProcessGroup(coordinator_address="h:1", num_processes=2, process_id=1)
    with pytest.raises(ValueError, match="Open MPI started 4 processes, which need the HOST:PORT"):
        group_from(parsed(), launch=Launch("Open MPI", None, 4, 0))


def test_raises_in_bounded_time_if_a_process_does_not_come(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "SECONDS_TO_MEET", 2)
    monkeypatch.setattr(processes, "SECONDS_BETWEEN_MESSAGES", 1)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: time.sleep(9))
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    group = ProcessGroup(num_processes=2, process_id=1, detection="slurm")
    with (
        caplog.at_level("INFO", logger="rpo"),
        pytest.raises(UsageError, match="not all 2 processes have connected after 2 s"),
        group.connected(tmp_path),
    ):
        pass
    assert "waiting for all 2 processes (the variable http_proxy can keep" in caplog.messages[0]


@pytest.mark.slow
def test_roundtrip_two_tasks_of_a_slurm_step_leave_the_bytes_of_one(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(out: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rpo", "study", "study.yaml", "--out", out],
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )

    def task(index: int) -> subprocess.Popen[str]:
        rank = {"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}
        ports = {"JAX_COORDINATOR_PORT": port, "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
        return start("tasks", **STEP | rank | ports)

    for process in [start("one"), task(0), task(1)]:
        _, messages = process.communicate(timeout=120)
        assert process.returncode == 0, messages
    digests = {
        hashlib.sha256((tmp_path / out / "records.parquet").read_bytes()).hexdigest()
        for out in ("one", "tasks")
    }
    assert len(digests) == 1
