"""Checkpoints in buckets: what makes a step whole, retention, and steps staged on a local disk.

An object store renames nothing, so that one object, written last, says that a step is whole. A step
is removed with that object first. Orbax writes to Google Cloud Storage itself. It does not write to
S3: there, every process lets Orbax write its part of a step to a local folder, and uploads it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import fsspec.config
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import multihost

from rpo_io.bucket_paths import BucketPath
from rpo_io.digests import sha256_of_file

COMMIT_FILES = {"gs": "commit_success.txt", "s3": "COMMIT"}
"""Object that says that a step is whole, by scheme; Orbax writes that of Google Cloud Storage."""
SCORE_FILE = "metrics/metrics"
"""Object of a step in which Orbax stores its score, if it has one."""
BARRIER_SECONDS = 600
"""Longest time that the processes of a run wait for each other's uploads."""
CHECK_SECONDS = 15.0
"""Time between two looks at a bucket while a save to it goes on."""
THREADS = 8
"""Number of files that a process uploads or downloads at a time."""
PROCESS_FILE = "files-of-process-{}.json"
"""Object in which a process lists what it has uploaded, until the step is whole."""


class StoredFile(NamedTuple):
    """A file of a step as the commit file of S3 lists it.

    Attributes:
        bytes: its size.
        sha256: its digest, in hexadecimal.
    """

    bytes: int
    sha256: str


def list_afresh() -> None:
    """Have Orbax, which uses etils and fsspec, list a bucket afresh every time.

    By default a process never sees what another one has written since its first listing.

    Examples:
        >>> list_afresh()
    """
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False


def whole_steps(folder: BucketPath) -> list[int]:
    """Return the steps of a folder of checkpoints that are whole, in increasing order.

    Args:
        folder: ``checkpoints`` in the folder of a run.

    Raises:
        ValueError: if the folder cannot be listed.
    """
    commits = folder.glob(f"*/{COMMIT_FILES[folder.location.scheme]}")
    return sorted(int(path.parent.name) for path in commits if path.parent.name.isdecimal())


def remove_step(folder: BucketPath, step: int) -> None:
    """Remove a step, and first the object that says that it is whole.

    Args:
        folder: ``checkpoints`` in the folder of a run.
        step: number of updates made.

    Raises:
        ValueError: if an object cannot be removed.
    """
    path = folder / str(step)
    (path / COMMIT_FILES[folder.location.scheme]).unlink(missing_ok=True)
    path.remove_files(list(path.files()))


def remove_unfinished_steps(folder: BucketPath) -> None:
    """Remove what killed processes have written of steps that are not whole.

    Args:
        folder: ``checkpoints`` in the folder of a run that this process owns.

    Raises:
        ValueError: if an object cannot be removed.
    """
    names = {str(step) for step in whole_steps(folder)}
    files = list(folder.files())
    partial = [file for file in files if folder.relative_name(file).split("/")[0] not in names]
    folder.remove_files(partial)


def remove_old_steps(folder: BucketPath, *, keep: int | None, keep_best: bool) -> None:
    """Remove all whole steps but the last ones, and the one with the largest score.

    Args:
        folder: ``checkpoints`` in the folder of a run.
        keep: number of last steps to keep; None for all.
        keep_best: keep also the step with the largest score.

    Raises:
        ValueError: if an object cannot be removed.
    """
    steps = whole_steps(folder)
    old = [] if keep is None else steps[: max(len(steps) - keep, 0)]
    if keep_best and old:
        names = {path.parent.parent.name for path in folder.glob(f"*/{SCORE_FILE}")}
        scores = {step: _score(folder, step) for step in steps if str(step) in names}
        if scores:
            best = max(scores, key=lambda step: (scores[step], step))
            old = [step for step in old if step != best]
    for step in old:
        remove_step(folder, step)


def _score(folder: BucketPath, step: int) -> float:
    return float(json.loads((folder / str(step) / SCORE_FILE).read_text())["score"])


