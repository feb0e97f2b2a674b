r"""Conversion of the RPO loss to and from the options of other trainers.

Every trainer with an SFT term minimizes, per batch,

.. math:: f \cdot \Big(\text{DPO}_\beta + c \cdot \text{SFT}\Big).

Trainers differ in the names of the options, in whether :math:`c` is multiplied by :math:`\beta`,
and in whether the SFT loss is a sum or a mean over tokens. In this package and in the paper
(`liu:24`, eq. 4.8), :math:`c = \eta\beta`, the SFT loss is the token sum and :math:`f = 1`.
:data:`CONVENTIONS` was read from the code of each trainer; docs/trainer_conventions.md lists the
versions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from rpo_theory.reductions import SftReduction, weight_per_token

TrainerName = Literal[
    "paper",
    "trl",
    "trl-rpo-alpha",
    "openrlhf",
    "llama-factory",
    "nemo-rl",
    "nemo-rl-average",
    "nemo-aligner",
    "nemo-aligner-average",
    "axolotl",
    "ms-swift",
]


class RpoLoss(NamedTuple):
    r"""The RPO loss with the constants of this package.

    Attributes:
        beta: :math:`\beta > 0`, weight of the KL term.
        eta: :math:`\eta \ge 0`; the SFT term has the weight :math:`\eta\beta`.
        reduction: average of the SFT loss, see :func:`rpo_theory.reductions.reduce_sft`.
        factor: :math:`f > 0`, factor of the whole loss; it only scales the gradient.
    """

    beta: float
    eta: float
    reduction: SftReduction = "sum"
    factor: float = 1.0


class TrainerConvention(NamedTuple):
    """The options by which a trainer defines the loss.

    Attributes:
        beta: name of the option for beta.
        weight: name of the option for the weight of the SFT term; ``name[i]`` is item ``i`` of a
            list.
        factor: name of the option for the weight of the preference loss; None if it is always 1.
        reduction: average of the SFT loss.
        times_beta: whether the trainer multiplies the SFT weight by beta.
        fixed: values of options without which the loss is another one.
    """

    beta: str
    weight: str
    factor: str | None
    reduction: SftReduction
    times_beta: bool
    fixed: Mapping[str, Any]


def _nemo(beta: str, *, average: bool, **fixed: Any) -> TrainerConvention:
    """Return NeMo's convention; an option selects the reduction."""
    averages = {"preference_average_log_probs": False, "sft_average_log_probs": average}
    names = (beta, "sft_loss_weight", "preference_loss_weight")
    return TrainerConvention(*names, "sequence_mean" if average else "sum", False, fixed | averages)


_RL, _ALIGNER = "reference_policy_kl_penalty", "ref_policy_kl_penalty"

CONVENTIONS: dict[TrainerName, TrainerConvention] = {
    "paper": TrainerConvention("beta", "eta", None, "sum", True, {}),
    "trl": TrainerConvention(
        "beta",
        "loss_weights[1]",
        "loss_weights[0]",
        "pooled_mean",
        False,
        {"loss_type": ["sigmoid", "sft"]},
    ),
    "trl-rpo-alpha": TrainerConvention(
        "beta", "rpo_alpha", None, "pooled_mean", False, {"loss_type": "sigmoid"}
    ),
    "openrlhf": TrainerConvention("beta", "nll_loss_coef", None, "sequence_mean", False, {}),
    "llama-factory": TrainerConvention(
        "pref_beta", "pref_ftx", None, "sequence_mean", False, {"pref_loss": "sigmoid"}
    ),
    "nemo-rl": _nemo(_RL, average=False),
    "nemo-rl-average": _nemo(_RL, average=True),
    "nemo-aligner": _nemo(_ALIGNER, average=False, preference_loss="dpo"),
    "nemo-aligner-average": _nemo(_ALIGNER, average=True, preference_loss="dpo"),
    "axolotl": TrainerConvention("rl_beta", "rpo_alpha", None, "pooled_mean", False, {"rl": "dpo"}),
    "ms-swift": TrainerConvention(
        "beta", "rpo_alpha", None, "pooled_mean", False, {"rlhf_type": "dpo"}
    ),
}
"""Convention of each trainer, by name."""


