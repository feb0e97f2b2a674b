"""Failures of object stores and of the Hugging Face hub, as one line that says what to do.

The libraries below share no base class of exceptions. Each failure is sorted into one of a few
kinds, by the status of the answer or by the name of its class.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from .locations import Location

Failure = Literal[
    "missing", "forbidden", "no_credentials", "changed", "busy", "unreachable", "other"
]
TRANSIENT: tuple[Failure, ...] = ("busy", "unreachable")
"""Failures that may end by themselves."""
MAX_REASON_CHARACTERS = 200
_LOCAL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE)
_LIBRARIES = frozenset(
    {"gcsfs", "google", "aiohttp", "aiobotocore", "botocore", "s3fs", "fsspec", "requests"}
    | {"urllib3", "httpx", "httpx2", "httpcore", "huggingface_hub", "hf_xet", "asyncio"}
)
_UNREACHABLE_NAMES = re.compile(
    "Connect|Timeout|Disconnected|ClientPayload|ClientOSError|IncompleteRead|Proxy|Network"
    "|Transport|HTTPClientError|ReadError|Protocol|ChunkedEncoding|Checksum"
)
_CREDENTIAL_NAMES = re.compile("Credential|RefreshError|TokenRetrieval|ProfileNotFound|SSOToken")
_TENSORSTORE = re.compile(
    r"(NOT_FOUND|PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED"
    r"|RESOURCE_EXHAUSTED|INTERNAL|UNKNOWN|INVALID_ARGUMENT|FAILED_PRECONDITION|DATA_LOSS"
    r"|ALREADY_EXISTS|OUT_OF_RANGE|CANCELLED): "
)
_TENSORSTORE_FAILURES: dict[str, Failure] = {
    "NOT_FOUND": "missing",
    "PERMISSION_DENIED": "forbidden",
    "UNAUTHENTICATED": "no_credentials",
    "ABORTED": "changed",
    "FAILED_PRECONDITION": "changed",
    "UNAVAILABLE": "unreachable",
    "DEADLINE_EXCEEDED": "unreachable",
    "RESOURCE_EXHAUSTED": "busy",
    "INTERNAL": "busy",
}
_STATUS_FAILURES: dict[int, Failure] = {
    401: "no_credentials",
    403: "forbidden",
    404: "missing",
    408: "busy",
    409: "changed",
    412: "changed",
    429: "busy",
}
_LOG_IN = {
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "run `aws configure`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "hf": "run `hf auth login`, or set HF_TOKEN",
}
_STORES = {"gs": "Google Cloud Storage", "s3": "the S3 endpoint", "hf": "the Hugging Face hub"}


class StoreError(ValueError):
    """A failure of an object store, as one line that names the location and says what to do.

    Args:
        message: the line.
        failure: its kind.
    """

    def __init__(self, message: str, failure: Failure = "other") -> None:
        """Keep the kind, by which callers can tell a missing object from a store that fails."""
        super().__init__(message)
        self.failure: Failure = failure


@contextmanager
def location_errors(location: Location) -> Iterator[None]:
    """Turn the failures of a remote location in a block into a :class:`StoreError`.

    Errors of the project itself and errors of programming pass unchanged.

    Args:
        location: the file or folder that the block reads or writes.

    Raises:
        StoreError: if the block raises an error of the libraries of stores.

    Examples:
        >>> with location_errors(Location("gs", "bucket/a")):
        ...     raise FileNotFoundError("bucket/a")
        Traceback (most recent call last):
        rpo_io.remote_errors.StoreError: gs://bucket/a does not exist
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        raise store_error(failure, location, error) from error


def failure_of(error: BaseException) -> Failure | None:
    """Return the kind of a failure of a store.

    Args:
        error: any exception.

    Returns:
        The kind; None for an error that no library of stores raised.

    Examples:
        >>> failure_of(ConnectionResetError()), failure_of(TypeError())
        ('unreachable', None)
    """
    if isinstance(error, StoreError):
        return error.failure
    chain = list(_causes(error))
    if not any(_is_of_store(link) for link in chain):
        return None
    for link in chain:
        if (failure := _by_status(link)) is not None:
            return failure
    for link in chain:
        if (failure := _by_class(link)) is not None:
            return failure
    return "other"


