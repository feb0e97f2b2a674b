"""Run a study: its parts, in one process or several, then its records and figures."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from bandits.study.config import StudyConfig, choose_kernel, resolved_config
from bandits.study.continuation import find_blocks
from bandits.study.inputs import input_digests
from bandits.study.notes import study_notes
from bandits.study.parts import StudyPart, plan_parts
from bandits.study.records import RecordStore
from bandits.study.run import run_parts
from rpo.report.figure_files import FigureFormat
from rpo.report.study_files import write_study_files
from rpo.results import StudyResult
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import user_input
from rpo.runtime.facts import code_facts, configuration_facts
from rpo.runtime.meeting import meet
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.progress import track_progress
from rpo_io.atomic import write_atomic
from rpo_io.folders import name_os_errors
from rpo_io.outputs import output_folder

_LOGGER = logging.getLogger(__name__)


FitParts = Callable[[StudyConfig, RecordStore, Sequence[StudyPart]], Iterator[StudyPart]]
"""Fits the parts that a store lacks and yields each part once it is stored."""


def run_study(
    study: StudyConfig,
    folder: Path,
    *,
    resume: bool,
    processes: ProcessGroup | None,
    figures: FigureFormat,
    table: bool,
    fit_parts: FitParts = run_parts,
) -> StudyResult:
    """Run a study, merge its records, and write its summary and figures.

    Args:
        study: the configuration.
        folder: output folder.
        resume: continue a study that was begun in the folder.
        processes: the processes that share the work; None for those that JAX has connected, or
            this one alone.
        figures: formats, width and style of the figures.
        table: whether to write a table of the mean gaps.
        fit_parts: fits the parts, by default in this process.

    Returns:
        The result; on processes other than the first its list of files is empty.

    Raises:
        UsageError: if the folder holds another study, or a method does not support an environment.
    """
    study = choose_kernel(study)
    with meet(processes, folder=folder) as meeting, ExitStack() as stack:
        with user_input(), name_os_errors(folder):
            store = meeting.agree(
                lambda: _open_store(study, folder),
                lambda _: _input_facts(study, resume=resume),
            )
            is_finished = meeting.decide(lambda: _take_folder(study, store, stack, resume=resume))
            meeting.check_shared(folder)
        meeting.connect()
        if not is_finished:
            meeting.run_in_all(lambda: _run_share(study, store, meeting.group, fit_parts))
        if not meeting.is_first:
            return StudyResult(study.name, folder, files=(), bound_violations=())
        with name_os_errors(folder):
            if not is_finished:
                with user_input():
                    blocks = find_blocks(folder, study.seeds)
                    if blocks:
                        store.merge_blocks(study, blocks)
                    else:
                        store.merge(len(plan_parts(study)))
            store.drop_parts()
            # After the work: a method that refuses an environment does so in one line.
            notes = study_notes(study)
            for note in notes:
                _LOGGER.info("note: %s", note)
            return replace(write_study_files(study, store, figures, table=table), notes=notes)


def _open_store(study: StudyConfig, folder: Path) -> RecordStore:
    plan_parts(study)  # refuses a study that cannot be drawn, before anything is written
    return RecordStore(folder, resolved_config(study), inputs=input_digests(study))


def _input_facts(study: StudyConfig, *, resume: bool) -> dict[str, str]:
    """Return what must be the same in all processes before the first part."""
    return {
        **code_facts(),
        **dict(configuration_facts(asdict(study))),
        **input_digests(study),
        "--resume": str(resume),
    }


def _take_folder(study: StudyConfig, store: RecordStore, stack: ExitStack, *, resume: bool) -> bool:
    """Take the output folder until the stack is closed; return whether the study is finished."""
    folder = store.folder
    stack.enter_context(output_folder(folder, "study", is_earlier_run=_holds_study))
    store.check(resume=resume)
    earlier = store.earlier_seeds()
    if earlier is not None:
        _LOGGER.info(
            "continuing from %s to %s seeds: only the new ones are run",
            f"{earlier:,}",
            f"{study.seeds:,}",
        )
        store.keep_as_block(study, earlier)
    write_atomic(folder / "config.yaml", to_yaml(study))
    return store.is_finished()


def _holds_study(folder: Path) -> bool:
    """Return whether a folder without a mark holds a study of an earlier version."""
    paths = (folder / "records.parquet.sha256", *folder.glob("parts*/*.parquet.sha256"))
    return any(path.is_file() for path in paths)


def _run_share(
    study: StudyConfig, store: RecordStore, processes: ProcessGroup, fit_parts: FitParts
) -> None:
    """Run this process's share of the parts."""
    # A method that does not support an environment refuses it only when it is fitted.
    with user_input(), name_os_errors(store.folder):
        blocks = find_blocks(store.folder, study.seeds)
        tasks = [(block.study(study), store.block(block)) for block in blocks]
        for part_study, part_store in tasks or [(study, store)]:
            share = plan_parts(part_study)[processes.process_id :: processes.num_processes]
            done = fit_parts(part_study, part_store, share)
            for _ in track_progress(done, len(share), f"parts of {study.name}"):
                pass
