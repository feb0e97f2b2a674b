"""Diagnostics of a run: non-finite values, displacement, coverage and quantiles."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.evaluation.metrics import log_ratio_quantiles
from llm.train.diagnostics import (
    NAMED_ROWS,
    PATIENCE,
    DisplacementMonitor,
    linear_coverage,
    locate_non_finite,
    name_rows,
)
from llm.types import Batch
from rpo_theory.coverage import coverage_coefficient
from rpo_theory.rewards import LinearBall

CLOSED_FORM = 1e-12
"""Relative error of some tens of roundings."""
RIDGELESS = 1e-13
"""Ridge without effect beyond rounding if the data span all directions."""
CONDITIONED = 1e-9
"""Relative error of a linear system of condition up to a thousand."""
CONTEXTS, ACTIONS, DRAWS, FEATURES = 3, 4, 5, 3
SEEDS = st.integers(0, 2**16)


BETA = 0.1


def batch_of(rows: list[int]) -> Batch:
    ids, nothing = np.asarray(rows), None
    return Batch(nothing, nothing, np.ones((len(rows), 2), int), ids >= 0, ids)  # type: ignore[arg-type]


BATCH = batch_of([30, 12, -1, 21])


def test_closed_form_rows_are_named_in_order_once_by_their_numbers_in_their_file() -> None:
    assert name_rows(BATCH, np.array([True, True, False, False])) == "rows 12, 30"
    assert name_rows(BATCH, BATCH.present, 10) == "rows 2, 11, 20"
    assert name_rows(batch_of([7, 7, 8]), np.array([True, True, False])) == "rows 7"


def test_limit_of_very_many_rows_the_first_are_named_and_the_others_counted() -> None:
    many = batch_of(list(range(NAMED_ROWS + 3)))
    first = ", ".join(str(row) for row in range(NAMED_ROWS))
    assert name_rows(many, many.present) == f"rows {first} and 3 more"
    enough = batch_of(list(range(NAMED_ROWS)))
    assert name_rows(enough, enough.present) == f"rows {first}"


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_closed_form_pairs_are_located_before_metrics_and_a_finite_step_passes(
    wrong: float,
) -> None:
    clean, flags = np.zeros(4, bool), np.array([False, True, False, False])
    assert locate_non_finite({"loss": 1.0, "grad_norm": 0.0}, clean, BATCH) is None
    metrics = {"loss": 1.0, "grad_norm": wrong, "other": wrong}
    assert locate_non_finite(metrics, flags, BATCH) == "rows 12"
    expected = "`grad_norm` of the step on rows 12, 21, 30"
    assert locate_non_finite(metrics, clean, BATCH) == expected


def warnings_of(
    steps: list[tuple[float, float]], *, patience: int, nats: float = 1.0
) -> list[str | None]:
    """Return the warnings for falls of the chosen log-probability, in nats, and margins."""
    monitor = DisplacementMonitor(BETA, patience=patience, nats=nats)
    return [
        monitor.update({"rewards/chosen": -BETA * fall, "rewards/margins": margin})
        for fall, margin in steps
    ]


def test_closed_form_the_warning_uses_means_of_the_last_steps() -> None:
    falls = [(0.0, 0.1), (4.0, 0.2), (101.0, -0.4), (1.0, 0.9), (90.0, 0.3)]
    warnings = warnings_of(falls, patience=2, nats=50.5)
    # The mean margin is -0.1 at the third step and 0.25 at the fourth.
    assert [warning is None for warning in warnings] == [True, True, True, False, True]
    assert warnings[3] is not None
    assert "fell by 51.0 nats while margins grew by 0.250" in warnings[3]
    assert warnings_of(falls, patience=2, nats=51.5) == [None] * 5


def test_closed_form_there_is_no_warning_before_enough_steps() -> None:
    steps = [(9.0, 1.0) for _ in range(3 * PATIENCE)]
    warnings = warnings_of(steps, patience=PATIENCE)
    assert [number for number, text in enumerate(warnings) if text] == [PATIENCE - 1]


@pytest.mark.parametrize(
    "last",
    [(10.0, 0.0), (10.0, -0.5), (0.999, 0.5), (-5.0, 0.5)],
    ids=["margins stay", "margins fall", "a fall within the bound", "a rise"],
)
def test_property_only_a_fall_with_growing_margins_is_a_displacement(
    last: tuple[float, float],
) -> None:
    assert warnings_of([last], patience=1) == [None]
    assert warnings_of([(1.001, 1e-9)], patience=1)[0] is not None


def test_property_less_probable_rows_are_not_a_fall() -> None:
    monitor = DisplacementMonitor(BETA, patience=1)
    for chosen in (-10.0, -90.0):
        step = {"logps/chosen": chosen, "rewards/chosen": 0.2, "rewards/margins": 0.5}
        assert monitor.update(step) is None


def test_property_steps_without_margins_do_not_count() -> None:
    monitor = DisplacementMonitor(BETA, patience=1)
    assert monitor.update({"loss": 1.0}) is None
    assert monitor.update({"rewards/chosen": -9.0}) is None
    assert monitor.update({"rewards/chosen": -9.0, "rewards/margins": 1.0}) is not None


class Sampled(NamedTuple):
    """Empirical distributions, as drawn responses and as tables of the theory."""

    table: np.ndarray
    samples: np.ndarray
    baseline: np.ndarray
    pairs: np.ndarray

    def features(self, drawn: np.ndarray) -> np.ndarray:
        rows = self.table[np.arange(CONTEXTS)[:, None], drawn]
        return rows.reshape(-1, self.table.shape[-1])

    def differences(self) -> np.ndarray:
        x, chosen, rejected = self.pairs.T
        return self.table[x, chosen] - self.table[x, rejected]

    def measured(self, ridge: float) -> float:
        features = self.features(self.samples), self.features(self.baseline)
        return linear_coverage(*features, self.differences(), ridge=ridge)

    def by_theory(self, theta: np.ndarray) -> float:
        distribution = np.zeros((CONTEXTS, ACTIONS, ACTIONS))
        np.add.at(distribution, tuple(self.pairs.T), 1.0)
        ball = LinearBall(self.table, np.array(1.0))
        policies = [np.eye(ACTIONS)[drawn].mean(1) for drawn in (self.samples, self.baseline)]
        return float(
            coverage_coefficient(
                ball,
                true_reward=self.table @ theta,
                comparator=policies[0],
                baseline=policies[1],
                context_weights=np.full(CONTEXTS, 1 / CONTEXTS),
                pair_distribution=distribution,
            )
        )


def sampled(seed: int) -> Sampled:
    rng = np.random.default_rng(seed)
    draws = rng.integers(ACTIONS, size=(2, CONTEXTS, DRAWS))
    pairs = [(x, *rng.choice(ACTIONS, 2, replace=False)) for x in rng.integers(CONTEXTS, size=30)]
    table = rng.normal(size=(CONTEXTS, ACTIONS, FEATURES))
    return Sampled(table, draws[0], draws[1], np.array(pairs))


@pytest.mark.parametrize("seed", range(5))
def test_parity_coverage_of_samples_is_that_of_the_ball_in_its_interior(seed: int) -> None:
    draw = sampled(seed)
    expected = draw.by_theory(np.zeros(FEATURES))
    assert expected > 0
    assert draw.measured(RIDGELESS) == pytest.approx(expected, rel=CONDITIONED)


@pytest.mark.parametrize("seed", range(5))
def test_property_no_ball_has_a_larger_coefficient(seed: int) -> None:
    draw = sampled(seed)
    theta = np.random.default_rng(seed + 100).normal(size=FEATURES)
    assert draw.by_theory(theta / np.linalg.norm(theta)) <= draw.measured(RIDGELESS) * (
        1 + CONDITIONED
    )


@given(SEEDS)
def test_property_data_and_features_may_be_rescaled_together(seed: int) -> None:
    draw = sampled(seed)
    scaled = draw._replace(table=7.0 * draw.table, pairs=np.concatenate([draw.pairs, draw.pairs]))
    assert scaled.measured(1e-6) == pytest.approx(draw.measured(1e-6), rel=CONDITIONED)


@given(SEEDS)
def test_property_a_larger_ridge_never_increases_the_coefficient(seed: int) -> None:
    values = [sampled(seed).measured(ridge) for ridge in (1e-9, 1e-3, 1.0)]
    assert values == sorted(values, reverse=True)


def test_closed_form_a_direction_without_data_is_weighted_by_the_ridge() -> None:
    # The covariance is diag(4, 0), so the ridge adds 2 r to both entries.
    differences = np.array([[2.0, 0.0], [-2.0, 0.0]])
    samples, baseline = np.array([[3.0, 5.0], [1.0, 1.0]]), np.zeros((2, 2))
    coverage = linear_coverage(samples, baseline, differences, ridge=1e-4)
    assert coverage == pytest.approx(math.sqrt(4 / (4 + 2e-4) + 9 / 2e-4), rel=CLOSED_FORM)


@pytest.mark.parametrize(("end", "expected"), [(0.0, 0.0), (1.0, math.inf)])
def test_limit_data_without_any_difference_cover_only_the_baseline(
    end: float, expected: float
) -> None:
    zero = np.zeros((1, 2))
    assert linear_coverage(zero + end, zero, np.zeros((4, 2))) == expected


@given(st.lists(st.tuples(st.floats(-99, 0), st.floats(-99, 0)), min_size=1, max_size=40))
def test_closed_form_quantiles_interpolate_between_sorted_log_ratios(
    rows: list[tuple[float, float]],
) -> None:
    policy, reference = np.array(rows).T
    ratios = sorted(ours - reference for ours, reference in rows)
    expected = {}
    for name, level in (("p05", 0.05), ("median", 0.5), ("p95", 0.95)):
        position = level * (len(ratios) - 1)
        below = math.floor(position)
        above = min(below + 1, len(ratios) - 1)
        share = position - below
        expected[f"theory/log_ratio_{name}"] = (1 - share) * ratios[below] + share * ratios[above]
    assert log_ratio_quantiles(policy, reference) == pytest.approx(expected, abs=1e-12 * 99)
