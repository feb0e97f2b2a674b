"""Parts of a study: sizes, order, and the draws they hold."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from bandits.environments.designs import Design, draw_design
from bandits.methods.method_config import MethodConfig
from bandits.study.config import StudyConfig
from bandits.study.parts import (
    PartPlan,
    ShapeGroup,
    class_of_study,
    draw_part,
    missing_for_bounds,
    plan_parts,
)
from rpo_theory.rewards import TabularBox, Unbounded

DESIGN = {
    "actions": 6,
    "rare": 2,
    "rare_comparisons": 1.0,
    "target_coverage": 1.5,
    "reward_max": 2.0,
}


def study(**changed: Any) -> StudyConfig:
    fields: dict[str, Any] = {
        "name": "tiny",
        "methods": [MethodConfig(method="dpo")],
        "comparisons": [9, 99],
        "seeds": 5,
        "design": DESIGN,
    }
    return StudyConfig(**{**fields, **changed})


def test_closed_form_parts_have_equal_sizes_and_every_draw_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 4)
    parts = plan_parts(study(first_seed=7))
    assert [part.number for part in parts] == [0, 1, 2]
    assert [len(part.seeds) for part in parts] == [4, 4, 4]
    assert [part.n_draws for part in parts] == [4, 4, 2]
    draws = [
        (part.scenarios[index].comparisons, seed)
        for part in parts
        for index, seed in zip(
            part.scenario_index[: part.n_draws].tolist(), part.seeds.tolist(), strict=False
        )
    ]
    assert draws == [(n, seed) for n in (9, 99) for seed in range(7, 12)]


def test_closed_form_a_part_is_bounded_by_its_win_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_COUNTS_PER_PART", 2 * 36 * 2)
    assert {part.n_draws for part in plan_parts(study(eta=[0.1, 0.2]))} == {2}


def test_property_scenarios_of_different_shapes_are_in_different_parts() -> None:
    parts = plan_parts(study(design={**DESIGN, "actions": [6, 7]}))
    assert [{scenario.design.actions for scenario in part.scenarios} for part in parts] == [
        {6},
        {7},
    ]


def test_parity_draws_of_a_part_are_the_same_as_single_draws() -> None:
    (part,) = plan_parts(study(comparisons=[9, 99], seeds=2, first_seed=5))
    batch = draw_part(part)
    draws = [(9, 5), (9, 6), (99, 5), (99, 6)]
    for index, (comparisons, seed) in enumerate(draws):
        single = draw_design(Design(**DESIGN), comparisons, np.array([seed]))
        for batch_leaf, leaf in zip(*map(jax.tree.leaves, (batch, single)), strict=True):
            np.testing.assert_array_equal(batch_leaf[index], leaf[0])


def test_extreme_two_billion_seeds_are_planned_in_constant_memory() -> None:
    plan = plan_parts(study(seeds=2_000_000_000, comparisons=[9]))
    assert len(plan) == 100_000
    assert plan.groups[0].n_draws == 2_000_000_000
    last = plan[-1]
    assert last.seeds[-1] == 1_999_999_999
    assert (last.number, last.n_draws) == (99_999, 20_000)
    assert [part.number for part in plan[7::40_000]] == [7, 40_007, 80_007]
    assert len(plan[1::2]) == 50_000


def test_closed_form_groups_of_shapes_are_numbered_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 4)
    plan = plan_parts(study(design={**DESIGN, "actions": [6, 7]}, comparisons=[9]))
    assert [group.n_parts() for group in plan.groups] == [2, 2]
    assert [plan.groups.index(plan.group_of(part.number)) for part in plan] == [0, 0, 1, 1]
    again = PartPlan(plan.study, [ShapeGroup(*group) for group in plan.groups])
    assert [part.number for part in again] == [0, 1, 2, 3]


def test_property_the_class_of_a_study_replaces_that_of_every_draw() -> None:
    values = {"kind": "tabular", "max": 0.5}
    (part,) = plan_parts(study(reward_class=values, eta=[0.1]))
    (unchanged,) = plan_parts(study(eta=[0.1]))
    given: Any = draw_part(part)
    usual: Any = draw_part(unchanged)
    assert np.asarray(given.reward_class.maximum).tolist() == [0.5] * 10
    assert np.asarray(usual.reward_class.maximum).tolist() == [2.0] * 10
    same = jax.tree.map(np.array_equal, given.problem, usual.problem)
    assert all(jax.tree.leaves(same))
    # By name, by values, and as an instance.
    box = study(reward_class=TabularBox(0.5), eta=[0.1])
    assert class_of_study(box) == TabularBox(np.array(0.5))
    named = study(reward_class="rpo_theory.rewards:Unbounded", eta=[0.1])
    assert class_of_study(named) == Unbounded()
    assert class_of_study(study()) is None


def test_raises_where_the_class_of_a_study_does_not_fit() -> None:
    kernel = {"kind": "kernel", "gram": np.eye(3).tolist(), "radius": 1.0}
    with pytest.raises(ValueError, match=r"`reward_class\.gram` must have shape"):
        plan_parts(study(reward_class=kernel, eta=[0.1]))
    with pytest.raises(ValueError, match="`eta` must be numbers, got 'theorem': Unbounded has no"):
        plan_parts(study(reward_class={"kind": "unbounded"}))
    assert missing_for_bounds(TabularBox(np.array(1.0))) == []
