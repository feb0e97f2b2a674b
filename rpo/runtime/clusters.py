"""How a cluster started this process among several: Slurm, Open MPI, Cloud TPU or Kubernetes.

Every process gets the same command line. Which one it is follows from variables of the launcher,
and on TPU VMs of Compute Engine from the metadata server. Cheap local facts decide first: a process
that runs alone asks no server and waits for nothing.
"""

from __future__ import annotations

import glob
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .compilation import TPU_DEVICES

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
_OPEN_MPI_5 = "PMIX_NAMESPACE"
_OPEN_MPI_LOCAL = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_KUBERNETES = "KUBERNETES_SERVICE_HOST"
_KUBERNETES_INDEX = "JOB_COMPLETION_INDEX"
_GKE_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXIES = ("no_grpc_proxy", "no_proxy")
"""Variables that gRPC reads, which connects the processes of JAX; the first that is set counts."""
_PORT = "JAX_COORDINATOR_PORT"
_ADDRESS = "JAX_COORDINATOR_ADDRESS"
_FORCED_TPU = "JAX_FORCE_TPU_INIT"
_TPU_PORT = 8482
_KUBERNETES_PORT = 55527
_JOB_PORTS = 4096
"""Size of the range of ports, the last of all, from which the number of a job selects one."""
PRODUCT_FILE = Path("/sys/class/dmi/id/product_name")
"""File that holds "Google Compute Engine" on machines of that kind."""


class Launch(NamedTuple):
    """How a launcher started this process.

    Attributes:
        launcher: name of the launcher for messages.
        num_processes: number of processes, at least 2.
        process_id: index of this process.
        coordinator_address: ``HOST:PORT`` of process 0; None if the launcher does not reveal it.
    """

    launcher: str
    num_processes: int
    process_id: int
    coordinator_address: str | None


def detect_launch(
    environment: Mapping[str, str], *, num_processes: int | None = None
) -> Launch | None:
    """Return how a launcher started this process among several.

    Args:
        environment: variables of the process.
        num_processes: number of processes if the user gave it; None to find it out.

    Returns:
        The launch; None for a process that runs alone.

    Raises:
        ValueError: if a variable of the launcher is wrong, or a server that knows the number of
            processes does not answer.

    Examples:
        >>> variables = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}
        >>> detect_launch(variables).coordinator_address
        'host-0:8482'
    """
    if num_processes == 1:
        return None
    # Open MPI first: within a Slurm job, mpirun starts the processes. TPUs before Kubernetes: the
    # workers of a TPU slice are pods of an Indexed Job.
    if all(environment.get(name, "").isdigit() for name in _OPEN_MPI):
        launch = _open_mpi(environment)
    elif all(environment.get(name) for name in _SLURM):
        launch = _slurm(environment)
    elif any(name in environment for name in _GKE_HOSTS):
        launch = _gke_tpu(environment)
    elif _is_tpu_vm(environment):
        launch = _tpu_vm(environment)
    else:
        launch = _kubernetes(environment, num_processes)
    if launch is None:
        return None
    launch = launch._replace(
        num_processes=num_processes or launch.num_processes,
        coordinator_address=environment.get(_ADDRESS) or launch.coordinator_address,
    )
    return launch if launch.num_processes > 1 else None


