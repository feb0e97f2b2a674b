"""Run a study: its parts, in one process or several, then its records and figures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bandits.study.config import StudyConfig, resolved_config
from bandits.study.parts import StudyPart, plan_parts
from bandits.study.records import RecordStore
from bandits.study.run import run_parts
from rpo.report.study_files import write_study_files
from rpo.results import StudyResult
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import user_input
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.progress import track_progress
from rpo_io.atomic import write_atomic
from rpo_io.folders import name_os_errors
from rpo_io.outputs import output_folder


def run_study(
    study: StudyConfig, folder: Path, *, resume: bool, processes: ProcessGroup
) -> StudyResult:
    """Run a study, merge its records, and write its summary and figures.

    Args:
        study: the configuration.
        folder: output folder.
        resume: continue a study that was begun in the folder.
        processes: the processes that share the work.

    Returns:
        The result; on processes other than the first its list of files is empty.

    Raises:
        UsageError: if the folder holds another study, or a method does not support an environment.
    """
    with user_input():
        parts = plan_parts(study)
    store = RecordStore(folder, resolved_config(study))
    with processes.connected(folder):
        if not processes.is_first:
            _run_share(study, store, parts, processes)
            return StudyResult(study.name, folder, files=(), bound_violations=())
        with name_os_errors(folder), ExitStack() as stack:
            with user_input():
                taken = output_folder(folder, "study", is_earlier_run=_holds_study)
                stack.enter_context(taken)
                store.check(resume=resume)
            write_atomic(folder / "config.yaml", to_yaml(study))
            if not store.is_finished():
                _run_share(study, store, parts, processes)
                with user_input(), name_os_errors(folder):
                    store.merge(len(parts))
            store.drop_parts()
            return write_study_files(study, store)


def _holds_study(folder: Path) -> bool:
    """Return whether a folder without a mark holds a study of an earlier version."""
    paths = (folder / "records.parquet.sha256", *(folder / "parts").glob("*.parquet.sha256"))
    return any(path.is_file() for path in paths)


def _run_share(
    study: StudyConfig, store: RecordStore, parts: Sequence[StudyPart], processes: ProcessGroup
) -> None:
    """Run this process's share of the parts, and wait for the other processes."""
    share = parts[processes.process_id :: processes.num_processes]
    processes.wait_for_all("start of the study")
    # A method that does not support an environment refuses it only when it is fitted.
    with user_input(), name_os_errors(store.folder):
        done = run_parts(study, store, share)
        for _ in track_progress(done, len(share), f"parts of {study.name}"):
            pass
    processes.wait_for_all("end of the study")
