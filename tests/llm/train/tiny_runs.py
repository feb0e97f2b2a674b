"""Training runs of a tiny decoder: its architecture, trainers, and the lines that they log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm.config import TrainConfig
from llm.hf.factory import resolve_model
from llm.train.dataset import TrainingData, load_training_data
from llm.train.tracking import JsonLinesTracker
from llm.train.trainer import Trainer

TINY: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
"""Architecture for the byte tokenizer."""


def make_trainer(
    config: TrainConfig, out: Path, *, resume: bool = False, data: TrainingData | None = None
) -> Trainer:
    """Return the trainer of a configuration; it logs to ``metrics.jsonl`` of the folder."""
    out.mkdir(exist_ok=True)
    # The trainer sets its own precision; tests run in float64 and strict promotion around it.
    model = resolve_model(config.model)
    data = data or load_training_data(
        config.data, model, config.objective, n_samples=config.trainer.samples.prompts
    )
    tracker = JsonLinesTracker(out / "metrics.jsonl")
    return Trainer(config, model, data, out, resume=resume, tracker=tracker)


def read_lines(out: Path) -> list[dict[str, Any]]:
    """Return the lines that a run has logged."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def train_to_end(config: TrainConfig, out: Path, *, resume: bool = False) -> list[dict[str, Any]]:
    """Train until the last step, and return the logged lines; the step is compiled once."""
    run = make_trainer(config, out, resume=resume).train()
    assert run.train_step._cache_size() == 1  # type: ignore[attr-defined]
    return read_lines(out)
