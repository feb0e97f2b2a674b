"""Claims about problem files: their meaning, and one line with file, line and field per error."""

from __future__ import annotations

import copy
import io
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rpo.solving import data_documents
from rpo.solving.problem_files import ProblemFile, from_document, read_problem
from rpo_io import json_document
from rpo_io.json_document import DocumentError, parse_document
from rpo_theory.problems import validate
from rpo_theory.rewards import FiniteClass, LinearBall, TabularBox, Unbounded

ONE_ULP = 2.3e-16
"""Rounding of the division that makes distributions sum to one."""

GOOD: dict[str, Any] = {
    "context_weights": [0.25, 0.75],
    "reference_policy": [[0.2, 0.3, 0.5], [1, 0, 0]],
    "baseline_policy": [[1, 0, 0], [0.5, 0.5, 0]],
    "comparisons": [[0, 1, 2, 3], [0, 1, 2, 0.5], [0, 2, 2, 1]],
    "beta": 0.1,
    "eta": 2,
    "reward_class": {"kind": "linear", "features": [[[1, 2]] * 3] * 2, "radius": 1.5},
    "true_reward": [[0, 1, 2], [-1, 0, 7.5]],
    "comparator": [[0, 0, 1], [1, 0, 0]],
}


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(GOOD), **fields}


def build(document: Any) -> ProblemFile:
    text = document if isinstance(document, str) else json.dumps(document, indent=1)
    return from_document(parse_document(text.encode(), name="p.json"))