def store_error(failure: Failure, location: Location, error: BaseException) -> StoreError:
    """Return the error for a failure, to be raised.

    Args:
        failure: its kind.
        location: what was read or written.
        error: the error, from which the reason is taken.

    Returns:
        An error whose message names the location and says what to do.

    Examples:
        >>> str(store_error("other", Location("gs", "bucket/a"), OSError("no such device")))
        'gs://bucket/a cannot be used: no such device'
    """
    return StoreError(_describe(failure, location, error), failure)


def _describe(failure: Failure, location: Location, error: BaseException) -> str:
    log_in = _LOG_IN.get(location.scheme, "log in")
    store = _STORES.get(location.scheme, "the store")
    reason = _reason(error)
    if failure == "missing":
        if location.is_bucket and not location.key:
            return f"{location}: there is no such bucket: check its name, or create it"
        return f"{location} does not exist"
    if failure == "no_credentials":
        return f"{location} cannot be opened without valid credentials: {log_in}"
    if failure == "forbidden":
        return (
            f"{location}: access is denied: ask the owner for access, or {log_in} of another "
            "account"
        )
    if failure == "changed":
        return f"{location} was changed by another process meanwhile: run the command again"
    if failure == "busy":
        return f"{location}: {store} failed repeatedly ({reason}): try again later"
    if failure == "unreachable":
        return f"{location}: {store} cannot be reached ({reason}): check the network"
    return f"{location} cannot be used: {reason}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_of_store(error: BaseException) -> bool:
    if isinstance(error, OSError):
        # Errors of local files name the file; a full disk names none.
        return error.filename is None and error.errno not in _LOCAL_ERRORS
    root = type(error).__module__.partition(".")[0]
    is_tensorstore = isinstance(error, ValueError) and _TENSORSTORE.match(str(error)) is not None
    return root in _LIBRARIES or is_tensorstore


def _by_status(error: BaseException) -> Failure | None:
    """Return the kind by the status of the answer of a store, if the error carries one."""
    response: Any = getattr(error, "response", None)
    # aiohttp warns whenever `code` is read of an error that has `status`.
    codes = [getattr(error, "status" if hasattr(error, "status") else "code", None)]
    codes.append(getattr(response, "status_code", None))
    if isinstance(response, dict):  # botocore
        if response.get("Error", {}).get("Code") in ("InvalidAccessKeyId", "ExpiredToken"):
            return "no_credentials"
        if response.get("Error", {}).get("Code") == "SignatureDoesNotMatch":
            return "no_credentials"
        codes.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    for code in codes:
        status = int(code) if isinstance(code, int | str) and str(code).isdigit() else 0
        if status in _STATUS_FAILURES:
            return _STATUS_FAILURES[status]
        if status >= 500:
            return "busy"
    return None


def _by_class(error: BaseException) -> Failure | None:
    name = type(error).__name__
    match = _TENSORSTORE.match(str(error))
    if match is not None:
        return _TENSORSTORE_FAILURES.get(match[1])
    if isinstance(error, FileNotFoundError):
        return "missing"
    # gcsfs raises a plain OSError("Forbidden: ...") for status 403.
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden:"):
        return "forbidden"
    if isinstance(error, FileExistsError):
        return "changed"
    if _CREDENTIAL_NAMES.search(name):
        return "no_credentials"
    if isinstance(error, ConnectionError | TimeoutError) or _UNREACHABLE_NAMES.search(name):
        return "unreachable"
    return None


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r" ?\[[\w.]*tensorstore_spec=.*", "", text)
    return text if len(text) <= MAX_REASON_CHARACTERS else text[:MAX_REASON_CHARACTERS] + "..."
