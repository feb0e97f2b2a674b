"""Objectives besides RPO and DPO against the formulas of their papers, in float64 NumPy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory import losses
from rpo_theory.losses import PairLogProbs

BETA, EXACT = 0.3, 1e-12  # float64 after a dozen operations
SLOPE = 1e-6  # central differences of step 1e-6 in float64
Loss = Callable[..., jax.Array]


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def ratios(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return rows[0] - rows[2], rows[1] - rows[3]


def on_pairs(loss: Loss, **options: Any) -> Loss:
    def call(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
        policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
        return loss(policy, reference, where=where, **options)

    return call


def on_policy(loss: Loss, **options: Any) -> Loss:
    def call(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
        return loss(PairLogProbs(rows[0], rows[1]), where=where, **options)

    return call


LENGTHS = PairLogProbs(np.array(0.5), np.array(0.125))
"""Weights of responses of two and of eight tokens."""


def over_tokens(loss: Loss, **options: Any) -> Loss:
    def call(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
        policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
        shape = rows[0].shape
        weights = PairLogProbs(*(jnp.full(shape, weight, rows.dtype) for weight in LENGTHS))
        if loss is losses.ipo:
            return loss(policy, reference, weights=weights, where=where, **options)
        return loss(policy, reference, weights, where=where, **options)

    return call


def soft_dpo(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
    label = jnp.full(rows[0].shape, 0.7, rows.dtype)
    call = losses.expected_over_labels
    return call(losses.dpo, label, policy, reference, beta=BETA, where=where)


LOSSES: dict[str, Loss] = {
    "hinge": on_pairs(losses.hinge, beta=BETA),
    "robust": on_pairs(losses.robust, beta=BETA, flip_probability=0.2),
    "exo_pair": on_pairs(losses.exo_pair, beta=BETA, label_smoothing=0.01),
    "discopop": on_pairs(losses.discopop, beta=BETA, tau=0.05),
    "sigmoid_norm": over_tokens(losses.sigmoid_norm, beta=BETA),
    "ipo, averaged": over_tokens(losses.ipo, tau=0.2),
    "f_dpo, forward_kl": on_pairs(losses.f_dpo, beta=BETA, divergence="forward_kl"),
    "f_dpo, js": on_pairs(losses.f_dpo, beta=BETA, divergence="js_divergence"),
    "f_dpo, alpha": on_pairs(losses.f_dpo, beta=BETA, divergence="alpha_divergence", alpha=0.3),
    "nca_pair": on_pairs(losses.nca_pair, beta=BETA),
    "bco_pair": on_pairs(losses.bco_pair, beta=BETA, shift=0.1),
    "sppo_hard": on_pairs(losses.sppo_hard, beta=BETA),
    "apo_zero": on_pairs(losses.apo_zero, beta=BETA),
    "apo_down": on_pairs(losses.apo_down, beta=BETA),
    "cpo": on_policy(losses.cpo, beta=BETA, sft_weight=0.5),
    "slic": on_policy(losses.slic, delta=1.0, sft_weight=0.5),
    "soft dpo": soft_dpo,
}

FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "hinge": lambda w, r, rows: np.maximum(0.0, 1 - BETA * (w - r)),
    "robust": lambda w, r, rows: (
        (-0.8 * np.log(sigmoid(BETA * (w - r))) + 0.2 * np.log(sigmoid(BETA * (r - w)))) / 0.6
    ),
    "exo_pair": lambda w, r, rows: kl_of_pair(sigmoid(BETA * (w - r)), 0.99),
    "discopop": lambda w, r, rows: mixture(BETA * (w - r), sigmoid(BETA * (w - r) / 0.05)),
    "sigmoid_norm": lambda w, r, rows: np.log1p(np.exp(-BETA * (w / 2 - r / 8))),
    "ipo, averaged": lambda w, r, rows: (w / 2 - r / 8 - 2.5) ** 2,
    "f_dpo, forward_kl": lambda w, r, rows: logistic(-1 / np.exp(w) + 1 / np.exp(r)),
    "f_dpo, js": lambda w, r, rows: logistic(
        np.log(2 * np.exp(w) / (1 + np.exp(w))) - np.log(2 * np.exp(r) / (1 + np.exp(r)))
    ),
    "f_dpo, alpha": lambda w, r, rows: logistic((np.exp(w) ** -0.7 - np.exp(r) ** -0.7) / -0.7),
    "nca_pair": lambda w, r, rows: (
        -np.log(sigmoid(BETA * w)) - 0.5 * (np.log(sigmoid(-BETA * w)) + np.log(sigmoid(-BETA * r)))
    ),
    "bco_pair": lambda w, r, rows: (
        -np.log(sigmoid(BETA * w - 0.1)) - np.log(sigmoid(-(BETA * r - 0.1)))
    ),
    "sppo_hard": lambda w, r, rows: (w - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
    "apo_zero": lambda w, r, rows: 1 - sigmoid(BETA * w) + sigmoid(BETA * r),
    "apo_down": lambda w, r, rows: sigmoid(BETA * w) + 1 - sigmoid(BETA * (w - r)),
    "cpo": lambda w, r, rows: logistic(rows[0] - rows[1]) - 0.5 * rows[0],
    "slic": lambda w, r, rows: np.maximum(0.0, 1 - rows[0] + rows[1]) - 0.5 * rows[0],
    "soft dpo": lambda w, r, rows: (
        -0.7 * np.log(sigmoid(BETA * (w - r))) - 0.3 * np.log(sigmoid(BETA * (r - w)))
    ),
}


def logistic(difference: np.ndarray) -> np.ndarray:
    return -np.log(sigmoid(BETA * difference))


def kl_of_pair(wins: np.ndarray, label: float) -> np.ndarray:
    return wins * np.log(wins / label) + (1 - wins) * np.log((1 - wins) / (1 - label))


def mixture(z: np.ndarray, share: np.ndarray) -> np.ndarray:
    return (1 - share) * np.log1p(np.exp(-z)) + share * np.exp(-z)


@jax.jit
def values_and_gradients(rows: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Return all losses and the gradients of their sums, compiled together."""
    return {
        name: (loss(rows), jax.grad(lambda rows, loss=loss: loss(rows).sum())(rows))
        for name, loss in LOSSES.items()
    }


