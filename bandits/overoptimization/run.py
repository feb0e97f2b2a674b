r"""Run of the study of overoptimization laws: curves of every method, and their fitted laws."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Float

from bandits.environments.base import Instance
from bandits.environments.designs import draw_design
from bandits.methods.best_of_n import best_of_n_policy, best_of_n_score
from bandits.steps import KeepStep, compute_step

from .config import ClassName, LawsConfig
from .fitting import BEST_OF_N, PROXY_METHOD, fit_policies
from .gain import initial_slope, measure_gain
from .laws import LawFit, LawName, fit_law

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIE_TOLERANCE = 1e-6
"""Difference of rewards below which solvers cannot tell them apart, see ``greedy_policy``."""


class LawsResult(NamedTuple):
    r"""Curves and fitted laws that a study found.

    Attributes:
        config: configuration of the study.
        records: one row for each curve, seed and point: ``method``, ``reward_class``,
            ``comparisons``, ``eta`` (NaN if the method does not use it), ``seed``, ``beta`` or
            ``n`` (the other is NaN), ``kl`` (nats), ``sqrt_kl``, ``true_gain``, ``proxy_gain``
            (units of reward), ``initial_slope`` (its formula at the reward of this point) and
            ``status``.
        fits: one row for each curve: its keys, ``law`` ("rl" or "best_of_n"), the fields of
            :class:`bandits.overoptimization.laws.LawFit`, ``r_squared_other_law``, and the means
            over the seeds at the point of smallest KL: ``initial_slope`` by the formula, and
            ``measured_slope``, the true gain divided by :math:`d`.
    """

    config: LawsConfig
    records: pa.Table
    fits: pa.Table

    @property
    def figure_kinds(self) -> tuple[str, ...]:
        """Names of the figures that :meth:`plot` draws."""
        from .figures import laws_figure_kinds

        return laws_figure_kinds(self)

    def plot(
        self, kind: str | None = None, ax: Axes | None = None, *, panel: str | None = None
    ) -> Axes:
        """Draw a figure of the study into axes.

        Args:
            kind: one of :attr:`figure_kinds`, by default the first.
            ax: axes to draw into, in a figure of its final size; new ones by default.
            panel: of ``laws_CLASS_N`` the name of a method, by default the true gains of all; of
                ``coefficients`` the coefficient and the class, such as "gamma, tabular".

        Returns:
            The axes.

        Raises:
            ValueError: if the study has no such figure or panel.
        """
        from rpo_io.figures import axes_or_new

        from .figures import plot_laws_figure

        return plot_laws_figure(self, kind or self.figure_kinds[0], axes_or_new(ax), panel=panel)


class CurveKeys(NamedTuple):
    """What identifies a curve, in the columns of the records.

    Attributes:
        method: name of the method.
        reward_class: class of the rewards.
        comparisons: number of comparisons in a data set.
        eta: weight of the adversary; NaN for a method that does not use it.
    """

    method: str
    reward_class: ClassName
    comparisons: int
    eta: float


def run_laws(config: LawsConfig, *, keep: KeepStep = compute_step) -> LawsResult:
    r"""Fit every method along its curve, measure gains and distances, and fit the laws.

    Args:
        config: configuration of the study.
        keep: returns the table of a step: the records of each curve, then its row of the fits.

    Returns:
        Records and fits; they depend on the configuration alone.

    Examples:
        >>> sizes = {"comparisons": [50], "seeds": 6, "resamples": 99, "design": {"actions": 3}}
        >>> result = run_laws(LawsConfig(name="tiny", methods=["best_of_n"], **sizes))
        >>> result.records.num_rows, result.fits["law"].to_pylist()
        (60, ['best_of_n'])
    """
    records, fits = [], []
    for number, keys in enumerate(_curve_keys(config)):
        curve = keep(2 * number, partial(_run_curve, config, keys))
        fit = keep(2 * number + 1, partial(_fit_table, config, keys, curve))
        records.append(curve)
        fits += fit.to_pylist()
    return LawsResult(config, pa.concat_tables(records), pa.Table.from_pylist(fits))


def curve_law(method: str) -> LawName:
    """Return the law that describes the curves of a method.

    Args:
        method: name of the method.

    Returns:
        The form for best-of-n for best-of-n itself, and that for RL for every other method.

    References:
        `gao:23`; `rafailov:24` for methods without reinforcement learning.

    Examples:
        >>> curve_law("rpo"), curve_law("best_of_n")
        ('rl', 'best_of_n')
    """
    return "best_of_n" if method == BEST_OF_N else "rl"


def _curve_keys(config: LawsConfig) -> list[CurveKeys]:
    """Return what identifies each curve, in the order of the records."""
    return [
        CurveKeys(method, reward_class, comparisons, eta)
        for reward_class in config.reward_classes
        for comparisons in config.comparisons
        for method in config.methods
        for eta in config.etas_of(method)
    ]


def _run_curve(config: LawsConfig, keys: CurveKeys) -> pa.Table:
    """Return the records of a curve, one row for each seed and point."""
    seeds = config.first_seed + np.arange(config.seeds)
    instance = draw_design(config.design_of(keys.reward_class), keys.comparisons, seeds)
    if keys.method == BEST_OF_N:
        n = np.sort(np.asarray(config.best_of_n, np.float64))
        beta = np.full(len(n), np.nan)
        measured = _measure_best_of_n(instance, n)
    else:
        beta = config.beta.values()
        n = np.full(len(beta), np.nan)
        measured = _measure_along_beta(config, instance, keys.method, keys.eta, beta)
    n_rows = len(seeds) * len(n)
    return pa.table(
        {
            **{name: [value] * n_rows for name, value in keys._asdict().items()},
            "seed": np.repeat(seeds, len(n)),
            "beta": np.tile(beta, len(seeds)),
            "n": np.tile(n, len(seeds)),
            **{name: values.ravel() for name, values in measured.items()},
        }
    )


def _measure_along_beta(
    config: LawsConfig,
    instance: Instance,
    method: str,
    eta: float,
    betas: Float[np.ndarray, " p"],
) -> dict[str, np.ndarray]:
    """Fit a method to every bandit at every weight, in one call, and measure its policies."""
    n_seeds, n_points = len(np.asarray(instance.problem.beta)), len(betas)

    def repeat(leaf: Any) -> np.ndarray:
        return np.repeat(np.asarray(leaf), n_points, axis=0)

    repeated: Instance = jax.tree.map(repeat, instance)
    problem = repeated.problem._replace(
        beta=np.tile(betas, n_seeds),
        eta=np.full(n_seeds * n_points, 0.0 if math.isnan(eta) else eta),
    )
    fit = fit_policies(method, problem, repeated.reward_class, config.baseline)
    measured = _measure(fit.policy, fit.reward, fit.reward, repeated)
    columns = {**measured, "status": np.asarray(fit.status, np.int32)}
    return {name: values.reshape(n_seeds, n_points) for name, values in columns.items()}


def _measure_best_of_n(instance: Instance, ns: Float[np.ndarray, " p"]) -> dict[str, np.ndarray]:
    """Rank the responses of every bandit by one fitted reward, and measure best-of-n."""
    fit = fit_policies(PROXY_METHOD, instance.problem, instance.reward_class, "given")
    n_seeds, n_points = len(fit.reward), len(ns)
    repeated: Instance = jax.tree.map(
        lambda leaf: np.repeat(np.asarray(leaf), n_points, axis=0), instance
    )
    proxy = np.repeat(fit.reward, n_points, axis=0)
    with jax.enable_x64(True):
        reference = np.asarray(repeated.problem.reference_policy)
        policy = np.asarray(_best_of_n_policies(proxy, reference, np.tile(ns, n_seeds)))
        score = np.asarray(_best_of_n_scores(proxy, reference))
    measured = _measure(policy, proxy, score, repeated)
    measured["status"] = np.repeat(np.asarray(fit.status, np.int32), n_points)
    return {name: values.reshape(n_seeds, n_points) for name, values in measured.items()}


def _measure(
    policy: Float[np.ndarray, "b x a"],
    proxy: Float[np.ndarray, "b x a"],
    score: Float[np.ndarray, "b x a"],
    instance: Instance,
) -> dict[str, np.ndarray]:
    problem, truth = instance.problem, instance.true_reward
    shared = problem.reference_policy, problem.context_weights
    with jax.enable_x64(True):
        curve = _measure_gains(policy, proxy, truth, *shared)
        slope = _initial_slopes(score, truth, *shared)
        columns = {**curve._asdict(), "initial_slope": slope}
        return {name: np.asarray(values) for name, values in columns.items()}


def _fit_table(config: LawsConfig, keys: CurveKeys, records: pa.Table) -> pa.Table:
    """Return the row of a curve in the table of fits."""
    law = curve_law(keys.method)
    other: LawName = "rl" if law == "best_of_n" else "best_of_n"
    sqrt_kl, gain, slopes = (
        records[name].to_numpy().reshape(config.seeds, -1)
        for name in ("sqrt_kl", "true_gain", "initial_slope")
    )

    def fit(name: LawName) -> LawFit:
        return fit_law(
            sqrt_kl,
            gain,
            name,
            seed=config.first_seed,
            resamples=config.resamples,
            confidence=config.confidence,
        )

    slope = slopes[:, 0]
    moves = np.isfinite(slope) & (sqrt_kl[:, 0] > 0)
    measured = gain[moves, 0] / sqrt_kl[moves, 0]
    row = {
        **keys._asdict(),
        "law": law,
        **fit(law)._asdict(),
        "r_squared_other_law": fit(other).r_squared,
        "initial_slope": float(slope[moves].mean()) if moves.any() else math.nan,
        "measured_slope": float(measured.mean()) if moves.any() else math.nan,
    }
    return pa.Table.from_pylist([row])


_measure_gains = jax.jit(jax.vmap(measure_gain))
_initial_slopes = jax.jit(jax.vmap(initial_slope))
_best_of_n_scores = jax.jit(
    jax.vmap(
        lambda proxy, reference: best_of_n_score(proxy, reference, tie_tolerance=TIE_TOLERANCE)
    )
)
_best_of_n_policies = jax.jit(
    jax.vmap(
        lambda proxy, reference, n: best_of_n_policy(
            proxy, reference, n, tie_tolerance=TIE_TOLERANCE
        )
    )
)
