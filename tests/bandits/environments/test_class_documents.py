"""Reward classes in problem files: the JSON forms, and classes of the user's own modules."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import rpo_theory as rt
from bandits.environments.class_documents import (
    class_document,
    class_from_values,
    class_values,
    read_class,
)
from rpo import api
from rpo.cli import main
from rpo.solving.tasks import task_from_problem
from rpo_io.json_document import document_from_values

GOOD: dict[str, Any] = {
    "context_weights": [1],
    "reference_policy": [[0.5, 0.3, 0.2]],
    "baseline_policy": "chosen",
    "comparisons": [[0, 0, 1, 6], [0, 1, 0, 4], [0, 2, 0, 1]],
    "beta": 0.3,
    "eta": 0.3,
    "reward_class": {"kind": "tabular", "max": 4},
}
DISTANCE = [[0, 1, 3], [1, 0, 2], [3, 2, 0]]
MODULE = """
from typing import Any, NamedTuple

import jax.numpy as jnp

print("imported")


class Ball(NamedTuple):
    radius: Any

    def project(self, reward):
        norm = jnp.linalg.norm(reward)
        return reward * jnp.minimum(1.0, self.radius / jnp.where(norm > 0, norm, 1.0))

    def linear_minimizer(self, direction):
        norm = jnp.linalg.norm(direction)
        return direction * (-self.radius / jnp.where(norm > 0, norm, 1.0))
