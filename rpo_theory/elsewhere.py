r"""The SFT weight of RPO under the names and normalisations of other trainers.

Here and in the paper (`liu:24`, eq. 4.8) a chosen token's log-probability counts :math:`\eta\beta`
in the loss of its pair. Other trainers have a coefficient :math:`w` of their own and take the mean
over tokens, so that a token counts :math:`w/\bar n`, with :math:`\bar n` the mean length of a
response.
"""

from __future__ import annotations

from typing import Literal, get_args

from .reductions import weight_per_token

Trainer = Literal[
    "paper", "trl", "openrlhf", "llama-factory", "nemo-rl", "nemo-rl with sft_average_log_probs"
]

ETA_OF: dict[str, str] = {
    "paper": "eta",
    "trl": 'loss_weights=[1, w] of loss_type=["sigmoid", "sft"]',
    "openrlhf": "nll_loss_coef",
    "llama-factory": "pref_ftx",
    "nemo-rl": "sft_loss_weight",
    "nemo-rl with sft_average_log_probs": "sft_loss_weight",
}
"""What each trainer calls its weight."""


def weight_for(trainer: Trainer, *, eta: float, beta: float, mean_tokens: float) -> float:
    r"""The coefficient with which another trainer has the same loss, on average over responses.

    Args:
        trainer: which, see :data:`ETA_OF`.
        eta: :math:`\eta`, with the token sum.
        beta: :math:`\beta`, the same in both.
        mean_tokens: :math:`\bar n`, mean number of tokens of a chosen response.

    Returns:
        The value of the option that :data:`ETA_OF` names. Exact where all responses have
        ``mean_tokens`` tokens; otherwise a token counts the same on average.

    Raises:
        ValueError: an unknown trainer.

    References:
        `liu:24`, eq. 4.8.

    Examples:
        >>> round(weight_for("trl", eta=0.05, beta=0.1, mean_tokens=120.0), 6)
        0.6
    """
    return eta / _eta_of_one(trainer, beta, mean_tokens)


def eta_from(trainer: Trainer, weight: float, *, beta: float, mean_tokens: float) -> float:
    r"""The :math:`\eta` of another trainer's coefficient, the inverse of :func:`weight_for`.

    Args:
        trainer: which, see :data:`ETA_OF`.
        weight: its coefficient.
        beta: :math:`\beta`, the same in both.
        mean_tokens: mean number of tokens of a chosen response.

    Returns:
        :math:`\eta`, for the token sum.

    Raises:
        ValueError: an unknown trainer.

    Examples:
        >>> round(eta_from("llama-factory", 0.6, beta=0.1, mean_tokens=120.0), 6)
        0.05
    """
    return weight * _eta_of_one(trainer, beta, mean_tokens)


def _eta_of_one(trainer: Trainer, beta: float, mean_tokens: float) -> float:
    r""":math:`\eta` that a coefficient of 1 stands for."""
    if trainer not in get_args(Trainer):
        raise ValueError(
            f"`trainer` must be one of {', '.join(get_args(Trainer))}, got {trainer!r}"
        )
    per_token = weight_per_token(eta=1.0, beta=beta, mean_tokens=mean_tokens)
    match trainer:
        case "paper":
            return 1.0
        case "nemo-rl":
            return 1.0 / per_token
        case _:
            return 1.0 / (per_token * mean_tokens)
