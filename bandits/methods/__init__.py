"""Methods: RPO, DPO and thirty-three others that fit a policy to preference data on bandits.

Each method is a :class:`Method` in the dictionary :data:`METHODS`: called with batched problems and
reward classes, it returns a :class:`FitResult`. :func:`method_from_function` makes a method of a
function of the user's own. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import CertificateKind, FitContext, FitResult, Method, MethodFunction, mle_reward
    from .chi_po import chi_squared_policy
    from .method_config import MethodConfig
    from .nash import Equilibrium, exploitability, preference_matrix, solve_game
    from .optimism import (
        Optimum,
        maximize_optimistic,
        optimistic_bound,
        optimistic_objective,
        optimistic_reward,
    )
    from .options import BaselineOptions, MethodOptions, SearchOptions
    from .pessimistic_mle import confidence_radius
    from .registry import METHODS, find_method
    from .reward_uncertainty import bootstrap_wins
    from .saddle_methods import greedy_policy
    from .user_methods import method_from_function

_EXPORTS = {
    "METHODS": "registry",
    "BaselineOptions": "options",
    "CertificateKind": "base",
    "Equilibrium": "nash",
    "FitContext": "base",
    "FitResult": "base",
    "Method": "base",
    "MethodConfig": "method_config",
    "MethodFunction": "base",
    "MethodOptions": "options",
    "Optimum": "optimism",
    "SearchOptions": "options",
    "bootstrap_wins": "reward_uncertainty",
    "chi_squared_policy": "chi_po",
    "confidence_radius": "pessimistic_mle",
    "exploitability": "nash",
    "find_method": "registry",
    "greedy_policy": "saddle_methods",
    "maximize_optimistic": "optimism",
    "method_from_function": "user_methods",
    "mle_reward": "base",
    "optimistic_bound": "optimism",
    "optimistic_objective": "optimism",
    "optimistic_reward": "optimism",
    "preference_matrix": "nash",
    "solve_game": "nash",
}

__all__ = [
    "METHODS",
    "BaselineOptions",
    "CertificateKind",
    "Equilibrium",
    "FitContext",
    "FitResult",
    "Method",
    "MethodConfig",
    "MethodFunction",
    "MethodOptions",
    "Optimum",
    "SearchOptions",
    "bootstrap_wins",
    "chi_squared_policy",
    "confidence_radius",
    "exploitability",
    "find_method",
    "greedy_policy",
    "maximize_optimistic",
    "method_from_function",
    "mle_reward",
    "optimistic_bound",
    "optimistic_objective",
    "optimistic_reward",
    "preference_matrix",
    "solve_game",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
