r"""The RPO loss under the options of other trainers: there and back.

Every trainer with an SFT term minimises, per batch,

.. math:: f \cdot \Big(\text{DPO}_\beta + c \cdot \text{SFT}\Big),

but calls the parts differently, multiplies :math:`c` by :math:`\beta` or not, and takes the SFT
loss as a sum or as a mean over tokens. Here and in the paper (`liu:24`, eq. 4.8) :math:`c =
\eta\beta`, the SFT loss is the token sum and :math:`f = 1`. :data:`CONVENTIONS` was read from each
trainer's code; which version is in docs/trainer_conventions.md.
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
    r"""The loss, in this package's words.

    Attributes:
        beta: :math:`\beta > 0`.
        eta: :math:`\eta \ge 0`; the SFT term has the factor :math:`\eta\beta`.
        reduction: of the SFT term, see :func:`rpo_theory.reductions.reduce_sft`.
        factor: :math:`f > 0`, of the whole loss; it scales the gradient and nothing else.
    """

    beta: float
    eta: float
    reduction: SftReduction = "sum"
    factor: float = 1.0


class TrainerConvention(NamedTuple):
    """How a trainer spells the loss.

    Attributes:
        beta: name of the option for beta.
        weight: name of the option for the SFT term, ``name[i]`` for an item of a list.
        factor: name of the option for the preference loss; None where it is always 1.
        reduction: of the SFT term.
        times_beta: whether the trainer multiplies its weight by beta.
        fixed: options that must have these values, or the loss is another one.
    """

    beta: str
    weight: str
    factor: str | None
    reduction: SftReduction
    times_beta: bool
    fixed: Mapping[str, Any]


def _nemo(beta: str, *, average: bool, **fixed: Any) -> TrainerConvention:
    """NeMo's option for the mean over tokens chooses the reduction."""
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
"""How each trainer spells the loss."""


def to_trainer_options(
    trainer: TrainerName, loss: RpoLoss, *, mean_tokens: float | None = None
) -> dict[str, Any]:
    r"""Options with which another trainer has the same loss.

    Args:
        trainer: which, a key of :data:`CONVENTIONS`.
        loss: in this package's words.
        mean_tokens: :math:`\bar n`, mean number of tokens of a chosen response; needed where one
            side sums over tokens and the other averages.

    Returns:
        Names and values. The loss is the same for every batch where the reductions agree; from a
        sum to a pooled mean for batches whose mean length is :math:`\bar n`; otherwise a token
        weighs the same on average.

    Raises:
        ValueError: an unknown trainer, a value out of range, ``mean_tokens`` missing, or a factor
            that the trainer has no option for.

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
    r"""The loss that another trainer's options stand for, the inverse of :func:`to_trainer_options`.

    Args:
        trainer: which, a key of :data:`CONVENTIONS`.
        options: names and values; those that do not concern the loss are passed over.
        reduction: of the answer; None keeps the trainer's, so that the loss is exactly theirs.
        mean_tokens: mean number of tokens of a chosen response, see :func:`to_trainer_options`.

    Returns:
        The loss in this package's words.

    Raises:
        ValueError: an unknown trainer, a missing option, options of another loss, a value out of
            range, or ``mean_tokens`` missing.

    Examples:
        >>> theirs = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.005], "beta": 0.01}
        >>> from_trainer_options("trl", theirs)
        RpoLoss(beta=0.01, eta=0.5, reduction='pooled_mean', factor=1.0)
        >>> from_trainer_options("trl", theirs, reduction="sum", mean_tokens=200.0).eta
        0.0025
    """
    convention = _convention(trainer)
    for name, value in convention.fixed.items():
        if options.get(name, value) != value:
            raise ValueError(f"`{name}` must be {value!r} for this loss, got {options[name]!r}")
    beta = _read(options, convention.beta)
    factor = 1.0 if convention.factor is None else _read(options, convention.factor)
    found = RpoLoss(beta, _read(options, convention.weight), convention.reduction, factor)
    _check(found)
    per_eta = factor if convention.times_beta else factor * beta
    wanted = convention.reduction if reduction is None else reduction
    eta = found.eta / per_eta * _ratio(convention.reduction, wanted, mean_tokens)
    return found._replace(eta=eta, reduction=wanted)


def _convention(trainer: TrainerName) -> TrainerConvention:
    if trainer not in CONVENTIONS:
        raise ValueError(f"`trainer` must be one of {', '.join(CONVENTIONS)}, got {trainer!r}")
    return CONVENTIONS[trainer]


def _read(options: Mapping[str, Any], name: str) -> float:
    """An option, or an item of one that is a list."""
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


def _ratio(given: SftReduction, wanted: SftReduction, mean_tokens: float | None) -> float:
    """What a coefficient is multiplied by so that a token weighs the same on average."""
    if (given == "sum") == (wanted == "sum"):
        return 1.0
    if mean_tokens is None or not 0 < mean_tokens < math.inf:
        raise ValueError(
            f"`mean_tokens` must be positive between {given!r} and {wanted!r}, got {mean_tokens}"
        )
    weights = [
        weight_per_token(eta=1.0, beta=1.0, mean_tokens=mean_tokens, reduction=one)
        for one in (given, wanted)
    ]
    return weights[0] / weights[1]
