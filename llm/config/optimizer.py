"""Optimizer, gradient clipping and learning rate schedule."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from .checks import at_least, one_of, positive, zero_or_positive

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor", "lion", "muon"]
SchedulerName = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "warmup_stable_decay"
]


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters whose learning rate is a multiple of the schedule's.

    Attributes:
        parameters: regular expression that is searched in the names of the trained parameters,
            such as ``layers/q_proj/adapter/b``.
        layers: indices of the layers, from 0; None for all, and for parameters outside the layers.
        lr_multiplier: factor of the learning rate, and so of the weight decay; 0 keeps the
            parameters as they are.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> ParameterGroup(parameters="adapter/b", lr_multiplier=16.0).layers is None
        True
    """

    parameters: str = ""
    layers: list[int] | None = None
    lr_multiplier: float

    def __post_init__(self) -> None:
        """Check the expression and the ranges."""
        try:
            re.compile(self.parameters)
        except re.error as error:
            raise ValueError(
                "`optimizer.groups.parameters` must be a regular expression, got "
                f"{self.parameters!r}: {error}"
            ) from error
        if self.layers == []:
            raise ValueError("`optimizer.groups.layers` must name a layer, got []")
        for layer in self.layers or ():
            at_least("optimizer.groups.layers", layer, 0)
        zero_or_positive("optimizer.groups.lr_multiplier", self.lr_multiplier)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, gradient clipping and the learning rate schedule.

    Attributes:
        optim: ``adamw``; ``adamw_8bit``, whose moments take 8 bits each; ``adafactor``, whose
            moments take memory for rows and columns only; ``lion``, which keeps one moment and
            takes learning rates 3 to 10 times smaller; or ``muon``, which orthogonalizes the
            updates of the matrices of the layers and takes AdamW for all other parameters. Muon's
            updates are scaled to the size of AdamW's.
        learning_rate: peak of the schedule.
        lr_scheduler_type: shape of the schedule, as in ``transformers.get_scheduler``. ``cosine``
            and ``linear`` fall to ``min_lr`` after the warm-up, ``constant_with_warmup`` stays at
            the peak. ``warmup_stable_decay`` stays there and falls along a cosine in the last
            steps. ``constant`` has no warm-up.
        min_lr: learning rate at the end of ``cosine``, ``linear`` and ``warmup_stable_decay``.
        decay_ratio: share of the steps in which ``warmup_stable_decay`` falls, in (0, 1]. The
            number of steps is rounded up, and is at most what the warm-up leaves.
        warmup_ratio: share of the steps in which the rate rises linearly from 0, in [0, 1). The
            number of steps is rounded up.
        warmup_steps: number of steps of the warm-up; None for ``warmup_ratio``.
        max_grad_norm: gradients with a larger global norm are scaled down to it.
        weight_decay: decoupled weight decay. As in Transformers, it does not apply to biases and
            to the weights of norms.
        adam_beta1: decay rate of the first moment; of Lion, share of the moment in an update.
        adam_beta2: decay rate of the second moment; of Lion, decay rate of its moment, for which
            its authors take 0.99.
        adam_epsilon: added to the root of the second moment.
        muon_momentum: decay rate of Muon's moment.
        groups: groups of parameters with other learning rates, such as ``[{parameters: adapter/b,
            lr_multiplier: 16}]`` for the second matrices of LoRA. The first group that a parameter
            belongs to counts.
        bf16_rounding: what happens to updates if ``model.param_dtype`` is ``bfloat16``.
            ``stochastic`` computes them in float32 and rounds the result at random, up or down,
            so that updates below the resolution of bfloat16 are kept on average. ``refuse``
            trains no bfloat16 parameters.

    Raises:
        ValueError: if a value is out of range.
    """

    optim: OptimizerName = "adamw"
    learning_rate: float = 5e-7
    lr_scheduler_type: SchedulerName = "cosine"
    min_lr: float = 0.0
    decay_ratio: float = 0.1
    warmup_ratio: float = 0.1
    warmup_steps: int | None = None
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    muon_momentum: float = 0.95
    groups: list[ParameterGroup] = field(default_factory=list)
    bf16_rounding: Literal["stochastic", "refuse"] = "stochastic"

    def __post_init__(self) -> None:
        """Check the ranges."""
        one_of("optimizer.optim", self.optim, OptimizerName)
        one_of("optimizer.lr_scheduler_type", self.lr_scheduler_type, SchedulerName)
        one_of("optimizer.bf16_rounding", self.bf16_rounding, Literal["stochastic", "refuse"])
        for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
            positive(f"optimizer.{name}", getattr(self, name))
        for name in ("adam_beta1", "adam_beta2", "muon_momentum", "warmup_ratio"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"`optimizer.{name}` must be in [0, 1), got {value}")
        for name in ("weight_decay", "min_lr"):
            zero_or_positive(f"optimizer.{name}", getattr(self, name))
        if not 0 < self.decay_ratio <= 1:
            raise ValueError(f"`optimizer.decay_ratio` must be in (0, 1], got {self.decay_ratio}")
        if self.min_lr > self.learning_rate:
            raise ValueError(
                f"`optimizer.min_lr` must be at most `optimizer.learning_rate` "
                f"{self.learning_rate}, got {self.min_lr}"
            )
        if self.warmup_steps is not None:
            at_least("optimizer.warmup_steps", self.warmup_steps, 0)
