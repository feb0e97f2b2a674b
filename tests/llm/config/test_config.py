"""Configurations: values out of range are refused under the key that the file has."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from llm.config import (
    DataConfig,
    DataSource,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParameterGroup,
    SamplesConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.config.checks import between

NEEDED: dict[type, dict[str, Any]] = {
    ModelConfig: {"path": "somewhere"},
    DataConfig: {"train": "rows.jsonl"},
    ObjectiveConfig: {},
    OptimizerConfig: {},
    TrainerConfig: {},
    SamplesConfig: {},
}
SECTIONS = {
    ModelConfig: "model",
    DataConfig: "data",
    ObjectiveConfig: "objective",
    OptimizerConfig: "optimizer",
    TrainerConfig: "trainer",
    SamplesConfig: "trainer.samples",
}
LARGEST = 2**31 - 1  # seeds and counts are used as signed 32-bit numbers

# Section, key and smallest valid value.
COUNTS = [
    (ModelConfig, "seed", 0),
    (ModelConfig, "lora_r", 0),
    (ModelConfig, "reference_refresh_steps", 1),
    (DataConfig, "eval_rows", 0),
    (DataConfig, "max_length", 2),
    (DataConfig, "max_prompt_length", 1),
    (OptimizerConfig, "warmup_steps", 0),
    (TrainerConfig, "max_steps", 1),
    (TrainerConfig, "per_device_train_batch_size", 1),
    (TrainerConfig, "gradient_accumulation_steps", 1),
    (TrainerConfig, "global_batch_size", 1),
    (TrainerConfig, "eval_steps", 0),
    (TrainerConfig, "coverage_samples", 0),
    (TrainerConfig, "save_steps", 0),
    (TrainerConfig, "save_total_limit", 1),
    (TrainerConfig, "logging_steps", 1),
    (TrainerConfig, "profile_steps", 0),
    (TrainerConfig, "seed", 0),
    (SamplesConfig, "prompts", 0),
    (SamplesConfig, "max_new_tokens", 1),
    (SamplesConfig, "top_k", 0),
]
POSITIVE = [
    (ModelConfig, "lora_alpha"),
    (ObjectiveConfig, "beta"),
    (ObjectiveConfig, "tau"),
    (ObjectiveConfig, "reward_max"),
    (OptimizerConfig, "learning_rate"),
    (OptimizerConfig, "max_grad_norm"),
    (OptimizerConfig, "adam_epsilon"),
    (TrainerConfig, "num_train_epochs"),
    (TrainerConfig, "step0_tolerance"),
]
SHARES = ["adam_beta1", "adam_beta2", "muon_momentum", "warmup_ratio"]
NAMES = ["run", "a-b_2", "2024"]
NO_NAMES = ["", "-", "a/b", "..", "a b", "a.b", "a\n"]


def refusal(kind: type, **fields: Any) -> str:
    """Return the error message; it must be one line."""
    with pytest.raises(ValueError) as caught:
        kind(**{**NEEDED[kind], **fields})
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("kind", "name", "least"), COUNTS)
def test_raises_counts_below_the_least_or_beyond_32_bits(kind: type, name: str, least: int) -> None:
    rule = f"`{SECTIONS[kind]}.{name}` must be a whole number from {least} to {LARGEST}, got "
    for wrong in (least - 1, LARGEST + 1):
        assert refusal(kind, **{name: wrong}) == rule + str(wrong)
    others = {"max_length": 100} if name == "max_prompt_length" else {}
    assert getattr(kind(**NEEDED[kind], **others, **{name: least}), name) == least


@pytest.mark.parametrize(("kind", "name"), POSITIVE)
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_raises_numbers_that_are_not_positive_and_finite(
    kind: type, name: str, wrong: float
) -> None:
    expected = f"`{SECTIONS[kind]}.{name}` must be positive and finite, got {wrong}"
    assert refusal(kind, **{name: wrong}) == expected


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("wrong", [-0.1, 1.0, math.nan])
def test_raises_shares_outside_the_half_open_interval(name: str, wrong: float) -> None:
    expected = f"`optimizer.{name}` must be in [0, 1), got {wrong}"
    assert refusal(OptimizerConfig, **{name: wrong}) == expected
    least: dict[str, Any] = {name: 0.0}
    assert getattr(OptimizerConfig(**least), name) == 0.0


@pytest.mark.parametrize("name", ["weight_decay", "min_lr"])
@pytest.mark.parametrize("wrong", [-1e-9, math.inf, math.nan])
def test_raises_a_weight_decay_that_is_negative_or_not_finite(name: str, wrong: float) -> None:
    expected = f"`optimizer.{name}` must be 0 or more and finite, got {wrong}"
    assert refusal(OptimizerConfig, **{name: wrong}) == expected
    least: dict[str, Any] = {name: 0.0}
    assert getattr(OptimizerConfig(**least), name) == 0.0


@pytest.mark.parametrize("wrong", [0.0, 1.1, math.nan])
def test_raises_a_decay_without_steps_or_longer_than_the_run(wrong: float) -> None:
    expected = f"`optimizer.decay_ratio` must be in (0, 1], got {wrong}"
    assert refusal(OptimizerConfig, decay_ratio=wrong) == expected
    assert OptimizerConfig(decay_ratio=1.0).decay_ratio == 1.0


def test_raises_a_least_rate_above_the_peak() -> None:
    message = refusal(OptimizerConfig, learning_rate=0.1, min_lr=0.2)
    assert message == "`optimizer.min_lr` must be at most `optimizer.learning_rate` 0.1, got 0.2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"parameters": "("},
            "`optimizer.groups.parameters` must be a regular expression, got '('",
        ),
        ({"layers": []}, "`optimizer.groups.layers` must name a layer, got []"),
        ({"layers": [-1]}, f"`optimizer.groups.layers` must be a whole number from 0 to {LARGEST}"),
        ({"lr_multiplier": -1.0}, "`optimizer.groups.lr_multiplier` must be 0 or more and finite"),
    ],
)
def test_raises_parameter_groups_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ParameterGroup(**{"lr_multiplier": 1.0, **fields})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ObjectiveConfig, "beta"),
        (ObjectiveConfig, "eta"),
        (OptimizerConfig, "learning_rate"),
        (OptimizerConfig, "weight_decay"),
    ],
)
@pytest.mark.parametrize("wrong", [1e-320, 1e39])
def test_raises_numbers_that_float32_does_not_have(kind: type, name: str, wrong: float) -> None:
    message = refusal(kind, **{name: wrong})
    assert f".{name}` must be in the range of float32" in message
    assert message.endswith(f"got {wrong}")


@pytest.mark.parametrize(
    ("kind", "name", "valid"),
    [
        (ObjectiveConfig, "method", "'sft', 'rpo', 'dpo'"),
        (ObjectiveConfig, "sft_reduction", "'sum'"),
        (OptimizerConfig, "lr_scheduler_type", "'cosine', 'linear', 'constant'"),
        (OptimizerConfig, "optim", "'adamw', 'adamw_8bit'"),
        (OptimizerConfig, "bf16_rounding", "'stochastic', 'refuse'"),
        (ModelConfig, "quantization", "'int8', 'nf4'"),
    ],
)
def test_raises_names_that_are_not_known_under_the_key_with_the_valid_ones(
    kind: type, name: str, valid: str
) -> None:
    """jaxtyping checks the types of tests first; users meet the message."""
    with pytest.raises((ValueError, TypeError), match=name) as caught:
        kind(**{**NEEDED[kind], name: "polynomial"})
    if isinstance(caught.value, ValueError):
        assert f"`{SECTIONS[kind]}.{name}` must be one of " in str(caught.value)
        assert valid in str(caught.value)


def test_raises_bfloat16_parameters_if_the_rounding_is_refused() -> None:
    model, data = ModelConfig(path="a", param_dtype="bfloat16"), DataConfig(train="rows.jsonl")
    with pytest.raises(ValueError, match=r"^`model.param_dtype` must not be bfloat16 .* float32"):
        TrainConfig(
            name="a", model=model, data=data, optimizer=OptimizerConfig(bf16_rounding="refuse")
        )
    TrainConfig(name="a", model=model, data=data)  # rounded stochastically
    TrainConfig(
        name="a",
        model=ModelConfig(path="a", dtype="bfloat16"),
        data=data,
        optimizer=OptimizerConfig(bf16_rounding="refuse"),
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_dropout": 1.0}, r"`model\.lora_\*`: `lora_dropout` must be in \[0, 1\), got 1\.0"),
        ({"lora_target_modules": ".*("}, r"`target_modules` must be a regular expression, got"),
        ({"lora_layers_to_transform": [-1]}, "`layers_to_transform` must be a whole number from 0"),
        ({"lora_rank_pattern": {"q_proj": 0}}, r"`rank_pattern\.q_proj` must be a whole number"),
        ({"lora_alpha_pattern": {"q_proj": -1.0}}, r"`alpha_pattern\.q_proj` must be positive"),
        (
            {"lora_target_modules": ".*q_proj", "lora_layers_to_transform": [1]},
            "`layers_to_transform` goes with a list of `target_modules`",
        ),
    ],
)
def test_raises_adapters_that_peft_would_not_have(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(path="a", lora_r=2, **fields)


@pytest.mark.parametrize("fields", [{"quantization": "nf4"}, {"base_dtype": "bfloat16"}])
def test_raises_fewer_bits_for_weights_that_are_trained(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"^`model.{name}` is for weights .* without adapters"):
        ModelConfig(path="a", **fields)
    with pytest.raises(ValueError, match="without adapters"):
        ModelConfig(path="a", adapter="b", merge_adapter=True, **fields)
    ModelConfig(path="a", lora_r=4, **fields)
    ModelConfig(path="a", adapter="b", **fields)


def test_raises_both_or_neither_of_path_and_architecture() -> None:
    with pytest.raises(ValueError, match=r"^`model\.path` is missing: give it, or `model\.arch"):
        ModelConfig()
    with pytest.raises(ValueError, match=r"^`model\.path` and `model\.architecture` must not both"):
        ModelConfig(path="a", architecture={"hidden_size": 8})


@pytest.mark.parametrize("longest", [16, 17])
def test_raises_a_prompt_that_leaves_no_token_of_a_response(longest: int) -> None:
    assert refusal(DataConfig, max_length=16, max_prompt_length=longest) == (
        f"`data.max_prompt_length` must be less than `data.max_length` 16, got {longest}"
    )
    DataConfig(train="rows.jsonl", max_length=16, max_prompt_length=15)


def test_raises_a_best_model_without_evaluations() -> None:
    message = refusal(TrainerConfig, metric_for_best_model="eval_loss")
    assert message.startswith("`trainer.metric_for_best_model` needs evaluations")


def test_raises_samples_that_cannot_be() -> None:
    for fields, message in (
        ({"temperature": -0.5}, "`trainer.samples.temperature` must be 0 or more and finite, got"),
        ({"top_p": 0.0}, "`trainer.samples.top_p` must be above 0 and at most 1, got 0.0"),
        ({"reward": "my_rewards.py"}, "`trainer.samples.reward` must be of the form module:name"),
        ({"reward": "rewards:f"}, "`trainer.samples.reward` needs replies: set `trainer.samples.p"),
    ):
        assert refusal(SamplesConfig, **fields).startswith(message)


def test_raises_two_sources_of_held_out_rows() -> None:
    expected = "`data.eval_rows` must be 0 if `data.eval` is given"
    assert refusal(DataConfig, eval="other.jsonl", eval_rows=1) == expected
    DataConfig(train="rows.jsonl", eval="other.jsonl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.0}, "`data.train.weight` must be positive and finite, got 0.0"),
        ({"rows": 0}, f"`data.train.rows` must be a whole number from 1 to {LARGEST}, got 0"),
        ({"rows": 1, "weight": 1.0}, "`data.train.weight` and `data.train.rows` must not both be"),
        ({"path": ["a"], "split": "test"}, "`data.train.split` must be left out for files, got"),
        ({"path": "/", "subset": "en"}, "`data.train.subset` must be left out for files, got"),
    ],
)
def test_raises_sources_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        DataSource(**{"path": "owner/name", **fields})
    assert str(caught.value).startswith(message)


def test_raises_mixtures_that_contradict_themselves() -> None:
    parts = [DataSource(path="a", weight=1.0), DataSource(path="b")]
    assert refusal(DataConfig, train=parts) == (
        "`data.train.weight` must be given for all sources or for none"
    )
    assert refusal(DataConfig, train=["a", parts[1]], eval_rows=1).startswith(
        "`data.eval_rows` must be 0 if `data.train` is a mixture"
    )
    assert refusal(DataConfig, eval={"new": parts[0]}) == (
        "`data.eval` must have no `weight` and no `rows`: all are evaluated"
    )
    assert refusal(DataConfig, eval={"a b": "c"}) == (
        "`data.eval` must name its sets with letters, digits, `_` and `-`, got 'a b'"
    )
    assert refusal(DataConfig, eval={"path": "c"}).endswith("write `eval: {NAME: {path: ...}}`")


@pytest.mark.parametrize("name", NO_NAMES)
def test_raises_a_name_that_leads_out_of_its_folder(name: str) -> None:
    parts = {"model": ModelConfig(path="a"), "data": DataConfig(train="b")}
    with pytest.raises(ValueError) as caught:
        TrainConfig(name=name, **parts)
    expected = f"`name` must consist of letters, digits, `_` and `-`, got {name!r}"
    assert str(caught.value) == expected
    assert [TrainConfig(name=good, **parts).name for good in NAMES] == NAMES


def test_property_every_number_of_every_section_is_checked() -> None:
    checked = {(kind, name) for kind, name, _ in COUNTS} | set(POSITIVE)
    checked |= {
        (OptimizerConfig, name) for name in [*SHARES, "weight_decay", "min_lr", "decay_ratio"]
    }
    checked |= {(ObjectiveConfig, name) for name in ["eta", "penalty", "label_smoothing"]}
    checked |= {(ModelConfig, name) for name in ["lora_dropout", "reference_decay"]}
    checked |= {(TrainerConfig, "save_minutes")}
    checked |= {(SamplesConfig, name) for name in ["temperature", "top_p"]}
    numbers = {
        (kind, field.name)
        for kind in NEEDED
        for field in dataclasses.fields(kind)
        if set(str(field.type).split(" | ")) & {"int", "float"}
    }
    assert numbers == checked


def test_raises_negative_minutes_between_checkpoints() -> None:
    assert TrainerConfig(save_minutes=0.0).save_minutes == 0.0
    for value in (-1.0, float("nan"), float("inf")):
        assert "`trainer.save_minutes`" in refusal(TrainerConfig, save_minutes=value)


def test_raises_values_outside_of_a_half_open_interval() -> None:
    between("share", 0.25, 0.0, 0.5)
    for wrong in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match=r"^`share` must be in \[0, 0\.5\), got"):
            between("share", wrong, 0.0, 0.5)


def test_property_no_section_can_be_changed_after_its_checks() -> None:
    config = OptimizerConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.learning_rate = -1.0  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"^`optimizer\.learning_rate` must be positive"):
        dataclasses.replace(config, learning_rate=-1.0)
