"""The best evaluation: which one it is, and that its checkpoint is kept."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from llm.config import TrainerConfig
from llm.train.best_checkpoint import BestEvaluation
from llm.train.checkpoint import Checkpoints
from llm.train.fingerprint import Fingerprint


def config(**fields: Any) -> TrainerConfig:
    return TrainerConfig(metric_for_best_model="eval_loss", eval_steps=1, **fields)


@pytest.mark.parametrize(("greater", "best"), [(False, [1, 3]), (True, [1, 2])])
def test_closed_form_a_better_evaluation_has_a_score(greater: bool, best: list[int]) -> None:
    evaluation = BestEvaluation(config(greater_is_better=greater))
    values = {1: 2.0, 2: 3.0, 3: 1.0, 4: 2.0, 5: 1.0, 6: 3.0}
    scores = {step: evaluation.update(step, {"eval_loss": v}) for step, v in values.items()}
    assert [step for step, score in scores.items() if score is not None] == best
    assert evaluation.step == best[-1]
    assert scores[best[0]] < scores[best[-1]]  # type: ignore[operator]


def test_roundtrip_a_resumed_run_knows_the_best_evaluation() -> None:
    before = BestEvaluation(config())
    assert before.record() is None
    before.update(4, {"eval_loss": 0.5})
    recorded = json.loads(json.dumps(before.record()))
    after = BestEvaluation(config(), recorded)
    assert after.update(6, {"eval_loss": 0.6}) is None
    assert (after.step, after.value) == (4, 0.5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"greater_is_better": True}, "`trainer.greater_is_better` was False and is True, but the"),
        (
            {"metric_for_best_model": "eval_new_loss"},
            "`trainer.metric_for_best_model` was 'eval_loss' and is 'eval_new_loss', but the check",
        ),
        ({"metric_for_best_model": None}, "was 'eval_loss' and is None, but the checkpoint of st"),
    ],
)
def test_raises_for_another_metric_or_direction_than_that_of_the_kept_checkpoint(
    changed: dict[str, Any], message: str
) -> None:
    before = BestEvaluation(config())
    unchanged: dict[str, Any] = {"metric_for_best_model": "eval_loss", "eval_steps": 1}
    other = TrainerConfig(**unchanged | changed)
    assert BestEvaluation(other, before.record()).step is None  # nothing is kept yet
    before.update(4, {"eval_loss": 0.5})
    with pytest.raises(ValueError, match=re.escape(message)):
        BestEvaluation(other, json.loads(json.dumps(before.record())))


def test_property_nothing_is_compared_without_a_metric_or_an_evaluation() -> None:
    assert BestEvaluation(TrainerConfig()).update(1, {"eval_loss": 1.0}) is None
    assert BestEvaluation(config()).update(1, {}) is None


def test_raises_an_evaluation_without_the_metric() -> None:
    with pytest.raises(ValueError, match=r"^`trainer\.metric_for_best_model` must be a metric of"):
        BestEvaluation(config()).update(1, {"eval_new_loss": 1.0})


def test_property_the_best_checkpoint_is_kept_beside_the_last_ones_also_after_a_restart(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"keep": 2, "keep_best": True}
    fingerprint = Fingerprint({}, {}, {}, "0")
    scores = {1: 0.1, 2: 0.9, 3: None, 4: 0.2, 5: None, 6: None}
    for steps in ((1, 2, 3), (4, 5, 6)):  # two processes, one after another
        with Checkpoints(tmp_path, fingerprint=fingerprint, **options) as checkpoints:
            for step in steps:
                checkpoints.save(step, {"x": jnp.ones(2)}, {}, score=scores[step])
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == [2, 5, 6]
