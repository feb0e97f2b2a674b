"""RPO under the options of other trainers: their loss equals the loss of this package.

The oracle of each trainer is the formula of its code, written out on the log-probabilities of
single tokens without any function of the package.
"""

from __future__ import annotations

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.train.trainer_conventions import (
    CONVENTIONS,
    RpoLoss,
    TrainerName,
    from_trainer_options,
    to_trainer_options,
)
from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.reductions import SftReduction, reduce_mean, reduce_sft

TRAINERS = get_args(TrainerName)
ROUNDING = 1e-12  # relative, float64: sums of a dozen terms
LENGTHS = np.array([[3, 2], [1, 4], [5, 3]])  # tokens of chosen and rejected
LONGEST = int(LENGTHS.max())
MASK = np.arange(LONGEST) < LENGTHS[..., None]
MEAN_TOKENS = float(LENGTHS[:, 0].mean())
RNG = np.random.default_rng(0)
POLICY = RNG.normal(-2.0, 1.0, (3, 2, LONGEST))  # log-probabilities by pair, role and token
REFERENCE = RNG.normal(-2.0, 1.0, (3, 2, LONGEST))


def tokens(log_probs: Any) -> tuple[list[Any], list[Any]]:
    """Return the log-probabilities of the unmasked tokens of chosen and rejected responses."""
    rows = [[log_probs[i, r, : LENGTHS[i, r]] for i in range(3)] for r in range(2)]
    return rows[0], rows[1]


def dpo(log_probs: Any, beta: float) -> Any:
    """Return the mean over pairs of log(1 + exp(-beta h))."""
    sums = [jnp.array([row.sum() for row in rows]) for rows in tokens(log_probs)]
    reference = [jnp.array([row.sum() for row in rows]) for rows in tokens(jnp.array(REFERENCE))]
    h = (sums[0] - reference[0]) - (sums[1] - reference[1])
    return jnp.log1p(jnp.exp(-beta * h)).mean()


def summed(rows: list[Any]) -> Any:
    return -jnp.array([row.sum() for row in rows]).mean()


def sequence_averaged(rows: list[Any]) -> Any:
    return -jnp.array([row.sum() / len(row) for row in rows]).mean()


def pooled(rows: list[Any]) -> Any:
    return -jnp.concatenate(rows).mean()


def theirs(trainer: str, log_probs: Any, options: dict[str, Any]) -> Any:
    """Return the loss by the formula of each trainer."""
    chosen = tokens(log_probs)[0]
    match trainer:
        case "paper":  # rpo_trainer.py: losses -= policy_chosen_logps * beta * eta
            beta, eta = options["beta"], options["eta"]
            return dpo(log_probs, beta) + beta * eta * summed(chosen)
        case "trl":  # dpo_trainer.py: sum of per_sequence_loss.mean() * loss_weight
            first, second = options["loss_weights"]
            return first * dpo(log_probs, options["beta"]) + second * pooled(chosen)
        case "trl-rpo-alpha" | "ms-swift":  # losses + rpo_alpha * nll_loss
            return dpo(log_probs, options["beta"]) + options["rpo_alpha"] * pooled(chosen)
        case "axolotl":
            return dpo(log_probs, options["rl_beta"]) + options["rpo_alpha"] * pooled(chosen)
        case "openrlhf":  # preference_loss + nll_loss * nll_loss_coef
            weight = options["nll_loss_coef"]
            return dpo(log_probs, options["beta"]) + weight * sequence_averaged(chosen)
        case "llama-factory":  # losses += ftx_gamma * sft_loss
            weight = options["pref_ftx"]
            return dpo(log_probs, options["pref_beta"]) + weight * sequence_averaged(chosen)
        case _:  # NeMo-RL and NeMo-Aligner: both terms are weighted
            name = "reference_policy_kl_penalty" if "rl" in trainer else "ref_policy_kl_penalty"
            average = options["sft_average_log_probs"]
            sft = sequence_averaged(chosen) if average else summed(chosen)
            preference = options["preference_loss_weight"] * dpo(log_probs, options[name])
            return preference + options["sft_loss_weight"] * sft


