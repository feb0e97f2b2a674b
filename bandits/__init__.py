"""Contextual bandits with preference data: environments, methods, studies and the theorem check.

The package compares methods of preference optimization on bandits whose true reward is known.

    >>> import numpy as np
    >>> import bandits
    >>> design = bandits.Design(actions=4, rare=1, coverage_all=9.0)
    >>> batch = bandits.draw_design(design, 1000, np.arange(2))  # two bandits with their data
    >>> fit = bandits.METHODS["rpo"](batch.problem, batch.reward_class, baseline="given")
    >>> fit.policy.shape
    (2, 1, 4)

Everything that is not listed in ``__all__`` of this package or of a sub-package is implementation.
Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .environments.base import Instance, baseline_policy
    from .environments.designs import Design, draw_design
    from .environments.instances import (
        coverage_is_necessary,
        four_arms,
        ghost_arm,
        likelihood_displacement,
        non_convex_class,
        type_i_hacking,
        type_ii_hacking,
    )
    from .environments.random import random_linear, random_tabular
    from .environments.registry import draw_environment
    from .environments.votes import read_votes
    from .methods.base import FitResult, Method
    from .methods.best_of_n import best_of_n_policy
    from .methods.method_config import MethodConfig
    from .methods.registry import METHODS
    from .methods.user_methods import method_from_function
    from .minimax_regret.config import MinimaxRegretConfig, RuleConfig
    from .minimax_regret.plots import draw_minimax_figure
    from .minimax_regret.run import run_minimax_regret
    from .off_policy import (
        LoggedPairs,
        WinRateEstimate,
        doubly_robust_win_rate,
        ips_win_rate,
        snips_win_rate,
    )
    from .overoptimization.config import LawsConfig
    from .overoptimization.laws import LawFit, fit_law
    from .overoptimization.plots import draw_laws
    from .overoptimization.run import LawsResult, run_laws
    from .study.config import StudyConfig
    from .study.figures import draw_figure
    from .study.records import RecordStore
    from .study.run import run_parts
    from .study.summary import summarize
    from .theorem_check.agreement import Agreement, measure_agreement
    from .theorem_check.negative_controls import NegativeControl, solve_negative_controls

_EXPORTS = {
    "METHODS": "methods.registry",
    "Agreement": "theorem_check.agreement",
    "Design": "environments.designs",
    "FitResult": "methods.base",
    "Instance": "environments.base",
    "Method": "methods.base",
    "MethodConfig": "methods.method_config",
    "MinimaxRegretConfig": "minimax_regret.config",
    "LawFit": "overoptimization.laws",
    "LawsConfig": "overoptimization.config",
    "LawsResult": "overoptimization.run",
    "LoggedPairs": "off_policy",
    "NegativeControl": "theorem_check.negative_controls",
    "RecordStore": "study.records",
    "RuleConfig": "minimax_regret.config",
    "StudyConfig": "study.config",
    "WinRateEstimate": "off_policy",
    "baseline_policy": "environments.base",
    "best_of_n_policy": "methods.best_of_n",
    "coverage_is_necessary": "environments.instances",
    "doubly_robust_win_rate": "off_policy",
    "draw_design": "environments.designs",
    "draw_environment": "environments.registry",
    "draw_figure": "study.figures",
    "draw_minimax_figure": "minimax_regret.plots",
    "draw_laws": "overoptimization.plots",
    "fit_law": "overoptimization.laws",
    "four_arms": "environments.instances",
    "ghost_arm": "environments.instances",
    "ips_win_rate": "off_policy",
    "likelihood_displacement": "environments.instances",
    "measure_agreement": "theorem_check.agreement",
    "method_from_function": "methods.user_methods",
    "non_convex_class": "environments.instances",
    "random_linear": "environments.random",
    "random_tabular": "environments.random",
    "read_votes": "environments.votes",
    "run_minimax_regret": "minimax_regret.run",
    "run_laws": "overoptimization.run",
    "run_parts": "study.run",
    "snips_win_rate": "off_policy",
    "solve_negative_controls": "theorem_check.negative_controls",
    "summarize": "study.summary",
    "type_i_hacking": "environments.instances",
    "type_ii_hacking": "environments.instances",
}

__all__ = [  # noqa: RUF022  # in groups
    # environments
    "Instance",
    "baseline_policy",
    "random_linear",
    "random_tabular",
    "Design",
    "draw_design",
    "four_arms",
    "type_i_hacking",
    "type_ii_hacking",
    "non_convex_class",
    "ghost_arm",
    "likelihood_displacement",
    "coverage_is_necessary",
    "read_votes",
    "draw_environment",
    # methods
    "METHODS",
    "FitResult",
    "Method",
    "method_from_function",
    # studies
    "MethodConfig",
    "StudyConfig",
    "RecordStore",
    "run_parts",
    "summarize",
    "draw_figure",
    # minimax regret
    "MinimaxRegretConfig",
    "RuleConfig",
    "run_minimax_regret",
    "draw_minimax_figure",
    # overoptimization laws
    "LawsConfig",
    "LawsResult",
    "run_laws",
    "draw_laws",
    "LawFit",
    "fit_law",
    "best_of_n_policy",
    # off-policy evaluation
    "LoggedPairs",
    "WinRateEstimate",
    "ips_win_rate",
    "snips_win_rate",
    "doubly_robust_win_rate",
    # theorem check
    "Agreement",
    "measure_agreement",
    "NegativeControl",
    "solve_negative_controls",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
