"""Claims about the laws study: its curves, their slopes, and its tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bandits.environments import Design, draw_design
from bandits.methods import METHODS
from bandits.overoptimization import (
    GeometricGrid,
    LawsConfig,
    LawsResult,
    curve_law,
    fit_law,
    run_laws,
)

SEEDS = 6
DESIGN = {"actions": 4, "contexts": 2, "rare": 1, "reward_max": 2.0}
CONFIG = LawsConfig(
    name="tiny",
    methods=["rpo", "two_stage", "dpo", "best_of_n"],
    comparisons=[100],
    seeds=SEEDS,
    first_seed=3,
    eta=[0.02, 0.2],
    beta=GeometricGrid(smallest=0.1, largest=200.0, count=4),
    best_of_n=[8.0, 1.001, 2.0],
    resamples=99,
    design=DESIGN,
)


@pytest.fixture(scope="module")
def result() -> LawsResult:
    return run_laws(CONFIG)


def rows(result: LawsResult, **keys: Any) -> list[dict[str, Any]]:
    found = result.records.to_pylist()
    return [row for row in found if all(row[name] == value for name, value in keys.items())]


def test_parity_a_record_is_the_gain_of_the_methods_policy(result: LawsResult) -> None:
    instance = draw_design(Design(**DESIGN), 100, 3 + np.arange(SEEDS))
    betas = CONFIG.beta.values()
    problem = instance.problem._replace(beta=np.full(SEEDS, betas[2]), eta=np.full(SEEDS, 0.2))
    fit = METHODS["rpo"](problem, instance.reward_class, baseline="given")
    reference = np.asarray(problem.reference_policy)
    for seed in range(SEEDS):
        (row,) = rows(result, method="rpo", eta=0.2, seed=3 + seed, beta=betas[2])
        policy = fit.policy[seed]
        change = 0.5 * (policy - reference[seed])
        assert row["true_gain"] == pytest.approx((change * instance.true_reward[seed]).sum())
        assert row["proxy_gain"] == pytest.approx((change * fit.reward[seed]).sum(), abs=1e-9)
        kl = 0.5 * (policy * np.log(policy / reference[seed])).sum()
        assert row["kl"] == pytest.approx(kl, abs=1e-12)
        assert row["sqrt_kl"] == pytest.approx(math.sqrt(kl), abs=1e-9)
        assert row["status"] == fit.status[seed]


def test_property_dpo_is_two_stage_and_curves_have_the_rows_that_are_described(
    result: LawsResult,
) -> None:
    assert result.records.num_rows == SEEDS * (2 * 4 + 4 + 4 + 3)
    dpo, two_stage = (rows(result, method=method) for method in ("dpo", "two_stage"))
    for first, second in zip(dpo, two_stage, strict=True):
        assert first["true_gain"] == second["true_gain"]
        assert math.isnan(first["eta"])
        assert math.isnan(first["n"])
    best = rows(result, method="best_of_n", seed=3)
    assert [row["n"] for row in best] == [1.001, 2.0, 8.0]
    assert all(math.isnan(row["beta"]) for row in best)


def test_limit_the_measured_slope_is_that_of_the_formula(result: LawsResult) -> None:
    for fit in result.fits.to_pylist():
        assert fit["measured_slope"] == pytest.approx(fit["initial_slope"], rel=0.01), fit


def test_property_the_fits_are_those_of_the_records(result: LawsResult) -> None:
    assert result.fits.num_rows == 5
    for row in result.fits.to_pylist():
        eta = {} if math.isnan(row["eta"]) else {"eta": row["eta"]}
        curve = rows(result, method=row["method"], **eta)
        d, gain = (
            np.array([point[name] for point in curve]).reshape(SEEDS, -1)
            for name in ("sqrt_kl", "true_gain")
        )
        assert row["law"] == curve_law(row["method"])
        fit = fit_law(d, gain, row["law"], seed=3, resamples=99)
        assert {name: row[name] for name in fit._fields} == fit._asdict()


def test_property_equal_configurations_give_equal_tables(result: LawsResult) -> None:
    small = LawsConfig(**{**vars(CONFIG), "methods": ["dpo"]})
    again = run_laws(small).records.to_pylist()
    assert str(again) == str(rows(result, method="dpo"))


@pytest.mark.slow
def test_limit_the_measured_slope_is_that_of_the_formula_for_every_method_and_class() -> None:
    study = LawsConfig(
        name="slopes",
        methods=["rpo", "vpo", "dpo", "two_stage", "ipo", "dpop", "chi_po", "best_of_n"],
        comparisons=[50, 1000],
        seeds=30,
        eta=[0.01, 0.3],
        reward_classes=["tabular", "linear"],
        beta=GeometricGrid(smallest=0.1, largest=300.0, count=3),
        best_of_n=[1.001, 2.0, 4.0],
        resamples=9,
        design={"actions": 6, "contexts": 3, "rare": 2, "reference": "data"},
    )
    for fit in run_laws(study).fits.to_pylist():
        assert fit["measured_slope"] == pytest.approx(fit["initial_slope"], rel=0.01), fit
