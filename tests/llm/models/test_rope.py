"""Rotary frequencies against their formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm.models.architecture import Architecture, RopeScaling
from llm.models.rope import rope_angles, rope_frequencies, rope_rows

SIZES: dict[str, Any] = {
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LOCAL: dict[str, Any] = {
    "sliding_window": 2,
    "local_layers": (True, False),
    "rope_local_base_freq": 81.0,
}


def test_closed_form_local_layers_have_a_separate_base() -> None:
    exponents = np.array([0.0, 0.25, 0.5, 0.75])
    shared = rope_frequencies(Architecture(**SIZES, rope_theta=16.0))
    np.testing.assert_allclose(shared, [16.0**-exponents], rtol=1e-15)
    both = rope_frequencies(Architecture(**SIZES, rope_theta=16.0, **LOCAL))
    np.testing.assert_allclose(both, [16.0**-exponents, 81.0**-exponents], rtol=1e-15)


def test_closed_form_layers_without_rotary_angles_have_a_row_of_zeros() -> None:
    a = Architecture(**SIZES, rope_theta=16.0, rope_layers=(True, False), **LOCAL)
    assert rope_frequencies(a)[2].tolist() == [0.0] * 4
    assert rope_rows(a).tolist() == [1, 2]
    angles = rope_angles(a, np.array([[5]]), "float64")
    assert (angles.cosine[2].tolist(), angles.sine[2].tolist()) == ([[[1.0] * 4]], [[[0.0] * 4]])


def test_closed_form_longrope_divides_each_frequency_and_scales_the_angles() -> None:
    scaling = RopeScaling(
        rope_type="longrope",
        factor=8.0,
        original_max_position_embeddings=64,
        short_factor=[1.0, 2.0],
        long_factor=[3.0, 5.0],
    )
    a = Architecture(**SIZES, rope_theta=16.0, partial_rotary_factor=0.5, rope_scaling=scaling)
    assert rope_frequencies(a)[0].tolist() == [1.0, 0.25 / 2]
    assert rope_frequencies(a, long=True)[0].tolist() == [1 / 3, 0.25 / 5]
    scale = np.sqrt(1 + np.log(8) / np.log(64))
    for is_long, slowed in ((False, 2), (True, 5)):
        angles = rope_angles(a, np.array([[7]]), "float64", is_long=is_long)
        expected = scale * np.cos(7 * 0.25 / slowed)
        assert float(angles.cosine[0, 0, 0, 1]) == pytest.approx(expected)


def test_closed_form_yarn_without_truncation_interpolates_between_exact_planes() -> None:
    """Plane ``i`` of 4 rotates ``16 / (2 pi 10^(i / 4))`` times within 16 positions."""
    scaling = RopeScaling(
        rope_type="yarn",
        factor=4.0,
        original_max_position_embeddings=16,
        beta_fast=2.0,
        beta_slow=0.5,
        truncate=False,
    )
    a = Architecture(**SIZES, rope_theta=10.0, rope_scaling=scaling)
    first, last = (4 * np.log10(16 / (2 * np.pi * beta)) for beta in (2.0, 0.5))
    slowed = np.clip((np.arange(4) - first) / (last - first), 0, 1)
    ratio = rope_frequencies(a)[0] * 10.0 ** (np.arange(4) / 4)
    np.testing.assert_allclose(ratio, 1 - slowed + slowed / 4, rtol=1e-14)
