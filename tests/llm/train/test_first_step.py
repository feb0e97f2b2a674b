"""What is known of the first step: exact losses, and metrics without dropout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.train.best_checkpoint import check_best_metric
from llm.train.dataset import load_training_data
from llm.train.first_step import check_first_loss, measure_first_step
from llm.train.reference_cache import attach_reference
from llm.train.reference_model import resolve_reference, score_reference
from llm.train.run import Run
from tests.llm.train.tiny_runs import TINY

ROWS = [("a", "yes", "no"), ("bc", "sure thing", "oh"), ("d", "x", "why not"), ("e", "fg", "h")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    names = ("prompt", "chosen", "rejected")
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS]
    (folder / "rows.jsonl").write_text("".join(lines))
    (folder / "held_out.jsonl").write_text(lines[0].replace("bc", "z").replace('"a"', '"y"'))
    other = ModelConfig(architecture=TINY, seed=5)
    export_model(build_model(resolve_model(other)), folder / "other")
    return folder


def config_of(folder: Path, objective: ObjectiveConfig, **fields: Any) -> TrainConfig:
    trainer = {"max_steps": 1, "per_device_train_batch_size": 4, "eval_steps": 1}
    return TrainConfig(
        name="tiny",
        model=ModelConfig(architecture=TINY, **fields.pop("model", {})),
        data=DataConfig(
            train=str(folder / "rows.jsonl"), eval=str(folder / "held_out.jsonl"), max_length=24
        ),
        objective=objective,
        trainer=TrainerConfig(**trainer, **fields),
    )


def first_batch(config: TrainConfig, path: Path) -> tuple[Run, Any]:
    model = resolve_model(config.model)
    data = load_training_data(config.data, model)
    other = resolve_reference(config, model)
    scores = None
    if other is not None:
        scores = score_reference(other, config, data, path / "cache", tolerance=1e-3)
    digest = None if scores is None else scores.digest
    run = Run(config, data, build_model(model), reference_digest=digest)
    cache = run.reference_of(path / "own", "ab") if scores is None else scores.cache
    batch = run.assign_to_shards(run.sampler.batch(0))
    return run, batch if cache is None else attach_reference(batch, cache)


# Known without data; by rows; from all metrics; of the whole batch by rows; and the other pairs.
@pytest.mark.parametrize(
    ("reference", "method"),
    [
        (None, "dpo"),
        ("other", "dpo"),
        (None, "simpo"),
        ("other", "aot"),
        pytest.param(None, "aot", marks=pytest.mark.slow),
        pytest.param("other", "simpo", marks=pytest.mark.slow),
        pytest.param(None, "wpo", marks=pytest.mark.slow),
        ("other", "wpo"),
    ],
)
def test_property_the_first_loss_is_known_under_every_kind_of_objective(
    folder: Path, tmp_path: Path, method: str, reference: str | None
) -> None:
    given = {} if reference is None else {"model": {"reference": str(folder / reference)}}
    config = config_of(folder, ObjectiveConfig(method=method, beta=0.5), **given)
    run, batch = first_batch(config, tmp_path)
    first = measure_first_step(run, batch)
    _, result = run.train_step(run.state, run.frozen, run.put_on_devices(batch))
    metrics = {name: float(np.asarray(value)) for name, value in result.metrics.items()}
    # With the initial policy as reference, the losses of DPO and AOT are known without data.
    assert (first.exact is None) == (method in ("dpo", "aot") and reference is None)
    check_first_loss(config, metrics, first.exact)
    with pytest.raises(ValueError, match=r"^the first loss must be "):
        check_first_loss(config, metrics | {"loss": metrics["loss"] + 0.01}, first.exact)


def test_property_a_run_with_dropout_is_measured_without_it(folder: Path, tmp_path: Path) -> None:
    lora = {"lora_r": 2, "lora_dropout": 0.5}
    config = config_of(folder, ObjectiveConfig(method="dpo", beta=0.5), model=lora)
    run, batch = first_batch(config, tmp_path)
    assert run.has_dropout
    first = measure_first_step(run, batch)
    assert first.metrics is not None
    assert first.metrics["loss"] == pytest.approx(np.log(2.0), abs=1e-6)


@pytest.mark.parametrize(
    "metric",
    [
        "eval_loss",
        pytest.param("eval_rewards/margins", marks=pytest.mark.slow),
        "eval_theory/coverage",
    ],
)
def test_property_metrics_of_evaluations_may_choose_the_best_checkpoint(
    folder: Path, tmp_path: Path, metric: str
) -> None:
    config = config_of(folder, ObjectiveConfig(), metric_for_best_model=metric)
    run, _ = first_batch(config, tmp_path)
    check_best_metric(run, lambda batch: batch._replace(reference=np.zeros(batch.lengths.shape)))


def test_raises_a_metric_that_no_evaluation_has(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, ObjectiveConfig(), metric_for_best_model="eval_accuracy")
    run, _ = first_batch(config, tmp_path)
    with pytest.raises(ValueError, match=r"must be one of eval_loss, .*, got 'eval_accuracy'$"):
        check_best_metric(
            run, lambda batch: batch._replace(reference=np.zeros(batch.lengths.shape))
        )
