"""Merge of the shares of a study's jobs.

The merge takes the locks of all jobs, checks that every part is there and of the same study, and
moves the parts into the output folder. The study is then finished as if it had been interrupted
after its last part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bandits.study.config import StudyConfig, choose_kernel
from bandits.study.continuation import fits_per_draw
from bandits.study.parts import plan_parts
from bandits.study.pieces import PiecePlan, join_pieces, join_timings
from bandits.study.records import RecordStore
from rpo.runtime.errors import UsageError, user_input
from rpo_io.folders import LOCK_FILE, folder_lock, name_os_errors
from rpo_io.outputs import MARKER_FILE, output_folder

from .study_parts import SHARE_FOLDER, Share, holds_shares, part_store, part_tasks, piece_store


class MissingPartError(UsageError):
    """An error of a merge: a job has not finished.

    Attributes:
        share: the share of the job as ``--part`` takes it, such as ``"2/5"``.
    """

    def __init__(self, message: str, share: str) -> None:
        super().__init__(message)
        self.share: str = share


class _StoredPieces(NamedTuple):
    """What jobs of one number have stored.

    Attributes:
        plan: the pieces of the study for this number of jobs.
        stores: the stores of the jobs.
    """

    plan: PiecePlan
    stores: Sequence[RecordStore]

    def find(self, piece: int) -> RecordStore | None:
        """Return the store that holds a piece."""
        return next((store for store in self.stores if store.has_part(piece)), None)

    def find_part(self, number: int) -> list[tuple[RecordStore, int]]:
        """Return the stores and numbers of the pieces of a part; none if one is missing."""
        pieces = self.plan.pieces_of(number)
        found = [(self.find(piece), piece) for piece in pieces]
        present = [(store, piece) for store, piece in found if store is not None]
        return present if len(present) == len(pieces) else []


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
        whole = part_store(study, folder)
        stack.enter_context(output_folder(folder, "study", is_earlier_run=holds_shares))
        whole.check(resume=True)
        if whole.is_finished() and whole.earlier_seeds() is None:
            return
        shares = _shares(folder)
        for share in shares:
            stack.enter_context(folder_lock(folder / share.folder()))
        moves = [
            move
            for part_study, parts_folder in part_tasks(study, whole)
            for move in _plan_moves(study, folder, part_study, parts_folder)
        ]
        for move in moves:
            move()
        for share in shares:
            _remove_share(study, folder / share.folder())


def _plan_moves(
    study: StudyConfig, folder: Path, part_study: StudyConfig, parts_folder: str
) -> Iterator[Callable[[], object]]:
    """Yield for each missing part of the output folder a function that moves it there."""
    shares, parts = _shares(folder), plan_parts(part_study)
    target = part_store(study, folder, parts_folder)
    sources = []
    for n_jobs in sorted({1, *(share.n_jobs for share in shares)}):
        plan = PiecePlan(parts, n_jobs)
        if n_jobs > 1 and plan.per_part == 1:
            continue  # these jobs store whole parts, as one job does
        stores = [
            piece_store(study, folder / share.folder(), parts_folder, plan)
            for share in shares
            if n_jobs in (1, share.n_jobs)
        ]
        for store in stores:
            store.check(resume=True, more_seeds=False)
        sources.append(_StoredPieces(plan, stores))
    for number in range(len(parts)):
        if target.has_part(number):
            continue
        found = next(filter(None, (source.find_part(number) for source in sources)), None)
        if found is None:
            raise _missing_part(folder, number, shares, sources)
        if len(found) == 1:
            yield partial(found[0][0].move_part, number, target)
        else:
            yield partial(_join, found, target, number, fits_per_draw(study))


def _join(
    pieces: Sequence[tuple[RecordStore, int]], target: RecordStore, number: int, n_fits: int
) -> None:
    """Join the pieces of a part into the output folder."""
    tables, timings = zip(*(store.read_part(piece) for store, piece in pieces), strict=True)
    target.write_part(number, join_pieces(tables, n_fits), join_timings(timings, number))


def _shares(folder: Path) -> list[Share]:
    """Return the shares whose folders exist, by number."""
    matches = [SHARE_FOLDER.fullmatch(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted(Share(int(match[1]), int(match[2])) for match in matches if match)


def _missing_part(
    folder: Path, number: int, shares: Sequence[Share], sources: Sequence[_StoredPieces]
) -> Exception:
    if not shares:
        return ValueError(f"{folder}: holds no parts to merge: compute them with --part K/N")
    n_jobs = shares[-1].n_jobs
    source = next((source for source in sources if source.plan.n_jobs == n_jobs), sources[0])
    missing = (piece for piece in source.plan.pieces_of(number) if source.find(piece) is None)
    share = f"{next(missing) % n_jobs + 1}/{n_jobs}"
    name = f"part {number:06d}" if source.plan.per_part == 1 else f"a piece of part {number:06d}"
    return MissingPartError(f"{folder}: {name} is missing, of the job {share}", share)


def _remove_share(study: StudyConfig, folder: Path) -> None:
    """Remove the folder of a job whose parts were moved; files of others stay."""
    part_store(study, folder).drop_parts()
    for name in ("config.yaml", MARKER_FILE, LOCK_FILE):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
