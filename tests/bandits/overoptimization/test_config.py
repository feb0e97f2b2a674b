"""Claims about the configuration of the laws study: every mistake is named, quick sizes apply."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bandits.overoptimization import GeometricGrid, LawsConfig, LawsQuickSizes, count_fits
from rpo_io.config_types import build

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def config(**changes: Any) -> LawsConfig:
    values: dict[str, Any] = {"name": "a", "methods": ["rpo"], "comparisons": [50], "seeds": 2}
    return LawsConfig(**{**values, **changes})


def test_closed_form_the_grid_of_beta_is_geometric_from_the_largest() -> None:
    values = GeometricGrid(smallest=0.01, largest=100.0, count=5).values()
    np.testing.assert_allclose(values, [100.0, 10.0, 1.0, 0.1, 0.01], rtol=1e-12)


def test_closed_form_the_number_of_fits_counts_eta_only_where_it_is_used() -> None:
    study = config(
        methods=["rpo", "dpo", "best_of_n"],
        eta=[0.1, 0.2],
        comparisons=[10, 20],
        reward_classes=["tabular", "linear"],
        beta=GeometricGrid(count=4),
    )
    assert count_fits(study) == 2 * 2 * 2 * (2 * 4 + 4 + 1)


def test_property_quick_sizes_replace_those_of_the_study() -> None:
    quick = LawsQuickSizes(seeds=1, comparisons=[9], eta=[0.5], beta_count=3, resamples=7)
    small = config(quick=quick, design={"actions": 4}).quick_version()
    assert (small.seeds, small.comparisons, small.eta) == (1, [9], [0.5])
    assert (small.beta.count, small.resamples) == (3, 7)
    assert small.quick == LawsQuickSizes()
    assert small.design == {"actions": 4}
    assert config(quick=LawsQuickSizes(comparisons=[9])).quick_version().seeds == 2


def test_roundtrip_the_study_of_the_project_is_plain_values() -> None:
    values = yaml.safe_load((CONFIGS / "study_laws.yaml").read_text("utf-8"))
    assert values.pop("kind") == "laws"
    study = build(LawsConfig, values)
    assert study.name == "laws"
    assert study.quick_version().seeds < study.seeds
    assert build(LawsConfig, yaml.safe_load(yaml.safe_dump(dataclasses.asdict(study)))) == study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b!"}, r"`name` must consist of letters, digits"),
        ({"methods": ["rop"]}, r"`method` must be one of rpo, .*, got 'rop': did you mean rpo"),
        ({"methods": ["greedy_mle"]}, r"`methods` must use beta and approach .*, got 'greedy_mle'"),
        ({"methods": []}, r"`methods` must have at least one value, got an empty list"),
        ({"methods": ["rpo", "rpo"]}, r"`methods` must not repeat a value, got rpo twice"),
        ({"comparisons": [0]}, r"`comparisons` must be at least 1 and less than .*, got 0"),
        ({"eta": [-0.1]}, r"`eta` must be at least 0 and finite, got -0.1"),
        ({"eta": [float("nan")]}, r"`eta` must be at least 0 and finite, got nan"),
        ({"best_of_n": [0.5, 1.0, 2.0]}, r"`best_of_n` must be at least 1 and finite, got 0.5"),
        (
            {"methods": ["best_of_n"], "best_of_n": [2.0, 3.0]},
            r"`best_of_n` must have at least 3 values",
        ),
        ({"seeds": 0}, r"`seeds` must be at least 1"),
        ({"resamples": 0}, r"`resamples` must be at least 1"),
        ({"confidence": 1.0}, r"`confidence` must be between 0 and 1, got 1.0"),
        ({"seeds": 2**30}, r"`seeds` and the axes must give at most 100,000,000 fits"),
        ({"design": {"reward": "linear"}}, r"`design.reward` must not be given: list it"),
        ({"design": {"action": 4}}, r"`design.action` is unknown: did you mean actions\?"),
        ({"design": {"actions": "four"}}, r"`design.actions` must be a whole number, got 'four'"),
        ({"design": {"actions": [4, 5]}}, r"`design.actions` must be a whole number"),
        ({"design": {"rare": 9}}, r"`rare` must leave two responses"),
        ({"quick": LawsQuickSizes(seeds=0)}, r"the sizes under `quick`: `seeds` must be"),
    ],
)
def test_raises_for_a_study_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smallest": 0.0}, r"`beta` must be finite numbers with 0 < smallest < largest"),
        ({"smallest": 2.0, "largest": 1.0}, r"`beta` must be finite numbers"),
        ({"count": 2}, r"`beta.count` must be at least 3, got 2"),
    ],
)
def test_raises_for_a_grid_that_is_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricGrid(**changes)
