"""The choice of the next token, against probabilities computed by hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.inference.sampling import GenerationConfig, penalize_repetitions, sample_tokens

PROBS = np.array([0.4, 0.3, 0.2, 0.06, 0.04])
N_DRAWS = 2000


sample = jax.jit(sample_tokens)


def draw(
    logits: np.ndarray,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
) -> np.ndarray:
    """Return the shares of tokens among many draws."""
    keys = jax.random.split(jax.random.key(0), N_DRAWS)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (N_DRAWS, len(logits)))
    numbers = (jnp.float32(temperature), jnp.float32(top_p), jnp.int32(top_k), jnp.float32(min_p))
    return np.bincount(np.asarray(sample(rows, keys, *numbers)), minlength=len(logits)) / N_DRAWS


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 1000}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.4}, [0, 1, 2]),
        ({"min_p": 1.0}, [0]),
        # Top-p counts the probabilities that are left by top-k: 4/7 < .6 < 1.
        ({"top_k": 2, "top_p": 0.6}, [0, 1]),
        ({"top_k": 2, "top_p": 0.5}, [0]),
        ({"top_k": 4, "top_p": 1e-45}, [0]),
        ({"top_p": 0.95, "min_p": 0.2}, [0, 1, 2]),
    ],
)
def test_closed_form_filters_keep_the_most_likely_tokens(
    filters: dict[str, Any], kept: list[int]
) -> None:
    expected = np.zeros(len(PROBS))
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    shares = draw(np.log(PROBS), **filters)
    np.testing.assert_allclose(shares, expected, atol=4 / np.sqrt(N_DRAWS))
    assert (shares[expected == 0] == 0).all()


def test_closed_form_equal_logits_stay_together() -> None:
    shares = draw(np.array([1.0, 1.0, 1.0, 0.0, -1.0]), top_k=2)
    assert (shares[:3] > 0.25).all()
    assert (shares[3:] == 0).all()


def test_closed_form_repeated_tokens_become_less_likely() -> None:
    logits = jnp.array([[3.0, -3.0, 0.0, 3.0]])
    seen = jnp.array([[True, True, True, False]])
    penalized = penalize_repetitions(logits, seen, jnp.float32(1.5))
    np.testing.assert_allclose(penalized, [[2.0, -4.5, 0.0, 3.0]])


@pytest.mark.parametrize("scale", [1.0, 1e30, 3e38])
@pytest.mark.parametrize("temperature", [1e-9, 1e-6, 0.5])
def test_extreme_large_logits_at_a_small_temperature_do_not_overflow(
    scale: float, temperature: float
) -> None:
    shares = draw(np.array([0.5, 1.0, -1.0, 0.0, 0.0]) * scale, temperature=temperature, top_k=3)
    if scale > 1 or temperature < 0.1:
        np.testing.assert_array_equal(shares, [0, 1, 0, 0, 0])


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-320, 1e-45, 1e-38, 9e-10])
def test_limit_tiny_temperatures_are_greedy(temperature: float) -> None:
    assert GenerationConfig(temperature=temperature).greedy
    assert not GenerationConfig(temperature=1e-3).greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
        ({"top_k": -1}, "`top_k` must be at least 0, got -1"),
        ({"top_k": True}, "`top_k` must be at least 0, got True"),
        ({"temperature": float("nan")}, "`temperature` must be 0 or more and finite, got nan"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1"),
        ({"min_p": 1.1}, "`min_p` must be from 0 to 1, got 1.1"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be from 1e-30 to 1e30, got 0.0"),
        ({"repetition_penalty": float("inf")}, "`repetition_penalty` must be from 1e-30"),
    ],
)
def test_raises_for_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        GenerationConfig(**options)
    assert message in str(caught.value)
