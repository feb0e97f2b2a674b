"""Learning rate schedules against their definitions and those of Transformers."""

from __future__ import annotations

import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.config import OptimizerConfig, SchedulerName
from llm.train.schedules import describe_warmup, learning_rate_schedule

# Relative error of a rate that is computed on the host, in float64.
RATE = 1e-12
STEPS = np.arange(61)
KINDS: tuple[SchedulerName, ...] = get_args(SchedulerName)


def rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def expected_rate(config: OptimizerConfig, num_steps: int, step: int) -> float:
    """Return the learning rate of update ``step``, counted from 0, by its definition."""
    kind = config.lr_scheduler_type
    warmup = 0 if kind == "constant" else math.ceil(num_steps * config.warmup_ratio)
    if step < warmup:
        return config.learning_rate * step / warmup
    rest = max(num_steps - warmup, 1)
    if kind == "warmup_stable_decay":
        decay = min(math.ceil(num_steps * config.decay_ratio), rest)
        share = min(max(step - (num_steps - decay), 0) / decay, 1.0)
        kind = "cosine"
    else:
        share = min((step - warmup) / rest, 1.0)
    fall = {"cosine": (1 + math.cos(math.pi * share)) / 2, "linear": 1 - share}
    if kind not in fall:
        return config.learning_rate
    return config.min_lr + (config.learning_rate - config.min_lr) * fall[kind]


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    warmup=st.floats(0, 0.99),
    num_steps=st.integers(1, int(STEPS[-1])),
    peak=st.floats(1e-7, 1.0),
    least=st.sampled_from([0.0, 0.3, 1.0]),
    decay=st.floats(0.01, 1.0),
)
@example(kind="cosine", warmup=0.5, num_steps=20, peak=1.0, least=0.0, decay=0.1)
@example(kind="linear", warmup=0.5, num_steps=20, peak=1.0, least=0.3, decay=0.1)
@example(kind="warmup_stable_decay", warmup=0.5, num_steps=20, peak=1.0, least=0.3, decay=0.2)
def test_closed_form_the_rate_of_every_update(
    kind: SchedulerName, warmup: float, num_steps: int, peak: float, least: float, decay: float
) -> None:
    config = OptimizerConfig(
        learning_rate=peak,
        min_lr=least * peak,
        warmup_ratio=warmup,
        decay_ratio=decay,
        lr_scheduler_type=kind,
    )
    rates = np.broadcast_to(learning_rate_schedule(config, num_steps)(STEPS), STEPS.shape)
    expected = [expected_rate(config, num_steps, step) for step in STEPS.tolist()]
    np.testing.assert_allclose(rates, expected, rtol=RATE, atol=RATE * peak)


# Printed by transformers 5.24: get_scheduler(kind, optimizer, ceil(steps * ratio), steps), with a
# peak of 5e-7. The ratios give 3.5 and 0.5 steps of warm-up, which are rounded up to 4 and 1.
TRANSFORMERS: dict[tuple[SchedulerName, int, float], list[float]] = {
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
def test_golden_rates_of_transformers(kind: SchedulerName, num_steps: int, ratio: float) -> None:
    config = OptimizerConfig(lr_scheduler_type=kind, warmup_ratio=ratio)
    schedule = learning_rate_schedule(config, num_steps)
    rates = [rate(schedule, step) for step in range(num_steps)]
    expected = TRANSFORMERS[kind, num_steps, ratio]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=0)
    in_step = jax.jit(schedule)(jnp.arange(num_steps))  # as the compiled step computes it
    np.testing.assert_allclose(np.asarray(in_step), expected, rtol=1e-6, atol=1e-13)


# Printed by transformers 5.24, with a peak of 5e-7: get_scheduler("cosine_with_min_lr", optimizer,
# 4, 7, {"min_lr": 1e-7}) and get_scheduler("warmup_stable_decay", optimizer, 2, 8,
# {"num_decay_steps": 3}).
MORE: list[tuple[dict[str, Any], list[float]]] = [
    (
        {"lr_scheduler_type": "cosine", "min_lr": 1e-7, "warmup_steps": 4},
        [0.0, 1.25e-07, 2.5e-07, 3.75e-07, 5e-07, 4e-07, 2.0000000000000007e-07],
    ),
    (
        {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2, "decay_ratio": 3 / 8},
        [0.0, 2.5e-07, 5e-07, 5e-07, 5e-07, 5e-07, 3.75e-07, 1.2500000000000005e-07],
    ),
]


@pytest.mark.parametrize(("fields", "expected"), MORE)
def test_golden_least_rates_and_late_decays_of_transformers(
    fields: dict[str, Any], expected: list[float]
) -> None:
    schedule = learning_rate_schedule(OptimizerConfig(**fields), len(expected))
    rates = [rate(schedule, step) for step in range(len(expected))]
    np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=0)


def test_property_a_warmup_that_the_run_does_not_leave_is_described() -> None:
    for steps, config, beginning in (
        (1, OptimizerConfig(warmup_steps=3), "no parameter will change"),
        (5, OptimizerConfig(warmup_steps=5), "the learning rate never reaches its peak"),
        (5, OptimizerConfig(warmup_ratio=0.9), "the learning rate never reaches its peak"),
    ):
        described = describe_warmup(config, steps)
        assert described is not None
        assert described.startswith(beginning)
    assert describe_warmup(OptimizerConfig(warmup_steps=4), 5) is None
