"""Language models trained on preferences with RPO, DPO and other losses, on JAX.

A configuration names model, data and objective; :class:`Trainer` trains the policy, and
:func:`load_policy` reads it back from the folder of the run::

    config = llm.TrainConfig(name="tiny", model=..., data=...)
    model = llm.resolve_model(config.model)
    data = llm.load_training_data(config.data, model, config.objective)
    llm.Trainer(config, model, data, folder).train()

Names are imported on first use, so that ``import llm`` is cheap. The sub-packages export more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import (
        DataConfig,
        DataSource,
        LoraConfig,
        MeshConfig,
        ModelConfig,
        ObjectiveConfig,
        OptimizerConfig,
        ParameterGroup,
        SamplesConfig,
        TrainConfig,
        TrainerConfig,
    )
    from .data.loader import BatchSampler
    from .data.pair_table import PairTable
    from .data.preferences import Message, PairTokens, PreferenceRow, read_preferences
    from .evaluation.judgments import count_wins
    from .evaluation.metrics import preference_metrics
    from .evaluation.win_rates import WinRate, compare_rewards
    from .hashing import weights_digest
    from .hf.adapters import export_adapter
    from .hf.factory import build_model, resolve_model
    from .hf.io import export_model, load_model
    from .inference.generate import GenerationConfig, Reply, generate_replies, generate_tokens
    from .inference.score import PairScore, score_pairs
    from .models.architecture import Architecture
    from .models.decoder import Decoder
    from .models.logprobs import response_log_probs
    from .models.lora import add_lora
    from .precision import computing_in
    from .text.tokenize import tokenize_rows
    from .text.tokenizer import Tokenizer, TokenizerOptions, load_tokenizer
    from .train.dataset import TrainingData, load_training_data
    from .train.diagnostics import NonFiniteError
    from .train.memory_plan import make_plan
    from .train.policy import Policy, load_policy
    from .train.run import Run
    from .train.run_estimate import estimate_run
    from .train.tracking import Tracker, make_tracker
    from .train.trainer import InterruptedRunError, Trainer
    from .train.trainer_conventions import RpoLoss, from_trainer_options, to_trainer_options

_EXPORTS = {
    "Architecture": "models.architecture",
    "BatchSampler": "data.loader",
    "DataConfig": "config",
    "DataSource": "config",
    "Decoder": "models.decoder",
    "GenerationConfig": "inference.generate",
    "InterruptedRunError": "train.trainer",
    "LoraConfig": "config",
    "MeshConfig": "config",
    "Message": "data.preferences",
    "ModelConfig": "config",
    "NonFiniteError": "train.diagnostics",
    "ObjectiveConfig": "config",
    "OptimizerConfig": "config",
    "PairScore": "inference.score",
    "PairTable": "data.pair_table",
    "PairTokens": "data.preferences",
    "ParameterGroup": "config",
    "Policy": "train.policy",
    "PreferenceRow": "data.preferences",
    "Reply": "inference.generate",
    "RpoLoss": "train.trainer_conventions",
    "Run": "train.run",
    "SamplesConfig": "config",
    "Tokenizer": "text.tokenizer",
    "TokenizerOptions": "text.tokenizer",
    "Tracker": "train.tracking",
    "TrainConfig": "config",
    "Trainer": "train.trainer",
    "TrainerConfig": "config",
    "TrainingData": "train.dataset",
    "WinRate": "evaluation.win_rates",
    "add_lora": "models.lora",
    "build_model": "hf.factory",
    "compare_rewards": "evaluation.win_rates",
    "computing_in": "precision",
    "count_wins": "evaluation.judgments",
    "estimate_run": "train.run_estimate",
    "export_adapter": "hf.adapters",
    "export_model": "hf.io",
    "from_trainer_options": "train.trainer_conventions",
    "generate_replies": "inference.generate",
    "generate_tokens": "inference.generate",
    "load_model": "hf.io",
    "load_policy": "train.policy",
    "load_tokenizer": "text.tokenizer",
    "load_training_data": "train.dataset",
    "make_plan": "train.memory_plan",
    "make_tracker": "train.tracking",
    "preference_metrics": "evaluation.metrics",
    "read_preferences": "data.preferences",
    "resolve_model": "hf.factory",
    "response_log_probs": "models.logprobs",
    "score_pairs": "inference.score",
    "to_trainer_options": "train.trainer_conventions",
    "tokenize_rows": "text.tokenize",
    "weights_digest": "hashing",
}

__all__ = [
    "Architecture",
    "BatchSampler",
    "DataConfig",
    "DataSource",
    "Decoder",
    "GenerationConfig",
    "InterruptedRunError",
    "LoraConfig",
    "MeshConfig",
    "Message",
    "ModelConfig",
    "NonFiniteError",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PairScore",
    "PairTable",
    "PairTokens",
    "ParameterGroup",
    "Policy",
    "PreferenceRow",
    "Reply",
    "RpoLoss",
    "Run",
    "SamplesConfig",
    "Tokenizer",
    "TokenizerOptions",
    "Tracker",
    "TrainConfig",
    "Trainer",
    "TrainerConfig",
    "TrainingData",
    "WinRate",
    "add_lora",
    "build_model",
    "compare_rewards",
    "computing_in",
    "count_wins",
    "estimate_run",
    "export_adapter",
    "export_model",
    "from_trainer_options",
    "generate_replies",
    "generate_tokens",
    "load_model",
    "load_policy",
    "load_tokenizer",
    "load_training_data",
    "make_plan",
    "make_tracker",
    "preference_metrics",
    "read_preferences",
    "resolve_model",
    "response_log_probs",
    "score_pairs",
    "to_trainer_options",
    "tokenize_rows",
    "weights_digest",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
