"""Radius of the confidence ellipsoid of pessimistic maximum likelihood."""

from __future__ import annotations

import numpy as np
import pytest

from bandits.methods.pessimistic_mle import confidence_radius
from rpo_theory.rewards import LinearBall, TabularBox


@pytest.mark.parametrize("safe", [0.0, 1.0])
def test_closed_form_the_radius_of_the_confidence_ellipsoid(safe: float) -> None:
    numbers = {"confidence": 0.1, "pessimism": 2.0, "ridge": 0.01, "safe": safe}
    features = np.array([[[3.0, 4.0], [0.0, 1.0]]])
    ball = LinearBall(features, np.array(0.2))
    reach = (1.0 + safe) * 0.2 * 5.0
    curvature = 1.0 / (2.0 + np.exp(reach) + np.exp(-reach))
    expected = 2.0 * np.sqrt((2.0 + np.log(10.0)) / (curvature**2 * 50.0) + 0.01 * 0.2**2)
    constants = {name: np.array(value) for name, value in numbers.items()}
    radius = confidence_radius(ball, np.array(50.0), (1, 2), **constants)
    assert float(radius) == pytest.approx(expected)
    # A box has one dimension per reward, half its diagonal as radius, and its width as range.
    curvature = 1.0 / (2.0 + np.exp(1.5) + np.exp(-1.5))
    expected = 2.0 * np.sqrt((4.0 + np.log(10.0)) / curvature**2 + 0.01 * 0.75**2 * 4.0)
    radius = confidence_radius(TabularBox(np.array(1.5)), np.array(0.0), (2, 2), **constants)
    assert float(radius) == pytest.approx(expected)
