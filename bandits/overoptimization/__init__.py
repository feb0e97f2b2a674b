r"""Reward overoptimization: true gain against the distance from the reference, and its laws.

:func:`best_of_n_policy` is best-of-n exactly, :func:`measure_gain` and :func:`initial_slope`
describe the curves of policies, and :func:`fit_law` fits the laws of `gao:23` to them.
:func:`run_laws` runs a study of them from a :class:`LawsConfig`, and :func:`draw_laws` draws it.
Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bandits.methods.best_of_n import (
        best_of_n_kl,
        best_of_n_kl_bound,
        best_of_n_policy,
        best_of_n_score,
    )

    from .config import GeometricGrid, LawsConfig, LawsQuickSizes, count_fits
    from .gain import (
        GainCurve,
        best_of_n_curve,
        gibbs_curve,
        initial_slope,
        measure_gain,
        policy_gain,
    )
    from .laws import LawFit, fit_law, law_gain, law_terms
    from .plots import draw_coefficients, draw_laws, plot_coefficient, plot_gain_curve
    from .run import LawsResult, curve_law, run_laws

_EXPORTS = {
    "GainCurve": "gain",
    "GeometricGrid": "config",
    "LawFit": "laws",
    "LawsConfig": "config",
    "LawsQuickSizes": "config",
    "LawsResult": "run",
    "best_of_n_curve": "gain",
    "best_of_n_kl": "bandits.methods.best_of_n",
    "best_of_n_kl_bound": "bandits.methods.best_of_n",
    "best_of_n_policy": "bandits.methods.best_of_n",
    "best_of_n_score": "bandits.methods.best_of_n",
    "count_fits": "config",
    "curve_law": "run",
    "draw_coefficients": "plots",
    "draw_laws": "plots",
    "fit_law": "laws",
    "gibbs_curve": "gain",
    "initial_slope": "gain",
    "law_gain": "laws",
    "law_terms": "laws",
    "measure_gain": "gain",
    "plot_coefficient": "plots",
    "plot_gain_curve": "plots",
    "policy_gain": "gain",
    "run_laws": "run",
}

__all__ = [  # noqa: RUF022  # in groups
    # best-of-n
    "best_of_n_policy",
    "best_of_n_kl",
    "best_of_n_kl_bound",
    "best_of_n_score",
    # gains
    "GainCurve",
    "policy_gain",
    "measure_gain",
    "gibbs_curve",
    "best_of_n_curve",
    "initial_slope",
    # laws
    "LawFit",
    "law_terms",
    "law_gain",
    "fit_law",
    # study
    "GeometricGrid",
    "LawsConfig",
    "LawsQuickSizes",
    "LawsResult",
    "count_fits",
    "curve_law",
    "run_laws",
    # figures
    "draw_laws",
    "draw_coefficients",
    "plot_gain_curve",
    "plot_coefficient",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _EXPORTS[name]
        path = module if "." in module else f"{__name__}.{module}"
        return getattr(import_module(path), name)


def __dir__() -> list[str]:
    return sorted(__all__)
