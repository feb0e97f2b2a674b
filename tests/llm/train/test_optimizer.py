"""The optimizer against AdamW and its schedule written in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.config import OptimizerConfig
from llm.train.optimizer import (
    apply_optimizer,
    learning_rate_schedule,
    make_optimizer,
    stochastic_round,
)

Kind = Literal["cosine", "linear", "constant", "constant_with_warmup"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Relative error of a rate that is computed on the host, in float64.
RATE = 1e-12
# Relative error of an update after some steps; its constants are float32.
ADAM = 1e-5
STEPS = np.arange(61)


@pytest.fixture(autouse=True)
def promotion_of_the_trainer() -> Iterator[None]:
    """Optax divides by powers of an integer count, which strict promotion does not allow."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def expected_rate(config: OptimizerConfig, num_steps: int, step: int) -> float:
    """Return the learning rate of update ``step``, counted from 0, by its definition."""
    kind = config.lr_scheduler_type
    warmup = 0 if kind == "constant" else math.ceil(num_steps * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * step / warmup
    share = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
    decay = {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share}
    return config.learning_rate * decay.get(kind, 1.0)


class AdamW:
    """Loshchilov and Hutter, algorithm 2, with Kingma and Ba's bias correction."""

    def __init__(
        self, config: OptimizerConfig, num_steps: int, sizes: list[tuple[int, ...]]
    ) -> None:
        self.config, self.num_steps, self.updates = config, num_steps, 0
        self.first = [np.zeros(size) for size in sizes]
        self.second = [np.zeros(size) for size in sizes]

    def step(self, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> list[np.ndarray]:
        config = self.config
        norm = math.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
        scale = min(1.0, config.max_grad_norm / norm) if norm else 1.0
        rate = expected_rate(config, self.num_steps, self.updates)
        self.updates += 1
        count, result = self.updates, []
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            beta1, beta2 = config.adam_beta1, config.adam_beta2
            self.first[i] = beta1 * self.first[i] + (1 - beta1) * scale * gradient
            self.second[i] = beta2 * self.second[i] + (1 - beta2) * (scale * gradient) ** 2
            mean = self.first[i] / (1 - beta1**count)
            square = self.second[i] / (1 - beta2**count)
            direction = mean / (np.sqrt(square) + config.adam_epsilon)
            result.append(parameter - rate * (direction + config.weight_decay * parameter))
        return result


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    warmup=st.floats(0, 0.99),
    num_steps=st.integers(1, int(STEPS[-1])),
    peak=st.floats(1e-7, 1.0),
)
@example(kind="cosine", warmup=0.5, num_steps=20, peak=1.0)
@example(kind="linear", warmup=0.5, num_steps=20, peak=1.0)
def test_closed_form_the_rate_of_every_update(
    kind: Kind, warmup: float, num_steps: int, peak: float
) -> None:
    config = OptimizerConfig(learning_rate=peak, warmup_ratio=warmup, lr_scheduler_type=kind)
    rates = np.broadcast_to(learning_rate_schedule(config, num_steps)(STEPS), STEPS.shape)
    expected = [expected_rate(config, num_steps, step) for step in STEPS.tolist()]
    np.testing.assert_allclose(rates, expected, rtol=RATE, atol=RATE * peak)


# Printed by transformers 5.24: get_scheduler(kind, optimizer, ceil(steps * ratio), steps), with a
# peak of 5e-7. The ratios give 3.5 and 0.5 steps of warm-up, which are rounded up to 4 and 1.
TRANSFORMERS: dict[tuple[Kind, int, float], list[float]] = {
    ("cosine", 7, 0.5): [0.0, 1.25e-07, 2.5e-07, 3.75e-07, 5e-07, 3.75e-07, 1.2500000000000005e-07],
    ("linear", 7, 0.5): [
        *[0.0, 1.25e-07, 2.5e-07, 3.75e-07],
        *[5e-07, 3.333333333333333e-07, 1.6666666666666665e-07],
    ],
    ("constant_with_warmup", 7, 0.5): [0.0, 1.25e-07, 2.5e-07, 3.75e-07, 5e-07, 5e-07, 5e-07],
    ("constant", 7, 0.5): [5e-07] * 7,
    ("linear", 5, 0.1): [0.0, 5e-07, 3.75e-07, 2.5e-07, 1.25e-07],
    ("cosine", 1, 0.1): [0.0],
}


@pytest.mark.parametrize(("kind", "num_steps", "ratio"), TRANSFORMERS)
def test_golden_rates_of_transformers(kind: Kind, num_steps: int, ratio: float) -> None:
    config = OptimizerConfig(lr_scheduler_type=kind, warmup_ratio=ratio)
    schedule = learning_rate_schedule(config, num_steps)
    rates = [rate(schedule, step) for step in range(num_steps)]
    expected = TRANSFORMERS[kind, num_steps, ratio]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=0)
    in_step = jax.jit(schedule)(jnp.arange(num_steps))  # as the compiled step computes it
    np.testing.assert_allclose(np.asarray(in_step), expected, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize(("kind", "decay"), list(zip(KINDS, [0.1, 0.0] * 2, strict=True)))
def test_parity_updates_equal_those_of_numpy(kind: Kind, decay: float) -> None:
    config = OptimizerConfig(
        learning_rate=0.02,
        lr_scheduler_type=kind,
        warmup_ratio=0.3,
        max_grad_norm=1.0,
        weight_decay=decay,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-3,
    )
    rng = np.random.default_rng(0)
    sizes = [(3, 2), (4,)]
    num_steps = 7
    expected = [rng.normal(size=size) for size in sizes]
    optimizer, _ = make_optimizer(config, num_steps)
    parameters: Any = [jnp.asarray(array) for array in expected]
    state, reference = optimizer.init(parameters), AdamW(config, num_steps, sizes)
    # The norms are on both sides of the limit: some gradients are clipped.
    for norm in np.geomspace(0.01, 10, num_steps):
        gradients = [norm * rng.normal(size=size) for size in sizes]
        expected = reference.step(expected, gradients)
        updates, state = optimizer.update(list(map(jnp.asarray, gradients)), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        for actual, wanted in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=ADAM, atol=ADAM * config.learning_rate)


@pytest.mark.parametrize("scale", [1.01, 30.0, 1e6])
def test_property_only_the_direction_of_a_clipped_gradient_counts(scale: float) -> None:
    config = OptimizerConfig(
        learning_rate=1.0, max_grad_norm=0.5, adam_epsilon=1.0, warmup_ratio=0.0
    )
    optimizer, _ = make_optimizer(config, 10)
    direction = np.random.default_rng(0).normal(size=5)
    limit = 0.5 * direction / np.linalg.norm(direction)
    start = jnp.zeros(5)

    def update(gradient: np.ndarray) -> jax.Array:
        return jnp.asarray(optimizer.update(jnp.asarray(gradient), optimizer.init(start), start)[0])

    np.testing.assert_allclose(update(scale * limit), update(limit), rtol=1e-9)
    assert (
        np.max(np.abs(update(0.5 * limit) / update(limit))) < 0.9
    )  # below the limit the size counts


def test_closed_form_decay_is_decoupled_from_the_gradient() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0.0)
    optimizer, schedule = make_optimizer(config, 10)
    parameters = jnp.asarray([2.0, -4.0])
    update, _ = optimizer.update(jnp.zeros(2), optimizer.init(parameters), parameters)
    assert rate(schedule, 0) == pytest.approx(0.1, rel=RATE)
    np.testing.assert_allclose(jnp.asarray(update), [-0.1, 0.2], rtol=1e-6)


