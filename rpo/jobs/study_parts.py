"""Shares of a study for job arrays: each job writes a folder of its own.

Job K of N fits parts K, K + N, K + 2N and so on; if there are fewer parts than jobs, pieces of
parts. It writes only into ``part-K-of-N`` below the output folder and holds the lock of that folder
alone. Jobs therefore never write to the same file, whatever the file system.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bandits.study.config import StudyConfig, choose_kernel, resolved_config
from bandits.study.continuation import SeedBlock, find_blocks
from bandits.study.inputs import input_digests
from bandits.study.parts import StudyPart, plan_parts
from bandits.study.pieces import PiecePlan
from bandits.study.records import PARTS_FOLDER, PIECES_SUFFIX, RecordStore
from bandits.study.run import run_parts
from rpo.results import StudyResult
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import UsageError, user_input
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.progress import track_progress
from rpo_io.atomic import is_temporary, write_atomic
from rpo_io.folders import name_os_errors
from rpo_io.outputs import HARMLESS, output_folder

_LOGGER = logging.getLogger(__name__)
_SHARE = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
SHARE_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")
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


def check_sharing(
    *, part: str | None, merge: bool, scheduler: str | None, processes: ProcessGroup | None
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
        "--num-processes": processes is not None and processes.num_processes > 1,
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
        whole = part_store(study, folder)
        taken = output_folder(folder, "study", is_earlier_run=holds_shares, locked=False)
        with taken:
            whole.check(resume=True)
            if whole.is_finished() and whole.earlier_seeds() is None:
                _LOGGER.info("%s: the study is merged already", folder)
                return StudyResult(study.name, folder, files=(), bound_violations=())
            with output_folder(job_folder, "study --part"):
                write_atomic(job_folder / "config.yaml", to_yaml(study))
                names, n_pieces = [], 0
                for part_study, parts_folder in part_tasks(study, whole):
                    plan = PiecePlan(plan_parts(part_study), share.n_jobs)
                    n_pieces += len(plan)
                    store = piece_store(study, job_folder, parts_folder, plan)
                    names += [
                        f"{store.parts_folder}/{piece.number:06d}.parquet"
                        for piece in _run_pieces(part_study, store, plan, share)
                    ]
    if n_pieces < share.n_jobs:
        rule = "the study has too few draws: only the first %d of the %d jobs have work"
        _LOGGER.info(f"%s: {rule}", study.name, n_pieces, share.n_jobs)
    _LOGGER.info("written to %s: %s of %s parts", job_folder, f"{len(names):,}", f"{n_pieces:,}")
    return StudyResult(study.name, job_folder, tuple(names), bound_violations=())


def holds_shares(folder: Path) -> bool:
    """Return whether a folder without a mark holds nothing but the folders of jobs.

    Args:
        folder: output folder of a study.
    """
    return all(
        path.name in HARMLESS
        or is_temporary(path.name)
        or SHARE_FOLDER.fullmatch(path.name)
        or _SYSTEM_TEMPORARY.fullmatch(path.name)
        for path in folder.iterdir()
    )


def part_store(study: StudyConfig, folder: Path, parts_folder: str = PARTS_FOLDER) -> RecordStore:
    """Return the store of a study's parts.

    Args:
        study: configuration of the study.
        folder: output folder of the study or of a job.
        parts_folder: name of the folder of the parts.
    """
    return RecordStore(
        folder, resolved_config(study), inputs=input_digests(study), parts_folder=parts_folder
    )


def piece_store(
    study: StudyConfig, folder: Path, parts_folder: str, plan: PiecePlan
) -> RecordStore:
    """Return the store of what a job computes: pieces, or whole parts if there are enough of them.

    Args:
        study: configuration of the study.
        folder: output folder of the job.
        parts_folder: name of the folder of the parts.
        plan: the pieces of the study for the number of jobs.
    """
    return part_store(study, folder, parts_folder + (PIECES_SUFFIX if plan.per_part > 1 else ""))


def _run_pieces(
    study: StudyConfig, store: RecordStore, plan: PiecePlan, share: Share
) -> Iterator[StudyPart]:
    """Yield the pieces of a share once they are stored."""
    store.check(resume=True, more_seeds=False)
    pieces = plan[share.job - 1 :: share.n_jobs]
    done = run_parts(study, store, pieces)
    return track_progress(done, len(pieces), f"parts of {study.name}")


def part_tasks(study: StudyConfig, whole: RecordStore) -> Iterator[tuple[StudyConfig, str]]:
    """Yield the studies whose parts are needed, and the names of the folders of their parts.

    Args:
        study: configuration of the study.
        whole: store of the output folder.

    Raises:
        ValueError: if the folder holds an unfinished study of fewer seeds.
    """
    earlier = whole.earlier_seeds()
    if earlier is not None and not whole.is_finished():
        raise ValueError(
            f"{whole.folder}: holds an unfinished study of {earlier} seeds: finish it before "
            "you continue it with --part"
        )
    new = [] if earlier is None else [SeedBlock(earlier, study.seeds)]
    blocks = new or find_blocks(whole.folder, study.seeds)
    yield from [(block.study(study), block.folder()) for block in blocks] or [(study, PARTS_FOLDER)]
