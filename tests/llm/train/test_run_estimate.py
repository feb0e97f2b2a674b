"""Claims about what a run is expected to take: counted from its pairs, before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens
from llm.hf.factory import resolve_model
from llm.train import run_estimate
from llm.train.dataset import TrainingData
from llm.train.planned_step import PlannedStep, estimate_peak_bytes
from llm.train.run_estimate import RunEstimate, estimate_run
from tests.llm.train.tiny_runs import TINY

RATE = 1e9


def config(**trainer: Any) -> TrainConfig:
    fields = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, **trainer}
    return TrainConfig(
        name="tiny",
        model=ModelConfig(architecture=TINY),
        data=DataConfig(train="rows.jsonl", max_length=16),
        trainer=TrainerConfig(**fields),
    )


def data(count: int) -> TrainingData:
    """Return pairs of seven input tokens and five predicted tokens each."""
    pair = PairTokens((1, 2, 3, 4), (5, 6, 7), (8, 9), None, 0)
    pairs = PairTable.from_pairs(pair._replace(row=row) for row in range(count))
    return TrainingData(pairs, PairTable.from_pairs([]), {}, {}, frozenset())


def estimate(run: TrainConfig, count: int) -> RunEstimate:
    return estimate_run(run, resolve_model(run.model), data(count))


def test_closed_form_steps_tokens_work_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_estimate, "_matmul_rate", lambda _: RATE)
    run = config(num_train_epochs=3.0)
    result = estimate(run, 12)
    assert (result.steps, result.pairs_per_step) == (6, 6)
    assert result.tokens_per_step == 6 * 7
    layers = 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8
    assert result.flops_per_step == 6 * (6 * 7 * layers + 6 * 5 * 261 * 8)
    assert result.seconds == pytest.approx(6 * result.flops_per_step / (0.45 * RATE))
    least = estimate_peak_bytes(PlannedStep(run, resolve_model(run.model), 1), 2 * 7, 2 * 5)
    assert least <= result.peak_bytes_per_device <= 2 * least  # rows are padded to a few shapes


def test_closed_form_max_steps_takes_precedence_over_epochs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_estimate, "_matmul_rate", lambda _: RATE)
    assert estimate(config(max_steps=7), 12).steps == 7
    assert estimate(config(num_train_epochs=0.4), 13).steps == 2  # of three an epoch


def test_property_the_memory_of_a_device_is_at_most_that_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = run_estimate.device_memory()
    assert machine is not None
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(run_estimate, "CONTAINER_LIMITS", (limit, tmp_path / "missing"))
    for text, expected in (("1048576\n", 2**20), ("max\n", None), (str(2**62), None)):
        limit.write_text(text)
        found = run_estimate.device_memory()
        assert found == expected if expected else (found or 0) >= machine
    monkeypatch.setattr(run_estimate, "_matmul_rate", lambda _: RATE)
    result = estimate(config(), 13)
    assert result.limit_bytes_per_device == run_estimate.device_memory()
    (note,) = result.notes
    assert note.startswith("the last step of an epoch has 1 pair, the others have 6. ")
