"""Runs under every objective: finite, the exact first loss, one compiled step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.config import (
    PREFERENCE_LOSSES,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
    TrainerConfig,
)
from tests.llm.train.tiny_runs import TINY, train_to_end

FIRST_LOSS = 2e-5  # relative, float32
OF_PAIRS = [
    {"loss": name, "weight": 0.5 + index}
    for index, (name, loss) in enumerate(PREFERENCE_LOSSES.items())
    if loss.scope == "pair" and loss.statistic is None and name != "sppo_hard"
]


def write_rows(folder: Path, **columns: Any) -> Path:
    rng = np.random.default_rng(0)
    replies = ["yes", "no", "maybe", "never", "now"]
    path = folder / "rows.jsonl"
    with path.open("w") as file:
        for row in range(16):
            chosen, rejected = rng.choice(replies, 2, replace=False)
            fields = {"prompt": f"q{row % 4}", "chosen": str(chosen), "rejected": str(rejected)}
            fields |= {name: values[row] for name, values in columns.items()}
            file.write(json.dumps(fields) + "\n")
    return path


def train(
    folder: Path,
    objective: ObjectiveConfig,
    *,
    model: ModelConfig | None = None,
    steps: int = 4,
    **trainer: Any,
) -> list[dict[str, Any]]:
    """Train on the rows of a folder; return the metrics by step."""
    defaults = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    config = TrainConfig(
        name="objective",
        model=ModelConfig(architecture=TINY) if model is None else model,
        data=DataConfig(train=str(folder / "rows.jsonl"), eval_rows=4, max_length=64),
        objective=objective,
        optimizer=OptimizerConfig(learning_rate=1e-3 if model is None else 1e-5),
        trainer=TrainerConfig(max_steps=steps, **{**defaults, **trainer}),
    )
    lines = train_to_end(config, folder / "out")
    return [line for line in lines if "loss" in line or "eval_loss" in line]


def check_run(objective: ObjectiveConfig, lines: list[dict[str, Any]], steps: int) -> None:
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == steps
    assert np.isfinite(losses).all()
    known, first = objective.preference_at_reference, lines[0]
    if known is not None:
        exact = known + objective.sft_weight * first["loss/sft"]
        assert first["loss"] == pytest.approx(exact, rel=FIRST_LOSS)


@pytest.mark.parametrize("n_losses", [4, pytest.param(len(OF_PAIRS), marks=pytest.mark.slow)])
def test_compiles_once_a_weighted_sum_with_schedules_weights_and_soft_labels(
    n_losses: int, tmp_path: Path
) -> None:
    items = OF_PAIRS[:n_losses]
    rng = np.random.default_rng(1)
    write_rows(
        tmp_path,
        weight=rng.integers(1, 4, 16).tolist(),
        label=np.round(rng.uniform(0.5, 1.0, 16), 3).tolist(),
    )
    objective = ObjectiveConfig(
        beta=0.5,
        eta=0.0,
        preference=items,
        beta_schedule=ScheduleConfig(kind="cosine", end=0.1),
        eta_schedule=ScheduleConfig(kind="stepwise", end=0.2, drops=2),
    )
    lines = train(tmp_path, objective, eval_steps=4)
    check_run(objective, lines, 4)
    steps = [line for line in lines if "loss" in line]
    assert [line["objective/eta"] for line in steps] == pytest.approx([0.0, 0.0, 0.1, 0.1])
    beta = [0.1 + 0.2 * (1 + np.cos(np.pi * step / 4)) for step in range(4)]
    assert [line["objective/beta"] for line in steps] == pytest.approx(beta, rel=1e-5)
    for line in steps:
        expected = line["objective/eta"] * line["objective/beta"] * line["loss/sft"]
        expected += sum(item["weight"] * line[f"loss/{item['loss']}"] for item in items)
        assert line["loss"] == pytest.approx(expected, rel=1e-4)
    evaluated = lines[-1]
    expected = 0.2 * 0.1 * evaluated["eval_loss/sft"]
    expected += sum(item["weight"] * evaluated[f"eval_loss/{item['loss']}"] for item in items)
    assert evaluated["eval_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "rpo", *PREFERENCE_LOSSES])
def test_compiles_once_every_objective_on_a_random_model(method: str, tmp_path: Path) -> None:
    write_rows(tmp_path)
    objective = ObjectiveConfig(method=method, beta=0.5, eta=0.1)
    lines = train(tmp_path, objective, eval_steps=2)
    check_run(objective, lines, 4)
    assert np.isfinite(lines[-1]["eval_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "rpo", *PREFERENCE_LOSSES])
def test_compiles_once_every_objective_on_real_weights(method: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("RPO_SMOLLM2", ""))
    if not (folder / "config.json").exists():
        pytest.skip("needs RPO_SMOLLM2, the folder of a converted SmolLM2")
    write_rows(tmp_path)
    objective = ObjectiveConfig(method=method, beta=0.1, eta=0.05)
    model = ModelConfig(path=str(folder), lora_r=4)
    sizes = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    lines = train(tmp_path, objective, model=model, steps=20, **sizes)
    check_run(objective, lines, 20)
