"""Servers within a cluster that know its processes: of Compute Engine and of Kubernetes."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

SECONDS_TO_ANSWER = 5.0
"""Time in which a server must answer; it takes milliseconds."""
ATTEMPTS = 2
ACCOUNT_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder in which a pod finds its namespace, its token and the certificate of the server."""
METADATA_SERVER = "metadata.google.internal"
_METADATA = ("Metadata-Flavor", "Google")
_REMEDY = "give --num-processes, 1 to run alone"


def read_attribute(name: str, environment: Mapping[str, str]) -> str | None:
    """Return an attribute of this virtual machine of Compute Engine.

    Args:
        name: name of the attribute, such as ``agent-worker-number``.
        environment: variables of the process; ``GCE_METADATA_IP`` names another server.

    Returns:
        The attribute; None if the machine has none of this name.

    Raises:
        ValueError: if the metadata server does not answer.
    """
    host = environment.get("GCE_METADATA_IP", METADATA_SERVER)
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    try:
        return _get(url, _METADATA, None).decode()
    except HTTPError as error:
        if error.code == 404:
            return None
        reason: object = error
    except (OSError, HTTPException) as error:
        reason = error
    rule = "the metadata server of this TPU VM must answer"
    raise ValueError(f"Cloud TPU: {rule}, got {reason} from {host}: {_REMEDY}")


def is_preempted(environment: Mapping[str, str]) -> bool:
    """Return whether this virtual machine of Compute Engine is about to be preempted.

    Args:
        environment: variables of the process; ``GCE_METADATA_IP`` names another server.

    Raises:
        OSError: if the metadata server does not answer, or not with what is asked for.
    """
    host = environment.get("GCE_METADATA_IP", METADATA_SERVER)
    url = f"http://{host}/computeMetadata/v1/instance/preempted"
    try:
        with _opener(None).open(_request(url, _METADATA), timeout=SECONDS_TO_ANSWER) as answer:
            return answer.read().strip().upper() == b"TRUE"
    except HTTPException as error:
        raise OSError(str(error)) from error


def read_job_size(job: str, environment: Mapping[str, str]) -> int:
    """Return the number of pods that a Kubernetes job runs at a time.

    Args:
        job: name of the job in the namespace of this pod.
        environment: variables of the process.

    Returns:
        The number of pods.

    Raises:
        ValueError: if the server does not answer, or does not let this pod read its job.
    """
    port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS", "443")
    server = f"{environment['KUBERNETES_SERVICE_HOST']}:{port}"
    try:
        namespace, token = (
            (ACCOUNT_FOLDER / name).read_text(encoding="utf-8").strip()
            for name in ("namespace", "token")
        )
        url = f"https://{server}/apis/batch/v1/namespaces/{namespace}/jobs/{job}"
        certificate = ACCOUNT_FOLDER / "ca.crt"
        answer = _get(url, ("Authorization", f"Bearer {token}"), certificate)
        return int(json.loads(answer)["spec"]["parallelism"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "argument --num-processes: must be given in a pod of an Indexed Job, or the service "
            f"account of the pod must be allowed to get its job `{job}`, got {error} from "
            f"{server}: give the number, 1 to run alone"
        ) from error


@lru_cache(maxsize=8)
def _get(url: str, header: tuple[str, str], certificate: Path | None) -> bytes:
    """Return what a server answers, without any proxy; the answer is kept."""
    opener, request = _opener(certificate), _request(url, header)
    for attempt in range(ATTEMPTS):
        try:
            with opener.open(request, timeout=SECONDS_TO_ANSWER) as answer:
                return answer.read()
        except HTTPError as error:
            if error.code < 500 or attempt == ATTEMPTS - 1:
                raise
        except OSError:
            if attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _opener(certificate: Path | None) -> OpenerDirector:
    context = certificate and ssl.create_default_context(cafile=str(certificate))
    return build_opener(ProxyHandler({}), HTTPSHandler(context=context))


def _request(url: str, header: tuple[str, str]) -> Request:
    return Request(url, headers=dict([header]))
