"""Elementary functions of the box kernel against the standard library, in units of rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rpo_theory.numerics import box_kernel_math, box_kernel_source

ULPS = 4 * np.finfo(np.float64).eps
NEAR_ZERO = np.array([0.0, 1e-300, -1e-17, 1e-9, -1e-4, 0.01, -0.2, 0.34])


@pytest.fixture(autouse=True)
def as_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the functions as Python: Numba cannot compile what the test run wraps."""
    for name, value in vars(box_kernel_math).copy().items():
        if hasattr(value, "py_func"):
            monkeypatch.setattr(box_kernel_math, name, value.py_func)


def assert_near(actual: float, expected: float) -> None:
    assert abs(actual - expected) <= ULPS * abs(expected)


def test_parity_exponentials() -> None:
    for x in (*NEAR_ZERO, -0.35, 1.0, -30.5, 300.25, -707.9, 708.9):
        assert_near(box_kernel_math.exp(x), math.exp(x))
        minus_one, power = box_kernel_math.expm1_and_exp(x)
        assert_near(power, math.exp(x))
        assert_near(minus_one, math.expm1(x))
    assert box_kernel_math.expm1_and_exp(-709.0) == (-1.0, 0.0)


def test_parity_logarithms() -> None:
    for x in NEAR_ZERO:
        if math.sqrt(0.5) - 1 <= x <= math.sqrt(2) - 1:
            assert_near(box_kernel_math.log1p_reduced(x), math.log1p(x))
    for x in (*NEAR_ZERO, -0.5, -0.3, 0.5, 1.0):
        assert_near(box_kernel_math.log1p_unit(x), math.log1p(x))
    for smaller, larger in ((1e-9, 2.0), (0.3, 0.9), (0.7, 0.8), (5.0, 5.0)):
        actual = box_kernel_math.log1p_of_ratio(smaller, larger)
        assert_near(actual, math.log1p(smaller / larger))
    for x in (1e-300, 0.1, 0.7, 0.999999, 1.0, 1.5, 3.0, 1e200):
        assert_near(box_kernel_math.log(x), math.log(x))


def test_closed_form_generated_source_has_the_functions_of_one_number_of_actions() -> None:
    source = box_kernel_source.kernel_source(3)
    assert "def newton(" in source
    assert "def conclude(" in source
    assert "N_ACTIONS = 3" in source