def ours(log_probs: Any, loss: RpoLoss) -> Any:
    """Return the loss of this package, times the factor."""
    sums = jnp.where(MASK, log_probs, 0.0).sum(-1)
    reference = jnp.where(MASK, REFERENCE, 0.0).sum(-1)
    pairs = [PairLogProbs(values[:, 0], values[:, 1]) for values in (sums, reference)]
    preference = reduce_mean(losses.dpo(pairs[0], pairs[1], beta=loss.beta)).mean()
    lengths = jnp.asarray(LENGTHS[:, 0], float)
    sft = reduce_sft(losses.sft(sums[:, 0]), lengths, reduction=loss.reduction).mean()
    return loss.factor * (preference + loss.eta * loss.beta * sft)


def assert_same(trainer: TrainerName, options: dict[str, Any], loss: RpoLoss) -> None:
    """Compare values and gradients in the log-probability of every token."""
    point = jnp.asarray(POLICY)
    value, gradient = jax.value_and_grad(lambda p: theirs(trainer, p, options))(point)
    expected, expected_gradient = jax.value_and_grad(lambda p: ours(p, loss))(point)
    np.testing.assert_allclose(value, expected, rtol=ROUNDING)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_gradient_and_loss_equal_theirs_if_reductions_agree(trainer: TrainerName) -> None:
    convention = CONVENTIONS[trainer]
    factor = 1.0 if convention.factor is None else 0.7
    loss = RpoLoss(0.2, 0.3, convention.reduction, factor)
    assert_same(trainer, to_trainer_options(trainer, loss), loss)


@pytest.mark.parametrize("trainer", ["trl", "trl-rpo-alpha", "axolotl", "ms-swift"])
def test_gradient_of_a_pooled_mean_is_that_of_the_sum_at_the_mean_length_of_the_batch(
    trainer: TrainerName,
) -> None:
    loss = RpoLoss(0.2, 0.3)
    assert_same(trainer, to_trainer_options(trainer, loss, mean_tokens=MEAN_TOKENS), loss)


@pytest.mark.parametrize("trainer", ["openrlhf", "llama-factory", "nemo-rl-average"])
def test_gradient_of_sequence_means_keeps_the_mean_weight_of_a_token(
    trainer: TrainerName,
) -> None:
    loss = RpoLoss(0.2, 0.3)
    options = to_trainer_options(trainer, loss, mean_tokens=MEAN_TOKENS)
    gradient = jax.grad(lambda p: theirs(trainer, p, options) - dpo(p, 0.2))(jnp.asarray(POLICY))
    weights = (
        -3 * np.asarray(gradient)[:, 0] * MASK[:, 0]
    )  # weight of a token in the loss of its pair
    by_pair = weights.sum(1)
    np.testing.assert_allclose(by_pair, loss.eta * loss.beta * MEAN_TOKENS, rtol=ROUNDING)
    short, long = weights[1, 0], weights[2, 0]
    assert short == pytest.approx(
        5 * long, rel=ROUNDING
    )  # responses of 1 and of 5 tokens; a sum has equal weights


@pytest.mark.parametrize("trainer", TRAINERS)
def test_closed_form_options_of_a_small_example(trainer: TrainerName) -> None:
    loss = RpoLoss(beta=0.5, eta=0.25)  # the weight of a token is 1/8; of a mean over 16 tokens, 2
    options = to_trainer_options(trainer, loss, mean_tokens=16.0)
    expected = {
        "paper": {"beta": 0.5, "eta": 0.25},
        "trl": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 2.0], "beta": 0.5},
        "trl-rpo-alpha": {"loss_type": "sigmoid", "beta": 0.5, "rpo_alpha": 2.0},
        "openrlhf": {"beta": 0.5, "nll_loss_coef": 2.0},
        "llama-factory": {"pref_loss": "sigmoid", "pref_beta": 0.5, "pref_ftx": 2.0},
        "axolotl": {"rl": "dpo", "rl_beta": 0.5, "rpo_alpha": 2.0},
        "ms-swift": {"rlhf_type": "dpo", "beta": 0.5, "rpo_alpha": 2.0},
    }
    if trainer in expected:
        assert options == expected[trainer]
        return
    average = trainer.endswith("average")
    assert options["sft_average_log_probs"] is average
    assert options["preference_average_log_probs"] is False
    assert options["preference_loss_weight"] == 1.0
    assert options["sft_loss_weight"] == (2.0 if average else 0.125)


