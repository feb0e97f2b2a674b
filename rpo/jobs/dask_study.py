"""Studies on a running Dask cluster: its workers fit the parts, and this process stores them.

A task is one part. Dask gives the tasks of a lost worker to another one. Workers get the
configuration as YAML, and refuse to work with other versions or other content of the files that the
study reads, so that the records have the bytes of one process.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa

from bandits.study.config import StudyConfig
from bandits.study.inputs import input_digests
from bandits.study.parts import PartPlan, StudyPart, draw_part, plan_parts
from bandits.study.records import VERSIONED, RecordStore, record_versions
from bandits.study.run import run_part
from rpo.report.figure_files import FigureFormat
from rpo.results import StudyResult
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import UsageError
from rpo.runtime.processes import SINGLE_PROCESS
from rpo.runtime.yaml_files import parse_yaml
from rpo_io.config_types import build
from rpo_io.user_modules import add_module_folder, import_user_module, is_reference
from rpo_io.versions import DISTRIBUTION, release_version

from .studies import run_study

SECONDS_TO_ANSWER = 20.0
"""Time in which the scheduler must answer and have a worker."""
SECONDS_BETWEEN_CHECKS = 30.0
"""Time without a finished part after which the workers are counted."""
TASKS_PER_WORKER = 3
"""Tasks that the scheduler holds at a time, so that the results that wait here are few."""
RETRIES = 2
"""Number of times that a part is tried again after an error."""
_LOGGER = logging.getLogger(__name__)
_one_fit_at_a_time = Lock()


class StudyTask(NamedTuple):
    """What a worker needs to know to fit parts of a study.

    Attributes:
        config: the configuration in YAML.
        module_folders: folders of the modules of the user's own that the configuration names.
        digests: digests of the files and the code of the study, by name.
        versions: versions that the records carry, by name.
    """

    config: bytes
    module_folders: tuple[str, ...]
    digests: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, Any], ...]


def run_on_dask(
    study: StudyConfig,
    folder: Path,
    address: str,
    *,
    resume: bool,
    figures: FigureFormat,
    table: bool,
) -> StudyResult:
    """Run a study on the workers of a Dask scheduler.

    Args:
        study: the configuration.
        folder: output folder, which only this process writes.
        address: address of the scheduler, such as ``tcp://HOST:8786``.
        resume: continue a study that was begun in the folder.
        figures: formats, width and style of the figures.
        table: whether to write a table of the mean gaps.

    Returns:
        The result.

    Raises:
        UsageError: if Dask is not installed, the scheduler does not answer, or a worker has other
            versions.
    """
    with _connected(address) as client:
        _check_workers(client, address)
        fit = partial(fit_parts, client)
        return run_study(
            study,
            folder,
            resume=resume,
            processes=SINGLE_PROCESS,
            figures=figures,
            table=table,
            fit_parts=fit,
        )


def fit_parts(
    client: Any, study: StudyConfig, store: RecordStore, parts: Sequence[StudyPart]
) -> Iterator[StudyPart]:
    """Fit the parts that the store does not have yet on the workers of a cluster.

    Args:
        client: a connected ``distributed.Client``.
        study: configuration of the study.
        store: store that receives the records.
        parts: parts to fit.

    Yields:
        Every part once its records are stored: first those that were stored before.

    Raises:
        UsageError: if the scheduler or several workers in a row are lost.
    """
    distributed = _distributed()
    missing = []
    for index in range(len(parts)):
        if store.has_part(parts[index].number):
            yield parts[index]
        else:
            missing.append(index)
    task = _describe(study)
    waiting = iter(missing)
    pending: dict[Any, StudyPart] = {}
    while True:
        n_workers = len(client.scheduler_info(n_workers=-1)["workers"])
        limit = TASKS_PER_WORKER * max(n_workers, 1)
        for index in islice(waiting, max(limit - len(pending), 0)):
            part = parts[index]
            future = client.submit(fit_part, task, part.number, retries=RETRIES, pure=False)
            pending[future] = part
        if not pending:
            return
        try:
            with client.as_current():
                finished = distributed.wait(
                    list(pending), timeout=SECONDS_BETWEEN_CHECKS, return_when="FIRST_COMPLETED"
                ).done
        except TimeoutError:
            if n_workers == 0:
                _LOGGER.info("%s: waiting: the scheduler has no workers", study.name)
            continue
        except CancelledError as error:
            raise UsageError(_lost_scheduler(store)) from error
        for future in finished:
            part = pending.pop(future)
            store.write_part(part.number, *_result(future, part, store))
            future.release()
            yield part


def fit_part(task: StudyTask, number: int) -> tuple[pa.Table, pa.Table]:
    """Fit one part, on a worker.

    Args:
        task: description of the study.
        number: index of the part.

    Returns:
        The records and the timings of the part.

    Raises:
        ValueError: if this worker has other versions, files or code than the client.
    """
    # Threads of a worker share its cores, and one fit uses all of them.
    with _one_fit_at_a_time:
        study, plan = _load(task)
        part = plan[number]
        return run_part(study, part, draw_part(part))


@lru_cache(maxsize=4)
def _load(task: StudyTask) -> tuple[StudyConfig, PartPlan]:
    """Return the study and its parts, once this worker has the versions and files of the client."""
    _compare(dict(task.versions), record_versions(), "version of ")
    for folder in task.module_folders:
        add_module_folder(Path(folder))
    study = build(StudyConfig, parse_yaml(task.config.decode()))
    try:
        digests = input_digests(study)
    except ValueError as error:  # a module that was imported before keeps its code
        raise ValueError(f"a Dask worker must be restarted: {error}") from error
    _compare(dict(task.digests), digests, "content of ")
    return study, plan_parts(study)


def _compare(expected: Mapping[str, Any], present: Mapping[str, Any], what: str) -> None:
    for name, value in expected.items():
        if present.get(name) != value:
            raise ValueError(
                f"a Dask worker has another {what}{name}: {present.get(name)}, but here it is "
                f"{value}"
            )


def _describe(study: StudyConfig) -> StudyTask:
    """Return what a worker needs to know of a study."""
    references = [method.reference for method in study.method_configs]
    references += study.environment_names
    references.append((study.class_values or {}).get("kind", ""))
    folders = {_module_folder(text.partition(":")[0]) for text in filter(is_reference, references)}
    return StudyTask(
        config=to_yaml(study),
        module_folders=tuple(sorted(folders - {""})),
        digests=tuple(input_digests(study).items()),
        versions=tuple(record_versions().items()),
    )


def _module_folder(name: str) -> str:
    """Return the folder from which a module is imported; empty if it has no file."""
    file = import_user_module(name.partition(".")[0]).__file__
    if file is None:
        return ""
    path = Path(file).resolve()
    return str(path.parents[1] if path.name == "__init__.py" else path.parent)


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError(
            f"argument --scheduler: Dask is not installed: pip install {DISTRIBUTION}[dask]"
        ) from error


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler for a block of work."""
    distributed = _distributed()
    try:
        # A client that cannot connect is never closed, and blocks later ones when it is collected.
        with ThreadPoolExecutor(1) as executor:
            executor.submit(asyncio.run, _wait_for_answer(address)).result()
        client = distributed.Client(address, timeout=SECONDS_TO_ANSWER, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"argument --scheduler: no Dask scheduler answers at {address}: check the address, "
            "and that it runs"
        ) from error
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)  # a lost connection is reported in one line, without traceback
    try:
        with client:
            yield client
    finally:
        log.setLevel(level)


