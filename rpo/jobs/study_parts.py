"""Shares of a study for job arrays: each job writes a folder of its own, and a merge joins them.

Job K of N fits parts K, K + N, K + 2N and so on. It writes only into ``part-K-of-N`` below the
output folder and holds the lock of that folder alone. Jobs therefore never write to the same file,
whatever the file system. The merge takes all locks, checks that every part is there and of the same
study, and moves the parts into the output folder. The study is then finished as if it had been
interrupted after its last part.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from bandits.study.config import StudyConfig, choose_kernel, resolved_config
from bandits.study.continuation import SeedBlock, find_blocks
from bandits.study.inputs import input_digests
from bandits.study.parts import StudyPart, plan_parts
from bandits.study.records import PARTS_FOLDER, RecordStore
from bandits.study.run import run_parts
from rpo.results import StudyResult
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import UsageError, user_input
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.progress import track_progress
from rpo_io.atomic import is_temporary, write_atomic
from rpo_io.folders import LOCK_FILE, folder_lock, name_os_errors
from rpo_io.outputs import HARMLESS, MARKER_FILE, output_folder

_LOGGER = logging.getLogger(__name__)
_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
_SHARE_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")
_SYSTEM_TEMPORARY = re.compile(r"tmp\w{8}")  # where a job tries whether it can write


class Share(NamedTuple):
    """The parts that one job of several computes.

    Attributes:
        job: number of the job, from 1.
        n_jobs: number of jobs.
    """

    job: int
    n_jobs: int

    def folder(self) -> str:
        """Return the name of the folder that the job writes."""
        return f"part-{self.job}-of-{self.n_jobs}"


class MissingPartError(UsageError):
    """An error of a merge: a job has not finished.

    Attributes:
        share: the share of the job as ``--part`` takes it, such as ``"2/5"``.
    """

    def __init__(self, message: str, share: str) -> None:
        super().__init__(message)
        self.share: str = share


def check_sharing(
    *, part: str | None, merge: bool, scheduler: str | None, processes: ProcessGroup
) -> None:
    """Refuse two ways of sharing a study at once.

    Args:
        part: value of ``--part``; None if it is not given.
        merge: whether ``--merge`` is given.
        scheduler: value of ``--scheduler``; None if it is not given.
        processes: the processes that share the work.

    Raises:
        UsageError: if more than one of them is in use.
    """
    options = {
        "--part": part is not None,
        "--merge": merge,
        "--scheduler": scheduler is not None,
        "--num-processes": processes.num_processes > 1,
    }
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"argument {given[1]}: not allowed with argument {given[0]}")


def read_share(text: str) -> Share:
    """Return the share that a text such as ``2/5`` stands for.

    Args:
        text: number of the job, from 1, and number of jobs.

    Raises:
        ValueError: if the text has another form, or there is no job of this number.

    Examples:
        >>> read_share("2/5")
        Share(job=2, n_jobs=5)
    """
    match = _SHARE.fullmatch(text)
    share = Share(int(match[1]), int(match[2])) if match else None
    if share is None or not 1 <= share.job <= share.n_jobs:
        raise ValueError(
            "argument --part: must be K/N with whole numbers 1 <= K <= N, such as 2/5, "
            f"got {text!r}"
        )
    return share


def run_share(study: StudyConfig, folder: Path, part: str) -> StudyResult:
    """Compute one job's share of the parts; parts that are stored already are kept.

    Args:
        study: the configuration.
        folder: output folder of the study, which all jobs name.
        part: which job this is, see :func:`read_share`.

    Returns:
        The result; its folder and files are those of the job.

    Raises:
        UsageError: if a folder holds another study, or the same job runs already.
    """
    study = choose_kernel(study)
    with user_input(), name_os_errors(folder):
        share = read_share(part)
        job_folder = folder / share.folder()
        plan_parts(study)
        whole = _store(study, folder)
        taken = output_folder(folder, "study", is_earlier_run=holds_shares, locked=False)
        with taken:
            whole.check(resume=True)
            if whole.is_finished() and whole.earlier_seeds() is None:
                _LOGGER.info("%s: the study is merged already", folder)
                return StudyResult(study.name, folder, files=(), bound_violations=())
            with output_folder(job_folder, "study --part"):
                write_atomic(job_folder / "config.yaml", to_yaml(study))
                names = [
                    f"{parts_folder}/{part.number:06d}.parquet"
                    for part_study, parts_folder in _tasks(study, whole)
                    for part in _run_parts(
                        part_study, _store(study, job_folder, parts_folder), share
                    )
                ]
    if not names:
        _LOGGER.info("%s: nothing is left for this job: the study has fewer parts", study.name)
    _LOGGER.info("written to %s: %s of the study's parts", job_folder, f"{len(names):,}")
    return StudyResult(study.name, job_folder, tuple(names), bound_violations=())


def gather_shares(study: StudyConfig, folder: Path) -> None:
    """Move the parts of all jobs into the output folder of the study.

    Nothing is moved before every part is there and of this study.

    Args:
        study: the configuration.
        folder: output folder of the study.

    Raises:
        MissingPartError: if a part is missing.
        UsageError: if a part is damaged or belongs to another study, or a job still runs.
    """
    study = choose_kernel(study)
    with user_input(), name_os_errors(folder), ExitStack() as stack:
        whole = _store(study, folder)
        stack.enter_context(output_folder(folder, "study", is_earlier_run=holds_shares))
        whole.check(resume=True)
        if whole.is_finished() and whole.earlier_seeds() is None:
            return
        shares = _shares(folder)
        for share in shares:
            stack.enter_context(folder_lock(folder / share.folder()))
        moves = []
        for part_study, parts_folder in _tasks(study, whole):
            target = _store(study, folder, parts_folder)
            sources = [_store(study, folder / share.folder(), parts_folder) for share in shares]
            for source in sources:
                source.check(resume=True, more_seeds=False)
            for number in range(len(plan_parts(part_study))):
                if target.has_part(number):
                    continue
                source = next((source for source in sources if source.has_part(number)), None)
                if source is None:
                    raise _missing_part(folder, number, shares)
                moves.append((source, target, number))
        for source, target, number in moves:
            source.move_part(number, target)
        for share in shares:
            _remove_share(study, folder / share.folder(), whole)


def holds_shares(folder: Path) -> bool:
    """Return whether a folder without a mark holds nothing but the folders of jobs.

    Args:
        folder: output folder of a study.
    """
    return all(
        path.name in HARMLESS
        or is_temporary(path.name)
        or _SHARE_FOLDER.fullmatch(path.name)
        or _SYSTEM_TEMPORARY.fullmatch(path.name)
        for path in folder.iterdir()
    )


def _store(study: StudyConfig, folder: Path, parts_folder: str = PARTS_FOLDER) -> RecordStore:
    return RecordStore(
        folder, resolved_config(study), inputs=input_digests(study), parts_folder=parts_folder
    )


def _run_parts(study: StudyConfig, store: RecordStore, share: Share) -> Iterator[StudyPart]:
    """Yield the parts of a share once they are stored."""
    store.check(resume=True, more_seeds=False)
    parts = plan_parts(study)[share.job - 1 :: share.n_jobs]
    done = run_parts(study, store, parts)
    return track_progress(done, len(parts), f"parts of {study.name}")


def _tasks(study: StudyConfig, whole: RecordStore) -> Iterator[tuple[StudyConfig, str]]:
    """Yield the studies whose parts are needed, and the names of the folders of their parts."""
    earlier = whole.earlier_seeds()
    if earlier is not None and not whole.is_finished():
        raise ValueError(
            f"{whole.folder}: holds an unfinished study of {earlier} seeds: finish it before "
            "you continue it with --part"
        )
    new = [] if earlier is None else [SeedBlock(earlier, study.seeds)]
    blocks = new or find_blocks(whole.folder, study.seeds)
    yield from [(block.study(study), block.folder()) for block in blocks] or [(study, PARTS_FOLDER)]


def _shares(folder: Path) -> list[Share]:
    """Return the shares whose folders exist, by number."""
    matches = [_SHARE_FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted(Share(int(match[1]), int(match[2])) for match in matches if match)


def _missing_part(folder: Path, number: int, shares: Sequence[Share]) -> Exception:
    if not shares:
        return ValueError(f"{folder}: holds no parts to merge: compute them with --part K/N")
    n_jobs = shares[-1].n_jobs
    share = f"{number % n_jobs + 1}/{n_jobs}"
    return MissingPartError(f"{folder}: part {number:06d} is missing, of the job {share}", share)


def _remove_share(study: StudyConfig, folder: Path, whole: RecordStore) -> None:
    """Remove the folder of a job whose parts were moved; files of others stay."""
    _store(study, folder).drop_parts()
    for name in ("config.yaml", MARKER_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
