"""The objective: formulas in NumPy, sums over parts, masks, weights and limits."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.config import PREFERENCE_LOSSES, ObjectiveConfig
from llm.evaluation.metrics import add_metric_sums, compute_metric_sums, finalize_metrics
from llm.train.objective import (
    flag_non_finite_pairs,
    loss_share,
    normalizers,
    whole_batch_sums,
)
from llm.types import Batch
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs

EXACT = 1e-12  # float64 sums of a handful of terms of order ten
BETA, ETA = 0.3, 0.7
METHODS: list[Any] = ["sft", "rpo", "dpo", "ipo", "dpop", "chi_po"]
OF_PAIRS = [
    {"loss": name, "weight": 0.5 + index}
    for index, (name, loss) in enumerate(PREFERENCE_LOSSES.items())
    if loss.scope == "pair" and loss.statistic is None
]
"""All losses of pairs, for objectives that are their weighted sum."""
REDUCTIONS: list[Any] = ["sum", "sequence_mean", "pooled_mean"]

every_method = pytest.mark.parametrize("method", METHODS)
every_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def drawn(
    n: int = 5, k: int = 2, *, absent: tuple[int, ...] = (), weighted: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, Batch]:
    """Return log-probabilities of policy and reference, and their batch."""
    rng = np.random.default_rng(seed)
    policy, reference = -rng.uniform(1.0, 9.0, (2, n, k))
    present = np.ones(n, bool)
    present[list(absent)] = False
    nothing: Any = None
    batch = Batch(
        rows=nothing,
        completions=nothing,
        lengths=np.where(present[:, None], rng.integers(1, 20, (n, k)), 0),
        present=present,
        row_ids=np.where(present, np.arange(n), -1),
        weights=rng.uniform(0.5, 3.0, n) if weighted else None,
    )
    return policy, reference, batch


def log_sigmoid(value: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-value))


def whole(config: ObjectiveConfig, policy: Any, reference: Any, batch: Batch) -> dict[str, float]:
    named = finalize_metrics(config, compute_metric_sums(config, policy, reference, batch))
    return {name: float(value) for name, value in named.items()}


@every_reduction
def test_closed_form_rpo_is_dpo_plus_eta_beta_times_sft(reduction: Any) -> None:
    policy, reference, batch = drawn()
    config = ObjectiveConfig(beta=BETA, eta=ETA, sft_reduction=reduction)
    ratio, tokens = policy - reference, np.asarray(batch.lengths)[:, 0]
    dpo = -log_sigmoid(BETA * (ratio[:, 0] - ratio[:, 1])).mean()
    sft = {
        "sum": -policy[:, 0].mean(),
        "sequence_mean": -(policy[:, 0] / tokens).mean(),
        "pooled_mean": -policy[:, 0].sum() / tokens.sum(),
    }[reduction]
    got = whole(config, policy, reference, batch)
    assert got["loss/dpo"] == pytest.approx(dpo, rel=EXACT)
    assert got["loss/sft"] == pytest.approx(sft, rel=EXACT)
    assert got["loss"] == pytest.approx(dpo + ETA * BETA * sft, rel=EXACT)


def test_closed_form_metrics_of_rewards_and_log_probs() -> None:
    policy, reference, batch = drawn()
    rewards = BETA * (policy - reference)
    got = whole(ObjectiveConfig(beta=BETA, eta=ETA), policy, reference, batch)
    wanted = {
        "rewards/chosen": rewards[:, 0].mean(),
        "rewards/rejected": rewards[:, 1].mean(),
        "rewards/margins": (rewards[:, 0] - rewards[:, 1]).mean(),
        "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).mean(),
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
    }
    assert {name: got[name] for name in wanted} == pytest.approx(wanted, rel=EXACT)


@pytest.mark.parametrize("method", ["rpo", "dpo", "ipo", "sft"])
def test_closed_form_the_adversarial_value_is_the_loss_minus_that_of_the_reference(
    method: Any,
) -> None:
    """F = RPO loss + eta beta E log pi_ref(a0) under every method and reduction."""
    policy, reference, batch = drawn(k=3)
    rpo = ObjectiveConfig(beta=BETA, eta=ETA)
    wanted = whole(rpo, policy, reference, batch)["loss"] + ETA * BETA * reference[:, 2].mean()
    config = ObjectiveConfig(method=method, beta=BETA, eta=ETA, sft_reduction="pooled_mean")
    got = whole(config, policy, reference, batch)["theory/adversarial_value"]
    assert got == pytest.approx(wanted, rel=EXACT)


def test_parity_with_the_rpo_loss_of_the_theory() -> None:
    policy, reference, batch = drawn(k=3)
    pairs = PairLogProbs(policy[:, 0], policy[:, 1]), PairLogProbs(reference[:, 0], reference[:, 1])
    wanted = losses.rpo(*pairs, policy[:, 2], beta=BETA, eta=ETA).mean()
    got = whole(ObjectiveConfig(beta=BETA, eta=ETA), policy, reference, batch)["loss"]
    assert got == pytest.approx(float(wanted), rel=EXACT)


def test_closed_form_other_methods() -> None:
    policy, reference, batch = drawn()
    ratio = policy - reference
    h = ratio[:, 0] - ratio[:, 1]
    chi = h + np.exp(ratio[:, 0]) - np.exp(ratio[:, 1])
    smooth = 0.9 * log_sigmoid(BETA * h) + 0.1 * log_sigmoid(-BETA * h)
    wanted = {
        "dpo": -smooth.mean(),
        "ipo": np.square(h - 1 / 0.4).mean(),
        "dpop": -log_sigmoid(BETA * (h - 2.0 * np.maximum(0.0, -ratio[:, 0]))).mean(),
        "chi_po": -log_sigmoid(np.clip(BETA * chi, -3.0, 3.0)).mean(),
        "sft": -policy[:, 0].mean(),
    }
    options: Any = {"beta": BETA, "eta": ETA, "tau": 0.2, "penalty": 2.0, "reward_max": 1.5}
    for method, value in wanted.items():
        name: Any = method
        smoothing = 0.1 if method == "dpo" else 0.0
        config = ObjectiveConfig(method=name, label_smoothing=smoothing, **options)
        got = whole(config, policy, reference, batch)
        assert got["loss"] == pytest.approx(value, rel=EXACT)
        assert got[f"loss/{method}"] == pytest.approx(value, rel=EXACT)


def test_closed_form_a_policy_equal_to_its_reference_has_the_predicted_loss() -> None:
    policy, _, batch = drawn()
    unknown = set()
    for method in ["sft", "rpo", *PREFERENCE_LOSSES]:
        config = ObjectiveConfig(method=method, beta=BETA, eta=ETA, tau=0.4)
        if config.preference_at_reference is None:
            unknown.add(method)
            continue
        got = whole(config, policy, policy, batch)
        wanted = config.preference_at_reference + config.sft_weight * got["loss/sft"]
        assert got["loss"] == pytest.approx(wanted, rel=EXACT), method
    # Losses without a reference, and one with weights that depend on the policy.
    assert unknown == {"cpo", "slic", "simpo", "orpo", "power", "wpo"}


def test_closed_form_a_weighted_sum_is_the_sum_of_its_losses() -> None:
    policy, reference, batch = drawn(weighted=True)
    got = whole(ObjectiveConfig(beta=BETA, eta=ETA, preference=OF_PAIRS), policy, reference, batch)
    expected = ETA * BETA * got["loss/sft"]
    for item in OF_PAIRS:
        name: Any = item["loss"]
        single = whole(ObjectiveConfig(method=name, beta=BETA), policy, reference, batch)
        assert got[f"loss/{name}"] == pytest.approx(single["loss"], rel=EXACT), name
        expected += item["weight"] * single["loss"]
    assert got["loss"] == pytest.approx(expected, rel=EXACT)


def test_closed_form_options_reach_their_losses() -> None:
    policy, reference, batch = drawn()
    lengths = np.asarray(batch.lengths)
    u = policy - reference
    per_token = policy / lengths
    wanted = {
        ("simpo", "gamma", 0.7): -log_sigmoid(BETA * (per_token[:, 0] - per_token[:, 1]) - 0.7),
        ("bco_pair", "shift", 0.4): (
            -log_sigmoid(BETA * u[:, 0] - 0.4) - log_sigmoid(0.4 - BETA * u[:, 1])
        ),
        ("ipo", "per_token", True): np.square(
            u[:, 0] / lengths[:, 0] - u[:, 1] / lengths[:, 1] - 5
        ),
        ("slic", "delta", 2.0): np.maximum(0, 2 - policy[:, 0] + policy[:, 1]) - policy[:, 0],
        ("kto", "desirable_weight", 3.0): kto_of_pairs(u, 3.0),
    }
    for (method, option, value), losses_by_hand in wanted.items():
        config = ObjectiveConfig(method=method, beta=BETA, options={option: value})
        got = whole(config, policy, reference, batch)["loss"]
        assert got == pytest.approx(losses_by_hand.mean(), rel=1e-9), method


def kto_of_pairs(u: np.ndarray, desirable_weight: float) -> np.ndarray:
    point = max(0.0, u.mean())
    chosen, rejected = (1 / (1 + np.exp(-BETA * (u - point)))).T
    return 0.5 * (desirable_weight * (1 - chosen) + rejected)


def test_property_votes_count_as_rows_with_either_label() -> None:
    policy, reference, batch = drawn(n=3)
    wins, lost = np.array([2, 1, 3]), np.array([1, 0, 3])
    forward, backward = np.repeat(np.arange(3), wins), np.repeat(np.arange(3), lost)
    rows = np.concatenate([forward, backward])
    columns = np.array([[0, 1]] * len(forward) + [[1, 0]] * len(backward))
    separate = part_of(batch, rows)._replace(
        lengths=np.take_along_axis(np.asarray(batch.lengths)[rows], columns, axis=1)
    )
    counted = batch._replace(weights=(wins + lost).astype(float), labels=wins / (wins + lost))
    for reduction in REDUCTIONS:
        config = ObjectiveConfig(beta=BETA, eta=ETA, sft_reduction=reduction, preference=OF_PAIRS)
        wanted = whole(
            config,
            np.take_along_axis(policy[rows], columns, axis=1),
            np.take_along_axis(reference[rows], columns, axis=1),
            separate,
        )
        got = whole(config, policy, reference, counted)
        for name in ("loss", "loss/dpo", "loss/sft", "theory/adversarial_value"):
            assert got[name] == pytest.approx(wanted[name], rel=1e-9), (reduction, name)


def test_raises_weights_and_labels_for_a_loss_of_the_whole_batch() -> None:
    policy, reference, batch = drawn(weighted=True)
    with pytest.raises(ValueError, match="neither weights nor labels for 'aot'"):
        compute_metric_sums(ObjectiveConfig(method="aot"), policy, reference, batch)


def test_closed_form_batches_of_a_whole_batch_give_its_loss() -> None:
    policy, reference, batch = drawn(n=6, absent=(4,))
    config = ObjectiveConfig(method="aot", beta=BETA)
    parts = [
        (
            jax.tree.map(lambda leaf: leaf[None, None], part_of(batch, part))._replace(
                reference=reference[part][None, None]
            ),
            policy[part][None, None],
        )
        for part in (slice(None, 2), slice(2, None))
    ]
    got = finalize_metrics(config, whole_batch_sums(config, parts))
    wanted = whole(config, policy, reference, batch)
    assert {name: float(value) for name, value in got.items()} == pytest.approx(wanted, rel=EXACT)


def part_of(batch: Batch, part: Any) -> Batch:
    return jax.tree.map(lambda leaf: leaf[part], batch)


@pytest.mark.parametrize(
    ("method", "reduction"),
    [(method, "sum") for method in METHODS]
    + [(method, kind) for method in ("rpo", "sft") for kind in ("sequence_mean", "pooled_mean")],
)
def test_property_shares_of_parts_and_their_gradients_add_up_to_the_whole(
    method: Any, reduction: Any
) -> None:
    policy, reference, batch = drawn(n=8, k=3, absent=(2, 7), weighted=True)
    terms: dict[str, Any] = {"preference": OF_PAIRS} if method == "rpo" else {}
    config = ObjectiveConfig(method=method, beta=BETA, eta=ETA, sft_reduction=reduction, **terms)
    divisors = normalizers(config, batch)

    def share(policy: jax.Array, part: slice) -> jax.Array:
        sums = compute_metric_sums(config, policy[part], reference[part], part_of(batch, part))
        return loss_share(config, sums, divisors)

    def halves(policy: jax.Array) -> jax.Array:
        return share(policy, slice(None, 4)) + share(policy, slice(4, None))

    logits = jnp.asarray(policy)
    value, gradient = jax.jit(jax.value_and_grad(lambda logits: share(logits, slice(None))))(logits)
    split_value, split_gradient = jax.jit(jax.value_and_grad(halves))(logits)
    np.testing.assert_allclose(split_value, value, rtol=EXACT)
    np.testing.assert_allclose(split_gradient, gradient, rtol=EXACT, atol=EXACT)
    np.testing.assert_allclose(whole(config, policy, reference, batch)["loss"], value, rtol=EXACT)


def test_property_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    policy, reference, batch = drawn(n=4, weighted=True)
    config = ObjectiveConfig(sft_reduction="pooled_mean")
    first, second = (
        compute_metric_sums(config, policy[part], reference[part], part_of(batch, part))
        for part in (slice(None, 1), slice(1, None))
    )
    got = finalize_metrics(config, add_metric_sums(first, second))
    wanted = finalize_metrics(config, compute_metric_sums(config, policy, reference, batch))
    assert sorted(got) == sorted(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=EXACT)


@every_reduction
def test_property_weights_count_as_repetitions(reduction: Any) -> None:
    policy, reference, batch = drawn(n=3, k=3)
    counts = np.array([1, 2, 3])
    config = ObjectiveConfig(beta=BETA, eta=ETA, sft_reduction=reduction)
    repeated = np.repeat(np.arange(3), counts)
    wanted = whole(config, policy[repeated], reference[repeated], part_of(batch, repeated))
    got = whole(config, policy, reference, batch._replace(weights=counts.astype(float)))
    assert got == pytest.approx(wanted, rel=EXACT)


@every_reduction
def test_closed_form_normalizers_sum_over_every_leading_axis(reduction: Any) -> None:
    _, _, batch = drawn(n=4, absent=(3,))
    twice = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), batch)
    config = ObjectiveConfig(sft_reduction=reduction)
    tokens = int(np.asarray(batch.lengths)[:3, 0].sum())
    wanted = [6.0, 2.0 * tokens if reduction == "pooled_mean" else 6.0]
    np.testing.assert_array_equal(normalizers(config, twice), wanted)


@every_method
@pytest.mark.parametrize("garbage", [np.nan, -np.inf])
def test_extreme_values_of_absent_pairs_have_no_effect(method: Any, garbage: float) -> None:
    policy, reference, batch = drawn(n=4, k=3, absent=(1,))
    terms: dict[str, Any] = {"preference": OF_PAIRS} if method == "rpo" else {}
    config = ObjectiveConfig(method=method, beta=BETA, eta=ETA, **terms)
    wanted = whole(config, policy, reference, batch)

    def loss(policy: jax.Array, reference: Any) -> jax.Array:
        return finalize_metrics(config, compute_metric_sums(config, policy, reference, batch))[
            "loss"
        ]

    policy[1], reference[1] = garbage, garbage
    assert whole(config, policy, reference, batch) == wanted
    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(policy), reference))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0.0)


@every_reduction
def test_property_the_weight_of_an_absent_pair_changes_nothing(reduction: Any) -> None:
    policy, reference, batch = drawn(n=4, absent=(1,), weighted=True)
    config = ObjectiveConfig(beta=BETA, eta=ETA, sft_reduction=reduction)
    heavy = batch._replace(weights=np.where(batch.present, np.asarray(batch.weights), 7.0))
    assert whole(config, policy, reference, heavy) == whole(config, policy, reference, batch)


def test_gradient_with_respect_to_the_reference_is_zero() -> None:
    policy, reference, batch = drawn()

    def loss(reference: jax.Array) -> jax.Array:
        config = ObjectiveConfig()
        return finalize_metrics(config, compute_metric_sums(config, policy, reference, batch))[
            "loss"
        ]

    np.testing.assert_array_equal(jax.grad(loss)(jnp.asarray(reference)), 0.0)


def test_extreme_sft_without_a_reference_has_fewer_metrics() -> None:
    policy, _, batch = drawn()
    got = whole(ObjectiveConfig(method="sft"), policy, None, batch)
    assert sorted(got) == ["logps/chosen", "logps/rejected", "loss", "loss/sft"]


def test_closed_form_pairs_that_are_not_finite_are_flagged_unless_absent() -> None:
    policy, reference, batch = drawn(n=4, absent=(3,))
    policy[0, 1], reference[1, 0], policy[3, 0] = np.inf, np.nan, np.nan
    assert flag_non_finite_pairs(policy, reference, batch).tolist() == [True, True, False, False]
    assert flag_non_finite_pairs(policy, None, batch).tolist() == [True, False, False, False]


def test_raises_if_the_method_needs_a_reference_and_has_none() -> None:
    policy, _, batch = drawn()
    with pytest.raises(ValueError, match="`reference` must be given for method 'dpo'"):
        compute_metric_sums(ObjectiveConfig(method="dpo"), policy, None, batch)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"method": "ppo"}, "method"),
    ({"sft_reduction": "mean"}, "sft_reduction"),
    ({"beta": 0.0}, r"`objective.beta` must be positive and finite, got 0.0"),
    ({"beta": math.nan}, r"`objective.beta` must be positive and finite, got nan"),
    ({"tau": -1.0}, r"`objective.tau` must be positive and finite, got -1.0"),
    ({"reward_max": math.inf}, r"`objective.reward_max` must be positive and finite, got inf"),
    ({"eta": -0.1}, r"`objective.eta` must be 0 or more and finite, got -0.1"),
    ({"penalty": math.inf}, r"`objective.penalty` must be 0 or more and finite, got inf"),
    ({"label_smoothing": 0.5}, r"`objective.label_smoothing` must be in \[0, 0.5\), got 0.5"),
    ({"label_smoothing": 0.1, "method": "ipo"}, r"`objective.label_smoothing` must be 0 for"),
    ({"method": "simpo", "options": {"gama": 1}}, "no option 'gama': did you mean 'gamma'"),
    ({"method": "hinge", "options": {"gamma": 1}}, "it has no options; 'simpo' has it"),
    ({"method": "rboust"}, "did you mean 'robust'"),
    (
        {"preference": {"loss": "simpo", "gamma": -1.0}},
        r"`objective.preference.gamma` must be 0 or",
    ),
    ({"preference": [{"loss": "dpo"}, {"loss": "x"}]}, r"`objective.preference\[1\].loss` must"),
    ({"preference": [{"loss": "dpo", "weight": 0.0}]}, r"\[0\].weight` must be positive"),
    ({"preference": {"gamma": 1.0}}, "must be a mapping with the key `loss`"),
    ({"preference": []}, "`objective.preference` must have at least one loss"),
    ({"preference": {"loss": "dpo"}, "options": {"tau": 1.0}}, "`objective.options` must be empty"),
    ({"method": "sft", "options": {"tau": 1.0}}, "method 'sft' has no preference loss"),
    ({"preference": "ld_dpo"}, "set `objective.method` to ld_dpo"),
    ({"method": "exo_pair", "options": {"label_smoothing": 0.5}}, r"must be in \[0, 0.5\)"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_raises_for_constants_out_of_range(options: dict[str, Any], message: str) -> None:
    """In test runs jaxtyping raises a TypeError for a name outside a literal type first."""
    with pytest.raises((ValueError, TypeError), match=message):
        ObjectiveConfig(**options)
