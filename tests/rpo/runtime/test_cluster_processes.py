"""Claims about local processes that one command line starts under the variables of a cluster."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from .test_clusters import attributes, served

ROOT = Path(__file__).resolve().parents[3]
STUDY = """
name: shared
methods: [behavior_cloning]
comparisons: [20]
seeds: 6
design: {actions: [3, 4], target_coverage: 2.0, reward_max: 2.0}
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "127.0.0.1",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:34911"}
GKE = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1"}
GCE = {"JAX_FORCE_TPU_INIT": "1", "JAX_PLATFORMS": "cpu"}
POD = {"KUBERNETES_SERVICE_HOST": "127.0.0.1"}


@pytest.fixture
def port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def start(folder: Path, out: str, *options: str, **variables: str) -> subprocess.Popen[str]:
    """Start a study in a folder as a process of its own."""
    (folder / "study.yaml").write_text(STUDY)
    return subprocess.Popen(
        [sys.executable, "-m", "rpo", "study", "study.yaml", "--out", out, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "records.parquet").read_bytes()).hexdigest()


def check_one_command_line(
    folder: Path,
    port: str,
    variables: Mapping[str, str],
    *names: str,
    options: tuple[str, ...] = (),
) -> None:
    """Check that two processes, which differ in a variable, leave the bytes of one."""
    ports = {"JAX_COORDINATOR_PORT": port, "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
    group = [
        start(folder, "group", *options, **variables, **ports, **dict.fromkeys(names, str(index)))
        for index in range(2)
    ]
    for process in [start(folder, "one"), *group]:
        _, messages = process.communicate(timeout=120)
        assert process.returncode == 0, messages
    assert digest(folder / "group") == digest(folder / "one")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "names", "options"),
    [
        (SLURM, ("SLURM_PROCID", "SLURM_LOCALID"), ()),
        (OPEN_MPI, ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"), ()),
        (GKE, ("TPU_WORKER_ID",), ()),
        (POD, ("JOB_COMPLETION_INDEX",), ("--num-processes", "2")),
    ],
    ids=["slurm", "open-mpi", "gke", "kubernetes"],
)
def test_roundtrip_one_command_line_for_two_processes_leaves_the_bytes_of_one(
    variables: Mapping[str, str],
    names: tuple[str, ...],
    options: tuple[str, ...],
    tmp_path: Path,
    port: str,
) -> None:
    in_pod = variables is POD  # there is no name server for pods here
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"} if in_pod else {}
    check_one_command_line(tmp_path, port, {**variables, **address}, *names, options=options)


@pytest.mark.slow
def test_roundtrip_one_command_line_for_two_tpu_vms_leaves_the_bytes_of_one(
    tmp_path: Path, port: str
) -> None:
    answers = [
        attributes(agent_worker_number=str(index), worker_network_endpoints="127.0.0.1,127.0.0.1")
        for index in range(2)
    ]
    with served(answers[0]) as first, served(answers[1]) as second:
        ports = {"JAX_COORDINATOR_PORT": port, "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}"}
        group = [
            start(tmp_path, "group", **GCE, **ports, GCE_METADATA_IP=server)
            for server in (first, second)
        ]
        for process in [start(tmp_path, "one"), *group]:
            _, messages = process.communicate(timeout=120)
            assert process.returncode == 0, messages
    assert digest(tmp_path / "group") == digest(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_raises_an_interrupt_ends_the_wait_for_other_processes(tmp_path: Path, port: str) -> None:
    process = start(tmp_path, "out", **GKE, TPU_WORKER_ID="1", JAX_COORDINATOR_PORT=port)
    time.sleep(6.0)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    process.communicate(timeout=10)
    assert time.monotonic() - begin < 3.0
    assert process.returncode != 0
    assert not (tmp_path / "out" / "records.parquet").exists()


@pytest.mark.slow
def test_raises_a_metadata_server_that_does_not_answer_in_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "out", **GCE, GCE_METADATA_IP="127.0.0.1:1")
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 2
    assert messages.count("\n") == 1
    assert "the metadata server of this TPU VM must answer" in messages
    single = start(tmp_path, "out", "--num-processes", "1", **GCE, GCE_METADATA_IP="127.0.0.1:1")
    _, messages = single.communicate(timeout=60)
    assert single.returncode == 0, messages
