"""Exact minimax regret: how far methods are from the best possible rule in small worlds.

A :class:`MinimaxRegretConfig` defines finitely many worlds and the number of comparisons.
:func:`run_minimax_regret` enumerates all outcomes of the comparisons, computes the regret of every
method in every world, and the smallest worst-case regret that any rule can have, with a proof
(:func:`solve_minimax`). Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import MinimaxRegretConfig, RuleConfig
    from .linear_program import MinimaxRule, bayes_risk, expected_gaps, solve_minimax
    from .plots import (
        MinimaxFigureKind,
        draw_minimax_figure,
        minimax_figure_kinds,
        plot_expected_gaps,
        plot_least_favorable_prior,
        plot_worst_case,
    )
    from .rules import fit_outcomes
    from .run import MinimaxRegretResult, run_minimax_regret
    from .worlds import (
        Outcomes,
        Worlds,
        action_gaps,
        count_outcomes,
        enumerate_outcomes,
        rewards_from_margins,
    )

_EXPORTS = {
    "MinimaxFigureKind": "plots",
    "MinimaxRegretConfig": "config",
    "MinimaxRegretResult": "run",
    "MinimaxRule": "linear_program",
    "Outcomes": "worlds",
    "RuleConfig": "config",
    "Worlds": "worlds",
    "action_gaps": "worlds",
    "bayes_risk": "linear_program",
    "count_outcomes": "worlds",
    "draw_minimax_figure": "plots",
    "enumerate_outcomes": "worlds",
    "expected_gaps": "linear_program",
    "fit_outcomes": "rules",
    "minimax_figure_kinds": "plots",
    "plot_least_favorable_prior": "plots",
    "plot_expected_gaps": "plots",
    "plot_worst_case": "plots",
    "rewards_from_margins": "worlds",
    "run_minimax_regret": "run",
    "solve_minimax": "linear_program",
}

__all__ = [
    "MinimaxFigureKind",
    "MinimaxRegretConfig",
    "MinimaxRegretResult",
    "MinimaxRule",
    "Outcomes",
    "RuleConfig",
    "Worlds",
    "action_gaps",
    "bayes_risk",
    "count_outcomes",
    "draw_minimax_figure",
    "enumerate_outcomes",
    "expected_gaps",
    "fit_outcomes",
    "minimax_figure_kinds",
    "plot_expected_gaps",
    "plot_least_favorable_prior",
    "plot_worst_case",
    "rewards_from_margins",
    "run_minimax_regret",
    "solve_minimax",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
