"""Names of the Hugging Face hub: telling them from local paths, and downloading.

A name is local unless it is a hub name by its form: ``hf://owner/name``, or ``owner/name`` when
nothing local resembles it. A mistyped path therefore never asks the network. Every failure of the
hub becomes a ``ValueError`` of one line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

Kind = Literal["model", "dataset"]
SCHEME = "hf://"
LOCAL_FOLDERS = (
    *("build", "checkpoint", "checkpoints", "config", "configs", "data", "dataset", "datasets"),
    *("dist", "docs", "exports", "model", "models", "out", "output", "outputs", "result"),
    *("results", "run", "runs", "scripts", "src", "test", "tests", "tmp", "weights"),
)
"""First components that name a local folder, even where the folder is missing."""
FILE_SUFFIX = re.compile(
    r"\.(jsonl?|parquet|arrow|feather|csv|tsv|txt|ya?ml|gz|zst|safetensors|bin|pt|pth|gguf|py)$",
    re.IGNORECASE,
)
TIMEOUT_SECONDS = 10.0
_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9_.\-]*"
_NAME = re.compile(
    rf"(?P<name>{_COMPONENT}/{_COMPONENT})(?:@(?P<revision>[^:\s]+?))?(?P<inner>(?:/[^/:@\s]+)*)"
)
_SHORT_NAME = re.compile(rf"(?P<name>{_COMPONENT})(?:@(?P<revision>[^:\s/]+))?(?P<inner>)")


class HubRepository(NamedTuple):
    """A repository on the Hugging Face hub.

    Attributes:
        name: ``owner/name``, or ``name`` for the few repositories without an owner.
        revision: branch, tag or commit; None for the default branch.
        inner: path inside the repository, without slashes at the ends; empty for its root.
    """

    name: str
    revision: str | None = None
    inner: str = ""


def parse_hub_name(source: str, *, kind: Kind = "model") -> HubRepository | None:
    """Parse the name of a hub repository; nothing is asked of the network.

    Args:
        source: ``[hf://]owner/name[@revision]``; a data set may go on with ``/path/in/repository``.
            A name that exists locally, has the form of a path, or resembles a local name is local.
        kind: kind of the repository. ``hf://datasets/owner/name`` is the same as
            ``hf://owner/name`` for data sets.

    Returns:
        The repository, or None if the source is a local path.

    Raises:
        ValueError: if a name after ``hf://`` is not that of a repository of this kind.

    Examples:
        >>> parse_hub_name("hf://owner/name@v1").revision
        'v1'
        >>> parse_hub_name("./owner/name") is None
        True
    """
    if source.startswith(SCHEME):
        return _explicit(source, kind)
    match = _NAME.fullmatch(source)
    if match is None or (kind == "model" and match["inner"]) or _looks_local(source):
        return None
    return _repository(match)


def missing_source(source: str, *, what: str) -> ValueError:
    """Return the error for a local path that does not exist, with what to type instead.

    Args:
        source: the path.
        what: noun phrase for what was looked for, such as ``a model folder``.

    Returns:
        The error, to be raised.

    Examples:
        >>> str(missing_source("out/polcy", what="a model folder"))
        'out/polcy does not exist: give a model folder, or a hub repository as hf://owner/name'
    """
    path = Path(source)
    nearest = None
    for parent in path.parents:
        if parent.is_dir():
            step = path.relative_to(parent).parts[0]
            close = difflib.get_close_matches(step, _entries(parent), n=1, cutoff=0.7)
            nearest = parent / close[0] if close else None
            break
    hint = f"{nearest} does; " if nearest is not None else ""
    return ValueError(
        f"{source} does not exist: {hint}give {what}, or a hub repository as hf://owner/name"
    )


@contextmanager
def hub_errors(repository: HubRepository, *, kind: Kind = "model") -> Iterator[None]:
    """Turn every failure of hub calls in a block into a ``ValueError`` of one line.

    Args:
        repository: the repository that is asked for.
        kind: kind of the repository.

    Raises:
        ValueError: if the block raises any exception.

    Examples:
        >>> with hub_errors(HubRepository("owner/name")):  # doctest: +SKIP
        ...     download()
    """
    try:
        yield
    except Exception as error:  # httpx, hub, xet and file errors share no base class
        raise ValueError(_describe(error, repository, kind)) from error


def list_hub_files(repository: HubRepository, *, kind: Kind = "dataset") -> list[str]:
    """Return the paths of all files of a repository, sorted, without retries.

    Args:
        repository: the repository; ``inner`` is not applied.
        kind: kind of the repository.

    Returns:
        Paths inside the repository; those in the local cache if the hub is out of reach.

    Raises:
        ValueError: if the repository is not available.
    """
    with hub_errors(repository, kind=kind):
        # A slow import that local files do not need.
        from huggingface_hub import HfApi, snapshot_download

        try:
            # One request. ``list_repo_files`` would retry for 23 seconds if the hub is unreachable.
            info: Any = HfApi().repo_info(
                repository.name,
                repo_type=kind,
                revision=repository.revision,
                timeout=TIMEOUT_SECONDS,
            )
            return sorted(file.rfilename for file in info.siblings or ())
        except Exception as error:
            if not _is_unreachable(error):
                raise
            try:
                cached = snapshot_download(
                    repository.name,
                    repo_type=kind,
                    revision=repository.revision,
                    local_files_only=True,
                )
            except Exception:
                raise error from None
            found = (path for path in Path(cached).rglob("*") if path.is_file())
            return sorted(path.relative_to(cached).as_posix() for path in found)


def download_from_hub(
    repository: HubRepository, patterns: Sequence[str], *, kind: Kind = "model"
) -> Path:
    """Download files of a repository into the cache of the hub.

    Args:
        repository: the repository; ``inner`` is not applied.
        patterns: paths or glob patterns of the files to download.
        kind: kind of the repository.

    Returns:
        The local folder that holds the files under their paths in the repository.

    Raises:
        ValueError: if the repository is not available.

    Examples:
        >>> download_from_hub(HubRepository("owner/name"), ["*.json"])  # doctest: +SKIP
    """
    with hub_errors(repository, kind=kind):
        # A slow import that local files do not need.
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                repository.name,
                repo_type=kind,
                revision=repository.revision,
                allow_patterns=list(patterns),
            )
        )


def download_hub_file(source: str) -> Path:
    """Download one file of a repository into the cache of the hub.

    Args:
        source: ``hf://[datasets/]owner/name[@revision]/path/of/file``.

    Returns:
        The local file.

    Raises:
        ValueError: if the name has another form, or the file is not available.

    Examples:
        >>> download_hub_file("hf://owner/name/config.yaml").name  # doctest: +SKIP
        'config.yaml'
    """
    kind: Kind = "dataset" if source.startswith(f"{SCHEME}datasets/") else "model"
    name = source.removeprefix(SCHEME).removeprefix("datasets/").removeprefix("models/")
    match = _NAME.fullmatch(name)
    if match is None or not match["inner"]:
        raise ValueError(f"{source}: must have the form hf://owner/name[@revision]/path/of/file")
    repository = _repository(match)
    folder = download_from_hub(repository, [glob_escaped(repository.inner)], kind=kind)
    path = folder / repository.inner
    if not path.is_file():
        raise ValueError(f"{source} does not exist in its repository")
    return path


def glob_escaped(name: str) -> str:
    """Return a pattern that matches a name literally.

    Examples:
        >>> glob_escaped("a[1].jsonl")
        'a[[]1].jsonl'
    """
    return re.sub(r"([*?\[])", r"[\1]", name)


def _explicit(source: str, kind: Kind) -> HubRepository:
    name = source.removeprefix(SCHEME).strip("/")
    for prefix, expected in (("datasets/", "dataset"), ("models/", "model"), ("spaces/", "space")):
        if name.startswith(prefix):
            if expected != kind:
                raise ValueError(f"{source}: must name a {kind} of the hub, got a {expected}")
            name = name.removeprefix(prefix)
    match = _NAME.fullmatch(name) or _SHORT_NAME.fullmatch(name)
    if match is None or (kind == "model" and match["inner"]):
        inner = "[/path]" if kind == "dataset" else ""
        raise ValueError(f"{source}: must have the form hf://owner/name[@revision]{inner}")
    return _repository(match)


def _repository(match: re.Match[str]) -> HubRepository:
    return HubRepository(match["name"], match["revision"], match["inner"].strip("/"))


def _looks_local(source: str) -> bool:
    """Return whether a source of the form ``owner/name`` is a path nevertheless."""
    if os.path.lexists(source) or FILE_SUFFIX.search(source):
        return True
    first = source.split("/", 1)[0]
    entries = [entry.lower() for entry in _entries(Path())]
    return first.lower() in LOCAL_FOLDERS or bool(
        difflib.get_close_matches(first.lower(), entries, n=1, cutoff=0.8)
    )


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _is_unreachable(error: BaseException) -> bool:
    """Return whether no answer came, so that the cache may be used."""
    return _response(error) is None and not isinstance(error, ValueError)


def _response(error: BaseException | None) -> Any:
    """Return the answer of the hub that an error, or one of its causes, carries."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__ or error.__context__
    return None


def _describe(error: Exception, repository: HubRepository, kind: Kind) -> str:
    from huggingface_hub import constants, errors

    name = {"model": "model", "dataset": "data set"}[kind]
    shown = f"{SCHEME}{repository.name}"
    if repository.revision is not None:
        shown += f"@{repository.revision}"
    response = _response(error)
    if isinstance(error, errors.HFValidationError):
        return f"{shown} is not a valid name of a repository: {_first_line(error)}"
    if isinstance(error, errors.GatedRepoError):
        return f"{shown} is gated: accept its terms on the hub, then log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{shown}: the {name} has no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{shown} is not a {name} of the Hugging Face hub that you can read"
    if constants.is_offline_mode():
        return (
            f"{shown} is not in the local cache, and HF_HUB_OFFLINE is set: unset it, or download "
            "the repository and give its folder"
        )
    if response is not None:
        return f"{shown} is not available: the hub answered with status {response.status_code}"
    return (
        f"{shown} cannot be downloaded: the Hugging Face hub is out of reach "
        f"({_first_line(error)}): give a local folder or file, or check the network"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix("Got: ").rstrip(".") if lines else type(error).__name__