POSITIVE = st.floats(1e-4, 1e4)


@given(
    trainer=st.sampled_from(TRAINERS),
    beta=POSITIVE,
    eta=st.floats(0.0, 1e4),
    reduction=st.sampled_from(get_args(SftReduction)),
    factor=POSITIVE,
    mean_tokens=st.floats(1.0, 1e5),
)
def test_roundtrip_options_convert_in_both_directions(
    trainer: TrainerName,
    beta: float,
    eta: float,
    reduction: SftReduction,
    factor: float,
    mean_tokens: float,
) -> None:
    if CONVENTIONS[trainer].factor is None:
        factor = 1.0
    loss = RpoLoss(beta, eta, reduction, factor)
    options = to_trainer_options(trainer, loss, mean_tokens=mean_tokens)
    restored = from_trainer_options(trainer, options, reduction=reduction, mean_tokens=mean_tokens)
    assert (restored.beta, restored.reduction, restored.factor) == (beta, reduction, factor)
    assert restored.eta == pytest.approx(eta, rel=ROUNDING)


def test_golden_trl_settings_for_the_paper_equal_its_loss_at_100_tokens() -> None:
    documented = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005], "beta": 0.01}
    for mean_tokens, eta in ((100.0, 0.005), (200.0, 0.0025)):
        loss = from_trainer_options("trl", documented, reduction="sum", mean_tokens=mean_tokens)
        assert loss.eta == pytest.approx(eta, rel=ROUNDING)


GOOD = {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.2]}
BAD_OPTIONS: list[tuple[TrainerName, dict[str, Any], str]] = [
    ("trl", GOOD | {"loss_type": ["ipo", "sft"]}, "`loss_type` must be"),
    ("trl", {"beta": 0.1}, "`loss_weights` must be among the options"),
    ("trl", GOOD | {"beta": 0.0}, "`beta` must be positive"),
    ("trl", GOOD | {"loss_weights": [0.0, 1.0]}, "`factor` must be positive"),
    ("trl", GOOD | {"loss_weights": [1.0, -1.0]}, "`eta` must be 0 or more"),
    ("nemo-aligner", {"preference_loss": "rpo_fwd_kl"}, "`preference_loss` must be 'dpo'"),
    ("nemo-rl", {"preference_average_log_probs": True}, "`preference_average_log_probs`"),
    ("nemo-rl", {"sft_average_log_probs": True}, "`sft_average_log_probs` must be False"),
]


@pytest.mark.parametrize(("trainer", "options", "message"), BAD_OPTIONS)
def test_raises_options_of_another_loss(
    trainer: TrainerName, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_trainer_options(trainer, options)


def test_raises_a_length_that_is_missing_and_a_factor_that_has_no_option() -> None:
    with pytest.raises(ValueError, match="`mean_tokens` must be positive between 'sum' and"):
        to_trainer_options("trl", RpoLoss(0.1, 0.1))
    with pytest.raises(ValueError, match="`factor` must be 1 for openrlhf, got 2"):
        to_trainer_options("openrlhf", RpoLoss(0.1, 0.1, "sequence_mean", 2.0))
    unknown: Any = "mean"
    with pytest.raises(ValueError, match="`reduction` must be one of"):
        to_trainer_options("paper", RpoLoss(0.1, 0.1, unknown))


def test_raises_an_unknown_trainer() -> None:
    name: Any = "peft"
    with pytest.raises((ValueError, TypeError), match="trainer"):
        from_trainer_options(name, GOOD)
