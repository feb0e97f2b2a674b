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
    # configuration
    "TrainConfig": "config",
    "ModelConfig": "config",
    "DataConfig": "config",
    "DataSource": "config",
    "ObjectiveConfig": "config",
    "OptimizerConfig": "config",
    "ParameterGroup": "config",
    "SamplesConfig": "config",
    "TrainerConfig": "config",
    "MeshConfig": "config",
    "LoraConfig": "config",
    # data
    "Message": "data.preferences",
    "PreferenceRow": "data.preferences",
    "PairTokens": "data.preferences",
    "read_preferences": "data.preferences",
    "PairTable": "data.pair_table",
    "BatchSampler": "data.loader",
    "Tokenizer": "text.tokenizer",
    "TokenizerOptions": "text.tokenizer",
    "load_tokenizer": "text.tokenizer",
    "tokenize_rows": "text.tokenize",
    # models
    "Architecture": "models.architecture",
    "Decoder": "models.decoder",
    "add_lora": "models.lora",
    "response_log_probs": "models.logprobs",
    "resolve_model": "hf.factory",
    "build_model": "hf.factory",
    "load_model": "hf.io",
    "export_model": "hf.io",
    "export_adapter": "hf.adapters",
    "computing_in": "precision",
    "weights_digest": "hashing",
    # training
    "Trainer": "train.trainer",
    "InterruptedRunError": "train.trainer",
    "TrainingData": "train.dataset",
    "load_training_data": "train.dataset",
    "Run": "train.run",
    "Policy": "train.policy",
    "load_policy": "train.policy",
    "Tracker": "train.tracking",
    "make_tracker": "train.tracking",
    "NonFiniteError": "train.diagnostics",
    "estimate_run": "train.run_estimate",
    "make_plan": "train.memory_plan",
    "RpoLoss": "train.trainer_conventions",
    "to_trainer_options": "train.trainer_conventions",
    "from_trainer_options": "train.trainer_conventions",
    # inference
    "GenerationConfig": "inference.generate",
    "Reply": "inference.generate",
    "generate_replies": "inference.generate",
    "generate_tokens": "inference.generate",
    "PairScore": "inference.score",
    "score_pairs": "inference.score",
    # evaluation
    "preference_metrics": "evaluation.metrics",
    "WinRate": "evaluation.win_rates",
    "compare_rewards": "evaluation.win_rates",
    "count_wins": "evaluation.judgments",
}

__all__ = [  # noqa: RUF022  # in groups
    # configuration
    "TrainConfig",
    "ModelConfig",
    "DataConfig",
    "DataSource",
    "ObjectiveConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "SamplesConfig",
    "TrainerConfig",
    "MeshConfig",
    "LoraConfig",
    # data
    "Message",
    "PreferenceRow",
    "PairTokens",
    "read_preferences",
    "PairTable",
    "BatchSampler",
    "Tokenizer",
    "TokenizerOptions",
    "load_tokenizer",
    "tokenize_rows",
    # models
    "Architecture",
    "Decoder",
    "add_lora",
    "response_log_probs",
    "resolve_model",
    "build_model",
    "load_model",
    "export_model",
    "export_adapter",
    "computing_in",
    "weights_digest",
    # training
    "Trainer",
    "InterruptedRunError",
    "TrainingData",
    "load_training_data",
    "Run",
    "Policy",
    "load_policy",
    "Tracker",
    "make_tracker",
    "NonFiniteError",
    "estimate_run",
    "make_plan",
    "RpoLoss",
    "to_trainer_options",
    "from_trainer_options",
    # inference
    "GenerationConfig",
    "Reply",
    "generate_replies",
    "generate_tokens",
    "PairScore",
    "score_pairs",
    # evaluation
    "preference_metrics",
    "WinRate",
    "compare_rewards",
    "count_wins",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