def test_closed_form_norms_and_biases_do_not_decay_as_in_transformers() -> None:
    # Every kind of parameter that a decoder can have, under its path here, and whether
    # Trainer.get_decay_parameter_names lists it under its name in Transformers.
    decays = {
        "embedding": True,  # model.embed_tokens.weight
        "output": True,  # lm_head.weight
        "norm/weight": False,  # model.norm.weight
        "layers/input_norm/weight": False,  # input_layernorm.weight
        "layers/mlp_norm/weight": False,  # post_attention_layernorm.weight
        "layers/post_attention_norm/weight": False,  # the same name in Gemma 2
        "layers/post_mlp_norm/weight": False,  # post_feedforward_layernorm.weight
        "layers/q_norm/weight": False,  # self_attn.q_norm.weight
        "layers/k_norm/weight": False,
        "layers/q_proj/kernel": True,  # self_attn.q_proj.weight
        "layers/q_proj/bias": False,
        "layers/down_proj/kernel": True,
        "layers/o_proj/adapter/a": True,  # self_attn.o_proj.lora_A.default.weight
        "layers/o_proj/adapter/b": True,
    }
    parameters: dict[str, Any] = {}
    for path in decays:
        *parents, name = path.split("/")
        level = parameters
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = jnp.full(3, 2.0)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0.0)
    optimizer, _ = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    for path, decayed in decays.items():
        update: Any = updates
        for name in path.split("/"):
            update = update[name]
        np.testing.assert_allclose(update, -0.1 if decayed else 0.0, rtol=1e-6, err_msg=path)


