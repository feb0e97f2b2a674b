"""Claims about the checks of arrays: what they accept, and the field and index that they name."""

from __future__ import annotations

import numpy as np
import pytest

from rpo_theory import array_checks
from rpo_theory.array_checks import InvalidProblemError


def test_closed_form_shapes_of_numbers_and_of_arrays_with_a_free_axis() -> None:
    assert array_checks.scalar_shape(1.0, (4,)) == ()
    assert array_checks.scalar_shape(np.ones(3), (4,)) == (4,)
    assert array_checks.shape_with_free_axis("x", np.ones((2, 5, 3)), (2, "d", 3)) == (2, 5, 3)
    for wrong in (np.ones((2, 0, 3)), np.ones((2, 3))):
        with pytest.raises(InvalidProblemError, match=r"shape \(2, d, 3\) with d at least 1"):
            array_checks.shape_with_free_axis("x", wrong, (2, "d", 3))


def test_raises_at_the_first_entry_that_breaks_a_rule() -> None:
    table = np.array([[1.0, 2.0], [5.0, 7.0]])
    array_checks.refuse_where("table", table, table > 9, "must be small")
    with pytest.raises(InvalidProblemError, match=r"`table\[1\]\[0\]`.*must be small, got 5"):
        array_checks.refuse_where("table", table, table > 4, "must be small")


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1e-320])
def test_raises_for_numbers_that_are_not_greater_than_zero(wrong: float) -> None:
    array_checks.greater_than_zero("radius", 2.0, (3,), finite=True)
    array_checks.greater_than_zero("radius", np.ones(3), (3,), finite=True)
    with pytest.raises(InvalidProblemError, match=r"`radius\[1\]`.*must be greater than 0"):
        array_checks.greater_than_zero("radius", np.array([1.0, wrong, 1.0]), (3,), finite=True)
