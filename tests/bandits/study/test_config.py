"""Configuration of a study: combinations of axes, quick sizes, and invalid values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bandits.environments.designs import Design, draw_design
from bandits.methods.base import FitContext
from bandits.methods.method_config import MethodConfig
from bandits.methods.registry import METHODS
from bandits.study.config import (
    QuickSizes,
    StudyConfig,
    choose_kernel,
    design_axes,
    expand_designs,
    expand_scenarios,
    expand_weights,
    resolved_config,
)
from bandits.study.continuation import SeedBlock
from rpo_theory.rewards import TabularBox


def study(**changed: Any) -> StudyConfig:
    fields: dict[str, Any] = {
        "name": "tiny",
        "methods": [MethodConfig(method="rpo")],
        "comparisons": [10, 100],
        "seeds": 3,
    }
    return StudyConfig(**{**fields, **changed})


def test_closed_form_scenarios_are_environments_times_designs_times_comparisons() -> None:
    both = study(
        environments=["design", "named:four_arms"],
        design={"target_coverage": [2.0, 3.0, 4.0], "actions": 6},
    )
    scenarios = expand_scenarios(both)
    assert len(scenarios) == 3 * 2 + 2
    assert {scenario.design.actions for scenario in scenarios} == {6}
    assert design_axes(both) == ["target_coverage"]


def test_closed_form_integers_become_floats_in_float_fields_of_the_design() -> None:
    (design,) = expand_designs(study(design={"target_coverage": 3, "rare": 1, "coverage_all": 9}))
    assert isinstance(design.target_coverage, float)
    assert isinstance(design.coverage_all, float)
    assert design.rare == 1


def test_closed_form_quick_sizes_replace_only_the_sizes_they_give() -> None:
    full = study(
        design={"target_coverage": [2.0, 3.0], "actions": 6},
        quick=QuickSizes(seeds=2, design={"target_coverage": 2.0}),
    )
    quick = full.quick_version()
    assert (quick.seeds, quick.comparisons) == (2, [10, 100])
    assert quick.design == {"target_coverage": 2.0, "actions": 6}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"comparisons": []}, "`comparisons` must have at least one value"),
        ({"methods": []}, "`methods` must have at least one value"),
        ({"eta": [0.1, 0.1]}, "`eta` must not repeat a value, got 0.1 twice"),
        ({"eta": [-0.1]}, "`eta` must be finite and at least 0, got -0.1"),
        ({"beta": [0.0]}, "`beta` must be finite and greater than 0, got 0.0"),
        ({"beta": [1e-320]}, "`beta` must be finite and at least 2.23e-308, got 1e-320"),
        ({"beta": [float("inf")]}, "`beta` must be finite"),
        ({"seeds": 0}, "`seeds` must be a whole number of at least 1, got 0"),
        ({"comparisons": [0]}, "`comparisons` must be between 1 and"),
        ({"delta": 0.5}, "`delta` must be greater than 0 and less than 1/e"),
        ({"name": "../up"}, "`name` must consist of letters"),
        ({"environments": ["named:nobody"]}, "`environments` must be 'design'"),
        ({"environments": ["votes:"]}, "`environments` must be 'design'"),
        ({"design": {"covrage": 2.0}}, "`design.covrage` is unknown"),
        (
            {"design": {"target_coverage": []}},
            "`design.target_coverage` must have at least one value",
        ),
        (
            {"design": {"target_coverage": "much"}},
            "`design.target_coverage` must be a number, got 'much'",
        ),
        ({"design": {"actions": 3.5}}, "`design.actions` must be a whole number"),
        ({"design": {"actions": True}}, "`design.actions` must be a whole number"),
        ({"design": {"reward": 3}}, "`design.reward` must be text"),
        ({"design": {"target_coverage": 0.5}}, "`target_coverage` must be at least 1"),
        (
            {"methods": [MethodConfig(method="dpo")] * 2},
            "`methods` must not repeat a value, got",
        ),
        (
            {"environments": ["named:four_arms"], "design": {"target_coverage": [2.0, 3.0]}},
            "`design.target_coverage` must not be a list",
        ),
    ],
)
def test_raises_for_an_invalid_value_with_the_name_of_its_key(
    changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        study(**changed)
    assert message in str(caught.value)


def test_raises_for_two_methods_with_one_label() -> None:
    same = [MethodConfig(method="rpo", label="a"), MethodConfig(method="dpo", label="a")]
    with pytest.raises(ValueError, match="`label` must differ"):
        study(methods=same)
    for label in ("", " "):
        with pytest.raises(ValueError, match="`label` must be printable text without"):
            MethodConfig(method="rpo", label=label)


def test_raises_for_an_unknown_method_and_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="`method` must be one of rpo, ") as caught:
        MethodConfig(method="ppo")
    assert all(name in str(caught.value) for name in METHODS)


def test_property_a_study_can_be_changed_by_dataclass_replacement() -> None:
    given = MethodConfig(method="rpo", options={"baseline": "given"})
    assert replace(study(), methods=[given]).method_configs[0].options.baseline == "given"


def test_closed_form_beta_varies_fastest_among_the_weights() -> None:
    study = StudyConfig(
        name="a",
        methods=[MethodConfig(method="rpo")],
        comparisons=[9],
        seeds=1,
        eta=[0.1, "theorem"],
        beta=[1.0, 2.0],
    )
    expected = [(0.1, 1.0), (0.1, 2.0), ("theorem", 1.0), ("theorem", 2.0)]
    assert [tuple(pair) for pair in expand_weights(study)] == expected


def test_closed_form_the_kernel_follows_from_the_number_of_fits_of_the_whole_study() -> None:
    few, many = study(seeds=1000), study(seeds=250_000)
    assert (choose_kernel(few).kernel, choose_kernel(many).kernel) == ("jax", "numba")
    assert resolved_config(many)["kernel"] == "numba"
    # Some seeds of the study, run by themselves, take the kernel of the whole study.
    assert SeedBlock(0, 10).study(choose_kernel(many)).kernel == "numba"
    assert choose_kernel(study(seeds=250_000, kernel="jax")).kernel == "jax"


def test_parity_methods_give_the_same_policies_with_either_kernel() -> None:
    rare, covered = (
        draw_design(Design(actions=3, rare=n_rare), 1000, np.arange(8)) for n_rare in (1, 0)
    )
    # At eta = 0 the rewards of actions that were hardly compared are nearly free.
    for name, draws, tolerance in (
        ("rpo", rare, 1e-9),
        ("two_stage", covered, 1e-6),
        ("chi_po", covered, 1e-6),
    ):
        arguments = draws.problem, draws.reward_class
        options = {"baseline": "given"} if name == "rpo" else {}
        first, second = (
            METHODS[name](
                *arguments,
                context=FitContext(kernel=kernel),
                **options,
            ).policy
            for kernel in ("jax", "numba")
        )
        assert first == pytest.approx(second, abs=tolerance)
        assert not np.array_equal(first, second), "both kernels have run"


def test_property_names_and_values_stand_for_python_objects() -> None:
    named = study(environments=["named:four_arms"], design={}, reward_class=TabularBox(2.0))
    assert named.environment_names == ["named:four_arms"]
    assert named.class_values == {"kind": "rpo_theory.rewards.box:TabularBox", "maximum": 2.0}
    assert study().class_values is None