def _bfloat16(*size: int) -> dict[str, jax.Array]:
    return {"kernel": jnp.full(size, 1.0, jnp.bfloat16)}


def test_property_rounding_is_unbiased_and_gives_neighbors_only() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=5), [1.0, -1.0, 0.0, 3e-39, -1e30]]).astype(np.float32)
    draws = 4096
    rounded = stochastic_round(jnp.asarray(np.tile(values, (draws, 1))), jax.random.key(0))
    rounded = np.asarray(rounded.astype(jnp.float32))
    width = np.abs(values) * 2.0**-7 + 1e-40  # at least the gap between two bfloat16 numbers
    assert np.all(np.abs(rounded - values) <= width)
    error = rounded.mean(0) - values
    assert np.all(np.abs(error) <= 5 * 0.5 * width / math.sqrt(draws))  # five standard deviations
    exact = np.asarray(jnp.asarray(values).astype(jnp.bfloat16).astype(jnp.float32)) == values
    assert np.all(rounded[:, exact] == values[exact])
    special = jnp.asarray([np.nan, np.inf, -np.inf], jnp.float32)
    kept = np.asarray(stochastic_round(special, jax.random.key(1)).astype(jnp.float32))
    np.testing.assert_array_equal(kept, special)


def test_property_updates_below_the_resolution_of_bfloat16_move_the_weights_on_average() -> None:
    # The update is 2^-13 of the weight; half the gap to the next number below 1 is 2^-9.
    config = OptimizerConfig(learning_rate=2.0**-13, warmup_ratio=0.0, lr_scheduler_type="constant")
    optimizer, _ = make_optimizer(config, 10)
    start = _bfloat16(256, 128)
    state = optimizer.init(start)
    gradient = jax.tree.map(jnp.ones_like, start)
    step = jax.jit(partial(apply_optimizer, optimizer))
    weights, shares = start, []
    for count in range(8):
        key = jax.random.fold_in(jax.random.key(3), count)
        weights, state, metrics = step(gradient, state, weights, key)
        shares.append(float(metrics["params/moved_share"]))
    assert weights["kernel"].dtype == jnp.bfloat16
    moved = float(jnp.mean(weights["kernel"].astype(jnp.float32))) - 1.0
    assert moved == pytest.approx(-8 * 2.0**-13, rel=0.1)
    assert shares[0] == pytest.approx(2.0**-13 / 2.0**-8, rel=0.2)
    nearest, _ = optimizer.update(gradient, optimizer.init(start), start)
    to_nearest: Any = optax.apply_updates(start, nearest)
    lost = to_nearest["kernel"]
    assert np.all(np.asarray(lost == start["kernel"]))  # to nearest, nothing moves


def test_property_rounding_depends_on_the_key_and_not_on_sharding() -> None:
    values = jnp.linspace(0.5, 1.5, 64, dtype=jnp.float32).reshape(8, 8)
    key = jax.random.key(5)
    plain = stochastic_round(values, key)
    np.testing.assert_array_equal(plain, jax.jit(stochastic_round)(values, key))
    assert np.any(np.asarray(plain != stochastic_round(values, jax.random.key(6))))
    # A mesh of devices computes a part each: the bits of a position do not depend on the parts.
    assert jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]


def test_property_float32_parameters_are_updated_as_optax_does_without_a_metric() -> None:
    optimizer, _ = make_optimizer(OptimizerConfig(warmup_ratio=0.0), 10)
    start = {"kernel": jnp.full((4, 4), 1.0, jnp.float32)}
    gradient = jax.tree.map(jnp.ones_like, start)
    state = optimizer.init(start)
    new, _, metrics = apply_optimizer(optimizer, gradient, state, start, jax.random.key(0))
    updates, _ = optimizer.update(gradient, state, start)
    expected: Any = optax.apply_updates(start, updates)
    np.testing.assert_array_equal(new["kernel"], expected["kernel"])
    assert metrics == {}
