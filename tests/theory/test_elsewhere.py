"""Claims about the SFT weight under other trainers' names: the same loss, written their way."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from rpo_theory.elsewhere import ETA_OF, Trainer, eta_from, weight_for

ETA, BETA, TOKENS = 0.3, 0.2, 7
ROUNDING = 1e-14  # relative, float64
LOG_PROBS = np.random.default_rng(0).normal(-2.0, 1.0, size=(5, TOKENS))  # of chosen tokens


def theirs(trainer: str, weight: float) -> float:
    """The SFT part of the loss as each trainer writes it, on responses of one length."""
    match trainer:
        case "paper":
            return -weight * BETA * LOG_PROBS.sum(axis=1).mean()
        case "trl":
            return -weight * LOG_PROBS.mean()
        case "openrlhf" | "llama-factory" | "nemo-rl with sft_average_log_probs":
            return -weight * (LOG_PROBS.sum(axis=1) / TOKENS).mean()
        case _:
            return -weight * LOG_PROBS.sum(axis=1).mean()


@pytest.mark.parametrize("trainer", get_args(Trainer))
def test_closed_form_the_translated_weight_gives_the_same_loss(trainer: Trainer) -> None:
    ours = -ETA * BETA * LOG_PROBS.sum(axis=1).mean()
    weight = weight_for(trainer, eta=ETA, beta=BETA, mean_tokens=float(TOKENS))
    assert theirs(trainer, weight) == pytest.approx(ours, rel=ROUNDING)
    assert eta_from(trainer, weight, beta=BETA, mean_tokens=float(TOKENS)) == pytest.approx(
        ETA, rel=ROUNDING
    )
    assert trainer in ETA_OF


def test_raises_an_unknown_trainer() -> None:
    name: Any = "peft"
    with pytest.raises((ValueError, TypeError), match="trainer"):
        weight_for(name, eta=ETA, beta=BETA, mean_tokens=float(TOKENS))
