"""Claims about the job of a training run: the date that chat templates read."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import numpy as np
import pytest
from jax.experimental import multihost_utils

from llm.config import DataConfig, ModelConfig, TrainConfig
from rpo.jobs.training import _check_template_date, _with_template_date
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import UsageError
from rpo.runtime.processes import SINGLE_PROCESS, ProcessGroup

CONFIG = TrainConfig(
    name="dated", model=ModelConfig(path="model"), data=DataConfig(train="rows.jsonl")
)


def dated(date: str | None) -> TrainConfig:
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, template_date=date))


def test_closed_form_a_run_that_resumes_keeps_its_date(tmp_path: Path) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    new = _with_template_date(CONFIG, tmp_path, resume=False).data.template_date
    assert new in (today, datetime.datetime.now(datetime.UTC).date().isoformat())
    # A date of the configuration is taken as it is.
    assert _with_template_date(dated("2024-07-26"), tmp_path, resume=True) == dated("2024-07-26")
    (tmp_path / "config.yaml").write_bytes(to_yaml(dated("2024-07-26")))
    assert _with_template_date(CONFIG, tmp_path, resume=True) == dated("2024-07-26")
    assert _with_template_date(CONFIG, tmp_path, resume=False).data.template_date == new
    # A run whose template has no date recorded none.
    (tmp_path / "config.yaml").write_bytes(to_yaml(CONFIG))
    assert _with_template_date(CONFIG, tmp_path, resume=True).data.template_date == new


def test_raises_for_processes_that_read_different_dates(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ProcessGroup(coordinator_address="host:1", num_processes=2, process_id=0)
    _check_template_date(None, group)
    _check_template_date("2024-07-26", SINGLE_PROCESS)
    for others, refused in (([0], False), ([1], True)):

        def gather(day: np.ndarray, others: list[int] = others) -> np.ndarray:
            return np.array([day, *(day + other for other in others)])

        monkeypatch.setattr(multihost_utils, "process_allgather", gather)
        if not refused:
            _check_template_date("2024-07-26", group)
            continue
        with pytest.raises(UsageError, match=r"read 2024-07-26 and 2024-07-27 as today"):
            _check_template_date("2024-07-26", group)