def test_closed_form_objectives_are_those_of_their_papers() -> None:
    for seed in range(20):
        rows = np.random.default_rng(seed).uniform(-6.0, 0.0, (4, 3))
        got = values_and_gradients(jnp.asarray(rows))
        for name, formula in FORMULAS.items():
            expected = formula(*ratios(rows), rows)
            np.testing.assert_allclose(got[name][0], expected, rtol=1e-10, atol=EXACT, err_msg=name)


def test_gradient_of_objectives_agrees_with_finite_differences_of_the_formulas() -> None:
    rows = np.random.default_rng(0).uniform(-3.0, 0.0, (4, 3))
    got, step = values_and_gradients(jnp.asarray(rows)), 1e-6
    for name, formula in FORMULAS.items():
        numeric = np.zeros_like(rows)
        for i, j in np.ndindex(*rows.shape):
            move = step * np.eye(rows.size)[i * rows.shape[1] + j].reshape(rows.shape)
            ends = [formula(*ratios(each), each).sum() for each in (rows + move, rows - move)]
            numeric[i, j] = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(got[name][1], numeric, atol=SLOPE, err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_margins_of_ten_thousand_nats_stay_finite(dtype: Any) -> None:
    ends = [-1e4, 0.0, 1e4]
    rows = jnp.array([(w, loser, 0.0, 0.0) for w in ends for loser in ends], dtype).T
    for name, (value, gradient) in values_and_gradients(rows).items():
        assert value.dtype == gradient.dtype == dtype, name
        assert jnp.isfinite(value).all(), name
        assert jnp.isfinite(gradient).all(), name


def test_extreme_masked_pairs_have_zero_loss_and_zero_gradient() -> None:
    where = np.array([True, False, True])
    clean = jnp.asarray(np.random.default_rng(1).uniform(-3.0, 0.0, (4, 3)))

    @jax.jit
    def masked(rows: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
        def call(loss: Loss, rows: jax.Array) -> jax.Array:
            return loss(rows, where=jnp.asarray(where))

        return {
            name: (
                call(loss, rows),
                jax.grad(lambda rows, loss=loss: call(loss, rows).sum())(rows),
            )
            for name, loss in LOSSES.items()
        }

    expected = values_and_gradients(clean)
    for rubbish in (np.nan, np.inf, -np.inf):
        for name, (value, gradient) in masked(jnp.where(where, clean, rubbish)).items():
            wanted = jnp.where(where, expected[name][0], 0.0)
            np.testing.assert_allclose(value, wanted, rtol=1e-14, err_msg=name)
            wanted = jnp.where(where, expected[name][1], 0.0)
            np.testing.assert_allclose(gradient, wanted, rtol=1e-13, err_msg=name)


def test_theorem_robust_loss_is_unbiased_under_flipped_labels() -> None:
    rows = np.random.default_rng(2).uniform(-3.0, 0.0, (4, 3))
    policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
    mean = losses.expected_over_labels(
        losses.robust, np.full(3, 0.8), policy, reference, beta=BETA, flip_probability=0.2
    )
    np.testing.assert_allclose(mean, losses.dpo(policy, reference, beta=BETA), rtol=EXACT)


def test_limit_special_cases_of_the_objectives_are_dpo() -> None:
    rows = np.random.default_rng(3).uniform(-3.0, 0.0, (4, 3))
    policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
    one = PairLogProbs(np.ones(3), np.ones(3))
    dpo = np.asarray(losses.dpo(policy, reference, beta=BETA))
    cases = {
        "robust": losses.robust(policy, reference, beta=BETA, flip_probability=0.0),
        "sigmoid_norm": losses.sigmoid_norm(policy, reference, one, beta=BETA),
        "reverse_kl": losses.f_dpo(policy, reference, beta=BETA),
        "alpha 1": losses.f_dpo(
            policy, reference, beta=BETA, divergence="alpha_divergence", alpha=1.0
        ),
        "certain label": losses.expected_over_labels(
            losses.dpo, np.ones(3), policy, reference, beta=BETA
        ),
    }
    for name, got in cases.items():
        np.testing.assert_allclose(got, dpo, rtol=EXACT, err_msg=name)
    flat = PairLogProbs(np.full(3, -1.0), np.full(3, -1.0))
    np.testing.assert_allclose(
        losses.cpo(policy, beta=BETA, sft_weight=0.0), losses.dpo(policy, flat, beta=BETA)
    )


def test_raises_an_unknown_divergence() -> None:
    pair, unchecked = PairLogProbs(np.zeros(1), np.zeros(1)), inspect.unwrap(losses.f_dpo)
    with pytest.raises(ValueError, match="`divergence` must be one of 'reverse_kl'"):
        unchecked(pair, pair, beta=1.0, divergence="kl")


def test_closed_form_aot_compares_sorted_samples_of_the_included_pairs() -> None:
    rng = np.random.default_rng(4)
    rows, where = rng.uniform(-3.0, 0.0, (4, 6)), np.array([1, 0, 1, 1, 0, 1], bool)
    kept = rows[:, where]
    dirty = np.where(where, rows, np.nan)
    policy, reference = PairLogProbs(dirty[0], dirty[1]), PairLogProbs(dirty[2], dirty[3])
    w, loser = ratios(kept)
    samples = {
        losses.aot: (kept[0] - kept[1], kept[2] - kept[3]),
        losses.aot_unpaired: (w, loser),
    }
    for loss, (first, second) in samples.items():
        z = BETA * (np.sort(first) - np.sort(second))
        expected = 0.9 * np.log1p(np.exp(-z)) + 0.1 * np.log1p(np.exp(z))

        def of_policy(policy: PairLogProbs, loss: Loss = loss) -> jax.Array:
            return loss(policy, reference, beta=BETA, label_smoothing=0.1, where=where)

        got = of_policy(policy)
        np.testing.assert_allclose(got, [*expected, 0.0, 0.0], rtol=EXACT)
        gradient = jax.grad(lambda policy: of_policy(policy).sum())(policy)
        slopes = np.zeros(6)
        by_rank = BETA * (sigmoid(z) - 0.9)
        slopes[np.flatnonzero(where)[np.argsort(first)]] = by_rank
        np.testing.assert_allclose(gradient.chosen, slopes, rtol=1e-10)


def test_closed_form_token_weights_of_wpo_and_length_desensitization() -> None:
    rng = np.random.default_rng(5)
    tables = [rng.dirichlet(np.ones(4), size=length) for length in (3, 5)]
    tokens = [rng.integers(4, size=length) for length in (3, 5)]
    log_p = [
        np.log(table[np.arange(len(table)), token])
        for table, token in zip(tables, tokens, strict=True)
    ]
    squares = [np.log((table**2).sum(axis=1)) for table in tables]
    expected = np.prod([np.exp(np.mean(p - s)) for p, s in zip(log_p, squares, strict=True)])
    policy, statistic, weights = (
        PairLogProbs(*(np.array([each]) for each in pair))
        for pair in ([p.sum() for p in log_p], [s.sum() for s in squares], [1 / 3, 1 / 5])
    )
    weight = losses.wpo_weights(policy, statistic, weights)
    np.testing.assert_allclose(weight, [expected], rtol=EXACT)
    slope = jax.grad(lambda policy: losses.wpo_weights(policy, statistic, weights).sum())(policy)
    assert not np.asarray(slope.chosen).any()
    masked = losses.wpo_weights(policy, statistic, weights, where=np.array([False]))
    assert masked.tolist() == [0.0]

    scale = losses.length_desensitized_weights(np.arange(5), np.full(5, 3), alpha=0.25)
    desensitized = float(np.asarray(scale) @ log_p[1])
    assert desensitized == pytest.approx(log_p[1][:3].sum() + 0.25 * log_p[1][3:].sum(), abs=EXACT)
