"""Claims about a reference that follows the policy: oracle, limits, resume, memory."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.models.decoder import Decoder
from llm.models.projections import PROJECTIONS
from llm.precision import computing_in
from llm.train.memory_plan import MemoryPlan, make_plan
from llm.train.moving_reference import (
    ReferenceLogProbs,
    average_reference,
    policy_as_reference,
)
from llm.train.policy import load_policy
from llm.types import Batch, Rows
from tests.llm.train.tiny_runs import TINY, make_trainer, train_to_end

ROWS = [("a", "yes", "no"), ("bc", "sure thing", "oh"), ("d", "x", "why not"), ("e", "fg", "h")]
BETA, ETA, RATE, BETAS = 0.5, 0.2, 0.01, (0.9, 0.99)
DOUBLE: dict[str, Any] = {"dtype": "float64", "param_dtype": "float64"}
EXACT = 1e-8
LENGTH = 24
NOTHING: Any = None
STEPS = 5


def config_of(folder: Path, *, steps: int = STEPS, **model: Any) -> TrainConfig:
    rows = folder / "rows.jsonl"
    names = ("prompt", "chosen", "rejected")
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS]
    rows.write_text("".join(lines))
    return TrainConfig(
        name="tiny",
        model=ModelConfig(**{"architecture": TINY, "seed": 1} | DOUBLE | model),
        data=DataConfig(train=str(rows), tokenizer="bytes", max_length=LENGTH),
        objective=ObjectiveConfig(method="rpo", beta=BETA, eta=ETA),
        optimizer=OptimizerConfig(
            learning_rate=RATE,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            weight_decay=0.0,
            max_grad_norm=1e9,
            adam_beta2=BETAS[1],
        ),
        trainer=TrainerConfig(max_steps=steps, save_steps=1, per_device_train_batch_size=2),
    )


def scores(decoder: Decoder, tokens: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Return the log-probabilities of chosen and rejected responses, one sequence in each row."""
    ids, is_scored = tokens
    columns = jnp.broadcast_to(jnp.arange(LENGTH), ids.shape)
    rows = Rows(ids, columns, jnp.ones_like(ids), jnp.zeros_like(ids))
    logits = jax.vmap(decoder.head().logits)(decoder.hidden_states(rows))
    of_next = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], 2)[..., 0]
    return jnp.sum(jnp.where(is_scored[:, 1:], of_next, 0), axis=1).reshape(-1, 2)


