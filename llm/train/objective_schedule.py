r"""Schedules of :math:`\beta` and :math:`\eta` as functions of the step, in the manner of Optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array
from jaxtyping import Int

from llm.config import ObjectiveConfig, ObjectiveConstants, ScheduleConfig
from rpo_theory.types import ArrayLike

ConstantsSchedule = Callable[[Int[ArrayLike, ""] | int], ObjectiveConstants]
"""Constants of an objective by the number of updates made."""


def make_constants_schedule(config: ObjectiveConfig, num_steps: int) -> ConstantsSchedule | None:
    r"""Make the schedule of :math:`\beta` and :math:`\eta` of a run.

    Args:
        config: the objective.
        num_steps: number of steps of the run.

    Returns:
        A function of the step, which may be traced; None if both are constant.

    Examples:
        >>> falling = ScheduleConfig(kind="linear", end=0.0)
        >>> schedule = make_constants_schedule(ObjectiveConfig(eta=0.5, eta_schedule=falling), 10)
        >>> round(float(schedule(5).eta), 4)
        0.25
    """
    if not config.has_schedules:
        return None
    beta = make_schedule(config.beta, config.beta_schedule, num_steps)
    eta = make_schedule(config.eta, config.eta_schedule, num_steps)
    return lambda step: ObjectiveConstants(jnp.asarray(beta(step)), jnp.asarray(eta(step)))


def make_schedule(start: float, config: ScheduleConfig, num_steps: int) -> optax.Schedule:
    r"""Make a schedule of one constant.

    With the fraction :math:`x=\min(1, t/(s T))` of step :math:`t` of :math:`T` and the share
    :math:`s`, the value is :math:`v_0+(v_1-v_0)f(x)` with

    ==============  =========================================
    ``kind``        :math:`f(x)`
    ==============  =========================================
    ``constant``    0
    ``linear``      :math:`x`
    ``cosine``      :math:`(1-\cos\pi x)/2`
    ``stepwise``    :math:`\lfloor kx\rfloor/k` with k drops
    ==============  =========================================

    Args:
        start: value :math:`v_0` at step 0.
        config: the schedule.
        num_steps: number :math:`T` of steps of the run.

    Returns:
        A function of the step.

    Examples:
        >>> halving = ScheduleConfig(kind="stepwise", end=0.5, drops=1, share=0.5)
        >>> schedule = make_schedule(1.0, halving, 10)
        >>> [float(schedule(step)) for step in (0, 4, 5, 9)]
        [1.0, 1.0, 0.5, 0.5]
    """
    end = start if config.end is None else config.end
    steps = config.share * num_steps

    def value(step: Any) -> Array:
        fraction = jnp.minimum(jnp.asarray(step, float) / steps, 1.0)
        match config.kind:
            case "linear":
                moved = fraction
            case "cosine":
                moved = 0.5 - 0.5 * jnp.cos(jnp.pi * fraction)
            case "stepwise":
                moved = jnp.floor(config.drops * fraction) / config.drops
            case _:
                moved = jnp.zeros_like(fraction)
        return start + (end - start) * moved

    return value