def upload_step(part: Path, folder: BucketPath, step: int) -> None:
    """Upload this process's part of a step; process 0 writes the commit file when all have.

    All processes call this function. It may run in a thread, because the processes wait for each
    other without a collective operation.

    Args:
        part: local folder with the files of this process.
        folder: ``checkpoints`` in the folder of the run.
        step: number of updates made.

    Raises:
        ValueError: if a file cannot be uploaded.
        RuntimeError: if another process does not finish its uploads.
    """
    target, files = folder / str(step), _files_of(part)
    with ThreadPoolExecutor(THREADS) as pool:
        # A list raises the first error.
        list(pool.map(lambda name: (target / name).upload(part / name), files))
    process, n_processes = jax.process_index(), jax.process_count()
    written = {name: _describe(part / name) for name in files}
    if n_processes == 1:
        _commit(target, [written])
        return
    listed = [target / PROCESS_FILE.format(k) for k in range(n_processes)]
    listed[process].write_bytes(json.dumps(written).encode())
    _wait_for_all(f"uploads of {target}")
    parts = [json.loads(path.read_bytes()) for path in listed]
    # Of a file that several processes write with different content, the first one's is listed.
    for name in written:
        owners = [k for k, each in enumerate(parts) if name in each]
        if owners[0] == process and any(parts[k][name] != written[name] for k in owners):
            (target / name).upload(part / name)
    _wait_for_all(f"files of {target}")
    if process == 0:
        _commit(target, parts)
    _wait_for_all(f"commit of {target}")


def download_step(
    folder: BucketPath, step: int, part: Path, *, below: tuple[str, ...] = ("",)
) -> None:
    """Download a step, or some of its files, and check every file.

    Args:
        folder: ``checkpoints`` in the folder of a run.
        step: number of updates made.
        part: local folder; files that it has already are not downloaded again.
        below: beginnings of the names of the files to download.

    Raises:
        ValueError: if the step is not whole, or a file differs from what the commit file lists.
        OSError: if a file cannot be written.
    """
    source = folder / str(step)
    listed = json.loads((source / COMMIT_FILES[folder.location.scheme]).read_bytes())["files"]

    def fetch(name: str) -> None:
        expected, path = StoredFile(**listed[name]), part / name
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        (source / name).download(path)
        if _describe(path) != expected._asdict():
            path.unlink()
            raise ValueError(f"{source / name} differs from what {source} lists")

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fetch, [name for name in listed if name.startswith(below)]))


def start_in_thread(call: Callable[[], None]) -> Future[None]:
    """Start a call in a thread that does not keep the process alive.

    Args:
        call: function without arguments.

    Returns:
        The future of the call.

    Examples:
        >>> start_in_thread(lambda: None).result()
    """
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_while_reachable(future: Future[None], folder: BucketPath) -> None:
    """Wait for a save as long as its bucket can be reached.

    tensorstore tries for many minutes to reach a server that is gone.

    Args:
        future: the save.
        folder: ``checkpoints`` in the folder of the run.

    Raises:
        ValueError: if the bucket cannot be reached for half a minute, or the save fails.
    """
    while not future.done():
        try:
            future.result(CHECK_SECONDS)
        except TimeoutError:
            if not future.done():
                whole_steps(folder)
    future.result()


def local_handlers() -> Any:
    """Return Orbax's handlers for a step of which every process writes its part to its own disk."""
    options = ocp.options.MultiprocessingOptions(primary_host=None)
    # Files of one array each: those of all processes together are the whole step.
    arrays = ocp.PyTreeCheckpointHandler(use_ocdbt=False, multiprocessing_options=options)
    about = ocp.JsonCheckpointHandler(multiprocessing_options=options)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name, kinds, handler in (
        ("state", (ocp.args.PyTreeSave, ocp.args.PyTreeRestore), arrays),
        ("about", (ocp.args.JsonSave, ocp.args.JsonRestore), about),
    ):
        for kind in kinds:
            registry.add(name, kind, handler)
    return registry


def _commit(target: BucketPath, parts: Sequence[dict[str, Any]]) -> None:
    files = {name: entry for part in reversed(parts) for name, entry in part.items()}
    document = json.dumps({"files": files}, indent=1, sort_keys=True)
    (target / COMMIT_FILES["s3"]).write_bytes(document.encode())


def _files_of(part: Path) -> list[str]:
    return sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())


def _describe(path: Path) -> dict[str, Any]:
    return StoredFile(path.stat().st_size, sha256_of_file(path))._asdict()


def _wait_for_all(name: str) -> None:
    """Wait for all processes at JAX's coordinator, which threads may do while a step runs."""
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=BARRIER_SECONDS * 1000)
