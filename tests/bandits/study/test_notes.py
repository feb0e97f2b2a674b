"""Keys of a study are used, refused, or listed because they have no effect."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandits.environments.designs import Design, draw_design
from bandits.methods.method_config import MethodConfig
from bandits.study.config import StudyConfig
from bandits.study.notes import study_notes
from rpo_io.config_types import build

NEW_VALUES: dict[str, Any] = {
    "contexts": 2,
    "actions": 7,
    "reward": "linear",
    "gaps": "log_uniform",
    "features": 3,
    "misspecification": 0.2,
    "reward_max": 3.0,
    "target_coverage": 3.0,
    "rare": 2,
    "coverage_all": 20.0,
    "rare_comparisons": 2.0,
    "imbalance": 4.0,
    "missing_edges": 0.5,
    "reference": "data",
    "label_noise": 0.3,
    "prompts_shift": 0.7,
}


def study(**changed: Any) -> StudyConfig:
    plain = {"name": "a", "methods": ["rpo"], "comparisons": [60], "seeds": 2}
    return build(StudyConfig, plain | changed)


def named(notes: tuple[str, ...]) -> set[str]:
    return {note.split("`")[1] for note in notes} - {"bound*"}


@pytest.mark.parametrize("name", [name for name in NEW_VALUES if name != "features_file"])
@pytest.mark.parametrize("base", [{}, {"reward": "linear", "rare": 2, "contexts": 2}])
def test_property_a_field_of_the_design_is_listed_if_and_only_if_it_changes_nothing(
    name: str, base: dict[str, Any]
) -> None:
    assert set(NEW_VALUES) == {item.name for item in fields(Design)} - {"features_file"}
    value: Any = "tabular" if base.get(name) == "linear" else NEW_VALUES[name]
    value = 3 if name in ("rare", "contexts") else value
    changed = base | {name: value}
    draws = [draw_design(Design(**design), 60, np.arange(3)) for design in (base, changed)]
    arrays = [(draw.problem, draw.true_reward, draw.reward_class) for draw in draws]
    leaves = [[np.asarray(leaf) for leaf in jax.tree.leaves(each)] for each in arrays]
    same = all(
        first.shape == second.shape and (first == second).all()
        for first, second in zip(*leaves, strict=False)
    )
    assert (f"design.{name}" in named(study_notes(study(design=changed)))) == same


def test_closed_form_rare_responses_that_are_never_compared_are_pointed_out() -> None:
    for design in (
        {"rare": 2, "rare_comparisons": 0},
        {"rare": [0, 2], "rare_comparisons": [0, 1.0]},
    ):
        (note,) = study_notes(study(design=design))
        assert note.startswith("`design.rare_comparisons` is 0, so the rare responses are never")
    for design in (
        {"rare": 2},
        {"rare": 2, "coverage_all": 9.0},
        {"rare": 2, "rare_comparisons": 1},
    ):
        assert study_notes(study(design=design)) == ()


@pytest.mark.parametrize(
    ("changed", "keys"),
    [
        ({"eta": [0.1, 0.2], "methods": ["rpo"]}, set()),
        ({"eta": [0.1, 0.2], "methods": ["dpo", "ipo"]}, {"eta"}),
        ({"eta": [0.1], "methods": ["two_stage"]}, {"eta"}),
        ({"eta": [0.1, 0.2], "methods": ["rpo", "dpo"]}, {"eta"}),
        ({"beta": [0.1, 0.2], "methods": ["rpo", "greedy_mle"]}, {"beta"}),
        ({"beta": [0.1, 0.2], "methods": ["rpo", "dpo"]}, set()),
        ({"methods": ["dpo"]}, set()),
        ({"design": {"actions": 3, "imbalance": 5.0, "missing_edges": 0.1}}, {"design.imbalance"}),
        ({"design": {"actions": 4, "rare": 2, "missing_edges": 0.1}}, {"design.missing_edges"}),
        ({"design": {"actions": [3, 4], "imbalance": 5.0}}, set()),
        ({"environments": ["named:four_arms"], "design": {"actions": 3}}, {"design.actions"}),
        (
            {"environments": ["votes:v.csv"], "design": {"rare": 1, "label_noise": 0.1}},
            {"design.rare"},
        ),
        (
            {"design": {"features_file": "f.npy", "features": 3, "reward": "linear"}},
            {"design.features"},
        ),
        (
            {"eta": [0.1, 0.2], "methods": [{"method": "vpo", "options": {"vpo_alpha": 0.1}}]},
            {"eta"},
        ),
    ],
)
def test_closed_form_keys_without_effect_are_listed(
    changed: dict[str, Any], keys: set[str]
) -> None:
    assert named(study_notes(study(**changed))) == keys


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"kind": "tabular", "max": 1.0}, "null where the true reward is not in `reward_class`"),
        (
            {"kind": "examples.budget:Budget", "budget": 2.0},
            "null: examples.budget:Budget has no `log_covering_number`",
        ),
    ],
)
def test_closed_form_the_reason_of_missing_bounds(values: dict[str, Any], reason: str) -> None:
    (note,) = study_notes(study(reward_class=values, eta=[0.1]))
    assert reason in note


@settings(deadline=None, max_examples=30)
@given(
    st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=10),
    st.sampled_from([None, "design", "quick", "methods"]),
    st.sampled_from([3, 0.5, "text", [1, 2], {"a": 1}]),
)
def test_property_a_further_key_of_a_study_is_used_refused_or_listed(
    key: str, parent: str | None, value: Any
) -> None:
    config: dict[str, Any] = {"comparisons": [60], "name": "a", "seeds": 2}
    config |= {"design": {}, "quick": {}, "methods": [{"method": "rpo"}]}
    target = config if parent is None else config[parent]
    target = target[0] if isinstance(target, list) else target
    known = key in target
    target[key] = value
    message, notes = "", ()
    try:
        notes = study_notes(build(StudyConfig, config))
    except ValueError as error:
        message = str(error)
    is_field = key in StudyConfig.__dataclass_fields__ or key in Design.__dataclass_fields__
    assert key in message or known or is_field or any(key in note for note in notes)


def test_roundtrip_a_name_stands_for_a_method_with_its_defaults() -> None:
    mixed = study(methods=["rpo", {"method": "dpo", "label": "mine"}, "ipo"])
    assert mixed.methods == [
        MethodConfig(method="rpo"),
        MethodConfig(method="dpo", label="mine"),
        MethodConfig(method="ipo"),
    ]
    for name, hint in (("dop", "did you mean dpop"), ("RPO", "did you mean rpo"), ("xyz", "rpo, ")):
        with pytest.raises(ValueError, match=hint):
            study(methods=[name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": 2**31}, "`seeds` must be a whole number below 2^31, got 2147483648"),
        ({"seeds": -1}, "`seeds` must be a whole number of at least 1, got -1"),
        ({"first_seed": 2**40}, "`first_seed` must be a whole number below 2^31"),
        ({"comparisons": [10**16]}, "`comparisons` must be between 1 and 10^15"),
        ({"design": {"actions": 10**6}}, "`actions` must give at most 50,000,000 numbers"),
        ({"design": {"contexts": 10**9}}, "`actions` must give at most 50,000,000 numbers"),
        ({"design": {"features": 10**9}}, "`features` must give at most 50,000,000 numbers"),
        ({"design": {"imbalance": 1e300}}, "`design.imbalance` must be less than 1e+15 in size"),
        ({"design": {"rar": 1}}, "`design.rar` is unknown: did you mean rare?"),
        ({"quick": {"seeds": 0}}, "the sizes under `quick`: `seeds` must be a whole number"),
        ({"quick": {"design": {"rare": 30}}}, "the sizes under `quick`: `rare` must leave two"),
    ],
)
def test_raises_for_numbers_out_of_range_by_key(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        study(**changed)
    assert message in str(raised.value)


def test_closed_form_reasons_for_bounds_that_are_left_out_are_listed() -> None:
    assert not any("bound*" in note for note in study_notes(study()))
    noisy = study_notes(study(design={"label_noise": [0.0, 0.5]}))
    assert any("null where design.label_noise is above 0" in note for note in noisy)
    outside = study_notes(study(design={"reward": "linear", "misspecification": 0.2}))
    assert any("null where design.misspecification is above 0" in note for note in outside)
    unbounded = study_notes(
        study(methods=[{"method": "rpo", "options": {"rewards": "unbounded"}}, "dpo"])
    )
    assert any("`bound*` of methods[0] are null" in note for note in unbounded)


def test_property_columns_of_votes_that_are_not_read_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "v.csv"
    path.write_text("context,winner,loser,count,judge\nq,a,b,3,me\n")
    notes = study_notes(study(environments=[f"votes:{path}"], design={}))
    assert notes == (f"{path}: Columns passed over: judge.",)
