"""Launchers that start several processes of one command: Slurm and Open MPI.

A launcher tells every process by variables how many there are and which one it is. They are read
only where the launcher really started several processes, so that a command in an allocation, or in
a batch script without ``srun``, runs alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_NUM_TASKS",
)
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"


class Launch(NamedTuple):
    """How a launcher started this process.

    Attributes:
        launcher: name of the launcher for messages.
        detection: value of ``cluster_detection_method`` of ``jax.distributed.initialize``, which
            then finds the address of process 0; None if JAX does not know the launcher.
        num_processes: number of processes, at least 2.
        process_id: index of this process.
    """

    launcher: str
    detection: str | None
    num_processes: int
    process_id: int


def detect_launch(environment: Mapping[str, str]) -> Launch | None:
    """Return how a launcher started this process among several.

    Args:
        environment: variables of the process.

    Returns:
        The launch; None for a process that runs alone.

    Examples:
        >>> detect_launch({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"})
        Launch(launcher='Open MPI', detection=None, num_processes=4, process_id=1)
    """
    # Open MPI first: within a Slurm job, mpirun starts the processes.
    if all(environment.get(name, "").isdigit() for name in _OPEN_MPI):
        size, rank = (int(environment[name]) for name in _OPEN_MPI)
        detection = "ompi" if _OPEN_MPI_4 in environment else None
        return Launch("Open MPI", detection, size, rank) if size > 1 else None
    if not all(environment.get(name) for name in _SLURM):
        return None
    tasks, task = environment["SLURM_NTASKS"], environment["SLURM_PROCID"]
    # In a batch script the variables are those of the job, which has started one process only.
    if not (tasks.isdigit() and task.isdigit()) or environment["SLURM_STEP_NUM_TASKS"] != tasks:
        return None
    return Launch("Slurm", "slurm", int(tasks), int(task)) if int(tasks) > 1 else None


def proxy_hint(environment: Mapping[str, str]) -> str:
    """Return a hint about a proxy, which can keep processes from meeting; empty without one.

    Args:
        environment: variables of the process.

    Examples:
        >>> proxy_hint({"http_proxy": "http://proxy:3128"})
        ' (the variable http_proxy can keep them apart: add the host of process 0 to NO_PROXY)'
    """
    names = sorted(name for name in environment if name.lower() in ("http_proxy", "https_proxy"))
    if not names:
        return ""
    return f" (the variable {names[0]} can keep them apart: add the host of process 0 to NO_PROXY)"
