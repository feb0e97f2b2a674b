"""Runs of studies: records are correct and depend on the configuration alone."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from bandits.environments.designs import Design, draw_design
from bandits.methods.method_config import MethodConfig
from bandits.methods.registry import METHODS
from bandits.study import run as study_run
from bandits.study.config import (
    StudyConfig,
    count_fits,
    expand_weights,
    resolved_config,
)
from bandits.study.metrics import compute_bound_inputs
from bandits.study.parts import draw_part, plan_parts
from bandits.study.record_table import TableBuilder, WeightValues, record_table
from bandits.study.records import RecordStore
from bandits.study.summary import count_violations, summarize

GIVEN = {"baseline": "given"}
DESIGN = {
    "actions": 6,
    "rare": 2,
    "rare_comparisons": 1.0,
    "target_coverage": 1.5,
    "reward_max": 2.0,
}
SCIPY_POLICY = 1e-4  # L-BFGS-B stops at gradients of 1e-9, at a curvature of about 1e-4
SAME_ANSWER = 1e-6  # tolerance of the solvers, in probabilities


def study(**changed: Any) -> StudyConfig:
    fields: dict[str, Any] = {
        "name": "tiny",
        "methods": [
            MethodConfig(method="rpo", options=GIVEN),
            MethodConfig(method="dpo"),
            MethodConfig(method="behavior_cloning"),
        ],
        "comparisons": [100, 1000],
        "seeds": 4,
        "design": DESIGN,
    }
    return StudyConfig(**{**fields, **changed})


def run(config: StudyConfig, folder: Path) -> pa.Table:
    folder.mkdir(exist_ok=True)
    store = RecordStore(folder, resolved_config(config))
    parts = plan_parts(config)
    assert len(list(study_run.run_parts(config, store, parts))) == len(parts)
    store.merge(len(parts))
    return store.read_table()


def rows(table: pa.Table, **wanted: Any) -> list[dict[str, Any]]:
    return [
        row
        for row in table.to_pylist()
        if all(row[name] == value for name, value in wanted.items())
    ]


def scipy_policy(design: Design, n: int, seed: int, eta: float, beta: float) -> np.ndarray:
    """Return the RPO policy that SciPy finds for the reward, eq. 4.4 over the box."""
    instance = draw_design(design, n, np.array([seed]))
    wins = instance.problem.wins[0, 0]
    base, ref = instance.problem.baseline_policy[0, 0], instance.problem.reference_policy[0, 0]
    n_wins = wins.sum()

    def objective(reward: np.ndarray) -> tuple[float, Any]:
        margins = reward[:, None] - reward[None, :]
        fit = np.sum(wins * np.logaddexp(0.0, -margins)) / n_wins
        gradient = wins * expit(-margins) / n_wins
        log_z = np.asarray(logsumexp(reward / beta, b=ref))
        policy = ref * np.exp(reward / beta - log_z)
        value = eta * (beta * log_z - base @ reward) + fit
        return float(value), eta * (policy - base) - gradient.sum(axis=1) + gradient.sum(axis=0)

    start = np.full(len(base), 0.5 * design.reward_max)
    box = [(0.0, design.reward_max)] * len(base)
    options = {"ftol": 0.0, "gtol": 1e-9, "maxiter": 20_000, "maxfun": 20_000}
    for _ in range(5):  # a restart discards the curvature estimate it stalled on
        solution = minimize(
            objective, start, jac=True, method="L-BFGS-B", bounds=box, options=options
        )
        start = solution.x
    logits = start / beta
    return np.asarray(ref * np.exp(logits - np.asarray(logsumexp(logits, b=ref))))


def test_parity_the_recorded_gap_of_rpo_is_that_of_scipy(tmp_path: Path) -> None:
    config = study(eta=[0.02, "theorem"], beta=[0.1])
    table = run(config, tmp_path / "study")
    for row in rows(table, method="rpo"):
        policy = scipy_policy(
            Design(**DESIGN), row["comparisons"], row["seed"], row["eta"], row["beta"]
        )
        truth = draw_design(
            Design(**DESIGN), row["comparisons"], np.array([row["seed"]])
        ).true_reward
        gap = truth.max() - policy @ truth[0, 0]
        assert row["gap"] == pytest.approx(gap, abs=SCIPY_POLICY)
        assert row["kl"] == pytest.approx(policy @ np.log(6 * policy), abs=10 * SCIPY_POLICY)


def test_closed_form_the_bound_of_a_record_is_the_sum_of_its_terms(tmp_path: Path) -> None:
    table = run(study(), tmp_path / "study")
    for row in rows(table, method="rpo"):
        kappa = (1 + np.exp(2.0)) ** -2
        n, eta = row["comparisons"], row["eta"]
        cover = 6 * np.log(np.ceil(2.0 * 6 * (1 + np.exp(2.0)) * n / 2))
        iota = np.sqrt(cover - np.log(0.05))
        assert row["complexity"] == pytest.approx(iota)
        assert eta == pytest.approx(kappa * np.sqrt(24) * iota / np.sqrt(n))
        assert row["beta"] == pytest.approx(n**-0.5)
        assert row["bound_coverage"] == pytest.approx(1.5**2 * eta / (4 * kappa**2))
        assert row["bound_complexity"] == pytest.approx(3 * iota**2 / (eta * n))
        assert row["bound_kl"] == pytest.approx(np.log(6) / np.sqrt(n))
        terms = row["bound_coverage"] + row["bound_complexity"] + row["bound_kl"]
        assert row["bound"] == pytest.approx(terms)
    assert all(row["bound"] is None for row in rows(table, method="dpo"))


def test_property_every_fit_has_one_record_with_its_keys(tmp_path: Path) -> None:
    config = study(
        eta=[0.1, 0.2], beta=[0.5, "theorem"], design={**DESIGN, "target_coverage": [1.5, 3.0]}
    )
    table = run(config, tmp_path / "study")
    assert table.num_rows == count_fits(config) == 3 * 2 * 2 * 2 * 2 * 4
    names = ("label", "comparisons", "eta_rule", "beta_rule", "design.target_coverage", "seed")
    keys = {tuple(row[name] for name in names) for row in table.to_pylist()}
    assert len(keys) == table.num_rows
    assert set(table["status"].to_pylist()) == {"SOLVED"}


def test_property_methods_ignore_the_weights_they_are_listed_without() -> None:
    instance = draw_design(Design(**DESIGN), 100, np.arange(2))
    for name, method in METHODS.items():
        if method.uses_eta and method.uses_beta:
            continue
        options: dict[str, Any] = (
            {"baseline": "given"} if hasattr(method.options(), "baseline") else {}
        )
        answers = []
        for weight in (0.05, 0.4):
            number = np.full(2, weight)
            problem = instance.problem
            problem = problem._replace(eta=number) if not method.uses_eta else problem
            problem = problem._replace(beta=number) if not method.uses_beta else problem
            answers.append(method(problem, instance.reward_class, **options).policy)
        np.testing.assert_allclose(*answers, atol=SAME_ANSWER, err_msg=name)


def test_roundtrip_an_interrupted_study_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 3)
    config = study(environments=["design", "named:four_arms"])
    run(config, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    store = RecordStore(tmp_path / "cut", resolved_config(config))
    parts = plan_parts(config)
    assert len(parts) == 6
    for part, _ in zip(study_run.run_parts(config, store, parts), range(2), strict=False):
        assert store.has_part(part.number)
    again = RecordStore(tmp_path / "cut", resolved_config(config))
    again.check(resume=True)
    list(study_run.run_parts(config, again, parts))
    again.merge(len(parts))
    paths = [tmp_path / name / "records.parquet" for name in ("whole", "cut")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_property_records_do_not_depend_on_the_size_of_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study()
    whole = run(config, tmp_path / "whole").to_pylist()
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 3)
    split = run(config, tmp_path / "split").to_pylist()
    names = ("label", "comparisons", "seed")
    row_of_key = {tuple(row[name] for name in names): row for row in split}
    assert all(row == row_of_key[tuple(row[name] for name in names)] for row in whole)


@pytest.mark.parametrize("size", [7, 10**6])
def test_closed_form_means_and_intervals_are_over_the_seeds(tmp_path: Path, size: int) -> None:
    table = run(study(), tmp_path / "study")
    # The number of rows in memory at a time makes no difference.
    summary = summarize(table.slice(first, size) for first in range(0, len(table), size))
    for index, label in enumerate(summary["label"]):
        n = int(summary["comparisons"][index])
        gaps = [row["gap"] for row in rows(table, label=label, comparisons=n)]
        half = 1.959964 * np.std(gaps, ddof=1) / np.sqrt(len(gaps))
        assert summary["seeds"][index] == len(gaps)
        assert summary["gap"][index] == pytest.approx(np.mean(gaps))
        assert summary["gap_high"][index] - np.mean(gaps) == pytest.approx(half)


def test_golden_gaps_on_named_instances_are_those_computed_by_hand(
    tmp_path: Path,
) -> None:
    methods = [
        MethodConfig(method="dpo"),
        *(
            MethodConfig(method="rpo", options={"baseline": baseline})
            for baseline in ("chosen", "given", "reference", "data_marginal")
        ),
    ]
    config = study(
        methods=methods,
        environments=[
            "named:four_arms",
            "named:type_i_hacking",
            "named:type_ii_hacking",
            "named:ghost_arm",
        ],
        design={},
        comparisons=[100, 1000],
        seeds=1,
        eta=["given"],
        beta=["given"],
    )
    table = run(config, tmp_path / "study")
    expected = {
        ("four_arms", "rpo, given", 100): 0.1195,
        ("four_arms", "rpo, given", 1000): 0.053,
        ("four_arms", "rpo, chosen", 100): 1.04,
        ("type_i_hacking", "dpo", 100): 1.00,
        ("type_i_hacking", "rpo, chosen", 100): 0.080,
        ("type_i_hacking", "rpo, chosen", 1000): 0.018,
        ("type_i_hacking", "rpo, data_marginal", 100): 0.082,
        ("type_i_hacking", "rpo, reference", 100): 0.392,
        ("type_i_hacking", "rpo, reference", 1000): 0.349,
        ("type_ii_hacking", "dpo", 100): 0.501,
        ("type_ii_hacking", "rpo, chosen", 100): 0.505,
        ("type_ii_hacking", "rpo, reference", 100): 0.225,
        ("ghost_arm", "rpo, given", 100): 0.02765,
        ("ghost_arm", "dpo", 100): 0.2817,  # .5 e^5 to .005 e^10 to .495 e^3.7215
    }
    for (name, label, n), gap in expected.items():
        (row,) = rows(table, environment=f"named:{name}", label=label, comparisons=n)
        assert row["gap"] == pytest.approx(gap, abs=0.006 if gap > 1 else 6e-4), (name, label, n)


def test_theorem_the_corrected_bound_holds_on_random_draws(tmp_path: Path) -> None:
    config = study(
        methods=[MethodConfig(method="rpo", options=GIVEN)],
        comparisons=[1, 10, 1000],
        seeds=100,
        design={
            **DESIGN,
            "target_coverage": [2.0, 8.0],
            "reward_max": [0.2, 1.0],
            "rare_comparisons": 0,
        },
    )
    counts = {row["form"]: row for row in count_violations([run(config, tmp_path / "study")])}
    assert counts["bound"]["draws"] == 3 * 2 * 2 * 100
    assert counts["bound"]["violations"] <= 0.05 * counts["bound"]["draws"]
    assert 0.0 < counts["bound"]["ratio"] < counts["bound_printed"]["ratio"]


def test_closed_form_violations_are_counted() -> None:
    table = pa.table(
        {
            "label": pa.array(["a", "a", "b"]).dictionary_encode(),
            "gap": [1.0, 3.0, 9.0],
            "bound": [2.0, 2.0, None],
            "bound_tight": [None, 1.0, None],
            "bound_printed": pa.array([None, None, None], pa.float64()),
        }
    )
    corrected, tight = count_violations(table.slice(first, 2) for first in range(0, len(table), 2))
    assert corrected == {"label": "a", "form": "bound", "draws": 2, "violations": 1, "ratio": 1.5}
    assert (tight["form"], tight["draws"], tight["ratio"]) == ("bound_tight", 1, 3.0)


def test_property_a_part_has_one_record_per_draw_and_one_timing_per_method() -> None:
    config = study(methods=[MethodConfig(method="behavior_cloning")])
    (part,) = plan_parts(config)
    instance = draw_part(part)
    records, times = study_run.run_part(config, part, instance)
    assert records["comparisons"].to_pylist() == [100.0] * 4 + [1000.0] * 4
    assert records["seed"].to_pylist() == [0.0, 1.0, 2.0, 3.0] * 2
    truth, best = np.asarray(instance.true_reward), np.asarray(instance.comparator)
    wins = np.asarray(instance.problem.wins).sum(axis=3)
    cloned = wins / wins.sum(axis=2, keepdims=True)
    gaps = ((best - cloned) * truth).sum(axis=(1, 2))
    np.testing.assert_allclose(records["gap"].to_numpy(), gaps, atol=1e-12)
    assert times["what"].to_pylist() == ["bound_inputs", "behavior_cloning"]
    assert times["fits"].to_pylist() == [8, 8]


def test_closed_form_the_run_estimate_extrapolates_from_trial_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = study(methods=[MethodConfig(method="behavior_cloning")], comparisons=[9, 99], seeds=8)
    clock = itertools.count(step=2.0)  # the two readings per shape are 2 s apart
    monkeypatch.setattr(study_run.time, "perf_counter", clock.__next__)
    monkeypatch.setattr(study_run, "run_part", lambda *_: None)
    monkeypatch.setattr(study_run, "TRIAL_DRAWS", 4)
    estimate = study_run.estimate_run(config, plan_parts(config))
    assert estimate.seconds == 2.0 * 16 / 4
    assert estimate.fits == 4
    # The largest part counts: the last one of a shape may be small.
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 7)
    uneven = plan_parts(config)
    assert [part.n_draws for part in uneven] == [6, 6, 4]
    largest = study_run.ARRAYS_PER_FIT * 8 * 6 * DESIGN["actions"] ** 2
    assert study_run.estimate_run(config, uneven).bytes == largest
    assert estimate.bytes == study_run.ARRAYS_PER_FIT * 8 * 16 * DESIGN["actions"] ** 2


def test_limit_bounds_that_are_infinite_are_summarized_without_a_warning() -> None:
    columns = {"gap": [1.0, 3.0, 5.0], "bound": [np.inf, np.inf, 7.0], "bound_tight": [2.0] * 3}
    names = ["label", "environment", "eta_rule", "beta_rule"]
    strings = {name: pa.array(["a", "a", "b"]).dictionary_encode() for name in names}
    numbers = {"comparisons": [9.0] * 3, "eta": [0.0] * 3, "beta": [1.0] * 3}
    numbers |= {"design.target_coverage": [2.0] * 3} | columns
    table = pa.table(strings | numbers)
    for size in (1, 3):  # a cell in several pieces, and in one
        summary = summarize(table.slice(first, size) for first in range(0, 3, size))
        assert summary["bound"].tolist() == [np.inf, 7.0]
        assert summary["gap"].tolist() == [2.0, 5.0]
        assert np.isnan(summary["bound_low"][0])


def test_property_a_first_study_with_rare_responses_shows_what_misleads_dpo() -> None:
    config = study(
        methods=[MethodConfig(method="rpo"), MethodConfig(method="dpo")],
        comparisons=[1000],
        seeds=60,
        design={"actions": 6, "rare": 2},
    )
    (part,) = plan_parts(config)
    records, _ = study_run.run_part(config, part, draw_part(part))
    summary = summarize([records])
    gap = dict(zip(summary["label"], summary["gap"], strict=True))
    assert gap["rpo"] < gap["dpo"]


def test_closed_form_a_record_table_has_one_row_per_draw_with_its_weights_and_its_fit() -> None:
    config = study(seeds=3, comparisons=[100])
    (part,) = plan_parts(config)
    instance = draw_part(part)
    n = len(part.scenario_index)
    inputs = compute_bound_inputs(instance, np.full(n, 100.0), config.delta)
    values = WeightValues(np.linspace(0.1, 0.2, n), np.full(n, 0.5))
    (pair,) = expand_weights(config)
    fit = METHODS["dpo"](
        instance.problem._replace(eta=values.eta, beta=values.beta),
        instance.reward_class,
    )
    measured = {"gap": np.arange(float(n))}
    table = record_table(config, part, 1, pair, values, inputs, measured, fit)
    assert len(table) == part.n_draws == 3
    assert set(table["method"].to_pylist()) == {"dpo"}
    assert table["eta"].to_pylist() == values.eta[:3].tolist()
    assert table["beta"].to_pylist() == [0.5] * 3
    assert table["gap"].to_pylist() == [0.0, 1.0, 2.0]
    assert table["bound"].null_count == 3


def test_closed_form_texts_of_a_record_table_are_null_if_empty() -> None:
    table = TableBuilder(2)
    table.add_texts("message", ["", "no policy"])
    assert table.build()["message"].to_pylist() == [None, "no policy"]


def test_roundtrip_a_part_moves_with_its_timings(tmp_path: Path) -> None:
    config = study(seeds=2, comparisons=[100])
    first, second = (RecordStore(tmp_path / name, resolved_config(config)) for name in "ab")
    for store in (first, second):
        store.folder.mkdir()
    (part,) = plan_parts(config)
    first.write_part(0, *study_run.run_part(config, part, draw_part(part)))
    first.move_part(0, second)
    assert (first.has_part(0), second.has_part(0)) == (False, True)
    second.merge(1)
    assert second.is_finished()
