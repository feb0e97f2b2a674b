"""The optimizer against AdamW and its schedule written in NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.config import OptimizerConfig
from llm.train.optimizer import learning_rate_schedule, make_optimizer

Kind = Literal["cosine", "linear", "constant"]
KINDS: tuple[Kind, ...] = ("cosine", "linear", "constant")
# Optax keeps constants of a schedule in float32.
RATE = 1e-6
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
    warmup = round(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    share = min((step - warmup) / max(num_steps - warmup, 1), 1.0)
    decay = {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share, "constant": 1.0}
    return config.learning_rate * decay[config.lr_scheduler_type]


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


@pytest.mark.parametrize("kind", KINDS)
def test_property_the_rate_rises_to_its_peak_then_never_rises_again(kind: Kind) -> None:
    config = OptimizerConfig(learning_rate=0.3, warmup_ratio=0.25, lr_scheduler_type=kind)
    schedule = learning_rate_schedule(config, 20)
    rates = np.array([rate(schedule, step) for step in range(20)])
    assert np.all(rates > 0)  # also of the first and the last update
    np.testing.assert_allclose(np.diff(rates[:5]), 0.3 / 5, rtol=1e-5)
    assert int(np.argmax(rates)) == 4
    assert np.all(np.diff(rates[4:]) <= RATE)
    assert rate(schedule, 20) == pytest.approx(0.3 if kind == "constant" else 0.0, abs=RATE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
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
    config = OptimizerConfig(learning_rate=1.0, max_grad_norm=0.5, adam_epsilon=1.0)
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
    np.testing.assert_allclose(jnp.asarray(update), [-0.1, 0.2], rtol=RATE)
