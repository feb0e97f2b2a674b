"""Optimizer, gradient clipping and learning rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .checks import one_of, positive, zero_or_positive

SchedulerName = Literal["cosine", "linear", "constant", "constant_with_warmup"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, gradient clipping and the learning rate schedule.

    Attributes:
        learning_rate: peak of the schedule.
        lr_scheduler_type: shape of the schedule, as in ``transformers.get_scheduler``. ``cosine``
            and ``linear`` fall to 0 after the warm-up, ``constant_with_warmup`` stays at the
            peak. ``constant`` has no warm-up.
        warmup_ratio: share of the steps in which the rate rises linearly from 0, in [0, 1). The
            number of steps is rounded up.
        max_grad_norm: gradients with a larger global norm are scaled down to it.
        weight_decay: decoupled weight decay. As in Transformers, it does not apply to biases and
            to the weights of norms.
        adam_beta1: decay rate of the first moment.
        adam_beta2: decay rate of the second moment.
        adam_epsilon: added to the root of the second moment.
        bf16_rounding: what happens to updates if ``model.param_dtype`` is ``bfloat16``.
            ``stochastic`` computes them in float32 and rounds the result at random, up or down,
            so that updates below the resolution of bfloat16 are kept on average. ``refuse``
            trains no bfloat16 parameters.

    Raises:
        ValueError: if a value is out of range.
    """

    learning_rate: float = 5e-7
    lr_scheduler_type: SchedulerName = "cosine"
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    bf16_rounding: Literal["stochastic", "refuse"] = "stochastic"

    def __post_init__(self) -> None:
        """Check the ranges."""
        one_of("optimizer.lr_scheduler_type", self.lr_scheduler_type, SchedulerName)
        one_of("optimizer.bf16_rounding", self.bf16_rounding, Literal["stochastic", "refuse"])
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            positive(f"optimizer.{name}", getattr(self, name))
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"`optimizer.{name}` must be in [0, 1), got {value}")
        zero_or_positive("optimizer.weight_decay", self.weight_decay)
