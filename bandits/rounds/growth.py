r"""Growth of the cumulative regret: its mean over the seeds, and the slope of its logarithm.

A slope of 1 in :math:`\log` cumulative regret against :math:`\log t` is linear regret: the method
does not improve. A slope below 1 is sublinear regret, 1/2 is :math:`\sqrt T`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

STANDARD_ERRORS = 1.959963984540054
"""Half the width of a 95 % confidence interval of a mean, in standard errors."""
FIRST_SHARE = 0.1
"""Share of the rounds after which the slope is fitted: over the last factor of ten."""
FITTED_ROUNDS = 40
"""Largest number of rounds, evenly spaced on the logarithmic axis, that a slope is fitted to."""
RESAMPLES = 2000
"""Number of bootstrap resamples of the seeds."""
SMALLEST = 1e-12
"""Smaller cumulative regrets are raised to this value before the logarithm."""


class Curve(NamedTuple):
    """Mean of a cumulative column over the seeds, with its 95 % confidence interval.

    Attributes:
        rounds: numbers of the rounds.
        mean: mean of each round.
        low: lower ends.
        high: upper ends; with a single seed both are the mean.
    """

    rounds: Int[np.ndarray, " t"]
    mean: Float[np.ndarray, " t"]
    low: Float[np.ndarray, " t"]
    high: Float[np.ndarray, " t"]


class Growth(NamedTuple):
    """Slope of the logarithm of a method's mean cumulative regret against that of the round.

    Attributes:
        label: label of the method.
        slope: slope over the last factor of ten of the rounds.
        low: lower end of its 95 % bootstrap interval over the seeds.
        high: upper end.
        final: mean cumulative regret after the last round.
    """

    label: str
    slope: float
    low: float
    high: float
    final: float


def measure_growth(
    records: pa.Table, column: str = "cumulative_regret", *, resamples: int = RESAMPLES
) -> tuple[Growth, ...]:
    """Fit the slope of every method, with a bootstrap interval over the seeds.

    Args:
        records: records of a study in rounds.
        column: "cumulative_regret" or "cumulative_gap".
        resamples: number of bootstrap resamples of the seeds.

    Returns:
        One slope for each label, in the order of the records. With a single seed the interval has
        width 0.

    Raises:
        ValueError: if there are fewer than two rounds.

    Examples:
        >>> table = pa.table({"label": ["a"] * 100, "seed": [0] * 100,
        ...     "round": np.arange(1, 101), "cumulative_regret": np.arange(1, 101) ** 0.5})
        >>> round(measure_growth(table)[0].slope, 6)
        0.5
    """
    growth = []
    for label in labels(records):
        table = cumulative_table(records, label, column)
        n_seeds, n_rounds = table.shape
        if n_rounds < 2:
            raise ValueError("`records` must have at least two rounds, got one: raise `rounds`")
        first = max(1.0, FIRST_SHARE * n_rounds)
        fitted = np.unique(np.geomspace(first, n_rounds, FITTED_ROUNDS).round().astype(int))
        x = np.log(fitted)
        weights = (x - x.mean()) / np.square(x - x.mean()).sum()

        def slopes(
            shares: Float[np.ndarray, "k s"],
            curves: Float[np.ndarray, "s f"] = table[:, fitted - 1],
            weights: Float[np.ndarray, " f"] = weights,
        ) -> Float[np.ndarray, " k"]:
            return np.log(np.maximum(shares @ curves, SMALLEST)) @ weights

        even = np.full((1, n_seeds), 1.0 / n_seeds)
        counts = np.random.default_rng(0).multinomial(n_seeds, even[0], size=resamples)
        low, high = np.quantile(slopes(counts / n_seeds), [0.025, 0.975])
        final = float(table[:, -1].mean())
        growth.append(Growth(label, float(slopes(even)[0]), float(low), float(high), final))
    return tuple(growth)


def mean_curve(records: pa.Table, label: str, column: str = "cumulative_regret") -> Curve:
    """Return the mean of a cumulative column of one method over the seeds.

    Args:
        records: records of a study in rounds.
        label: label of the method.
        column: name of the column.

    Returns:
        The mean of every round, with its 95 % confidence interval.

    Examples:
        >>> table = pa.table({"label": ["a", "a"], "seed": [0, 1], "round": [1, 1],
        ...     "cumulative_regret": [1.0, 3.0]})
        >>> mean_curve(table, "a").mean.tolist()
        [2.0]
    """
    table = cumulative_table(records, label, column)
    n_seeds, n_rounds = table.shape
    mean = table.mean(axis=0)
    error = np.zeros(n_rounds)
    if n_seeds > 1:
        error = STANDARD_ERRORS * table.std(axis=0, ddof=1) / np.sqrt(n_seeds)
    return Curve(np.arange(1, n_rounds + 1), mean, mean - error, mean + error)


def labels(records: pa.Table) -> list[str]:
    """Return the labels of the methods in the order of the records.

    Args:
        records: records of a study in rounds.

    Examples:
        >>> labels(pa.table({"label": ["b", "b", "a"]}))
        ['b', 'a']
    """
    return records["label"].unique().to_pylist()


def cumulative_table(records: pa.Table, label: str, column: str) -> Float[np.ndarray, "s t"]:
    """Return a column of one method with one row for each seed and one column for each round.

    Args:
        records: records of a study in rounds, ordered by seed and round.
        label: label of the method.
        column: name of the column.

    Raises:
        ValueError: if the label is not in the records, or a seed lacks a round.

    Examples:
        >>> columns = {"label": ["a"] * 2, "seed": [0, 0], "round": [1, 2], "gap": [3.0, 4.0]}
        >>> cumulative_table(pa.table(columns), "a", "gap").tolist()
        [[3.0, 4.0]]
    """
    rows = records.filter(pa.array(records["label"].to_numpy() == label))
    if rows.num_rows == 0:
        raise ValueError(f"`label` must be one of {', '.join(labels(records))}, got {label!r}")
    rows = rows.sort_by([("seed", "ascending"), ("round", "ascending")])
    numbers = rows["round"].to_numpy()
    n_rounds = int(numbers.max())
    if not np.array_equal(numbers, np.tile(np.arange(1, n_rounds + 1), len(numbers) // n_rounds)):
        raise ValueError("`records` must hold every round of every seed once")
    return rows[column].to_numpy().astype(np.float64).reshape(-1, n_rounds)
