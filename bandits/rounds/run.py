"""Execution of a study in rounds: all methods on the same bandits, recorded in one table."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from bandits.environments.registry import draw_environment
from bandits.steps import KeepStep, compute_step
from rpo_theory.types import Status

from .config import RoundsConfig, RoundsMethod, method_labels
from .growth import Growth, measure_growth
from .online import play_rounds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUMBER_COLUMNS = (
    "n_pairs",
    "eta",
    "regret",
    "cumulative_regret",
    "gap",
    "cumulative_gap",
    "kl",
    "comparator_pairs",
    "certificate",
)
"""Columns of numbers of the records, see :func:`bandits.rounds.online.play_rounds`."""


class RoundsResult(NamedTuple):
    """Records of a study in rounds, and how fast the cumulative regret grows.

    Attributes:
        config: the configuration.
        records: one row for each method, seed and round, in this order.
        growth: slope of each method's cumulative regret; empty with fewer than two rounds.
    """

    config: RoundsConfig
    records: pa.Table
    growth: tuple[Growth, ...]

    @property
    def figure_kinds(self) -> tuple[str, ...]:
        """Names of the figures that :meth:`plot` draws."""
        from .plots import rounds_figure_kinds

        return rounds_figure_kinds(self)

    def plot(
        self, kind: str | None = None, ax: Axes | None = None, *, panel: str | None = None
    ) -> Axes:
        """Draw a figure of the study into axes.

        Args:
            kind: one of :attr:`figure_kinds`, by default the first.
            ax: axes to draw into, in a figure of its final size; new ones by default.
            panel: None, since every figure has one panel.

        Returns:
            The axes.

        Raises:
            ValueError: if the study has no such figure, or a panel is named.
        """
        from rpo_io.figures import axes_or_new

        from .plots import plot_rounds_figure

        if panel is not None:
            raise ValueError(f"`panel` must be left out: figures have one panel, got {panel!r}")
        return plot_rounds_figure(self, kind or self.figure_kinds[0], axes_or_new(ax))


def run_rounds(config: RoundsConfig, *, keep: KeepStep = compute_step) -> RoundsResult:
    """Run a study in rounds.

    Args:
        config: the configuration; :meth:`RoundsConfig.quick_version` has smaller sizes.
        keep: returns the records of a step, one for each method.

    Returns:
        The records and the slopes. Equal configurations give equal records.

    Raises:
        ValueError: if the environment is unknown or cannot be drawn, or a method refuses its
            reward class.

    Examples:
        >>> from bandits.environments.designs import Design
        >>> greedy = [RoundsMethod(method="two_stage")]
        >>> small = RoundsConfig(
        ...     name="a", methods=greedy, rounds=3, seeds=2, design=Design(actions=2))
        >>> run_rounds(small).records["round"].to_pylist()
        [1, 2, 3, 1, 2, 3]
    """
    seeds = np.arange(config.first_seed, config.first_seed + config.seeds)
    instance = draw_environment(config.environment, config.comparisons, seeds, design=config.design)

    def play(method: RoundsMethod, label: str) -> pa.Table:
        return _table(config, method, label, seeds, play_rounds(instance, method, config, seeds))

    labels = method_labels(config)
    tables = [
        keep(number, partial(play, method, label))
        for number, (method, label) in enumerate(zip(config.methods, labels, strict=True))
    ]
    records = pa.concat_tables(tables).combine_chunks()
    growth = measure_growth(records) if config.rounds > 1 else ()
    return RoundsResult(config, records, growth)


def _table(
    config: RoundsConfig,
    method: RoundsMethod,
    label: str,
    seeds: Int[np.ndarray, " B"],
    columns: Mapping[str, Float[np.ndarray, "t B"]],
) -> pa.Table:
    """Return the records of one method, ordered by seed and round."""
    n_rows = config.rounds * len(seeds)
    names = np.array([status.name for status in Status])
    codes = columns["status"].T.ravel().astype(np.int64)
    texts = {
        "method": pa.array([method.reference] * n_rows),
        "label": pa.array([label] * n_rows),
        "sampling": pa.array([method.sampling or config.sampling] * n_rows),
    }
    keys = {
        "seed": pa.array(np.repeat(seeds, config.rounds)),
        "round": pa.array(np.tile(np.arange(1, config.rounds + 1), len(seeds))),
    }
    numbers = {name: pa.array(columns[name].T.ravel()) for name in NUMBER_COLUMNS}
    return pa.table({**texts, **keys, **numbers, "status": pa.array(names[codes])})
