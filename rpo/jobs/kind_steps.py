"""Stored steps of a study of a kind of its own: an interrupted run continues after the last one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from bandits.study.records import RecordStore

STEPS_FOLDER = "steps"
"""Folder of the steps below the output folder; it is removed at the end."""
_NO_TIMINGS = pa.table({"seconds": pa.array([], pa.float64())})
_logger = logging.getLogger(__name__)


class StepStore:
    """The tables of the steps that a run has finished."""

    def __init__(self, folder: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        """Describe a folder without touching the disk.

        Args:
            folder: output folder of the study.
            config: configuration, as plain values.
            inputs: digests of the files and sources that the study reads, by name.
        """
        self.store: RecordStore = RecordStore(folder / STEPS_FOLDER, config, inputs=inputs)

    def check(self, *, resume: bool) -> None:
        """Refuse to continue the steps of another study, or any without being asked to.

        Args:
            resume: whether the user asked to continue a study.

        Raises:
            ValueError: if there are steps that must not be continued.
        """
        self.store.check(resume=resume, more_seeds=False)
        n_steps = len(list((self.store.folder / self.store.parts_folder).glob("*.parquet")))
        if n_steps:
            _logger.info("continuing an interrupted study: %d of its steps are there", n_steps)

    def keep(self, number: int, step: Callable[[], pa.Table]) -> pa.Table:
        """Return the table of a step, which is computed and stored if it is not there.

        Args:
            number: number of the step, from 0.
            step: function that computes the table.

        Returns:
            The table.

        Raises:
            ValueError: if a stored table is damaged.
        """
        if not self.store.has_part(number):
            self.store.folder.mkdir(exist_ok=True)
            self.store.write_part(number, step(), _NO_TIMINGS)
        return self.store.read_part(number)[0].replace_schema_metadata(None)

    def remove(self) -> None:
        """Remove all steps, once the study is written; files of the user stay."""
        self.store.drop_parts()
        with suppress(OSError):
            self.store.folder.rmdir()
