"""Rotary frequencies against their formula."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm.models.architecture import Architecture
from llm.models.rope import rope_frequencies

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
