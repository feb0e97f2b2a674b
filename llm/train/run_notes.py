"""Sentences about a run for its log: rows that are cut or skipped, keys that have no effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from llm.config import (
    PREFERENCE_LOSSES,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.config.model import LORA_KEYS
from llm.config.objective import COMPOSED
from llm.types import Role
from rpo_theory.reductions import weight_per_token

from .dataset import TrainingData
from .trainer_conventions import RpoLoss, to_trainer_options

if TYPE_CHECKING:
    from .run import Run

LARGE_SHARE = 0.05
"""Share of cut or skipped rows from which on a sentence is logged beside the counts."""


def describe_inputs(config: TrainConfig, data: TrainingData) -> list[str]:
    """Describe what the configuration does not use, and which data it cuts or skips.

    Args:
        config: configuration of a run.
        data: its tokenized pairs.

    Returns:
        Sentences for the log, each once.
    """
    has_evaluation = len(data.evaluation) > 0
    return [
        *_cut(config.data, data.report, data.train, ""),
        *chain.from_iterable(
            _cut(config.data, data.report, pairs, f"eval_{name}_" if name else "eval_")
            for name, pairs in data.evaluation_sets.items()
        ),
        *describe_unused_keys(config, has_evaluation=has_evaluation),
        *_unused_columns(config, data),
    ]


def describe_run(run: Run) -> list[str]:
    """Describe a run in one to three lines: its data, its length, its reference, its objective.

    Args:
        run: a run that has not started.

    Returns:
        Lines for the log. For DPO plus SFT the last gives the SFT weight and TRL's equivalent.
    """
    objective = run.config.objective
    mean = float(np.mean(run.data.train.scored_lengths[:, Role.CHOSEN]))
    weight = weight_per_token(
        eta=objective.eta, beta=objective.beta, mean_tokens=mean, reduction=objective.sft_reduction
    )
    trained = sum(leaf.size for leaf in jax.tree.leaves(run.state.trainable))
    noun = "pair" if run.data.train.desirable is None else "unpaired row"
    if run.data.train.is_ranked:
        noun = "ranked row"
    pairs = f"{_count(len(run.data.train), noun)}, {len(run.data.evaluation):,} held out"
    per_step = run.sampler.pairs_per_step
    steps = f"{_count(run.num_steps, 'step')} of {_count(per_step, noun)}"
    lines = [f"{pairs}; {steps}; {trained:,} trained parameters"]
    model = run.config.model
    if model.reference_refresh_steps is not None:
        interval = _count(model.reference_refresh_steps, "step")
        move = (
            f"moves to {model.reference_decay:g} reference + {1 - model.reference_decay:g} policy"
        )
        if not model.reference_decay:
            move = "becomes the policy"
        lines.append(f"the reference {move} after every {interval}")
    plain_dpo = [(term.loss.name, term.weight) for term in objective.terms] == [("dpo", 1.0)]
    if objective.method == "rpo" and plain_dpo and not objective.has_schedules:
        loss = RpoLoss(objective.beta, objective.eta, objective.sft_reduction)
        trl_weight = to_trainer_options("trl", loss, mean_tokens=mean)["loss_weights"][1]
        name = "SFT weight eta*beta" if objective.sft_reduction == "sum" else "mean SFT weight"
        lines.append(
            f"{name} = {weight:.3g} per chosen token. Equivalent TRL config: "
            f'loss_type=["sigmoid", "sft"], loss_weights=[1, {trl_weight:.3g}]'
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def describe_unused_keys(config: TrainConfig, *, has_evaluation: bool | None = None) -> list[str]:
    """Name the keys that were set and have no effect in a configuration.

    Args:
        config: configuration of a run. A key counts as set if its value is not the default.
        has_evaluation: whether there are rows for evaluation; None if the keys decide.

    Returns:
        Sentences that name the key, its value and the reason.

    Examples:
        >>> config = TrainConfig(
        ...     name="a", model=ModelConfig(path="m", lora_alpha=4.0), data=DataConfig(train="r")
        ... )
        >>> describe_unused_keys(config)
        ['`model.lora_alpha` 4.0 has no effect: `model.lora_r` is 0, so there are no new adapters']
    """
    if has_evaluation is None:
        has_evaluation = config.data.eval is not None or config.data.eval_rows > 0
    notes = [
        f"`{section}.{key}` {getattr(getattr(config, section), key)!r} {reason}"
        for section, key, reason in _without_effect(config, has_evaluation)
        if _is_set(config, section, key)
    ]
    if has_evaluation and not (config.trainer.eval_steps or config.trainer.eval_on_start):
        notes.append(
            "the rows for evaluation are held out, but never evaluated: `trainer.eval_steps` is 0"
        )
    return notes


def _without_effect(config: TrainConfig, has_evaluation: bool) -> Iterator[tuple[str, str, str]]:
    """Yield section, key and reason of every key that the others leave without an effect."""
    objective = config.objective
    method = objective.method
    of_method = f"has no effect: method {method!r} trains without it"
    measured = f"enters the metrics only: method {method!r} trains without it"
    for key in {key for loss in PREFERENCE_LOSSES.values() for key in loss.section_keys}:
        if key not in objective.section_keys:
            yield "objective", key, of_method
    if method != "rpo":
        yield "objective", "preference", "has no effect: only method 'rpo' has it"
        yield "objective", "eta", measured
    if not objective.uses_beta:
        yield "objective", "beta", measured
    if not objective.needs_reference:
        reason = f"has no effect: method {method!r} trains without a reference"
        yield "model", "reference", reason
    if method not in COMPOSED:
        yield "objective", "sft_reduction", measured
    model = config.model
    if not model.lora_r:
        reason = "has no effect: `model.lora_r` is 0, so there are no new adapters"
        for key in LORA_KEYS:
            yield "model", key, reason
        if model.architecture is None:
            yield "model", "seed", "has no effect: no parameter is initialized at random"
    optimizer, trainer = config.optimizer, config.trainer
    if optimizer.lr_scheduler_type == "constant":
        reason = "has no effect: 'constant' has no warm-up, 'constant_with_warmup' has one"
        yield "optimizer", "warmup_ratio", reason
        yield "optimizer", "warmup_steps", reason
    elif optimizer.warmup_steps is not None:
        yield "optimizer", "warmup_ratio", "has no effect: `optimizer.warmup_steps` is given"
    kind = optimizer.lr_scheduler_type
    if kind.startswith("constant"):
        yield "optimizer", "min_lr", f"has no effect: {kind!r} does not fall"
    if kind != "warmup_stable_decay":
        yield "optimizer", "decay_ratio", f"has no effect: {kind!r} has no such phase"
    for key in sorted(_CONSTANTS - _CONSTANTS_OF[optimizer.optim]):
        yield "optimizer", key, f"has no effect: {optimizer.optim!r} has no such constant"
    if trainer.max_steps is not None:
        yield "trainer", "num_train_epochs", "has no effect: `trainer.max_steps` is given"
    if not (trainer.save_steps or trainer.save_minutes):
        reason = (
            "has no effect: `trainer.save_steps` and `trainer.save_minutes` are 0, so the last "
            "step alone is saved"
        )
        yield "trainer", "save_total_limit", reason
    if trainer.metric_for_best_model is None:
        reason = "has no effect: `trainer.metric_for_best_model` is not given"
        yield "trainer", "greater_is_better", reason
    missing = "has no effect: there are no rows for evaluation (`data.eval` or `data.eval_rows`)"
    never = "has no effect: `trainer.eval_steps` is 0, so nothing is evaluated"
    if not has_evaluation:
        yield "trainer", "eval_steps", missing
        yield "trainer", "eval_on_start", missing
    if not has_evaluation or not (trainer.eval_steps or trainer.eval_on_start):
        yield "trainer", "coverage_samples", missing if not has_evaluation else never
        yield "trainer", "samples", missing if not has_evaluation else never


def _unused_columns(config: TrainConfig, data: TrainingData) -> Iterator[str]:
    """Yield a sentence for each optional column of the rows that the objective does not use."""
    method = config.objective.method
    for pairs, noun in ((data.train, "rows"), (data.evaluation, "rows for evaluation")):
        if not config.objective.needs_reference and not np.isnan(pairs.reference).all():
            yield (
                f"the reference log-probabilities of the {noun} have no effect: method {method!r} "
                "has no reference"
            )
        if not config.objective.trains_sft and pairs.has_baselines:
            yield (
                f"the baseline responses of the {noun} enter the metrics only: method {method!r} "
                "trains without them"
            )


def _is_set(config: TrainConfig, section: str, key: str) -> bool:
    fields = {field.name: field for field in dataclasses.fields(_SECTIONS[section])}
    field, value = fields[key], getattr(getattr(config, section), key)
    default = field.default
    if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return value != default


_CONSTANTS_OF = {
    "adamw": {"adam_beta1", "adam_beta2", "adam_epsilon"},
    "adamw_8bit": {"adam_beta1", "adam_beta2", "adam_epsilon"},
    "adafactor": set(),
    "lion": {"adam_beta1", "adam_beta2"},
    "muon": {"adam_beta1", "adam_beta2", "adam_epsilon", "muon_momentum"},
}
_CONSTANTS = _CONSTANTS_OF["muon"]
_SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "trainer": TrainerConfig,
}


def _cut(config: DataConfig, report: Mapping[str, int], pairs: Any, prefix: str) -> Iterator[str]:
    """Yield a sentence for each large share of rows that are skipped or cut."""
    held_out = " for evaluation" if prefix else ""
    rows = report.get(f"{prefix}rows", 0)
    of_responses = slice(1, None) if pairs.desirable is None else slice(1, 2)
    responses = int(np.count_nonzero(pairs.lengths[:, of_responses])) if len(pairs) else 0
    remedy = f"`data.max_length` {config.max_length}: raise it"
    prompt = remedy
    if config.max_prompt_length is not None:
        prompt = f"`data.max_prompt_length` {config.max_prompt_length}: raise it"
    for name, number, noun, to in (
        ("responses_cut", responses, "responses", f"are cut to {remedy}"),
        ("prompts_cut", len(pairs), "prompts", f"are cut to {prompt}"),
        ("rows_skipped", rows, "rows", "are skipped; the counts name the reasons"),
    ):
        count = report.get(f"{prefix}{name}", 0)
        if number and count / number >= LARGE_SHARE:
            share = f"{100 * count / number:.0f} % of the {noun}{held_out}"
            yield f"{share} ({count:,} of {number:,}) {to}"
