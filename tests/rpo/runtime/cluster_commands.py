"""Local processes that one command line starts under the variables of a cluster."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .test_clusters import attributes, served

ROOT = Path(__file__).resolve().parents[3]
LOCAL = "127.0.0.1"
CONFIG = """
name: tiny
model:
  architecture: {vocab_size: 264, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
    num_attention_heads: 4}
  dtype: float64
  param_dtype: float64
data: {train: rows.jsonl, eval_rows: 8, max_length: 16}
objective: {beta: 0.5, eta: 0.1}
optimizer: {learning_rate: 1.0e-2}
trainer: {max_steps: 4, eval_steps: 4, per_device_train_batch_size: 2}
"""
LAUNCHERS = ("slurm", "open-mpi-4", "open-mpi-5", "gke", "gce", "kubernetes")


def free_port() -> str:
    with socket.create_server((LOCAL, 0)) as server:
        return str(server.getsockname()[1])


def write_inputs(folder: Path) -> None:
    """Write a configuration and its preference rows."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(CONFIG)
    draw = random.Random(0)
    replies = ["yes", "no", "maybe", "never", "now"]
    with (folder / "rows.jsonl").open("w") as file:
        for row in range(24):
            chosen, rejected = draw.sample(replies, 2)
            fields = {"prompt": f"q{row % 4}", "chosen": chosen, "rejected": rejected}
            file.write(json.dumps(fields) + "\n")


@contextmanager
def cluster(launcher: str, size: int) -> Iterator[list[dict[str, str]]]:
    """Yield the variables of each process of a job."""
    port = free_port()
    shared = {"JAX_COORDINATOR_PORT": port, "JAX_COORDINATOR_BIND_ADDRESS": f"{LOCAL}:{port}"}
    each: list[dict[str, str]] = [{} for _ in range(size)]
    with ExitStack() as stack:
        if launcher == "slurm":
            shared |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": LOCAL}
            shared |= {"SLURM_NTASKS": str(size), "SLURM_STEP_NUM_TASKS": str(size)}
            each = [{"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)} for k in range(size)]
        elif launcher.startswith("open-mpi"):
            shared |= {"OMPI_COMM_WORLD_SIZE": str(size), "OMPI_COMM_WORLD_LOCAL_SIZE": str(size)}
            name = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
            each = [dict.fromkeys(name, str(k)) for k in range(size)]
            if launcher == "open-mpi-4":
                shared |= {"OMPI_MCA_orte_hnp_uri": f"4096.0;tcp://{LOCAL}:34911"}
            else:
                shared |= {"PMIX_NAMESPACE": "prterun-node-of-mpirun-4711@1"}
        elif launcher == "gke":
            shared |= {"TPU_WORKER_HOSTNAMES": ",".join([LOCAL] * size)}
            each = [{"TPU_WORKER_ID": str(k)} for k in range(size)]
        elif launcher == "gce":
            shared |= {"JAX_FORCE_TPU_INIT": "1"}
            endpoints = ",".join([LOCAL] * size)
            for k in range(size):
                answers = attributes(agent_worker_number=str(k), worker_network_endpoints=endpoints)
                each[k] = {"GCE_METADATA_IP": stack.enter_context(served(answers))}
        else:  # there is no name server for pods here
            shared |= {"KUBERNETES_SERVICE_HOST": LOCAL}
            shared |= {"JAX_COORDINATOR_ADDRESS": f"{LOCAL}:{port}"}
            each = [{"JOB_COMPLETION_INDEX": str(k)} for k in range(size)]
        yield [shared | variables for variables in each]


def start(
    arguments: Sequence[str | Path], folder: Path, variables: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a command in a folder."""
    path = os.pathsep.join([*filter(None, [variables.get("PYTHONPATH")]), str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "rpo", *map(str, arguments)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables, "PYTHONPATH": path},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_job(
    launcher: str,
    arguments: Sequence[str | Path],
    folders: Sequence[Path],
    *,
    variables: Sequence[Mapping[str, str]] = (),
) -> list[tuple[int, str, str]]:
    """Run the same command in one process for each folder; return code, stdout and stderr."""
    more = [*variables, *[{}] * (len(folders) - len(variables))]
    with cluster(launcher, len(folders)) as environments:
        processes = [
            start(arguments, folder, {**environment, **changes})
            for folder, environment, changes in zip(folders, environments, more, strict=True)
        ]
        outputs = [process.communicate(timeout=300) for process in processes]
    codes = [process.returncode for process in processes]
    return [(code, *output) for code, output in zip(codes, outputs, strict=True)]
