"""Claims about how a cluster started a process: variables, servers and local processes."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rpo.runtime import cluster_services, clusters
from rpo.runtime.cluster_services import read_attribute, read_job_size
from rpo.runtime.clusters import (
    Launch,
    detect_launch,
    direct_connection,
    local_device_ids,
    may_be_launched,
    proxy_variable,
)
from rpo.runtime.processes import ProcessGroup, add_arguments, group_from

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[007-015,021],host2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
}
RANKS = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
OPEN_MPI_4 = RANKS | {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
GKE = {"TPU_WORKER_HOSTNAMES": "host-0,host-1", "TPU_WORKER_ID": "1"}
SLICES = {
    "MEGASCALE_NUM_SLICES": "2",
    "MEGASCALE_SLICE_ID": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "slice-0-host-0:8080",
}
POD = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "JOB_COMPLETION_INDEX": "1"}
POD_NAME = "train-1.workers.default.svc.cluster.local"
NO_SERVER = {"GCE_METADATA_IP": "127.0.0.1:1", "JAX_FORCE_TPU_INIT": "1"}


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@contextmanager
def served(answers: Mapping[str, str], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve texts by path on a free port of this host, and status 404 for any other path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = answers.get(self.path)
            known = self.headers["Metadata-Flavor"] == "Google" or (
                self.headers["Authorization"] == "Bearer secret"
            )
            self.send_response(403 if not known else 404 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def attributes(**values: str) -> dict[str, str]:
    folder = "/computeMetadata/v1/instance/attributes"
    return {f"{folder}/{name.replace('_', '-')}": value for name, value in values.items()}


@pytest.fixture(autouse=True)
def forget_answers() -> None:
    cluster_services._get.cache_clear()


def test_closed_form_slurm_and_open_mpi_are_detected_in_steps_of_several_tasks() -> None:
    assert detect_launch({}) is None
    assert detect_launch(SLURM) == Launch("Slurm", 2, 1, "node007:61447")
    one_node = SLURM | {"SLURM_STEP_NODELIST": "node7,host2", "JAX_COORDINATOR_PORT": "9"}
    assert detect_launch(one_node) == Launch("Slurm", 2, 1, "node7:9")
    batch_script = {name: value for name, value in SLURM.items() if "STEP" not in name}
    assert detect_launch(batch_script) is None
    assert detect_launch(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert detect_launch(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}) is None
    launch = detect_launch(SLURM | OPEN_MPI_4)
    assert launch == Launch("Open MPI", 4, 3, "10.96.0.1:62624")
    version_6 = RANKS | {"OMPI_MCA_orte_hnp_uri": "1314521088.0;tcp6://[2620:10d::2,fe80::1]:4"}
    assert detect_launch(version_6) == Launch("Open MPI", 4, 3, "[2620:10d::2]:62880")
    assert detect_launch(RANKS) == Launch("Open MPI", 4, 3, None)
    version_5 = RANKS | {"PMIX_NAMESPACE": "prterun-node-7-4711@1", "PMIX_RANK": "3"}
    assert detect_launch(version_5) == Launch("Open MPI", 4, 3, "node-7:62055")
    one_host = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "JAX_COORDINATOR_PORT": "9"}
    assert detect_launch(version_5 | one_host) == Launch("Open MPI", 4, 3, "127.0.0.1:9")
    assert detect_launch(RANKS | {"OMPI_COMM_WORLD_SIZE": "1"}) is None


def test_parity_addresses_are_those_that_jax_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src import clusters as jax_clusters

    for cluster, variables in (
        (jax_clusters.SlurmCluster, SLURM),
        (jax_clusters.SlurmCluster, SLURM | {"SLURM_STEP_NODELIST": "a-1"}),
        (jax_clusters.SlurmCluster, SLURM | {"SLURM_STEP_NODELIST": "a-[1-3],b"}),
        (jax_clusters.OmpiCluster, OPEN_MPI_4),
        (jax_clusters.GkeTpuCluster, GKE | dict.fromkeys(SLICES, "")),
        (jax_clusters.GkeTpuCluster, GKE | SLICES),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(cluster, "wait_for_coordinator", lambda *_: None, raising=False)
        launch = detect_launch(variables)
        assert launch is not None
        assert launch.coordinator_address == cluster.get_coordinator_address(1, None)
        assert launch.num_processes == cluster.get_process_count()
        assert launch.process_id == cluster.get_process_id()


def test_closed_form_tpu_slices_of_gke_are_detected_by_variables() -> None:
    assert detect_launch(GKE) == Launch("GKE", 2, 1, "host-0:8482")
    launch = detect_launch(GKE | SLICES | POD)
    assert launch == Launch("GKE", 4, 3, "slice-0-host-0:8482")
    one_host = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    assert detect_launch(one_host | POD | NO_SERVER) is None
    addresses = {"TPU_PROCESS_ADDRESSES": "a:8471,b:8471,c:8471"}
    launch = detect_launch(GKE | addresses | {"JAX_COORDINATOR_ADDRESS": "z:1"})
    assert launch == Launch("GKE", 3, 1, "z:1")
    for change, message in (
        ({"TPU_WORKER_ID": ""}, "`TPU_WORKER_ID` must be a whole number, got ''"),
        ({"TPU_WORKER_ID": "2"}, "worker 2 of slice 0 is not among 1 slices of 2 hosts"),
        ({"MEGASCALE_NUM_SLICES": "two"}, "`MEGASCALE_NUM_SLICES` must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            detect_launch(GKE | change)
        assert detect_launch(GKE | change, num_processes=1) is None


def test_closed_form_tpu_vms_are_detected_by_the_metadata_server() -> None:
    old = "name-0:0:10.0.0.5,name-1:1:10.0.0.6"
    answers = attributes(agent_worker_number="1", worker_network_endpoints=old)
    with served(answers) as server:
        vm = {"GCE_METADATA_IP": server, "JAX_FORCE_TPU_INIT": "1", "TPU_SKIP_MDS_QUERY": "1"}
        proxy = {"http_proxy": "http://127.0.0.1:1"}
        assert detect_launch(vm | proxy) == Launch("Cloud TPU", 2, 1, "10.0.0.5:8482")
        assert read_attribute("tpu-env", vm) is None
    lines = "ZONE: 'b'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'\n"
    lines += "MEGASCALE_COORDINATOR_ADDRESS: 'first'\n"
    answers = attributes(agent_worker_number="0", worker_network_endpoints="a,b", tpu_env=lines)
    with served(answers) as server:
        launch = detect_launch(vm | {"GCE_METADATA_IP": server})
        assert launch == Launch("Cloud TPU", 4, 2, "first:8482")
        one_slice = {"GCE_METADATA_IP": server, "MEGASCALE_NUM_SLICES": "1"}
        launch = detect_launch(vm | one_slice | {"MEGASCALE_SLICE_ID": "0"})
        assert launch == Launch("Cloud TPU", 2, 0, "first:8482")
    with served({}) as server:
        assert detect_launch(vm | {"GCE_METADATA_IP": server}) is None
    with pytest.raises(ValueError, match="metadata server of this TPU VM must answer"):
        detect_launch(NO_SERVER)


def test_limit_a_host_without_tpus_asks_no_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def ask(*_: object) -> bytes:
        raise AssertionError("a server is asked")

    monkeypatch.setattr(cluster_services, "_get", ask)
    product = tmp_path / "product_name"
    monkeypatch.setattr(clusters, "PRODUCT_FILE", product)
    for variables in (
        {},
        {"GCE_METADATA_IP": "127.0.0.1:1"},
        {"JAX_FORCE_TPU_INIT": "1"},
        {"JOB_COMPLETION_INDEX": "1"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ):
        assert detect_launch(variables) is None
        assert may_be_launched(variables) == ("JOB_COMPLETION_INDEX" in variables)
    for variables in (SLURM, RANKS, GKE, POD, NO_SERVER):
        assert may_be_launched(variables)
        assert detect_launch(variables, num_processes=1) is None
    # A TPU of one's own, or another passed-through device, is not a machine of Compute Engine.
    monkeypatch.setattr(clusters, "TPU_DEVICES", (str(tmp_path),))
    product.write_text("ThinkPad\n")
    assert not may_be_launched({})
    product.write_text("Google Compute Engine\n")
    assert may_be_launched({})
    assert not may_be_launched({"TPU_SKIP_MDS_QUERY": "1"})


def test_closed_form_pods_of_an_indexed_job_with_a_service_are_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: "train-1")
    assert detect_launch(POD, num_processes=4) is None  # no headless service
    monkeypatch.setattr(socket, "getfqdn", lambda *_: POD_NAME)
    address = "train-0.workers.default.svc.cluster.local:55527"
    launch = detect_launch(POD, num_processes=4)
    assert launch == Launch("Kubernetes", 4, 1, address)
    group = group_from(parsed("--num-processes", "4"), environment=POD)
    assert group == ProcessGroup(coordinator_address=address, num_processes=4, process_id=1)
    with pytest.raises(ValueError, match="argument --num-processes: must be given in a pod of an"):
        detect_launch(POD)


def test_closed_form_the_number_of_pods_is_that_of_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate of the server")
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "ca.crt")]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command = ["openssl", "req", "-x509", *kind, *files, *name]
    subprocess.run(command, check=True, capture_output=True)
    (tmp_path / "namespace").write_text("default\n")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setattr(cluster_services, "ACCOUNT_FOLDER", tmp_path)
    monkeypatch.setattr(socket, "getfqdn", lambda *_: POD_NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.crt", tmp_path / "key")
    answer = json.dumps({"spec": {"completions": 3, "parallelism": 3}})
    jobs = "/apis/batch/v1/namespaces/default/jobs"
    with served({f"{jobs}/train": answer}, context) as server:
        pod = POD | {"KUBERNETES_SERVICE_PORT_HTTPS": server.partition(":")[2]}
        launch = detect_launch(pod)
        assert launch is not None
        assert launch.num_processes == read_job_size("train", pod) == 3
        with pytest.raises(ValueError, match="to get its job `other`, got HTTP Error 404"):
            read_job_size("other", pod)
        (tmp_path / "token").write_text("other\n")
        with pytest.raises(ValueError, match="got HTTP Error 403"):
            read_job_size("train", pod)


def test_closed_form_options_that_are_given_win_over_the_launcher() -> None:
    group = group_from(parsed(), environment=SLURM)
    expected = ProcessGroup(
        coordinator_address="node007:61447",
        num_processes=2,
        process_id=1,
        local_device_ids=(1,),
    )
    assert group == expected
    assert group_from(parsed(), environment={}) == ProcessGroup()
    assert group_from(parsed("--num-processes", "1"), environment=SLURM) == ProcessGroup()
    address = ("--coordinator-address", "h:1")
    group = group_from(parsed(*address), environment=SLURM)
    assert (group.coordinator_address, group.num_processes, group.process_id) == ("h:1", 2, 1)
    options = (*address, "--num-processes", "3", "--process-id", "2")
    group = group_from(parsed(*options), environment=SLURM)
    assert group == ProcessGroup(
        coordinator_address="h:1", num_processes=3, process_id=2, local_device_ids=(1,)
    )
    with pytest.raises(ValueError, match="Open MPI started 4 processes, which need the HOST:PORT"):
        group_from(parsed(), environment=RANKS)
    off = ("--distributed", "off")
    assert group_from(parsed(*off), environment=SLURM) == ProcessGroup()
    assert group_from(parsed(*off, "--num-processes", "1"), environment=SLURM) == ProcessGroup()
    with pytest.raises(ValueError, match="argument --distributed: off runs this process alone"):
        group_from(parsed(*off, "--num-processes", "2"), environment={})
    group = group_from(parsed("--initialization-timeout", "600"), environment=SLURM)
    assert group.initialization_timeout == 600.0


def test_closed_form_a_gpu_of_a_task_is_that_of_its_number_on_its_host() -> None:
    slurm = {"SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2),2"}
    assert local_device_ids(slurm) == (1,)
    assert local_device_ids(slurm | {"SLURM_NODEID": "0", "SLURM_LOCALID": "0"}) is None
    mpi = {"OMPI_COMM_WORLD_LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}
    assert local_device_ids(slurm | mpi) == (3,)
    assert local_device_ids(mpi | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == (3,)
    assert local_device_ids(mpi | {"CUDA_VISIBLE_DEVICES": "0"}) is None
    assert local_device_ids(mpi | {"JAX_LOCAL_DEVICE_IDS": "0"}) is None
    assert local_device_ids({"TPU_WORKER_ID": "1"}) is None


def test_closed_form_a_proxy_is_named_unless_the_first_host_is_excepted() -> None:
    proxy = {"https_proxy": "http://proxy", "http_proxy": "http://proxy"}
    assert proxy_variable({}, "node7") is None
    assert proxy_variable({"HTTP_PROXY": "http://proxy"}, "node7") is None  # gRPC reads it not
    assert proxy_variable(proxy, "node7") == "https_proxy"
    assert proxy_variable(proxy | {"no_proxy": "a, .local"}, "node7.local") is None
    assert proxy_variable(proxy | {"NO_PROXY": "node7"}, "node7") == "https_proxy"
    cured = proxy | direct_connection(proxy | {"no_proxy": "a,b"}, "node7")
    assert cured["no_grpc_proxy"] == "a,b,node7"
    assert proxy_variable(cured, "node7") is None
