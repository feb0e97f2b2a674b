"""Win rates of a study, and their estimates from a second log."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bandits.environments.designs import Design, draw_design
from bandits.methods.method_config import MethodConfig
from bandits.methods.registry import METHODS
from bandits.study.config import StudyConfig
from bandits.study.win_rates import draw_log, measure_win_rates
from rpo import api

SEEDS = np.arange(200)
DRAWS = draw_design(Design(actions=3, label_noise=0.1, target_coverage=1.5), 400, SEEDS)
NOISE, N = np.full(200, 0.1), np.full(200, 400.0)


def test_property_estimates_are_unbiased_for_fitted_policies() -> None:
    log = draw_log(DRAWS, SEEDS, N, NOISE)
    assert (log.sum(axis=(1, 2, 3)) == 400).all()
    assert not np.array_equal(log, DRAWS.problem.wins)
    fit = METHODS["two_stage"](DRAWS.problem, DRAWS.reward_class)
    columns = measure_win_rates(fit, DRAWS, log, NOISE)
    for name in ("win_rate_ips", "win_rate_dr"):
        error = columns[name] - columns["win_rate"]
        assert abs(error.mean()) < 5 * error.std() / np.sqrt(len(error))
    assert (columns["effective_sample_size"] <= 400).all()


def test_closed_form_the_true_rate_of_the_baseline_against_itself_is_one_half() -> None:
    baseline = np.asarray(DRAWS.problem.baseline_policy)
    fit = METHODS["two_stage"](DRAWS.problem, DRAWS.reward_class)._replace(policy=baseline)
    columns = measure_win_rates(fit, DRAWS, draw_log(DRAWS, SEEDS, N, NOISE), NOISE)
    for name in ("win_rate", "win_rate_ips", "win_rate_snips", "win_rate_dr"):
        np.testing.assert_allclose(columns[name], 0.5, atol=1e-12)


def test_property_a_study_has_the_columns_of_its_win_rates(tmp_path: Path) -> None:
    method = MethodConfig(method="two_stage")
    sizes = {"comparisons": [60, 90], "seeds": 3, "design": {"actions": 3}}
    study = StudyConfig(name="a", methods=[method, "behavior_cloning"], win_rates=True, **sizes)
    rows = api.study(study, out=tmp_path / "out").records.to_pylist()
    assert all(0.0 <= row["win_rate"] <= 1.0 for row in rows)
    # Behavior cloning has no reward, and no doubly robust estimate.
    assert {row["win_rate_dr"] is None for row in rows if row["label"] == "two_stage"} == {False}
    assert {row["win_rate_dr"] for row in rows if row["label"] != "two_stage"} == {None}
