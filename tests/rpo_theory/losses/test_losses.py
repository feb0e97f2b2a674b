"""Losses against formulas by hand: values, gradients, masks, extremes, displacement."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_theory import losses
from rpo_theory.losses import PairLogProbs

EXACT = 1e-13  # float64 after a handful of operations
SLOPE = 1e-6  # central differences of step 1e-6 in float64
BETA, ETA = 0.3, 0.7

log_probs = st.floats(-50.0, 0.0)
row = st.tuples(log_probs, log_probs, log_probs, log_probs)
quadruples = st.lists(row, min_size=3, max_size=3)  # one shape: compiled once


def pairs(rows: Any) -> tuple[PairLogProbs, PairLogProbs]:
    columns = jnp.asarray(np.array(rows, np.float64).T)
    return PairLogProbs(columns[0], columns[1]), PairLogProbs(columns[2], columns[3])


Loss = Callable[..., jax.Array]


def on_pairs(loss: Loss, **options: Any) -> Loss:
    def call(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
        policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
        return loss(policy, reference, where=where, **options)

    return call


def rpo_on_chosen(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    policy, reference = PairLogProbs(rows[0], rows[1]), PairLogProbs(rows[2], rows[3])
    return losses.rpo(policy, reference, rows[0], beta=BETA, eta=ETA, where=where)


def weighted(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    policy = PairLogProbs(rows[0], rows[1])
    weights = PairLogProbs(1.0 - rows[2] / 50, 1.0 - rows[3] / 50)
    return losses.power(policy, weights, beta=BETA, eta=ETA, where=where)


def simpo(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    policy = PairLogProbs(rows[0], rows[1])
    weights = PairLogProbs(1.0 - rows[2] / 50, 1.0 - rows[3] / 50)
    return losses.simpo(policy, weights, beta=BETA, gamma=ETA, where=where)


def orpo(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    # Odds are infinite at a log-probability of 0.
    policy = PairLogProbs(rows[0] - 0.5, rows[1] - 0.5)
    weights = PairLogProbs(1.0 - rows[2] / 50, 1.0 - rows[3] / 50)
    return losses.orpo(policy, weights, penalty=ETA, where=where)


def kto(rows: jax.Array, where: jax.Array | None = None) -> jax.Array:
    desirable = jnp.arange(rows.shape[1]) % 2 == 0
    options = {"reference_point": 0.2, "undesirable_weight": 1.5, "where": where}
    return losses.kto(rows[0], rows[2], desirable, beta=BETA, **options)


ALL: dict[str, Loss] = {
    "margin": on_pairs(losses.margin),
    "dpo": on_pairs(losses.dpo, beta=BETA),
    "dpo with label smoothing": on_pairs(losses.dpo, beta=BETA, label_smoothing=0.1),
    "sft": lambda rows, where=None: losses.sft(rows[0], where=where),
    "rpo": rpo_on_chosen,
    "ipo": on_pairs(losses.ipo, tau=0.2),
    "dpop": on_pairs(losses.dpop, beta=BETA, penalty=5.0),
    "chi_po": on_pairs(losses.chi_po, beta=BETA, reward_max=100.0),
    "power": weighted,
    "simpo": simpo,
    "orpo": orpo,
    "kto": kto,
}


@functools.cache
def gradient_of(loss: Loss) -> Loss:
    """Return the compiled gradient of the summed loss."""
    return jax.jit(jax.grad(lambda rows, where=None: loss(rows, where).sum()))


every_loss = pytest.mark.parametrize("loss", ALL.values(), ids=ALL)


def softplus(z: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, z)


@settings(deadline=None)
@given(quadruples)
def test_closed_form_margin_is_the_difference_of_log_ratios(rows: Any) -> None:
    a = np.array(rows).T
    np.testing.assert_allclose(
        losses.margin(*pairs(rows)), (a[0] - a[2]) - (a[1] - a[3]), atol=EXACT
    )


@settings(deadline=None)
@given(quadruples)
def test_closed_form_dpo_ipo_and_rpo(rows: Any) -> None:
    a = np.array(rows).T
    h = (a[0] - a[2]) - (a[1] - a[3])
    policy, reference = pairs(rows)
    dpo = softplus(-BETA * h)
    np.testing.assert_allclose(losses.dpo(policy, reference, beta=BETA), dpo, rtol=1e-12)
    np.testing.assert_allclose(
        losses.ipo(policy, reference, tau=0.2), (h - 2.5) ** 2, rtol=1e-12, atol=EXACT
    )
    rpo = dpo - ETA * BETA * a[2]
    np.testing.assert_allclose(
        losses.rpo(policy, reference, jnp.asarray(a[2]), beta=BETA, eta=ETA), rpo, rtol=1e-12
    )
    smooth = 0.9 * softplus(-BETA * h) + 0.1 * softplus(BETA * h)
    np.testing.assert_allclose(
        losses.dpo(policy, reference, beta=BETA, label_smoothing=0.1), smooth, rtol=1e-12
    )


@settings(deadline=None)
@given(quadruples)
def test_closed_form_dpop_and_power(rows: Any) -> None:
    a = np.array(rows).T
    h = (a[0] - a[2]) - (a[1] - a[3])
    policy, reference = pairs(rows)
    dpop = softplus(-BETA * (h - 5.0 * np.maximum(0.0, a[2] - a[0])))
    np.testing.assert_allclose(
        losses.dpop(policy, reference, beta=BETA, penalty=5.0), dpop, rtol=1e-12
    )
    w = np.exp(a[2:] / 50)
    inside = BETA * (w[0] * a[0] - w[1] * a[1] + w[0] - w[1])
    power = softplus(-inside) - ETA * BETA * w[0] * a[0]
    got = losses.power(policy, PairLogProbs(*jnp.asarray(w)), beta=BETA, eta=ETA)
    np.testing.assert_allclose(got, power, rtol=1e-12)


def test_closed_form_simpo_orpo_and_kto() -> None:
    chosen, rejected = np.array([0.7, 0.05]), np.array([0.2, 0.9])
    policy = PairLogProbs(jnp.log(chosen), jnp.log(rejected))
    weights = PairLogProbs(jnp.array([1.0, 0.5]), jnp.array([1.0, 0.25]))
    loss = losses.simpo(policy, weights, beta=BETA, gamma=ETA)
    averages = chosen ** np.array([1.0, 0.5]), rejected ** np.array([1.0, 0.25])
    likely = (averages[0] / averages[1]) ** BETA * np.exp(-ETA)
    np.testing.assert_allclose(loss, np.log1p(1 / likely), rtol=EXACT)

    odds = [average / (1 - average) for average in averages]
    loss = losses.orpo(policy, weights, penalty=ETA)
    expected = -np.log(averages[0]) + ETA * np.log1p(odds[1] / odds[0])
    np.testing.assert_allclose(loss, expected, rtol=EXACT)

    def kto_losses(point: jax.Array) -> jax.Array:
        desirable = jnp.array([True, False])
        options = {"beta": BETA, "reference_point": point, "desirable_weight": 2.0}
        return losses.kto(policy.chosen, policy.rejected, desirable, **options)

    ratio = (chosen / rejected) ** BETA * np.exp(-0.1 * BETA)
    expected = np.array([2 / (1 + ratio[0]), ratio[1] / (1 + ratio[1])])
    np.testing.assert_allclose(kto_losses(jnp.array(0.1)), expected, rtol=EXACT)
    assert float(jax.grad(lambda point: kto_losses(point).sum())(jnp.array(0.1))) == 0.0


@settings(deadline=None)
@given(quadruples)
def test_closed_form_chi_po(rows: Any) -> None:
    a = np.array(rows).T
    chosen, rejected = a[0] - a[2], a[1] - a[3]
    difference = np.exp(chosen) + chosen - np.exp(rejected) - rejected
    expected = softplus(-np.clip(BETA * difference, -8.0, 8.0))
    got = losses.chi_po(*pairs(rows), beta=BETA, reward_max=4.0)
    # Here, not in the loss, two large ratios cancel: the rounding is that of the larger one.
    slack = 1e-12 + 1e-15 * np.exp(np.maximum(chosen, rejected))
    assert np.all(np.abs(got - expected) <= slack * (1 + expected))


@settings(deadline=None)
@given(quadruples)
def test_limit_special_cases_of_the_losses_are_dpo(rows: Any) -> None:
    policy, reference = pairs(rows)
    dpo = np.asarray(losses.dpo(policy, reference, beta=BETA))
    rpo = losses.rpo(policy, reference, policy.chosen, beta=BETA, eta=0.0)
    np.testing.assert_array_equal(rpo, dpo)
    np.testing.assert_array_equal(losses.dpop(policy, reference, beta=BETA, penalty=0.0), dpo)
    gained = PairLogProbs(reference.chosen, policy.rejected)
    np.testing.assert_array_equal(
        losses.dpop(gained, reference, beta=BETA, penalty=5.0),
        losses.dpo(gained, reference, beta=BETA),
    )


@settings(deadline=None)
@given(quadruples)
def test_property_swapping_a_pair_adds_its_scaled_margin(rows: Any) -> None:
    policy, reference = pairs(rows)
    swapped = losses.dpo(PairLogProbs(*policy[::-1]), PairLogProbs(*reference[::-1]), beta=BETA)
    difference = swapped - losses.dpo(policy, reference, beta=BETA)
    np.testing.assert_allclose(
        difference, BETA * losses.margin(policy, reference), rtol=1e-11, atol=1e-12
    )


@jax.jit
@jax.grad
def rpo_gradient(policy: PairLogProbs, reference: PairLogProbs) -> jax.Array:
    """Return the gradient with respect to the policy, with the chosen responses as baseline."""
    return losses.rpo(policy, reference, policy.chosen, beta=BETA, eta=ETA).sum()


@settings(max_examples=20, deadline=None)
@given(quadruples)
def test_gradient_of_rpo_is_the_hand_formula(rows: Any) -> None:
    policy, reference = pairs(rows)
    gradient = rpo_gradient(policy, reference)
    surprise = jax.nn.sigmoid(-BETA * losses.margin(policy, reference))
    np.testing.assert_allclose(gradient.chosen, -BETA * surprise - ETA * BETA, rtol=1e-12)
    np.testing.assert_allclose(gradient.rejected, BETA * surprise, rtol=1e-12)


@every_loss
def test_gradient_agrees_with_finite_differences(loss: Loss) -> None:
    rows = np.random.default_rng(0).uniform(-3.0, 0.0, (4, 6))
    gradient, summed = np.asarray(gradient_of(loss)(rows)), jax.jit(lambda r: loss(r).sum())
    step = 1e-6
    for i, j in np.ndindex(*rows.shape):
        move = step * np.eye(rows.size)[i * rows.shape[1] + j].reshape(rows.shape)
        ahead, behind = (summed(rows + sign * move) for sign in (1, -1))
        assert gradient[i, j] == pytest.approx(float(ahead - behind) / (2 * step), abs=SLOPE)


@every_loss
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf])
def test_extreme_masked_examples_have_zero_loss_and_zero_gradient(
    loss: Loss, rubbish: float
) -> None:
    clean = jnp.asarray(np.random.default_rng(1).uniform(-3.0, 0.0, (4, 5)))
    where = np.array([True, False, True, False, True])
    dirty = jnp.where(where, clean, rubbish)
    got, gradient = loss(dirty, where), gradient_of(loss)(dirty, where)
    expected, wanted = loss(clean), gradient_of(loss)(clean)
    np.testing.assert_array_equal(got, jnp.where(where, expected, 0.0))
    np.testing.assert_allclose(gradient[:, where], wanted[:, where], rtol=EXACT)
    np.testing.assert_array_equal(gradient[:, ~where], 0.0)


@every_loss
@pytest.mark.parametrize(
    "signs", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (1, 1, 0, 0), (1, 0, 0, 1)]
)
def test_extreme_log_probabilities_of_ten_thousand_nats_stay_finite(
    loss: Loss, signs: tuple[int, ...]
) -> None:
    rows = -1e4 * jnp.asarray(signs, jnp.float64)[:, None]
    assert jnp.isfinite(loss(rows)).all()
    assert jnp.isfinite(gradient_of(loss)(rows)).all()


EXTREME = [-1e4, -1.0, 0.0, 1.0, 1e4]
EXTREME_LOSSES: dict[str, Callable[..., jax.Array]] = {
    "dpo": losses.dpo,
    "rpo": lambda policy, reference, beta: losses.rpo(
        policy, reference, policy.chosen, beta=beta, eta=1.0 / beta
    ),
    "ipo": lambda policy, reference, beta: losses.ipo(policy, reference, tau=beta),
    "dpop": lambda policy, reference, beta: losses.dpop(policy, reference, beta=beta, penalty=2.0),
    "chi_po": lambda policy, reference, beta: losses.chi_po(
        policy, reference, beta=beta, reward_max=4.0
    ),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("beta", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("name", EXTREME_LOSSES)
def test_gradient_at_extreme_log_ratios_and_beta_is_that_of_float64(
    name: str, beta: float, dtype: Any
) -> None:
    ratios = jnp.array([(w, loser) for w in EXTREME for loser in EXTREME], dtype).T
    level = PairLogProbs(*jnp.zeros_like(ratios))

    def summed_loss(ratios: jax.Array) -> jax.Array:
        zero = jax.tree.map(lambda side: side.astype(ratios.dtype), level)
        return EXTREME_LOSSES[name](PairLogProbs(*ratios), zero, beta=beta)

    gradient = jax.jit(jax.grad(lambda ratios: summed_loss(ratios).sum()))

    rounding = 8.0 * float(jnp.finfo(dtype).eps)
    for narrow, exact in ((summed_loss(ratios), summed_loss), (gradient(ratios), gradient)):
        wanted = np.asarray(exact(ratios.astype(jnp.float64)))
        assert narrow.dtype == dtype
        assert jnp.isfinite(narrow).all()
        # A gradient of chi-PO beyond what the dtype holds is cut off, finite and of the right sign.
        held = np.abs(wanted) < 1e30
        got = np.asarray(narrow.astype(jnp.float64))
        np.testing.assert_allclose(got[held], wanted[held], rtol=rounding, atol=beta * 1e-30)
        np.testing.assert_array_equal(np.sign(got[~held]), np.sign(wanted[~held]))


@pytest.mark.parametrize(
    ("chosen", "rejected", "sign"),
    [(1e4, 0.0, 1), (0.0, 1e4, -1), (1000.0, 900.0, 1), (900.0, 1000.0, -1), (360.0, 355.0, 1)],
)
def test_extreme_chi_po_is_clipped_on_the_right_side_where_exp_overflows(
    chosen: float, rejected: float, sign: int
) -> None:
    def loss(policy: PairLogProbs) -> jax.Array:
        nothing = PairLogProbs(jnp.zeros(()), jnp.zeros(()))
        return losses.chi_po(policy, nothing, beta=1e-3, reward_max=1.0)

    policy = PairLogProbs(jnp.array(chosen), jnp.array(rejected))
    assert float(loss(policy)) == pytest.approx(softplus(np.array(-2.0 * sign)))
    assert all(float(gradient) == 0.0 for gradient in jax.grad(loss)(policy))


def test_property_the_dtype_of_the_inputs_is_kept() -> None:
    rows = jnp.full((4, 2), -1.0, jnp.float32)
    assert {name: loss(rows).dtype for name, loss in ALL.items()} == dict.fromkeys(
        ALL, jnp.dtype(jnp.float32)
    )


@pytest.mark.parametrize(
    ("eta", "printed", "digits"),
    [
        (0.0, -56.6, 1),
        (0.005, -43.2, 1),
        (0.05, -0.37, 2),
        (0.5, -0.023, 3),
        (1.0, -0.011, 3),
        (5.0, -0.002, 3),
    ],
)
def test_golden_dpo_displaces_the_chosen_response_and_rpo_keeps_it(
    eta: float, printed: float, digits: int
) -> None:
    """After 20,000 gradient steps on one pair, DPO moves all mass to a third response."""
    features = jnp.array([[1.0, 1.0], [1.0, -1.0], [0.0, 3.0]])  # winner, loser, in no pair
    log_reference = jnp.log(jnp.array([0.49, 0.49, 0.02]))

    def log_policy(theta: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(log_reference + features @ theta)

    def loss(theta: jax.Array) -> jax.Array:
        policy, reference = PairLogProbs(*log_policy(theta)[:2]), PairLogProbs(*log_reference[:2])
        if eta == 0.0:
            return losses.dpo(policy, reference, beta=0.1)
        return losses.rpo(policy, reference, policy.chosen, beta=0.1, eta=eta)

    def descend(theta: jax.Array, _: None) -> tuple[jax.Array, None]:
        return theta - 0.5 * jax.grad(loss)(theta), None

    theta, _ = jax.lax.scan(descend, jnp.zeros(2), None, length=20_000)
    assert float(log_policy(jnp.zeros(2))[0]) == pytest.approx(-0.71, abs=0.005)
    assert round(float(log_policy(theta)[0]), digits) == printed
    if eta == 0.0:
        assert float(jnp.exp(log_policy(theta)[2])) == pytest.approx(1.0)


def test_closed_form_k_wise_loss_of_two_is_dpo_and_rpo_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    policy, reference = (jnp.asarray(30 * rng.normal(size=(200, 2))) for _ in range(2))
    baseline = jnp.asarray(rng.normal(size=200))
    first, second = (losses.PairLogProbs(table[:, 0], table[:, 1]) for table in (policy, reference))
    np.testing.assert_array_equal(
        losses.plackett_luce(policy, reference, beta=0.3), losses.dpo(first, second, beta=0.3)
    )
    np.testing.assert_array_equal(
        losses.plackett_luce(policy, reference, baseline, beta=0.3, eta=0.2),
        losses.rpo(first, second, baseline, beta=0.3, eta=0.2),
    )


def test_gradient_k_wise_loss_is_that_of_the_chain_of_softmaxes() -> None:
    rng = np.random.default_rng(1)
    policy, reference = (jnp.asarray(5 * rng.normal(size=(20, 4))) for _ in range(2))

    def chain(policy: jax.Array, ranks: int) -> jax.Array:
        score = 0.3 * (policy - reference)
        stages = [jax.nn.logsumexp(score[:, k:], axis=1) - score[:, k] for k in range(ranks)]
        return jnp.asarray(sum(stages))

    for ranked, ranks in ((None, 4), (1, 1)):

        def loss(policy: jax.Array, ranked: int | None = ranked) -> jax.Array:
            return losses.plackett_luce(policy, reference, beta=0.3, ranked=ranked)

        np.testing.assert_allclose(loss(policy), chain(policy, ranks), rtol=1e-13, atol=1e-14)
        got = jax.jit(jax.grad(lambda policy, loss=loss: loss(policy).sum()))(policy)
        expected = jax.jit(jax.grad(lambda policy, ranks=ranks: chain(policy, ranks).sum()))(policy)
        np.testing.assert_allclose(got, expected, atol=1e-14)


def test_extreme_masked_responses_of_a_ranking_have_no_loss_and_no_gradient() -> None:
    policy = jnp.array([[-1.0, jnp.nan, -2.0], [jnp.inf, -1.0, jnp.nan], [1e300, -1e300, 0.0]])
    where = jnp.array([[True, False, True], [False, True, False], [True, True, True]])
    reference = jnp.zeros_like(policy)

    def loss(policy: jax.Array) -> jax.Array:
        return losses.plackett_luce(policy, reference, beta=1.0, where=where)

    np.testing.assert_allclose(loss(policy)[0], np.log1p(np.exp(-1.0)), rtol=1e-15)
    assert loss(policy)[1] == 0.0
    gradient = jax.jit(jax.grad(lambda policy: loss(policy)[:2].sum()))(policy)
    assert np.isfinite(gradient).all()
    assert not gradient[~where].any()
