"""Execution of a study of minimax regret: exact sums over all outcomes, without sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from rpo_theory.types import Status

from .config import (
    MinimaxRegretConfig,
    reference_policy_of,
    weights_of,
    worlds_of,
)
from .linear_program import expected_gaps, solve_minimax
from .rules import fit_outcomes
from .worlds import action_gaps, enumerate_outcomes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .plots import MinimaxFigureKind

RECORDS = pa.schema(
    {
        "label": pa.string(),
        "method": pa.string(),
        "comparisons": pa.int64(),
        "eta": pa.float64(),
        "beta": pa.float64(),
        "worst_case_regret": pa.float64(),
        "minimax_regret": pa.float64(),
        "ratio": pa.float64(),
        "worst_world": pa.int64(),
        "worst_rewards": pa.list_(pa.float64()),
        "regret": pa.list_(pa.float64()),
        "certificate": pa.float64(),
        "unsolved": pa.int64(),
    }
)
"""Columns of the records of the methods."""
OPTIMA = pa.schema(
    {
        "comparisons": pa.int64(),
        "outcomes": pa.int64(),
        "minimax_regret": pa.float64(),
        "duality_gap": pa.float64(),
        "regret": pa.list_(pa.float64()),
        "least_favorable_prior": pa.list_(pa.float64()),
    }
)
"""Columns of the records of the minimax rule."""
SOLVED = (Status.SOLVED.value, Status.NOT_ATTAINED.value)


class MinimaxRegretResult(NamedTuple):
    """Regret of every method in every world, and the smallest possible worst-case regret.

    Attributes:
        config: configuration of the study.
        records: one row for each method and number of comparisons. ``regret`` holds its regret in
            every world, ``worst_case_regret`` the largest one, ``worst_world`` the index of that
            world and ``worst_rewards`` its rewards. ``ratio`` is that of the worst-case regret to
            the minimax regret, null if the latter is 0. ``certificate`` is the largest of the fits,
            and ``unsolved`` counts the outcomes at which a fit is not certified.
        optima: one row for each number of comparisons: ``minimax_regret``, its ``duality_gap``, the
            ``regret`` of the minimax rule in every world and the ``least_favorable_prior``.
    """

    config: MinimaxRegretConfig
    records: pa.Table
    optima: pa.Table

    @property
    def figure_kinds(self) -> tuple[MinimaxFigureKind, ...]:
        """Names of the figures that :meth:`plot` draws."""
        from .plots import minimax_figure_kinds

        return minimax_figure_kinds(self)

    def plot(
        self, kind: str | None = None, ax: Axes | None = None, *, panel: str | None = None
    ) -> Axes:
        """Draw a figure of the study into axes.

        Args:
            kind: one of :attr:`figure_kinds`, by default the first.
            ax: axes to draw into, in a figure of its final size; new ones by default.
            panel: of ``regret_by_world`` "regret" or "prior", by default the regret.

        Returns:
            The axes.

        Raises:
            ValueError: if the study has no such figure or panel.
        """
        from rpo_io.figures import axes_or_new

        from .plots import plot_minimax_figure

        return plot_minimax_figure(self, kind or self.figure_kinds[0], axes_or_new(ax), panel=panel)


def run_minimax_regret(config: MinimaxRegretConfig) -> MinimaxRegretResult:
    """Compute the regret of every method in every world, and the minimax regret.

    Args:
        config: configuration of the study.

    Returns:
        The records, in units of reward.

    Examples:
        >>> from bandits.minimax_regret import RuleConfig
        >>> config = MinimaxRegretConfig(
        ...     name="a", methods=[RuleConfig(method="behavior_cloning")], comparisons=[2],
        ...     margins=[1.0], reward_max=2.0)
        >>> run_minimax_regret(config).records["ratio"].to_numpy().round(3).tolist()
        [1.0]
    """
    records, optima = [], []
    for comparisons in config.comparisons:
        worlds = worlds_of(config, comparisons)
        outcomes = enumerate_outcomes(worlds)
        probability, gaps = np.exp(outcomes.log_probability), action_gaps(worlds.rewards)
        optimum = solve_minimax(probability, gaps)
        optima.append(
            {
                "comparisons": comparisons,
                "outcomes": len(outcomes.wins),
                "minimax_regret": optimum.minimax_regret,
                "duality_gap": optimum.duality_gap,
                "regret": expected_gaps(optimum.policy, probability, gaps).tolist(),
                "least_favorable_prior": optimum.prior.tolist(),
            }
        )
        for method in config.methods:
            eta, beta = weights_of(config, method, comparisons)
            fits = fit_outcomes(
                method.method,
                outcomes.wins,
                reference=reference_policy_of(config),
                baseline=method.baseline,
                reward_max=config.reward_max,
                eta=eta,
                beta=beta,
                options=method.options,
            )
            by_world = expected_gaps(fits.policy[:, 0], probability, gaps)
            worst, best_possible = int(by_world.argmax()), optimum.minimax_regret
            records.append(
                {
                    "label": method.display_label,
                    "method": method.method,
                    "comparisons": comparisons,
                    "eta": eta,
                    "beta": beta,
                    "worst_case_regret": float(by_world[worst]),
                    "minimax_regret": best_possible,
                    "ratio": float(by_world[worst]) / best_possible if best_possible > 0 else None,
                    "worst_world": worst,
                    "worst_rewards": worlds.rewards[worst].tolist(),
                    "regret": by_world.tolist(),
                    "certificate": float(fits.certificate.max()),
                    "unsolved": int((~np.isin(fits.status, SOLVED)).sum()),
                }
            )
    return MinimaxRegretResult(
        config,
        pa.Table.from_pylist(records, schema=RECORDS),
        pa.Table.from_pylist(optima, schema=OPTIMA),
    )
