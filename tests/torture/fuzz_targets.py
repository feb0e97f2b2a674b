"""The fuzz targets: every format that the commands read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fuzz_data
import fuzz_models
from fuzz_target import Target

TARGETS: dict[str, tuple[Callable[[Path], Target], float]] = {
    "problem": (fuzz_data.problem, 0.06),
    "votes": (fuzz_data.votes, 0.24),
    "jsonl": (fuzz_data.jsonl, 0.15),
    "jsonl_gz": (fuzz_data.jsonl_gz, 0.1),
    "parquet": (fuzz_data.parquet, 0.03),
    "judgments": (fuzz_data.judgments, 0.1),
    "questions": (fuzz_data.questions, 0.06),
    "chat_template": (fuzz_models.chat_template, 0.03),
    "tokenizer": (fuzz_models.tokenizer, 0.03),
    "tokenizer_config": (fuzz_models.tokenizer_config, 0.02),
    "safetensors": (fuzz_models.safetensors, 0.06),
    "weight_index": (fuzz_models.weight_index, 0.04),
    "model_config": (fuzz_models.model_config, 0.04),
    "study": (fuzz_data.study, 0.02),
    "training": (fuzz_data.training, 0.02),
}
"""Targets with their shares of all inputs; fast readers get more inputs."""