def may_be_launched(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher may have started several processes, by local facts alone.

    Args:
        environment: variables of the process.

    Examples:
        >>> may_be_launched({})
        False
    """
    names = (_OPEN_MPI[0], "SLURM_STEP_NUM_TASKS", *_GKE_HOSTS, _KUBERNETES_INDEX)
    return any(name in environment for name in names) or _is_tpu_vm(environment)


def _open_mpi(environment: Mapping[str, str]) -> Launch:
    size, rank = (int(environment[name]) for name in _OPEN_MPI)
    # 1531576320.0;tcp://10.96.0.1,10.148.0.1:34911 or 1.0;tcp6://[fe80::1,2620:10d::2]:43370
    uri = re.match(
        r"(\d+)\..*?;tcp(?:://([^,:]+)|6://\[([^,\]]+))", environment.get(_OPEN_MPI_4, "")
    )
    if uri is not None:
        host = uri[2] or f"[{uri[3]}]"
        # The lower 12 bits of the number are those of the process, and zero.
        address = f"{host}:{_job_port(environment, int(uri[1]) // 4096)}"
        return Launch("Open MPI", size, rank, address)
    # Open MPI 5 names a job by host and process of mpirun: prterun-node7-4711@1.
    job = re.fullmatch(r"prterun-(.+)-(\d+)@\d+", environment.get(_OPEN_MPI_5, ""))
    if job is None:
        return Launch("Open MPI", size, rank, None)
    is_one_host = environment.get(_OPEN_MPI_LOCAL[1]) == str(size)
    host = "127.0.0.1" if is_one_host else job[1]
    return Launch("Open MPI", size, rank, f"{host}:{_job_port(environment, int(job[2]))}")


def _slurm(environment: Mapping[str, str]) -> Launch | None:
    job, nodes, tasks, task = (environment[name] for name in _SLURM[:4])
    # In a batch script the variables are those of the job, which has started one process only.
    if not (tasks.isdigit() and task.isdigit()) or environment["SLURM_STEP_NUM_TASKS"] != tasks:
        return None
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)  # node7,host2 or node[007-015,021],host2
    if first is None or not job.isdigit():
        return None
    address = f"{first[1]}{first[2] or ''}:{_job_port(environment, int(job))}"
    return Launch("Slurm", int(tasks), int(task), address)


def _job_port(environment: Mapping[str, str], job: int) -> str:
    return environment.get(_PORT) or str(2**16 - _JOB_PORTS + job % _JOB_PORTS)


def _gke_tpu(environment: Mapping[str, str]) -> Launch:
    names = next(environment[name] for name in _GKE_HOSTS if name in environment)
    hosts = [name.split(":")[0] for name in names.split(",")]
    return _tpu_slices("GKE", environment, environment, hosts, "TPU_WORKER_ID")


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Return whether this is a TPU VM of Compute Engine, with variables and files alone."""
    # JAX sets TPU_SKIP_MDS_QUERY on import if it sees no chip, even if it must use TPUs.
    has_tpu = _FORCED_TPU in environment or (
        "TPU_SKIP_MDS_QUERY" not in environment and any(map(glob.glob, TPU_DEVICES))
    )
    return has_tpu and is_compute_engine(environment)


def is_compute_engine(environment: Mapping[str, str]) -> bool:
    """Return whether this machine is one of Compute Engine, with variables and files alone.

    Args:
        environment: variables of the process.

    Examples:
        >>> is_compute_engine({"GCE_METADATA_IP": "169.254.169.254"})
        True
    """
    if "GCE_METADATA_IP" in environment:
        return True
    try:
        return PRODUCT_FILE.read_text(encoding="utf-8").startswith("Google")
    except OSError:
        return False


def _tpu_vm(environment: Mapping[str, str]) -> Launch | None:
    from .cluster_services import read_attribute  # it loads HTTP and TLS

    worker = read_attribute("agent-worker-number", environment)
    if worker is None:  # a TPU without a number is not part of a slice
        return None
    endpoints = read_attribute("worker-network-endpoints", environment) or ""
    # Either names of hosts, or name:number:address.
    hosts = [endpoint.split(":")[-1].strip() for endpoint in endpoints.split(",")]
    lines = (read_attribute("tpu-env", environment) or "").splitlines()
    pairs = [line.partition(":") for line in lines]
    attributes = {key.strip(): value.strip().strip("'") for key, _, value in pairs}
    variables = attributes | dict(environment) | {"agent-worker-number": worker.strip()}
    return _tpu_slices("Cloud TPU", environment, variables, hosts, "agent-worker-number")


def _tpu_slices(
    launcher: str,
    environment: Mapping[str, str],
    variables: Mapping[str, str],
    hosts: list[str],
    worker_name: str,
) -> Launch:
    """Return the launch of one process on each host of one or several TPU slices."""
    n_slices = _number(variables, "MEGASCALE_NUM_SLICES", launcher, default=1)
    slice_index = _number(variables, "MEGASCALE_SLICE_ID", launcher, default=0)
    first = variables.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    size = len(hosts) * max(n_slices, 1)
    # A slice of one host needs no number.
    worker = _number(variables, worker_name, launcher, default=0 if len(hosts) == 1 else None)
    process_id = worker + slice_index * len(hosts)
    if worker >= len(hosts) or process_id >= size:
        raise ValueError(
            f"{launcher}: worker {worker} of slice {slice_index} is not among {n_slices} slices of "
            f"{len(hosts)} hosts: give --num-processes, 1 to run alone"
        )
    address = f"{first.split(':')[0]}:{environment.get(_PORT) or _TPU_PORT}"
    return Launch(launcher, size, process_id, address)


def _number(variables: Mapping[str, str], name: str, launcher: str, *, default: int | None) -> int:
    text = variables.get(name, "")
    if not text and default is not None:
        return default
    if not re.fullmatch("[0-9]{1,9}", text):
        raise ValueError(
            f"{launcher}: `{name}` must be a whole number, got {text!r}: give --num-processes, 1 "
            "to run alone"
        )
    return int(text)


def _kubernetes(environment: Mapping[str, str], num_processes: int | None) -> Launch | None:
    index = environment.get(_KUBERNETES_INDEX, "")
    if _KUBERNETES not in environment or not index.isdigit():
        return None
    # With a headless service, pod 3 of a job is train-3.SERVICE.NAMESPACE.svc.cluster.local.
    host, _, domain = socket.getfqdn().partition(".")
    job = host.removesuffix(f"-{index}")
    if _ADDRESS not in environment and not (domain and job != host):
        return None  # pods without a headless service do not find each other
    address = f"{job}-0.{domain}:{environment.get(_PORT) or _KUBERNETES_PORT}"
    if num_processes is None:
        from .cluster_services import read_job_size  # it loads HTTP and TLS

        num_processes = read_job_size(job, environment)
    return Launch("Kubernetes", num_processes, int(index), address)


def local_device_ids(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return which GPUs of its host a task of Slurm or Open MPI uses: the one of its own number.

    Args:
        environment: variables of the process.

    Returns:
        The indices among the visible devices. None for all of them: of a task that shares its host
        with no other, or to which the launcher shows only its own devices.

    Examples:
        >>> step = {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x3)"}
        >>> local_device_ids(step), local_device_ids(step | {"CUDA_VISIBLE_DEVICES": "5"})
        ((1,), None)
    """
    rank, size = (environment.get(name, "") for name in _OPEN_MPI_LOCAL)
    if not rank:
        rank, size = environment.get("SLURM_LOCALID", ""), _tasks_of_node(environment)
    if not rank.isdigit() or size == "1" or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    visible = next((environment[name] for name in _VISIBLE if name in environment), None)
    if visible is not None and len(visible.split(",")) <= int(rank):
        return None
    return (int(rank),)


def _tasks_of_node(environment: Mapping[str, str]) -> str:
    """Return the number of tasks of a step of Slurm on this node; empty if it is not known."""
    counts: list[str] = []  # from 4(x2),3
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    ):
        counts += [count] * int(times or 1)
    node = environment.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else ""


def proxy_variable(environment: Mapping[str, str], host: str) -> str | None:
    """Return the variable that sends JAX's connection to process 0 through a proxy.

    Args:
        environment: variables of the process.
        host: host of process 0.

    Returns:
        Name of the variable; None if there is none, or the host is excepted.

    Examples:
        >>> proxy_variable({"http_proxy": "http://proxy:3128"}, "node7")
        'http_proxy'
        >>> proxy_variable({"http_proxy": "http://proxy:3128", "no_proxy": "node7"}, "node7")
    """
    excepted = _excepted_from_proxies(environment)
    if any(each and host.endswith(each.lstrip("*.")) for each in excepted):
        return None
    return next((name for name in _PROXIES if environment.get(name)), None)


def direct_connection(environment: Mapping[str, str], host: str) -> dict[str, str]:
    """Return the variable that lets JAX connect to a host without a proxy, and nothing else.

    Args:
        environment: variables of the process.
        host: host of process 0.

    Returns:
        The variable by its name, with what it held before.

    Examples:
        >>> direct_connection({"no_proxy": ".local"}, "node7")
        {'no_grpc_proxy': '.local,node7'}
    """
    return {_NO_PROXIES[0]: ",".join([*_excepted_from_proxies(environment), host])}


def _excepted_from_proxies(environment: Mapping[str, str]) -> list[str]:
    text = next((environment[name] for name in _NO_PROXIES if environment.get(name)), "")
    return [each.strip() for each in text.split(",") if each.strip()]
