"""Simulation studies: methods compared on a grid of scenarios, over the same seeds.

A :class:`StudyConfig` is split into parts (:func:`plan_parts`); :func:`run_parts` draws, fits and
measures them and stores their records in a :class:`RecordStore`; :func:`summarize` computes means
and confidence intervals, from which :func:`draw_figure` draws. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import (
        QuickSizes,
        Scenario,
        StudyConfig,
        count_fits,
        expand_scenarios,
        resolved_config,
    )
    from .figures import FigureKind, draw_figure, figure_kinds, plot_figure
    from .lines import log_log_slope, plot_gap, plot_overoptimization
    from .metrics import BoundInputs, compute_bound_inputs, gap_bounds, measure_policy
    from .paired import paired_differences
    from .parts import StudyPart, draw_part, plan_parts
    from .records import RecordStore
    from .run import RunEstimate, estimate_run, run_part, run_parts
    from .summary import Summary, count_violations, summarize

_EXPORTS = {
    "BoundInputs": "metrics",
    "FigureKind": "figures",
    "QuickSizes": "config",
    "RecordStore": "records",
    "RunEstimate": "run",
    "Scenario": "config",
    "StudyConfig": "config",
    "StudyPart": "parts",
    "Summary": "summary",
    "compute_bound_inputs": "metrics",
    "count_fits": "config",
    "count_violations": "summary",
    "draw_figure": "figures",
    "draw_part": "parts",
    "estimate_run": "run",
    "expand_scenarios": "config",
    "figure_kinds": "figures",
    "gap_bounds": "metrics",
    "log_log_slope": "lines",
    "measure_policy": "metrics",
    "paired_differences": "paired",
    "plan_parts": "parts",
    "plot_figure": "figures",
    "plot_gap": "lines",
    "plot_overoptimization": "lines",
    "resolved_config": "config",
    "run_part": "run",
    "run_parts": "run",
    "summarize": "summary",
}

__all__ = [
    "BoundInputs",
    "FigureKind",
    "QuickSizes",
    "RecordStore",
    "RunEstimate",
    "Scenario",
    "StudyConfig",
    "StudyPart",
    "Summary",
    "compute_bound_inputs",
    "count_fits",
    "count_violations",
    "draw_figure",
    "draw_part",
    "estimate_run",
    "expand_scenarios",
    "figure_kinds",
    "gap_bounds",
    "log_log_slope",
    "measure_policy",
    "paired_differences",
    "plan_parts",
    "plot_figure",
    "plot_gap",
    "plot_overoptimization",
    "resolved_config",
    "run_part",
    "run_parts",
    "summarize",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
