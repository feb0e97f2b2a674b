"""Checks of configuration values: valid values pass, others are refused under their key."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest

from llm.config import LINEAR
from llm.config.checks import (
    at_least,
    one_of,
    path_or_architecture,
    positive,
    zero_or_positive,
)
from llm.models.projections import PROJECTIONS

Color = Literal["red", "blue"]


@pytest.mark.parametrize(
    ("check", "valid", "wrong", "rule"),
    [
        (lambda v: at_least("a.b", v, 2), [2, 2**31 - 1], [1, 2**31, True], "a whole"),
        (
            lambda v: positive("a.b", v),
            [1e-8, 1.0, 3e38],
            [0.0, -1.0, math.inf],
            "positive and finite",
        ),
        (lambda v: positive("a.b", v), [2.0**-126], [1e-39, 1e39], "in the range of float32"),
        (
            lambda v: zero_or_positive("a.b", v),
            [0.0, 0.5],
            [-0.1, math.nan],
            "0 or more and finite",
        ),
        (lambda v: zero_or_positive("a.b", v), [0.0], [5e-324], "in the range of float32"),
        (lambda v: one_of("a.b", v, Color), ["red", "blue"], ["Red", None, 1], "'red', 'blue'"),
    ],
)
def test_raises_values_out_of_range_under_their_key(
    check: Callable[[Any], None], valid: list[Any], wrong: list[Any], rule: str
) -> None:
    for value in valid:
        check(value)
    for value in wrong:
        with pytest.raises(ValueError, match=r"^`a\.b` must be") as caught:
            check(value)
        assert rule in str(caught.value)
        assert str(value) in str(caught.value)


def test_property_the_targets_of_adapters_are_the_projections_of_a_layer() -> None:
    assert list(PROJECTIONS) == list(LINEAR)


def test_raises_unless_a_model_has_either_a_path_or_an_architecture() -> None:
    path_or_architecture("policy", None)
    path_or_architecture(None, {})
    with pytest.raises(ValueError, match=r"`model\.path` is missing"):
        path_or_architecture(None, None)
    with pytest.raises(ValueError, match="must not both be given"):
        path_or_architecture("policy", {})
