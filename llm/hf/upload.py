"""Uploads of exported folders to the Hugging Face hub.

What the hub refuses is found out first: the name, the token, the permission and the visibility are
checked, and the repository is created, before a model is exported.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rpo_io.hub import TIMEOUT_SECONDS, parse_hub_name


class UploadTarget(NamedTuple):
    """A repository of the hub that exists and that the user may write to.

    Attributes:
        name: ``owner/name``.
        revision: branch; None for the default branch.
    """

    name: str
    revision: str | None = None


def prepare_upload(
    name: str, *, private: bool = False, revision: str | None = None
) -> UploadTarget:
    """Create a model repository on the hub, unless it exists.

    Args:
        name: ``owner/name``.
        private: whether the repository must be private.
        revision: branch, which is created if it is missing; None for the default branch.

    Returns:
        The repository.

    Raises:
        ValueError: if the name or the branch is invalid, there is no valid token, the hub is out of
            reach, the token may not write there, or the repository is public but must be private.

    Examples:
        >>> prepare_upload("owner/name", private=True)  # doctest: +SKIP
        UploadTarget(name='owner/name', revision=None)
    """
    # Slow imports that other commands do not need.
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.utils import validate_repo_id

    found = parse_hub_name(f"hf://{name.removeprefix('hf://')}")
    if found is None or "/" not in found.name or found.revision is not None:
        raise ValueError(
            f"must have the form OWNER/NAME, got {name!r}: the branch is given by --revision"
        )
    name = found.name
    with _upload_errors(name):
        validate_repo_id(name)
    if constants.is_offline_mode():
        raise ValueError(f"{name}: HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it")
    if get_token() is None:
        raise ValueError(
            f"{name}: there is no token of the Hugging Face hub: log in with `hf auth login`, or "
            "set HF_TOKEN"
        )
    api = HfApi()
    with _upload_errors(name):
        token = api.whoami().get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise ValueError(
            f"{name}: the token may only read: log in with one that may write, see `hf auth login`"
        )
    with _upload_errors(name):
        api.create_repo(name, private=private or None, exist_ok=True)
        info: Any = api.model_info(name, timeout=TIMEOUT_SECONDS)
    if private and not info.private:
        raise ValueError(
            f"{name}: --private was given, but the repository is public: make it private on the "
            "hub, or give another name"
        )
    if revision is not None:
        with _upload_errors(name):
            api.create_branch(name, branch=revision, exist_ok=True)
    return UploadTarget(name, revision)


def upload_folder(
    folder: Path, target: UploadTarget, *, message: str, keep: tuple[str, ...] = ()
) -> str:
    """Upload the files of a folder in one commit.

    Args:
        folder: the folder.
        target: repository of :func:`prepare_upload`.
        message: message of the commit.
        keep: names of files that are not uploaded: the repository keeps its own.

    Returns:
        URL of the commit.

    Raises:
        ValueError: if the upload fails; the folder is complete, and the message says how to upload
            it again.

    Examples:
        >>> upload_folder(Path("policy"), target, message="Step 500")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    branch = "" if target.revision is None else f" --revision {target.revision}"
    try:
        with _upload_errors(target.name):
            commit = HfApi().upload_folder(
                repo_id=target.name,
                folder_path=folder,
                revision=target.revision,
                commit_message=message,
                ignore_patterns=list(keep) or None,
            )
            return str(commit.commit_url)
    except ValueError as error:
        raise ValueError(
            f"{error}; {folder} is complete: upload it with `hf upload {target.name} "
            f"{folder}{branch}`"
        ) from error


def remote_text(target: UploadTarget, name: str) -> str | None:
    """Return a text file of a repository.

    Args:
        target: repository of :func:`prepare_upload`.
        name: path of the file in it.

    Returns:
        The text; None if there is no such file.

    Raises:
        ValueError: if the hub cannot be asked.

    Examples:
        >>> remote_text(target, "README.md")  # doctest: +SKIP
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _upload_errors(target.name):
        info: Any = api.model_info(target.name, revision=target.revision, timeout=TIMEOUT_SECONDS)
        # A download that fails for another reason must not look like a missing file.
        if name not in [file.rfilename for file in info.siblings or ()]:
            return None
        path = api.hf_hub_download(target.name, name, revision=target.revision)
        return Path(path).read_text(encoding="utf-8", errors="replace")


@contextmanager
def _upload_errors(name: str) -> Iterator[None]:
    """Turn every failure of the hub into a ``ValueError`` of one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(
            f"{name} is not a valid name of a repository: {_first_line(error)}"
        ) from error
    except Exception as error:  # httpx, hub, xet and file errors share no base class
        status = getattr(getattr(error, "response", None), "status_code", None)
        reasons = {
            401: f"{name}: the hub does not accept the token: log in with `hf auth login`",
            403: f"{name}: the token may not write there: use one with write access to "
            f"{name.partition('/')[0]}",
            404: f"{name}: there is no such user or organization, or you may not write to it",
        }
        unreachable = (
            f"{name}: the Hugging Face hub is out of reach ({_first_line(error)}): check the "
            "network"
        )
        refused = f"{name}: the hub answered with status {status}: {_first_line(error)}"
        reason = unreachable if status is None else reasons.get(status, refused)
        raise ValueError(reason) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
