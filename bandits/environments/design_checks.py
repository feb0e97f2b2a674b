"""Rules for the fields of a coverage design."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .designs import Design

MAX_CELLS = 5 * 10**7
"""Largest number of win counts or features of one bandit: 400 MB."""


def check_design(design: Design) -> None:
    """Raise if a field of a design is out of range, whatever the number of comparisons is.

    Args:
        design: the design.

    Raises:
        ValueError: if a field is out of range, or two exclusive fields are given.
    """
    minima = {"contexts": 1, "actions": 2, "features": 1, "rare": 0, "target_coverage": 1}
    minima |= {"imbalance": 1, "coverage_all": 1, "rare_comparisons": 0}
    minima |= {"misspecification": 0, "prompts_shift": 0}
    for name, bound in minima.items():
        value = getattr(design, name)
        if value is not None and not bound <= value < math.inf:
            raise ValueError(f"`{name}` must be at least {bound} and finite, got {value}")
    for name in ("actions", "features"):
        size = design.contexts * design.actions * getattr(design, name)
        if size > MAX_CELLS:
            rule = f"must give at most {MAX_CELLS:,} numbers, contexts x actions x {name}"
            raise ValueError(f"`{name}` {rule}, got {size:,}")
    for name, bound in {"missing_edges": 1.0, "label_noise": 0.5}.items():
        value = getattr(design, name)
        if not 0.0 <= value <= bound:
            raise ValueError(f"`{name}` must be a probability in [0, {bound:g}], got {value}")
    if not 0.0 < design.reward_max < math.inf:
        raise ValueError(f"`reward_max` must be greater than 0, got {design.reward_max}")
    for name, first, second in (
        ("reward", "tabular", "linear"),
        ("reference", "uniform", "data"),
        ("gaps", "uniform", "log_uniform"),
    ):
        if getattr(design, name) not in (first, second):
            got = getattr(design, name)
            raise ValueError(f"`{name}` must be {first!r} or {second!r}, got {got!r}")
    if design.actions - design.rare < 2:
        rule = "must leave two responses that are not rare, the best and the baseline"
        raise ValueError(f"`rare` {rule}, got {design.rare} of {design.actions}")
    if design.coverage_all is not None and design.rare_comparisons is not None:
        raise ValueError("`coverage_all` and `rare_comparisons` must not both be given: give one")