def to_trainer_options(
    trainer: TrainerName, loss: RpoLoss, *, mean_tokens: float | None = None
) -> dict[str, Any]:
    r"""Convert the loss to the options of another trainer.

    Args:
        trainer: name of the trainer, a key of :data:`CONVENTIONS`.
        loss: the loss with the constants of this package.
        mean_tokens: mean number :math:`\bar n` of tokens of a chosen response; needed if one side
            sums over tokens and the other averages.

    Returns:
        Options by name. With equal reductions the losses are equal for every batch. From a sum to a
        pooled mean they are equal for batches of mean length :math:`\bar n`. Otherwise a token has
        the same weight on average.

    Raises:
        ValueError: if the trainer is unknown, a value is out of range, ``mean_tokens`` is missing,
            or the trainer has no option for the factor.

    References:
        `liu:24`, eq. 4.8.

    Examples:
        >>> to_trainer_options("llama-factory", RpoLoss(beta=0.1, eta=0.5), mean_tokens=100.0)
        {'pref_loss': 'sigmoid', 'pref_beta': 0.1, 'pref_ftx': 5.0}
    """
    convention = _convention(trainer)
    _check(loss)
    if convention.factor is None and loss.factor != 1.0:
        raise ValueError(f"`factor` must be 1 for {trainer}, got {loss.factor}")
    weight = loss.eta * _ratio(loss.reduction, convention.reduction, mean_tokens)
    options = dict(convention.fixed) | {convention.beta: loss.beta}
    if not convention.times_beta:
        weight *= loss.beta
    if convention.factor is None:
        return options | {convention.weight: weight}
    name, _, item = convention.weight.partition("[")
    if item:
        return options | {name: [loss.factor, loss.factor * weight]}
    return options | {convention.factor: loss.factor, name: loss.factor * weight}


def from_trainer_options(
    trainer: TrainerName,
    options: Mapping[str, Any],
    *,
    reduction: SftReduction | None = None,
    mean_tokens: float | None = None,
) -> RpoLoss:
    r"""Convert the options of another trainer to the loss; inverse of :func:`to_trainer_options`.

    Args:
        trainer: name of the trainer, a key of :data:`CONVENTIONS`.
        options: options by name; those that do not concern the loss are ignored.
        reduction: reduction of the result; None keeps that of the trainer, so that the losses are
            equal for every batch.
        mean_tokens: mean number of tokens of a chosen response, see :func:`to_trainer_options`.

    Returns:
        The loss with the constants of this package.

    Raises:
        ValueError: if the trainer is unknown, an option is missing or belongs to another loss, a
            value is out of range, or ``mean_tokens`` is missing.

    Examples:
        >>> trl = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005], "beta": 0.01}
        >>> from_trainer_options("trl", trl)
        RpoLoss(beta=0.01, eta=0.5, reduction='pooled_mean', factor=1.0)
        >>> from_trainer_options("trl", trl, reduction="sum", mean_tokens=200.0).eta
        0.0025
    """
    convention = _convention(trainer)
    for name, value in convention.fixed.items():
        if options.get(name, value) != value:
            raise ValueError(f"`{name}` must be {value!r} for this loss, got {options[name]!r}")
    beta = _read(options, convention.beta)
    factor = 1.0 if convention.factor is None else _read(options, convention.factor)
    loss = RpoLoss(beta, _read(options, convention.weight), convention.reduction, factor)
    _check(loss)
    per_eta = factor if convention.times_beta else factor * beta
    target = convention.reduction if reduction is None else reduction
    eta = loss.eta / per_eta * _ratio(convention.reduction, target, mean_tokens)
    return loss._replace(eta=eta, reduction=target)


def _convention(trainer: TrainerName) -> TrainerConvention:
    if trainer not in CONVENTIONS:
        raise ValueError(f"`trainer` must be one of {', '.join(CONVENTIONS)}, got {trainer!r}")
    return CONVENTIONS[trainer]


def _read(options: Mapping[str, Any], name: str) -> float:
    """Read an option, or an item of an option that is a list."""
    key, _, item = name.partition("[")
    if key not in options:
        raise ValueError(f"`{key}` must be among the options, got {', '.join(options)}")
    return float(options[key][int(item[:-1])] if item else options[key])


def _check(loss: RpoLoss) -> None:
    for name in ("beta", "factor"):
        if not 0 < (value := getattr(loss, name)) < math.inf:
            raise ValueError(f"`{name}` must be positive and finite, got {value}")
    if not 0 <= loss.eta < math.inf:
        raise ValueError(f"`eta` must be 0 or more and finite, got {loss.eta}")
    if loss.reduction not in get_args(SftReduction):
        names = ", ".join(get_args(SftReduction))
        raise ValueError(f"`reduction` must be one of {names}, got {loss.reduction!r}")


def _ratio(source: SftReduction, target: SftReduction, mean_tokens: float | None) -> float:
    """Return the factor of a weight that keeps the mean weight of a token."""
    if (source == "sum") == (target == "sum"):
        return 1.0
    if mean_tokens is None or not 0 < mean_tokens < math.inf:
        raise ValueError(
            f"`mean_tokens` must be positive between {source!r} and {target!r}, got {mean_tokens}"
        )
    weights = [
        weight_per_token(eta=1.0, beta=1.0, mean_tokens=mean_tokens, reduction=reduction)
        for reduction in (source, target)
    ]
    return weights[0] / weights[1]
