"""Fingerprints: the difference between two names its part and its keys."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
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
            "version 0.2.0 (format 1); this is version 0.1.0 (format 1)",
        ),
        ({"format": 2}, "version 0.1.0 (format 2); this is version 0.1.0 (format 1)"),
        (
            {"configuration": {"objective": {"beta": 0.1, "eta": 0.3}, "name": "run"}},
            "another configuration (`objective.eta` was 0.3 and is 0.2)",
        ),
        ({"data": {"tokenizer": "b2"}}, "other data (`tokenizer` was 'b2' and is 'a1')"),
        (
            {"model": {"parameters": {}}},
            "another model (`parameters.norm` was None and is 'float32 [8]')",
        ),
        (
            {"configuration": {"objective": None, "name": "a", "x": 1, "y": 2, "z": 3}},
            "another configuration (`name` was 'a' and is 'run', `objective` was None and is "
            "{'beta': 0.1, 'eta': 0.2}, `x` was 1 and is None and 2 more)",
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


def fingerprint(**trainer: Any) -> Fingerprint:
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
    return make_fingerprint(
        TrainConfig(
            name="run",
            model=ModelConfig(path="folder"),
            data=DataConfig(train="rows.jsonl"),
            trainer=TrainerConfig(**trainer),
        ),
        architecture=Architecture(**sizes, num_hidden_layers=2, num_attention_heads=2),
        trainable={"norm": {"weight": jnp.zeros(4, jnp.float32)}},
        initial_weights="a1",
        frozen_weights="b2",
        data_digests={"rows": "c3"},
        pairs_per_step=8,
    )


def test_golden_a_fingerprint_has_model_data_configuration_and_release_but_no_commit() -> None:
    made = fingerprint()
    assert made.model["parameters"] == {"norm/weight": "float32 [4]"}
    assert made.model["architecture"]["hidden_size"] == 4
    assert (made.model["initial_weights"], made.model["frozen_weights"]) == ("a1", "b2")
    assert made.data == {"rows": "c3"}
    assert made.configuration["trainer"]["pairs_per_step"] == 8
    assert "mesh" not in made.configuration
    assert made.release == release_version()


def test_property_what_a_resumed_run_may_change_is_not_in_the_fingerprint() -> None:
    assert fingerprint() == fingerprint(logging_steps=7)
    assert fingerprint() != fingerprint(max_steps=7)
