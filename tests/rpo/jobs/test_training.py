"""Claims about the job of a training run: the date that chat templates read."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from llm.config import DataConfig, ModelConfig, TrainConfig
from rpo.jobs.training import _with_template_date
from rpo.runtime.config_files import to_yaml

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