def padded(pairs: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return sequences with padding at the end, and which of their tokens are scored."""
    sequences = [(pair.prompt, y) for pair in pairs for y in (pair.chosen, pair.rejected)]
    ids, is_scored = (
        np.zeros((len(sequences), LENGTH), int),
        np.zeros((len(sequences), LENGTH), bool),
    )
    for i, (prompt, response) in enumerate(sequences):
        end = len(prompt) + len(response)
        ids[i, :end], is_scored[i, len(prompt) : end] = [*prompt, *response], True
    return ids, is_scored


def without_adapters(model: Decoder) -> Any:
    """Return structure and parameters of a model, with its adapters multiplied out in NumPy."""
    for name in PROJECTIONS:
        projection = getattr(model.layers, name)
        adapter = projection.adapter
        if adapter is not None:
            product = np.einsum("lir,lro->lio", adapter.a[...], adapter.b[...])
            scale = np.asarray(adapter.scale[...])[:, None, None]
            projection.kernel[...] = projection.kernel[...] + scale * product
            projection.adapter = None
    return nnx.split(model)


def plain_losses(config: TrainConfig, batches: list[list[Any]]) -> list[float]:
    """Return the losses of a plain loop: a sequence in a row, merged references, Adam in NumPy."""
    interval, decay = config.model.reference_refresh_steps or 1, config.model.reference_decay
    kind = nnx.LoRAParam if config.model.lora_r else nnx.Param
    graph, trainable, frozen = nnx.split(build_model(resolve_model(config.model)), kind, ...)
    leaves, structure = jax.tree.flatten(trainable)

    def policy() -> Decoder:
        copies = jax.tree.map(jnp.copy, (jax.tree.unflatten(structure, leaves), frozen))
        return nnx.merge(graph, *copies)

    def loss(trainable: Any, reference: jax.Array, tokens: Any) -> jax.Array:
        policy = scores(nnx.merge(graph, trainable, frozen), tokens)
        margins = (policy - reference)[:, 0] - (policy - reference)[:, 1]
        return jnp.mean(jnp.log1p(jnp.exp(-BETA * margins)) - ETA * BETA * policy[:, 0])

    plain, reference = without_adapters(policy())
    reference_scores = jax.jit(lambda weights, tokens: scores(nnx.merge(plain, weights), tokens))
    slopes = jax.jit(jax.value_and_grad(loss))
    first: list[Any] = [0.0] * len(leaves)
    second: list[Any] = [0.0] * len(leaves)
    losses = []
    for step, tokens in enumerate(map(padded, batches), start=1):
        if step > 1 and (step - 1) % interval == 0:
            mix = without_adapters(policy())[1]
            reference = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, reference, mix)
        known = reference_scores(reference, tokens)
        value, gradient = slopes(jax.tree.unflatten(structure, leaves), known, tokens)
        losses.append(float(value))
        for i, slope in enumerate(map(np.asarray, jax.tree.leaves(gradient))):
            first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * slope
            second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * slope**2
            square = second[i] / (1 - BETAS[1] ** step)
            leaves[i] = leaves[i] - RATE * first[i] / (1 - BETAS[0] ** step) / (
                np.sqrt(square) + 1e-8
            )
    return losses


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            {"reference_refresh_steps": 2, "lora_r": 2}, marks=pytest.mark.slow, id="lora"
        ),
        pytest.param({"reference_refresh_steps": 1, "reference_decay": 0.6, "lora_r": 2}, id="ema"),
        pytest.param({"reference_refresh_steps": 2}, marks=pytest.mark.slow, id="full"),
        pytest.param(
            {"reference_refresh_steps": 2, "reference_decay": 0.3},
            marks=pytest.mark.slow,
            id="soft",
        ),
    ],
)
def test_closed_form_steps_across_refreshes_are_those_of_a_plain_loop(
    model: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(tmp_path, steps=STEPS, **model)
    trainer = make_trainer(config, tmp_path / "run")
    sampler, rows = trainer.run.sampler, trainer.run.data.train
    batches = [[rows[int(i)] for i in sampler.pair_indices(step)] for step in range(STEPS)]
    trainer.train()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    with computing_in("float64"):
        expected = plain_losses(config, batches)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=EXACT)
    print(f"largest error {np.abs(np.subtract(losses, expected)).max():.1e}")


def digest_of(lines: list[dict[str, Any]]) -> str:
    return lines[-1]["parameters_sha256"]


def with_evaluation(config: TrainConfig) -> TrainConfig:
    rows = Path(str(config.data.train)).with_name("held_out.jsonl")
    rows.write_text('{"prompt": "z", "chosen": "w", "rejected": "vv"}\n')
    data = replace(config.data, eval=str(rows))
    return replace(config, data=data, trainer=replace(config.trainer, eval_steps=1))


def test_closed_form_the_reference_moves_before_the_step_after_every_interval() -> None:
    moves: list[int] = []
    model = SimpleNamespace(reference_refresh_steps=3)
    run: Any = SimpleNamespace(config=SimpleNamespace(model=model))
    for first in range(8):  # a run that is resumed at this step
        reference = ReferenceLogProbs(run, None, first)
        batch = Batch(*[NOTHING] * 2, np.ones((1, 2), int), np.ones(1, bool), np.zeros(1, int))
        assert reference.attach(batch) is batch  # without a reference
        assert reference.has_moved is (first > 3)
        moves.clear()
        for step in range(first, 8):
            run.refresh_reference = partial(moves.append, step)
            reference.before_step(step)
        assert moves == [step for step in (3, 6) if step >= first]
        assert reference.has_moved


@pytest.mark.slow
def test_limit_a_reference_that_would_move_after_the_last_step_is_a_fixed_one(
    tmp_path: Path,
) -> None:
    config = with_evaluation(config_of(tmp_path, steps=2))
    fixed = train_to_end(config, tmp_path / "fixed")
    model = replace(config.model, reference_refresh_steps=2)
    late = train_to_end(replace(config, model=model), tmp_path / "late")
    volatile = {"time", "perf/tokens_per_second"}
    for a, b in zip(fixed, late, strict=True):
        assert {k: v for k, v in a.items() if k not in volatile} == {
            k: v for k, v in b.items() if k not in volatile
        }
    assert digest_of(fixed) == digest_of(late)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        {"reference_refresh_steps": 2},
        {"reference_refresh_steps": 3, "lora_r": 2},
        {"reference_refresh_steps": 1, "reference_decay": 0.6, "lora_r": 2, "lora_dropout": 0.5},
    ],
)
def test_roundtrip_a_resumed_run_with_a_moving_reference_is_bit_equal(
    model: dict[str, Any], tmp_path: Path
) -> None:
    config = with_evaluation(config_of(tmp_path, steps=STEPS, **model))
    config = replace(config, trainer=replace(config.trainer, save_total_limit=9))
    whole = train_to_end(config, tmp_path / "run")
    assert load_policy(tmp_path / "run").step == STEPS
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"{STEPS}")
    for step in (2, 3):  # just before a refresh, and between two
        shutil.copytree(tmp_path / "run", tmp_path / f"{step}")
        for later in range(step + 1, STEPS):
            shutil.rmtree(tmp_path / f"{step}" / "checkpoints" / f"{later}")
        again = train_to_end(config, tmp_path / f"{step}", resume=True)
        assert digest_of(again) == digest_of(whole)
        assert again[-2]["eval_loss"] == whole[-2]["eval_loss"]


@pytest.mark.slow
def test_property_another_reference_is_kept_until_the_first_refresh(tmp_path: Path) -> None:
    with computing_in("float64"):
        config = ModelConfig(architecture=TINY, seed=2, **DOUBLE)
        export_model(build_model(resolve_model(config)), tmp_path / "other")
    other = {"reference": str(tmp_path / "other")}
    fixed = train_to_end(config_of(tmp_path, steps=3, **other), tmp_path / "fixed")
    moving = config_of(tmp_path, steps=3, reference_refresh_steps=2, **other)
    lines = train_to_end(moving, tmp_path / "moving")
    for step in range(2):
        assert lines[step]["loss"] == fixed[step]["loss"]
    assert abs(lines[2]["loss"] - fixed[2]["loss"]) > 1e-3
    assert lines[2]["rewards/margins"] == pytest.approx(0.0, abs=1e-12)


def test_closed_form_an_average_of_bfloat16_weights_is_in_float32() -> None:
    with computing_in("bfloat16"):
        half: dict[str, Any] = {"dtype": "bfloat16", "param_dtype": "bfloat16"}
        config = ModelConfig(architecture=TINY, lora_r=2, **half)
        decoder = build_model(resolve_model(config))
        graph, trainable, frozen = nnx.split(decoder, nnx.LoRAParam, ...)
        trainable = jax.tree.map(jnp.ones_like, trainable)
        weights = policy_as_reference(graph, trainable, frozen, decay=0.9)
        copies = policy_as_reference(graph, trainable, frozen, decay=0.0)
    kernel = np.asarray(decoder.layers.q_proj.kernel[...], np.float32)
    merged = weights.merged["layers"]["q_proj"]["kernel"][...]
    np.testing.assert_array_equal(merged, kernel + 2 * np.float32(16.0) / 2)
    assert merged.dtype == np.float32
    assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(weights.trainable))
    assert {leaf.dtype for leaf in jax.tree.leaves(copies)} == {jnp.dtype(jnp.bfloat16)}
    moved = average_reference(weights, jax.tree.map(jnp.zeros_like, weights), 0.5)
    np.testing.assert_array_equal(moved.merged["layers"]["q_proj"]["kernel"][...], merged / 2)


def test_closed_form_a_plan_counts_the_weights_of_a_moving_reference(tmp_path: Path) -> None:
    def plan(**model: Any) -> MemoryPlan:
        single: dict[str, Any] = {"dtype": "float32", "param_dtype": "float32"}
        return make_plan(config_of(tmp_path, **single | model), "h100:1")

    fixed, full = plan(), plan(reference_refresh_steps=8)
    assert fixed.reference_bytes_per_device == 0
    assert full.reference_bytes_per_device == full.parameter_bytes_per_device
    assert full.peak_bytes_per_device - fixed.peak_bytes_per_device == (  # type: ignore[operator]
        full.reference_bytes_per_device
    )
    adapters = 4 * 2 * (8 + 8)  # of one projection, rank 2
    lora: dict[str, Any] = {"lora_r": 2, "lora_target_modules": ["q_proj"]}
    assert plan(reference_refresh_steps=8, **lora).reference_bytes_per_device == adapters
    average = plan(reference_refresh_steps=1, reference_decay=0.99, **lora)
    assert average.reference_bytes_per_device == adapters + 4 * 8 * 8


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"reference_refresh_steps": 0},
            "reference_refresh_steps` must be a whole number from 1",
        ),
        ({"reference_decay": float("nan")}, r"must be in \[0, 1\), got nan"),
        ({"reference_decay": 1.0}, r"`model.reference_decay` must be in \[0, 1\), got 1.0"),
        ({"reference_decay": 0.9}, "0.9 needs `model.reference_refresh_steps`: 1 for an average"),
        (
            {"reference_decay": 0.9, "reference_refresh_steps": 1, "reference": "other"},
            "`model.reference_decay` must be 0 with `model.reference`, got 0.9",
        ),
    ],
)
def test_raises_for_keys_that_exclude_each_other(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(path="policy", **model)


def test_raises_for_an_objective_without_a_reference() -> None:
    model, data = ModelConfig(path="policy", reference_refresh_steps=2), DataConfig(train="rows")
    with pytest.raises(ValueError, match="must be left out, got 2: method 'simpo' trains without"):
        TrainConfig(name="a", model=model, data=data, objective=ObjectiveConfig(method="simpo"))


@pytest.mark.slow
def test_raises_for_a_resumed_run_whose_reference_moves_otherwise(tmp_path: Path) -> None:
    config = config_of(tmp_path, steps=1, reference_refresh_steps=2)
    train_to_end(config, tmp_path / "run")
    config = replace(config, model=replace(config.model, reference_refresh_steps=3))
    with pytest.raises(ValueError, match=r"`model\.reference_refresh_steps` was 2 and is 3"):
        make_trainer(config, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_property_a_refreshed_reference_has_the_log_probabilities_of_the_policy(
    tmp_path: Path,
) -> None:
    config = config_of(tmp_path, steps=1, reference_refresh_steps=1, lora_r=2)
    run = make_trainer(config, tmp_path / "run").train()
    with computing_in("float64"):
        batch = next(run.batches_in_order(run.data.train))
        weights: Any = run.state.reference
        before = np.asarray(run.log_probs_under(weights.trainable, run.frozen, batch))
        policy = np.asarray(run.log_probs(batch))
        run.refresh_reference()
        weights = run.state.reference
        after = np.asarray(run.log_probs_under(weights.trainable, run.frozen, batch))
    np.testing.assert_array_equal(after, policy)
    assert np.abs(before - policy).max() > 1e-3