async def _wait_for_answer(address: str) -> None:
    """Wait until something at an address answers as a scheduler does."""
    async with _distributed().rpc(address, timeout=SECONDS_TO_ANSWER) as server:
        await asyncio.wait_for(server.identity(n_workers=0), SECONDS_TO_ANSWER)


def _check_workers(client: Any, address: str) -> None:
    """Refuse a cluster without workers, or with a worker of other versions."""
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_ANSWER)
        found = client.get_versions(packages=[*VERSIONED, DISTRIBUTION])
    except (OSError, TimeoutError) as error:
        raise UsageError(
            f"argument --scheduler: {address} has no workers that answer: start dask worker"
        ) from error
    expected = found["client"]["packages"]
    for worker, versions in found["workers"].items():
        for name in ("python", *VERSIONED, DISTRIBUTION):
            wanted, present = (
                _release(name, packages.get(name))
                for packages in (expected, (versions or {}).get("packages") or {})
            )
            if wanted != present:
                raise UsageError(
                    f"argument --scheduler: the worker {worker} has {name} {present or 'not'} "
                    f"installed, but this process has {wanted}: use the same versions"
                )


def _release(name: str, text: str | None) -> str | None:
    return release_version(text) if text and name == DISTRIBUTION else text


def _result(future: Any, part: StudyPart, store: RecordStore) -> tuple[pa.Table, pa.Table]:
    distributed = _distributed()
    try:
        return future.result()
    except distributed.KilledWorker as error:
        raise UsageError(
            f"Dask: the workers that fitted part {part.number} ended unexpectedly, perhaps for "
            f"lack of memory; {_is_kept(store)}"
        ) from error
    except CancelledError as error:
        raise UsageError(_lost_scheduler(store)) from error
    except ImportError as error:
        raise UsageError(f"Dask: a worker cannot import what the study needs: {error}") from error


def _lost_scheduler(store: RecordStore) -> str:
    return f"Dask: the scheduler ended unexpectedly; {_is_kept(store)}"


def _is_kept(store: RecordStore) -> str:
    return f"the finished parts are kept in {store.folder}: continue with --resume"