"""


def problem(reward_class: Any) -> dict[str, Any]:
    return copy.deepcopy(GOOD) | {"reward_class": reward_class}


@pytest.mark.parametrize(
    ("document", "expected", "written"),
    [
        (
            {"kind": "lipschitz", "constant": 0.5, "max": 2, "distance": DISTANCE},
            rt.Lipschitz(np.array(0.5), np.array(DISTANCE, float), np.array(2.0)),
            {"kind": "lipschitz", "constant": 0.5, "max": 2.0},
        ),
        (
            {"kind": "lipschitz", "constant": 0.5, "max": 2, "embedding": [[[0], [1], [3]]]},
            rt.Lipschitz(np.array(0.5), np.array(DISTANCE, float), np.array(2.0)),
            {"kind": "lipschitz", "constant": 0.5, "max": 2.0},
        ),
        (
            {"kind": "polytope", "matrix": [[[1, -1, 0]]], "limits": [0.5], "max": 2},
            rt.Polytope(np.array([[[1.0, -1.0, 0.0]]]), np.array([0.5]), np.array(2.0)),
            {"kind": "polytope", "max": 2.0},
        ),
        (
            {"kind": "kernel", "gram": [[2, 1, 0], [1, 2, 0], [0, 0, 1]], "radius": 1.5},
            rt.KernelBall(np.array([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]]), np.array(1.5)),
            {"kind": "kernel", "radius": 1.5},
        ),
    ],
)
def test_roundtrip_the_forms_of_the_built_in_classes(
    document: Any, expected: Any, written: dict[str, Any]
) -> None:
    reward_class = task_from_problem(problem(document)).reward_class
    assert type(reward_class) is type(expected)
    fields = zip(cast(Any, reward_class), expected, strict=True)
    for field, value in fields:
        np.testing.assert_array_equal(field, value)
    assert class_document(reward_class) == written


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"kind": "lipschitz", "constant": 1, "max": 2},
            "`reward_class` needs `distance` or `embedding`, one of the two",
        ),
        (
            {"kind": "lipschitz", "constant": -1, "max": 2, "distance": DISTANCE},
            "`reward_class.constant` must be at least 0, got -1",
        ),
        (
            {"kind": "lipschitz", "constant": 1, "max": -2, "distance": DISTANCE},
            "`reward_class.max` must be greater than 0, got -2",
        ),
        (
            {"kind": "polytope", "matrix": [[[1, 1, 1]]], "limits": [-1], "max": 2},
            "`reward_class.limits` must leave room for rewards: the polytope is empty",
        ),
        (
            {"kind": "kernel", "gram": [[1, 0, 0], [0, 1, 0], [0, 0, -1]], "radius": 1},
            "`reward_class.gram` must be positive semi-definite",
        ),
        ({"kind": "kernel", "gram": [[1, 0, 0]], "radius": 1}, "`reward_class.gram` must have sh"),
        ({"kind": "polytope", "matrix": 1, "limits": [1], "max": 1}, "`reward_class.matrix` must"),
        ({"kind": "lipschitzian"}, '`reward_class.kind` must be "tabular" or "linear" or "lips'),
        ({"kind": "os:system"}, "`reward_class.kind` must not name a module, since data must not"),
        ({"module": "os:system"}, "`reward_class.module` must not name a module"),
    ],
)
def test_raises_with_the_field(document: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        task_from_problem(problem(document))
    assert str(raised.value).startswith(f"the problem: {message}")
    assert "\n" not in str(raised.value)


def test_raises_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(problem({"kind": "kernel", "gram": [[1]], "radius": 0}), indent=1))
    with pytest.raises(ValueError, match=r"problem\.json, line \d+: `reward_class\.gram`"):
        task_from_problem(str(path))


def test_closed_form_a_class_of_a_users_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes_of_a_user.py").write_text(MODULE)
    (tmp_path / "problem.json").write_text(json.dumps(problem({"radius": 0.5})))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "classes_of_a_user:Ball"
    assert main(["solve", "problem.json", "--reward-class", name]) == 0
    printed = json.loads(capsys.readouterr().out)  # the module prints while it is imported
    assert printed["status"] == "solved"
    assert printed["reward_class"] == {"kind": name, "radius": 0.5}
    # The same ball of tables is a linear class with the cells as features.
    linear = {"kind": "linear", "features": [np.eye(3).tolist()], "radius": 0.5}
    answer = api.solve(problem(linear))
    np.testing.assert_allclose(printed["policy"], answer.policy, atol=1e-9)

    without_class = {key: value for key, value in GOOD.items() if key != "reward_class"}
    same = api.solve(without_class, reward_class=rt.TabularBox(4.0))
    np.testing.assert_array_equal(same.policy, api.solve(GOOD).policy)
    for arguments, message in (
        ((GOOD, name), "`reward_class.kind` must be left out with --reward-class"),
        ((GOOD, rt.TabularBox(4.0)), "`reward_class` must be left out"),
        ((problem({"radius": "1"}), name), "`reward_class.radius` must be a number, got"),
        ((problem({"size": 1}), name), "argument --reward-class: Ball cannot be called"),
        ((problem({}), "classes_of_a_user:Bal"), "argument --reward-class: the module classes"),
        ((problem({}), "no_such_module:Ball"), "argument --reward-class: cannot import no_such"),
        ((problem({}), "Ball"), "argument --reward-class: must be of the form module:Class"),
        ((problem({"radius": -1.0}), name), "`reward_class.project`"),
    ):
        with pytest.raises(ValueError, match=message):
            api.solve(arguments[0], reward_class=arguments[1])


def test_roundtrip_classes_as_plain_values() -> None:
    distance = np.array(DISTANCE, float)
    for reward_class in (rt.TabularBox(np.array(2.0)), rt.Lipschitz(0.5, distance, 2.0)):
        copied = class_from_values(json.loads(json.dumps(class_values(reward_class))))
        assert type(copied) is type(reward_class)
        for field, value in zip(cast(Any, copied), cast(Any, reward_class), strict=True):
            np.testing.assert_array_equal(field, value)
    assert class_from_values({"kind": "tabular", "max": 2}) == rt.TabularBox(np.array(2.0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "tabular"}, "study: `reward_class.max` is missing"),
        ({"kind": "no_such_module:A"}, "`reward_class.kind`: cannot import no_such_module"),
        ({"kind": "math:pi"}, "`reward_class.kind`: math:pi is not a class"),
        (
            {"kind": "rpo_theory.rewards:TabularBox", "top": 1},
            "`reward_class.kind`: TabularBox cannot be called",
        ),
    ],
)
def test_raises_on_values_that_are_no_class(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        class_from_values(values)
    assert str(raised.value).startswith(message)


def test_raises_on_a_class_without_fields() -> None:
    class Fieldless:
        def project(self, reward: Any) -> Any:
            return reward

        def linear_minimizer(self, direction: Any) -> Any:
            return direction

    with pytest.raises(ValueError, match="must be a named tuple, a dataclass, or a mapping"):
        class_values(Fieldless())


def test_closed_form_a_built_in_class_is_read_from_a_document() -> None:
    node = document_from_values({"kind": "tabular", "max": 3}, name="p.json")
    assert read_class(node) == rt.TabularBox(np.array(3.0))
