"""Rounds: online and iterative RPO, in which every method collects the comparisons it fits next.

A :class:`RoundsConfig` names methods and sizes; :func:`run_rounds` plays the rounds on a batch of
bandits and records regrets; :func:`measure_growth` says how fast the cumulative regret grows. The
optimistic method is ``rpo_optimistic``. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import QuickRounds, RoundsConfig, RoundsMethod
    from .growth import Growth, mean_curve, measure_growth
    from .online import play_rounds
    from .plots import plot_cumulative_regret, plot_cumulative_regret_growth
    from .run import RoundsResult, run_rounds

_EXPORTS = {
    "Growth": "growth",
    "QuickRounds": "config",
    "RoundsConfig": "config",
    "RoundsMethod": "config",
    "RoundsResult": "run",
    "mean_curve": "growth",
    "measure_growth": "growth",
    "play_rounds": "online",
    "plot_cumulative_regret": "plots",
    "plot_cumulative_regret_growth": "plots",
    "run_rounds": "run",
}

__all__ = [  # noqa: RUF022  # in groups
    # configuration and execution
    "RoundsConfig",
    "RoundsMethod",
    "QuickRounds",
    "RoundsResult",
    "run_rounds",
    "play_rounds",
    # growth of the cumulative regret, and figures
    "Growth",
    "measure_growth",
    "mean_curve",
    "plot_cumulative_regret",
    "plot_cumulative_regret_growth",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