def complaint(document: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        build(document)
    return str(caught.value)


def test_roundtrip_every_key_arrives_where_it_belongs() -> None:
    file = build(GOOD)
    np.testing.assert_array_equal(file.problem.context_weights, GOOD["context_weights"])
    np.testing.assert_array_equal(file.problem.reference_policy, GOOD["reference_policy"])
    np.testing.assert_array_equal(file.problem.baseline_policy, GOOD["baseline_policy"])
    wins = np.zeros((2, 3, 3))
    wins[0, 1, 2], wins[0, 2, 2] = 3.5, 1.0
    np.testing.assert_array_equal(file.problem.wins, wins)
    assert (float(file.problem.beta), float(file.problem.eta)) == (0.1, 2.0)
    assert isinstance(file.reward_class, LinearBall)
    np.testing.assert_array_equal(file.reward_class.features, np.tile([1.0, 2.0], (2, 3, 1)))
    assert float(file.reward_class.radius) == 1.5
    np.testing.assert_array_equal(file.true_reward, GOOD["true_reward"])
    np.testing.assert_array_equal(file.comparator, GOOD["comparator"])
    assert file.fallback_contexts == ()


def test_roundtrip_each_kind_of_reward_class() -> None:
    tabular = build(changed(reward_class={"kind": "tabular", "max": 2})).reward_class
    assert isinstance(tabular, TabularBox)
    assert float(tabular.maximum) == 2.0
    rewards = [GOOD["true_reward"]] * 4
    finite = build(changed(reward_class={"kind": "finite", "rewards": rewards})).reward_class
    assert isinstance(finite, FiniteClass)
    np.testing.assert_array_equal(finite.rewards, rewards)
    unbounded = build(changed(reward_class={"kind": "unbounded"})).reward_class
    assert unbounded == Unbounded()


def test_closed_form_chosen_baseline_is_the_distribution_of_winners_or_the_reference() -> None:
    file = build(changed(baseline_policy="chosen"))
    expected = [[0, 3.5 / 4.5, 1 / 4.5], [1, 0, 0]]
    np.testing.assert_allclose(file.problem.baseline_policy, expected, rtol=0, atol=ONE_ULP)
    assert file.fallback_contexts == (1,)


def test_closed_form_reference_baseline_is_the_reference() -> None:
    file = build(changed(baseline_policy="reference", comparisons=[]))
    np.testing.assert_array_equal(file.problem.baseline_policy, GOOD["reference_policy"])
    assert np.sum(file.problem.wins) == 0
    assert file.fallback_contexts == ()


def test_roundtrip_true_reward_and_comparator_are_optional() -> None:
    document = changed()
    del document["comparator"]
    assert build(document).comparator is None
    del document["true_reward"]
    assert build(document).true_reward is None


def test_property_distributions_printed_to_seven_digits_are_made_exact() -> None:
    thirds = [[0.3333333, 0.3333333, 0.3333333]] * 2
    file = build(changed(reference_policy=thirds))
    np.testing.assert_allclose(file.problem.reference_policy, 1 / 3, rtol=0, atol=ONE_ULP)


def test_roundtrip_reads_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.dumps(GOOD).encode()
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf" + data)
    from_file = read_problem(str(tmp_path / "p.json"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    jax.tree.map(np.testing.assert_array_equal, from_file.problem, read_problem("-").problem)


BAD_SYNTAX = [
    ("", "p.json, line 1: must be a JSON object, got an empty file"),
    (" \n\t", "p.json, line 1: must be a JSON object, got an empty file"),
    ("{", "p.json, line 1, column 2: not valid JSON"),
    ('{"beta": 0.1,\n "eta" 1}', "p.json, line 2, column 8: not valid JSON"),
    ("{} {}", "p.json, line 1, column 4: not valid JSON: Extra data"),
    ('{"beta": .5}', "p.json, line 1, column 10: not valid JSON"),
    ("[" * 100_000, "p.json: is nested too deeply"),
    ("[]", "p.json, line 1: must be an object, got an empty list"),
    ("1", "p.json, line 1: must be an object, got 1"),
    ("NaN", "p.json, line 1: must be an object, got NaN"),
    ("{}", "p.json, line 1: `context_weights` is missing"),
    ('{\n"beta": 1,\n"beta": 2}', "p.json, line 3: `beta` occurs twice"),
    ('{"a\\nb": 1}', "p.json, line 1: `a\\nb` is not a known key"),
    ('{"\\ud800": 1}', "p.json, line 1: `\\ud800` is not a known key"),
]


@pytest.mark.parametrize(("text", "message"), BAD_SYNTAX)
def test_raises_for_what_is_not_a_json_object(text: str, message: str) -> None:
    assert complaint(text).startswith(message)


BASELINE = "`baseline_policy"
BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"betta": 1}, "`betta` is not a known key: did you mean `beta`?"),
    ({"beta": 0}, "`beta` must be greater than 0, got 0"),
    ({"beta": -1}, "`beta` must be greater than 0, got -1"),
    ({"beta": True}, "`beta` must be a number, got true"),
    ({"beta": "0.1"}, '`beta` must be a number, got "0.1"'),
    ({"beta": None}, "`beta` must be a number, got null"),
    ({"beta": [0.1]}, "`beta` must be a number, got a list of 1"),
    ({"beta": float("nan")}, "`beta` must be finite, got nan"),
    ({"beta": 10**400}, "`beta` must be finite, got inf"),
    ({"eta": -0.5}, "`eta` must be at least 0, got -0.5"),
    ({"eta": float("inf")}, "`eta` must be finite, got inf"),
    ({"context_weights": [0.5, 0.25, 0.25]}, "`context_weights` must have shape (2,)"),
    ({"context_weights": [0.5, 0.4]}, "`context_weights` must sum to one, got a sum of 0.9"),
    ({"context_weights": [1.5, -0.5]}, "`context_weights[1]` must be at least 0, got -0.5"),
    ({"context_weights": []}, "`context_weights` must not be empty"),
    ({"context_weights": 1}, "`context_weights` must be a list, got 1"),
    ({"context_weights": [[1, 0]]}, "`context_weights[0]` must be a number, got a list of 2"),
    ({"reference_policy": []}, "`reference_policy` must not be empty"),
    ({"reference_policy": [[], []]}, "`reference_policy[0]` must not be empty"),
    ({"reference_policy": [0.5, 0.5]}, "`reference_policy[0]` must be a list, got 0.5"),
    ({"reference_policy": [[1, 0, 0], [1, 0]]}, "`reference_policy[1]` must have 3 items"),
    ({"reference_policy": [[1, 0, 0], [1, "0", 0]]}, "`reference_policy[1][1]` must be a number"),
    ({"baseline_policy": "winners"}, f'{BASELINE}` must be "chosen" or "reference", got "winners"'),
    (
        {"baseline_policy": [[1, 0], [1, 0]]},
        f"{BASELINE}` must have shape (2, 3), got shape (2, 2)",
    ),
    ({"baseline_policy": [[1, 0, 0], [0.5, 0.6, 0]]}, f"{BASELINE}[1]` must sum to one, got a sum"),
    ({"baseline_policy": [[1, 0, 0], [2, -1, 0]]}, f"{BASELINE}[1][1]` must be at least 0, got -1"),
    ({"comparisons": {}}, "`comparisons` must be a list, got an object"),
    ({"comparisons": [[0, 1, 2]]}, "`comparisons[0]` must be [context, winner, loser, count]"),
    ({"comparisons": [1]}, "`comparisons[0]` must be [context, winner, loser, count], got 1"),
    ({"comparisons": [[0, 1, 2, 1], [2, 1, 2, 1]]}, "`comparisons[1][0]` must be the index of a c"),
    ({"comparisons": [[0, 3, 2, 1]]}, "`comparisons[0][1]` must be the index of a winner"),
    ({"comparisons": [[0, 1, -1, 1]]}, "`comparisons[0][2]` must be the index of a loser"),
    ({"comparisons": [[0, 1.0, 2, 1]]}, "`comparisons[0][1]` must be the index of a winner"),
    ({"comparisons": [[0, True, 2, 1]]}, "`comparisons[0][1]` must be the index of a winner"),
    ({"comparisons": [[0, 10**400, 2, 1]]}, "`comparisons[0][1]` must be the index of a winner"),
    ({"comparisons": [[0, 1, 2, -1]]}, "`comparisons[0][3]` must be a count"),
    ({"comparisons": [[0, 1, 2, "3"]]}, "`comparisons[0][3]` must be a count"),
    ({"comparisons": [[0, 1, 2, float("nan")]]}, "`comparisons[0][3]` must be a count"),
    ({"comparisons": [[0, 1, 2, 1e300]]}, "`comparisons[0][3]` must be a count"),
    ({"reward_class": "tabular"}, "`reward_class` must be an object"),
    ({"reward_class": {}}, "`reward_class.kind` is missing"),
    ({"reward_class": {"kind": "box"}}, '`reward_class.kind` must be "tabular" or "linear"'),
    ({"reward_class": {"kind": 1}}, '`reward_class.kind` must be "tabular"'),
    ({"reward_class": {"kind": "tabular"}}, "`reward_class.max` is missing"),
    ({"reward_class": {"kind": "tabular", "max": 0}}, "`reward_class.max` must be greater than 0"),
    ({"reward_class": {"kind": "tabular", "max": "2"}}, "`reward_class.max` must be a number"),
    ({"reward_class": {"kind": "tabular", "max": 1, "radius": 1}}, "`reward_class.radius` is not"),
    ({"reward_class": {"kind": "unbounded", "max": 1}}, "`reward_class.max` is not a known key"),
    (
        {"reward_class": {"kind": "linear", "features": [[[1]] * 3] * 2, "radius": -1}},
        "`reward_class.radius` must be greater than 0, got -1",
    ),
    (
        {"reward_class": {"kind": "linear", "features": [[[1]] * 2] * 2, "radius": 1}},
        "`reward_class.features` must have shape (2, 3, 1), got shape (2, 2, 1)",
    ),
    (
        {"reward_class": {"kind": "linear", "features": [[[1], [1], [1, 2]]] * 2, "radius": 1}},
        "`reward_class.features[0][2]` must have 1 items",
    ),
    (
        {"reward_class": {"kind": "finite", "rewards": []}},
        "`reward_class.rewards` must not be empty",
    ),
    (
        {"reward_class": {"kind": "finite", "rewards": [[[1, 2, 3]]]}},
        "`reward_class.rewards` must have shape (1, 2, 3), got shape (1, 1, 3)",
    ),
    (
        {"reward_class": {"kind": "finite", "rewards": [[[1, 2, 3], [1, 2, float("nan")]]]}},
        "`reward_class.rewards[0][1][2]` must be finite, got nan",
    ),
    ({"true_reward": [[1, 2, 3]]}, "`true_reward` must have shape (2, 3), got shape (1, 3)"),
    ({"true_reward": [[1, 2, float("nan")]] * 2}, "`true_reward[0][2]` must be finite, got nan"),
    ({"comparator": [[1, 0, 0], [0, 0, 0]]}, "`comparator[1]` must sum to one, got a sum of 0"),
    ({"comparator": None}, "`comparator` must be a list, got null"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=[str(m) for _, m in BAD_FIELDS])
def test_raises_names_file_line_field_and_rule(fields: dict[str, Any], message: str) -> None:
    error = complaint(changed(**fields))
    location, _, rest = error.partition(": ")
    assert location.startswith("p.json, line ")
    assert rest.startswith(message)
    assert len(error.splitlines()) == 1
    assert len(error) < 200


@pytest.mark.parametrize("key", [key for key in GOOD if key not in ("true_reward", "comparator")])
def test_raises_for_each_missing_key(key: str) -> None:
    document = changed()
    del document[key]
    assert complaint(document) == f"p.json, line 1: `{key}` is missing"


def test_raises_for_a_comparator_without_a_true_reward() -> None:
    document = changed()
    del document["true_reward"]
    assert "`comparator` needs `true_reward`" in complaint(document)


def test_raises_with_the_line_that_holds_the_value() -> None:
    text = json.dumps(changed(comparisons=[[0, 1, 2, 3], [0, 1, 9, 12345]]), indent=1)
    wrong = next(i for i, line in enumerate(text.splitlines(), 1) if line.strip() == "9,")
    assert complaint(text).startswith(f"p.json, line {wrong}: `comparisons[1][2]`")


def test_raises_before_building_a_table_that_is_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(data_documents, "MAX_CELLS", 17)
    assert "2 contexts x 3 actions x 3 actions" in complaint(GOOD)
    monkeypatch.setattr(json_document, "MAX_BYTES", 100)
    assert complaint(GOOD).startswith("p.json: must be at most")


def test_raises_for_what_is_not_utf8() -> None:
    with pytest.raises(DocumentError, match=r"p\.json, line 2: must be UTF-8, got byte 0xff"):
        parse_document(b'{\n"\xff": 1}', name="p.json")


def test_raises_for_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_problem(str(tmp_path / "absent.json"))
    with pytest.raises(IsADirectoryError):
        read_problem(str(tmp_path))


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["chosen", "reference", "kind", "tabular", "finite", 0, 1, 2, 0.5])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "kind", "max", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of everything inside a document."""
    below: Any = []
    if isinstance(value, dict | list):
        below = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(p for step, inner in below for p in paths(inner, (*path, step)))]


def mutated(data: st.DataObject) -> Any:
    document = copy.deepcopy(GOOD)
    for _ in range(data.draw(st.integers(1, 2))):
        *above, step = data.draw(st.sampled_from(paths(document)[1:]))
        parent: Any = document
        for outer in above:
            parent = parent[outer]
        if data.draw(st.booleans()):
            parent[step] = data.draw(VALUES)
        else:
            del parent[step]
    return document


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_property_mutated_files_give_a_valid_problem_or_one_line(data: st.DataObject) -> None:
    outcome(json.dumps(mutated(data), indent=data.draw(st.sampled_from([None, 1]))).encode())


@given(st.binary(max_size=30), st.integers(0, 600), st.integers(0, 30))
@settings(max_examples=300, deadline=None)
def test_property_damaged_bytes_give_a_valid_problem_or_one_line(
    noise: bytes, start: int, removed: int
) -> None:
    text = json.dumps(GOOD).encode()
    outcome(text[:start] + noise + text[start + removed :])


def outcome(data: bytes) -> None:
    """Parse; whatever happens must be a valid problem or an error in one line."""
    message = None
    try:
        file = from_document(parse_document(data, name="p.json"))
        validate(file.problem, file.reward_class)
    except DocumentError as error:
        message = str(error)
    assert message is None or message.startswith("p.json, line ")
    assert message is None or len(message.splitlines()) == 1
    assert message is None or message.isprintable()


def distributions(shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    positive = npst.arrays(np.float64, shape, elements=st.floats(1e-3, 1.0))
    return positive.map(lambda array: array / array.sum(axis=1, keepdims=True))


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_roundtrip_any_problem_that_json_can_write(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(1, 1), (3, 2)]))
    reference, baseline = data.draw(distributions(shape)), data.draw(distributions(shape))
    counts = st.floats(0, 1e6, allow_subnormal=False)  # XLA takes subnormal numbers for zero
    wins = data.draw(npst.arrays(np.float64, (*shape, shape[1]), elements=counts))
    maximum = data.draw(st.floats(1e-6, 1e6))
    weights = np.full(shape[0], 1.0 / shape[0])
    file = build(
        {
            "context_weights": weights.tolist(),
            "reference_policy": reference.tolist(),
            "baseline_policy": baseline.tolist(),
            "comparisons": [[*index, wins[index]] for index in np.ndindex(wins.shape)],
            "beta": 0.5,
            "eta": 0,
            "reward_class": {"kind": "tabular", "max": maximum},
        }
    )
    np.testing.assert_allclose(file.problem.reference_policy, reference, rtol=1e-15)
    np.testing.assert_allclose(file.problem.baseline_policy, baseline, rtol=1e-15)
    np.testing.assert_array_equal(file.problem.wins, wins)
    assert file.reward_class == TabularBox(np.asarray(maximum))
