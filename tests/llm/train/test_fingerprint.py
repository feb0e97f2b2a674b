"""Fingerprints: the difference between two names its part and its keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.models.architecture import Architecture
from llm.train.fingerprint import Fingerprint, make_fingerprint, parameter_path
from rpo_io.versions import release_version

RUN = Fingerprint(
    {"parameters": {"norm": "float32 [8]"}},
    {"tokenizer": "a1"},
    {"objective": {"beta": 0.1, "eta": 0.2}, "name": "run"},
    "0.1.0",
)


def test_closed_form_equal_fingerprints_have_no_difference() -> None:
    assert RUN.difference(RUN._asdict()) is None


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (
            {"release": "0.2.0"},
            "version 0.2.0 (format 2); this is version 0.1.0 (format 2)",
        ),
        ({"format": 1}, "version 0.1.0 (format 1); this is version 0.1.0 (format 2)"),
        (
            {"configuration": {"objective": {"beta": 0.1, "eta": 0.3}, "name": "run"}},
            "another configuration (`objective.eta` was 0.3 and is 0.2)",
        ),
        (
            {"data": {"tokenizer": "b2"}},
            "other data (the tokenizer of `data.tokenizer` or `model.path` changed)",
        ),
        (
            {"model": {"parameters": {}}},
            "another model (`parameters.norm` was None and is 'float32 [8]')",
        ),
        (
            {"configuration": {"objective": None, "name": "a"} | dict.fromkeys("tuvwxyz", 1)},
            "another configuration (`objective` was None and is {'beta': 0.1, 'eta': 0.2}, "
            "`t` was 1 and is None, `u` was 1 and is None, `v` was 1 and is None, "
            "`w` was 1 and is None, `x` was 1 and is None and 2 more)",
        ),
    ],
)
def test_closed_form_a_difference_names_the_part_and_the_keys(
    recorded: dict[str, Any], expected: str
) -> None:
    assert RUN.difference(RUN._asdict() | recorded) == expected


def test_property_parameter_paths_are_unique_names() -> None:
    tree = {"mu": [{"kernel": jnp.zeros(1)}, {"kernel": jnp.zeros(1)}], "value": jnp.zeros(1)}
    paths = [parameter_path(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    assert paths == [("mu", "0", "kernel"), ("mu", "1", "kernel"), ("value",)]


def fingerprint(pairs_per_step: int = 8, rows: str = "c3", **changed: Any) -> Fingerprint:
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": "folder"},
        "data": {"train": "a.jsonl"},
    }
    name = changed.pop("name", "run")
    for key, value in changed.items():
        section, _, field = key.partition("__")
        sections.setdefault(section, {})[field] = value
    return make_fingerprint(
        TrainConfig(
            name=name,
            model=ModelConfig(**sections["model"]),
            data=DataConfig(**sections["data"]),
            objective=ObjectiveConfig(**sections.get("objective", {})),
            optimizer=OptimizerConfig(**sections.get("optimizer", {})),
            trainer=TrainerConfig(**sections.get("trainer", {})),
        ),
        architecture=Architecture(**sizes, num_hidden_layers=2, num_attention_heads=2),
        trainable={"norm": {"weight": jnp.zeros(4, jnp.float32)}},
        initial_weights="a1",
        frozen_weights="b2",
        data_digests={"data": rows},
        pairs_per_step=pairs_per_step,
    )


def test_golden_a_fingerprint_has_model_data_configuration_and_release_but_no_commit() -> None:
    made = fingerprint()
    assert made.model["parameters"] == {"norm/weight": "float32 [4]"}
    assert made.model["architecture"]["hidden_size"] == 4
    assert (made.model["initial_weights"], made.model["frozen_weights"]) == ("a1", "b2")
    assert made.data == {"data": "c3"}
    assert made.configuration["trainer"]["pairs_per_step"] == 8
    assert "mesh" not in made.configuration
    assert made.release == release_version()


HARMLESS: list[dict[str, Any]] = [
    {"name": "renamed"},
    {"data__train": "/absolute/a.jsonl"},
    {"data__tokenizer": "elsewhere"},
    {"model__path": "/absolute/folder"},
    {"trainer__logging_steps": 7},
    {"trainer__save_steps": 7},
    {"trainer__save_total_limit": 7},
    {"trainer__eval_steps": 7},
    {"trainer__report_to": ["wandb"]},
    {"trainer__max_steps": 7},
    {"trainer__num_train_epochs": 7.0},
    {"trainer__per_device_train_batch_size": 2, "trainer__gradient_accumulation_steps": 4},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"objective__beta": 0.3}, "`objective.beta` was 0.01 and is 0.3"),
    ({"optimizer__learning_rate": 0.5}, "`optimizer.learning_rate` was 5e-07 and is 0.5"),
    ({"optimizer__lr_scheduler_type": "linear"}, "`optimizer.lr_scheduler_type` was 'cosine' and"),
    ({"data__max_length": 9}, "`data.max_length` was 1024 and is 9"),
    ({"model__lora_r": 3}, "`model.lora_r` was 0 and is 3"),
    ({"trainer__seed": 3}, "`trainer.seed` was 0 and is 3"),
    ({"trainer__dataloader_drop_last": True}, "`trainer.dataloader_drop_last` was False and is"),
    ({"pairs_per_step": 9}, "x devices) was 8 and is 9"),
    ({"rows": "other"}, "the rows of `data.train` or `data.eval` changed"),
    (
        {"trainer__seed": 1, "objective__beta": 0.3},
        "`objective.beta` was 0.01 and is 0.3, `trainer.seed` was 0 and is 1",
    ),
]


@pytest.mark.parametrize("changed", HARMLESS)
def test_property_names_paths_and_logging_may_change_on_resume(changed: dict[str, Any]) -> None:
    assert fingerprint(**changed).difference(fingerprint()._asdict()) is None


@pytest.mark.parametrize(("changed", "named"), REFUSED)
def test_raises_every_other_change_names_its_key_and_both_values(
    changed: dict[str, Any], named: str
) -> None:
    difference = fingerprint(**changed).difference(fingerprint()._asdict())
    assert difference is not None
    assert named in difference
