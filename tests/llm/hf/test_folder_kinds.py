"""Claims about folders that are no models: the message says what they are, and what to type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm.config import ModelConfig
from llm.hf.factory import resolve_model
from llm.hf.io import load_model, read_architecture


def test_raises_for_an_adapter_with_the_keys_that_take_it(tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"is a PEFT adapter of owner/base, not a model .*`model\.adapter`$"
    ):
        resolve_model(ModelConfig(path=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"holds a PEFT adapter beside a model .*`model\.adapter`$"
    ):
        load_model(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match="holds a PEFT adapter beside a model"):
        read_architecture(tmp_path)


def test_raises_for_a_run_or_its_checkpoint_with_the_command_that_exports_it(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "300").mkdir(parents=True)
    (run / "config.yaml").touch()
    for folder, command in (
        (run, rf"`rpo export {run} --out POLICY`"),
        (run / "checkpoints", rf"`rpo export {run} --out POLICY`"),
        (run / "checkpoints" / "300", rf"`rpo export {run} --step 300 --out POLICY`"),
    ):
        with pytest.raises(ValueError, match=rf"is a training run, not a model: .*{command}"):
            resolve_model(ModelConfig(path=str(folder)))


def test_raises_for_a_folder_above_a_model_with_the_name_below(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json is missing$"):
        read_architecture(tmp_path)
    for step in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / step).mkdir()
        (tmp_path / step / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json is missing: is it .*checkpoint-2\?$"):
        read_architecture(tmp_path)
