"""Scaling of rotary frequencies, under the names of Hugging Face's ``rope_parameters``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

RopeType = Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
FACTORS = ("short_factor", "long_factor")


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary frequencies, for sequences longer than those of the pretraining.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``. ``llama3`` divides slow
            frequencies only, in revolutions per ``original_max_position_embeddings`` positions:
            fully at ``low_freq_factor`` or fewer, not at all at ``high_freq_factor`` or more, and
            interpolated between. ``yarn`` does the same between ``beta_slow`` and ``beta_fast``,
            interpolating over the planes, and multiplies cosines and sines by
            ``attention_factor``. ``longrope`` divides each frequency by its ``short_factor`` or
            ``long_factor``, and multiplies cosines and sines too. ``dynamic`` changes nothing
            within ``max_position_embeddings`` positions, which is the limit here.
        factor: divisor of the frequencies, at least 1.
        low_freq_factor: revolutions at or below which a frequency is divided by ``factor``.
        high_freq_factor: revolutions at or above which a frequency is unchanged.
        original_max_position_embeddings: length of the sequences of the pretraining, in tokens.
        attention_factor: factor of cosines and sines; None for ``0.1 log(factor) + 1`` of ``yarn``
            and for ``sqrt(1 + log(factor) / log(original_max_position_embeddings))`` of
            ``longrope``.
        beta_fast: revolutions at or above which ``yarn`` leaves a frequency unchanged; None for 32.
        beta_slow: revolutions at or below which ``yarn`` divides by ``factor``; None for 1.
        truncate: whether ``yarn`` rounds the bounds of its interpolation to whole planes.
        short_factor: divisors of ``longrope`` for sequences up to
            ``original_max_position_embeddings``, one for each plane. A list is stored as a tuple.
        long_factor: divisors of ``longrope`` for longer sequences.
        llama_4_scaling_beta: queries at position ``p`` are multiplied by
            ``1 + beta log(1 + floor(p / original_max_position_embeddings))``; None for 1.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> RopeScaling(rope_type="linear", factor=4.0).factor
        4.0
    """

    rope_type: RopeType
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool = True
    short_factor: Sequence[float] = ()
    long_factor: Sequence[float] = ()
    llama_4_scaling_beta: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges of the values."""
        if self.rope_type not in get_args(RopeType):
            names = ", ".join(get_args(RopeType))
            raise ValueError(f"`rope_type` must be one of {names}, got {self.rope_type!r}")
        for name in FACTORS:  # lists come from configuration files
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for field in fields(self):
            if field.name not in ("rope_type", "truncate"):
                value = getattr(self, field.name)
                for number in value if field.name in FACTORS else [value]:
                    _check_positive(field.name, number)
        if not self.factor >= 1:
            raise ValueError(f"`factor` must be 1 or more, got {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "`low_freq_factor` must be positive and below `high_freq_factor`, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if not (self.beta_slow or 1) < (self.beta_fast or 32):
            raise ValueError(
                f"`beta_slow` must be below `beta_fast`, got {self.beta_slow or 1} and "
                f"{self.beta_fast or 32}"
            )

    @property
    def angle_scale(self) -> float:
        """Factor of cosines and sines.

        Examples:
            >>> RopeScaling(rope_type="linear", factor=4.0).angle_scale
            1.0
            >>> round(RopeScaling(rope_type="yarn", factor=4.0).angle_scale, 4)
            1.1386
        """
        if self.rope_type not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        growth = math.log(self.factor)
        if self.rope_type == "yarn":
            return 0.1 * growth + 1.0
        return math.sqrt(1 + growth / math.log(self.original_max_position_embeddings))


def _check_positive(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value < math.inf):
        raise ValueError(f"`{name}` must be a positive number, got {value!r}")
