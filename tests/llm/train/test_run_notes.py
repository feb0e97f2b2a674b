"""Sentences about a run: every key without effect is named, and large shares of cut rows."""

from __future__ import annotations

from typing import Any

import pytest

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens
from llm.train.dataset import TrainingData
from llm.train.run_notes import describe_inputs, describe_unused_keys


def config(**changed: Any) -> TrainConfig:
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": "model"},
        "data": {"train": "rows.jsonl"},
        "objective": {},
        "optimizer": {},
        "trainer": {},
    }
    for key, value in changed.items():
        section, _, field = key.partition("__")
        sections[section][field] = value
    return TrainConfig(
        name="tiny",
        model=ModelConfig(**sections["model"]),
        data=DataConfig(**sections["data"]),
        objective=ObjectiveConfig(**sections["objective"]),
        optimizer=OptimizerConfig(**sections["optimizer"]),
        trainer=TrainerConfig(**sections["trainer"]),
    )


METHODS = ("rpo", "dpo", "ipo", "dpop", "chi_po", "sft", "simpo", "slic")
# Keys that one method alone trains with, and the methods that train with each.
OF_METHODS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "eta": (0.3, ("rpo",)),
    "beta": (0.3, ("rpo", "dpo", "dpop", "chi_po", "simpo")),
    "preference": ("hinge", ("rpo",)),
    "tau": (0.3, ("ipo",)),
    "penalty": (0.3, ("dpop",)),
    "reward_max": (0.3, ("chi_po",)),
    "sft_reduction": ("pooled_mean", ("rpo", "sft")),
}


@pytest.mark.parametrize("method", METHODS)
def test_property_a_constant_is_named_unless_the_method_trains_with_it(method: str) -> None:
    for key, (value, methods) in OF_METHODS.items():
        notes = describe_unused_keys(
            config(objective__method=method, **{f"objective__{key}": value})
        )
        named = [note for note in notes if note.startswith(f"`objective.{key}` {value!r} ")]
        assert len(named) == (method not in methods), (key, notes)
        assert len(notes) == len(named)
    assert describe_unused_keys(config(objective__method=method)) == []


UNUSED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"model__lora_alpha": 4.0}, "model.lora_alpha", {"model__lora_r": 2}),
    ({"model__lora_target_modules": ["q_proj"]}, "model.lora_target_modules", {"model__lora_r": 2}),
    ({"model__seed": 3}, "model.seed", {"model__lora_r": 2}),
    (
        {"optimizer__warmup_ratio": 0.2, "optimizer__lr_scheduler_type": "constant"},
        "optimizer.warmup_ratio",
        {"optimizer__lr_scheduler_type": "constant_with_warmup"},
    ),
    (
        {"trainer__num_train_epochs": 2.0, "trainer__max_steps": 5},
        "trainer.num_train_epochs",
        {"trainer__max_steps": None},
    ),
    (
        {"trainer__save_total_limit": 5, "trainer__save_minutes": 0.0},
        "trainer.save_total_limit",
        {"trainer__save_steps": 2},
    ),
    ({"trainer__eval_steps": 5}, "trainer.eval_steps", {"data__eval_rows": 2}),
    (
        {"trainer__coverage_samples": 5},
        "trainer.coverage_samples",
        {"data__eval": "other.jsonl", "trainer__eval_steps": 3},
    ),
]


@pytest.mark.parametrize(("unused", "key", "used"), UNUSED)
def test_property_a_key_is_named_only_where_the_others_leave_it_without_effect(
    unused: dict[str, Any], key: str, used: dict[str, Any]
) -> None:
    (note,) = describe_unused_keys(config(**unused))
    assert note.startswith(f"`{key}` ")
    assert " has no effect: " in note
    assert describe_unused_keys(config(**{**unused, **used})) == []


def test_closed_form_rows_that_are_never_evaluated_are_named() -> None:
    for given in ({"data__eval_rows": 3}, {"data__eval": "other.jsonl"}):
        (note,) = describe_unused_keys(config(**given))
        assert note == (
            "the rows for evaluation are held out, but never evaluated: `trainer.eval_steps` is 0"
        )


def test_closed_form_large_shares_of_cut_and_skipped_rows_are_described() -> None:
    pair = PairTokens((1, 2), (3,), (4, 5), None, 0)
    pairs = PairTable.from_pairs(pair._replace(row=row) for row in range(40))

    def notes(run: TrainConfig = config(data__max_length=128), **report: int) -> list[str]:  # noqa: B008
        data = TrainingData(
            pairs, PairTable.from_pairs([]), {}, {"rows": 50, **report}, frozenset()
        )
        return describe_inputs(run, data)

    assert notes(responses_cut=33) == [
        "41 % of the responses (33 of 80) are cut to `data.max_length` 128: raise it"
    ]
    assert notes(prompts_cut=20) == [
        "50 % of the prompts (20 of 40) are cut to `data.max_length` 128: raise it"
    ]
    shorter = config(data__max_length=128, data__max_prompt_length=16)
    assert notes(shorter, prompts_cut=20) == [
        "50 % of the prompts (20 of 40) are cut to `data.max_prompt_length` 16: raise it"
    ]
    assert notes(rows_skipped=10) == [
        "20 % of the rows (10 of 50) are skipped; the counts name the reasons"
    ]
    assert notes(responses_cut=3, prompts_cut=1, rows_skipped=2) == []  # the counts suffice
    held_out = TrainingData(
        pairs, pairs, {}, {"rows": 40, "eval_rows": 40, "eval_responses_cut": 80}, frozenset()
    )
    assert (
        "100 % of the responses for evaluation (80 of 80) are cut to `data.max_length` 1024"
        in (describe_inputs(config(trainer__eval_steps=1), held_out)[0])
    )
