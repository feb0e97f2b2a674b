"""Check of the theorem: three routes to one policy on random instances, and negative controls.

:func:`measure_agreement` compares the routes, :func:`solve_negative_controls` shows problems that
break an assumption, and the remaining functions draw figures. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agreement import Agreement, measure_agreement
    from .instances import ProblemBatch, draw_verification_batches
    from .negative_controls import NegativeControl, solve_negative_controls
    from .plots import (
        plot_agreement,
        plot_gap_against_comparisons,
        plot_negative_controls,
        plot_training,
    )

_EXPORTS = {
    "Agreement": "agreement",
    "NegativeControl": "negative_controls",
    "ProblemBatch": "instances",
    "draw_verification_batches": "instances",
    "measure_agreement": "agreement",
    "plot_agreement": "plots",
    "plot_gap_against_comparisons": "plots",
    "plot_negative_controls": "plots",
    "plot_training": "plots",
    "solve_negative_controls": "negative_controls",
}

__all__ = [
    "Agreement",
    "NegativeControl",
    "ProblemBatch",
    "draw_verification_batches",
    "measure_agreement",
    "plot_agreement",
    "plot_gap_against_comparisons",
    "plot_negative_controls",
    "plot_training",
    "solve_negative_controls",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
