"""Claims about the job of a training run: the date that chat templates read."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

from llm.config import DataConfig, ModelConfig, TrainConfig
from rpo.jobs.training import _template_date
from rpo.runtime.config_files import to_yaml

CONFIG = TrainConfig(
    name="dated", model=ModelConfig(path="model"), data=DataConfig(train="rows.jsonl")
)


def dated(date: str | None) -> TrainConfig:
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, template_date=date))


def test_closed_form_a_run_that_resumes_keeps_its_date(tmp_path: Path) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    new = _template_date(tmp_path, CONFIG, resume=False)
    assert new in (today, datetime.datetime.now(datetime.UTC).date().isoformat())
    # A date of the configuration is taken as it is.
    assert _template_date(tmp_path, dated("2024-07-27"), resume=True) == "2024-07-27"
    (tmp_path / "config.yaml").write_bytes(to_yaml(dated("2024-07-26")))
    assert _template_date(tmp_path, CONFIG, resume=True) == "2024-07-26"
    assert _template_date(tmp_path, CONFIG, resume=False) == new
    # A run whose template has no date recorded none.
    (tmp_path / "config.yaml").write_bytes(to_yaml(CONFIG))
    assert _template_date(tmp_path, CONFIG, resume=True) == new
