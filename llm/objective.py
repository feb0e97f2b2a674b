r"""From log-probabilities of responses to the objective of a training step, and its metrics.

No loss is written here: the per-example losses are those of :mod:`rpo_theory.losses` and the ways
to average them those of :mod:`rpo_theory.reductions`, so that a language model is trained on the
very functions that the theory is checked with. This module picks the losses of a method, keeps
totals that add up over the parts of a batch, and divides once, over the global batch: neither
accumulation nor packing nor the mesh changes the objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from rpo_theory import losses
from rpo_theory.losses import PairLogProbs
from rpo_theory.reductions import Reduction, SftReduction, reduce_mean, reduce_sft
from rpo_theory.types import ArrayLike

from .batches import Batch
from .sequence_logprobs import accumulation_dtype

Method = Literal["sft", "rpo", "dpo", "ipo", "dpop", "chi_po"]
Totals = dict[str, Reduction]
"""Sums and weights by metric name: those of parts of a batch add up, and are divided once."""

CHOSEN, REJECTED, BASELINE = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    r"""Which objective is minimised, and its constants.

    Attributes:
        method: ``"rpo"`` (DPO plus :math:`\eta\beta` times SFT, `liu:24`, eq. 4.8), ``"dpo"``,
            ``"ipo"``, ``"dpop"``, ``"chi_po"``, or ``"sft"`` alone.
        beta: :math:`\beta > 0`, weight of the KL term; all but ``"sft"`` and ``"ipo"`` train with
            it, and the metrics show rewards in its unit.
        eta: :math:`\eta \ge 0`, weight of the adversarial term. Only ``"rpo"`` trains with it; the
            adversarial value is measured with it under every method.
        sft_reduction: how the SFT loss is averaged: ``"sum"`` over the tokens of a response and
            mean over pairs (the theorem's), ``"sequence_mean"``, or ``"pooled_mean"``.
        label_smoothing: probability in [0, 1/2) that a label is flipped; ``"rpo"`` and ``"dpo"``.
        tau: regularisation of ``"ipo"``, positive.
        penalty: :math:`\lambda \ge 0` of ``"dpop"``.
        reward_max: :math:`R > 0` of ``"chi_po"``, whose margin is clipped at twice that.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> ObjectiveConfig(method="rpo", beta=0.1, eta=0.5).sft_weight
        0.05
    """

    method: Method = "rpo"
    beta: float = 0.01
    eta: float = 0.005
    sft_reduction: SftReduction = "sum"
    label_smoothing: float = 0.0
    tau: float = 0.1
    penalty: float = 5.0
    reward_max: float = 1.0

    def __post_init__(self) -> None:
        """Refuse constants that no method can use."""
        for name, allowed in (("method", Method), ("sft_reduction", SftReduction)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                names = ", ".join(repr(choice) for choice in get_args(allowed))
                raise ValueError(f"`{name}` must be one of {names}, got {value!r}")
        for name in ("beta", "tau", "reward_max"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {value}")
        for name in ("eta", "penalty"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"`{name}` must be 0 or more and finite, got {value}")
        smoothing = self.label_smoothing
        if not 0 <= smoothing < 0.5:
            raise ValueError(f"`label_smoothing` must be in [0, 0.5), got {smoothing}")
        if smoothing > 0 and self.method not in ("rpo", "dpo"):
            raise ValueError(
                f"`label_smoothing` must be 0 for method {self.method!r}, got {smoothing}: "
                "only 'rpo' and 'dpo' have it"
            )

    @property
    def sft_weight(self) -> float:
        r"""Factor of the SFT loss: :math:`\eta\beta` for RPO, 1 for SFT, 0 for the others."""
        return {"rpo": self.eta * self.beta, "sft": 1.0}.get(self.method, 0.0)

    @property
    def needs_reference(self) -> bool:
        """Whether the objective asks for reference log-probabilities.

        Examples:
            >>> [ObjectiveConfig(method=method).needs_reference for method in ("rpo", "sft")]
            [True, False]
        """
        return self.method != "sft"

    @property
    def preference_at_reference(self) -> float:
        r"""Exact preference loss of a policy that equals its reference: :math:`\log 2` for most.

        The loss of a run's first step is this plus :attr:`sft_weight` times its SFT loss.
        """
        if self.method == "sft":
            return 0.0
        return 0.25 / self.tau**2 if self.method == "ipo" else math.log(2.0)


class Normalisers(NamedTuple):
    """What the totals of the whole batch are divided by: data alone, known before any model runs.

    Attributes:
        pairs: sum of the weights of the pairs.
        sft: the same, or their tokens under ``"pooled_mean"``.
    """

    pairs: Float[Array, ""]
    sft: Float[Array, ""]


def normalisers(config: ObjectiveConfig, batch: Batch) -> Normalisers:
    """Weights of the global batch.

    Args:
        config: the objective.
        batch: a batch; its arrays may have leading axes (accumulation), which are summed over.

    Returns:
        The weights, float32 at least.
    """
    lengths = jnp.asarray(batch.lengths)
    dtype = jnp.float32 if batch.weights is None else jnp.asarray(batch.weights).dtype
    zeros = jnp.zeros(lengths.shape[:-1], accumulation_dtype(dtype))
    return Normalisers(
        pairs=reduce_mean(zeros, _pair_weights(batch, zeros.dtype)).weight,
        sft=_sft_total(config, zeros, batch).weight,
    )


def measure(
    config: ObjectiveConfig,
    policy: Float[ArrayLike, "n k"],
    reference: Float[ArrayLike, "n k"] | None,
    batch: Batch,
) -> Totals:
    r"""Every loss and metric of a part of a batch, as totals that add up.

    Args:
        config: the objective.
        policy: log-probabilities of the responses, summed over tokens, nats.
        reference: those under the reference; None (for ``"sft"`` only) leaves out what needs them.
        batch: the pairs: ``present``, ``weights`` and ``lengths`` count.

    Returns:
        Totals under ``loss/dpo`` (or the method's own name), ``loss/sft``, ``rewards/chosen``,
        ``rewards/rejected``, ``rewards/margins``, ``rewards/accuracies``, ``logps/chosen``,
        ``logps/rejected`` and ``theory/adversarial_value``. Absent pairs have neither value nor
        gradient.

    Raises:
        ValueError: if the method needs a reference and there is none.

    References:
        `liu:24`, eqs. 4.5 and 4.8.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> same = jnp.array([[-1.0, -1.0]])
        >>> totals = measure(ObjectiveConfig(beta=0.5, eta=1.0), same, same, batch)
        >>> [round(float(totals[name].mean()), 4) for name in ("loss/dpo", "loss/sft")]
        [0.6931, 1.0]
    """
    policy = jnp.asarray(policy)
    base = policy[:, _baseline_role(batch)]
    totals = {
        "loss/sft": _sft_total(config, losses.sft(base, where=jnp.asarray(batch.present)), batch),
        "logps/chosen": _mean_over_pairs(policy[:, CHOSEN], batch),
        "logps/rejected": _mean_over_pairs(policy[:, REJECTED], batch),
    }
    if reference is not None:
        reference = jax.lax.stop_gradient(jnp.asarray(reference).astype(policy.dtype))
        return totals | _against_reference(config, policy, reference, batch)
    if config.needs_reference:
        raise ValueError(
            f"`reference` must be given for method {config.method!r}, got None: pass reference "
            "log-probabilities with the batch, or a reference model"
        )
    return totals


def loss_share(config: ObjectiveConfig, totals: Totals, divisors: Normalisers) -> Float[Array, ""]:
    """What a part of the batch adds to the loss of the global batch.

    Args:
        config: the objective.
        totals: of the part.
        divisors: :func:`normalisers` of the global batch.

    Returns:
        Nats; shares of all parts, and their gradients, add up to those of the global batch.

    Examples:
        >>> totals = {"loss/sft": Reduction(jnp.array(6.0), jnp.array(1.0))}
        >>> batch_of_three = Normalisers(pairs=jnp.array(3.0), sft=jnp.array(3.0))
        >>> float(loss_share(ObjectiveConfig(method="sft"), totals, batch_of_three))
        2.0
    """
    share = jnp.zeros_like(totals["loss/sft"].total)
    if config.sft_weight > 0:
        share += config.sft_weight * _over(totals["loss/sft"], divisors.sft)
    if config.method != "sft":
        share += _over(totals[_preference_name(config)], divisors.pairs)
    return share


def add(first: Totals, second: Totals) -> Totals:
    """Totals of two parts together."""
    return jax.tree.map(jnp.add, first, second)


def metrics(config: ObjectiveConfig, totals: Totals) -> dict[str, Float[Array, ""]]:
    """Divide the totals of the global batch: one number a name, ``loss`` among them.

    Args:
        config: the objective.
        totals: of the global batch.

    Returns:
        The metrics of :func:`measure` under TRL's names, and ``loss``.

    Examples:
        >>> totals = {"loss/sft": Reduction(jnp.array(6.0), jnp.array(3.0))}
        >>> sorted(metrics(ObjectiveConfig(method="sft"), totals))
        ['loss', 'loss/sft']
    """
    pairs = totals.get(_preference_name(config), totals["loss/sft"]).weight
    whole = Normalisers(pairs=pairs, sft=totals["loss/sft"].weight)
    means = {name: reduction.mean() for name, reduction in totals.items()}
    return {"loss": loss_share(config, totals, whole)} | means


def non_finite(
    policy: Float[ArrayLike, "n k"], reference: Float[ArrayLike, "n k"] | None, batch: Batch
) -> Bool[Array, " n"]:
    """Pairs with a log-probability that is NaN or infinite; absent pairs never are.

    Args:
        policy: log-probabilities under the policy.
        reference: those under the reference, if there is one.
        batch: the pairs.

    Returns:
        One flag a pair.

    Examples:
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([0]))
        >>> non_finite(jnp.array([[-1.0, jnp.nan]]), None, batch).tolist()
        [True]
    """
    sound = jnp.isfinite(jnp.asarray(policy)).all(axis=1)
    if reference is not None:
        sound &= jnp.isfinite(jnp.asarray(reference)).all(axis=1)
    return jnp.asarray(batch.present) & ~sound


def _preference_name(config: ObjectiveConfig) -> str:
    return "loss/dpo" if config.method == "rpo" else f"loss/{config.method}"


def _preference_loss(
    config: ObjectiveConfig,
    policy: PairLogProbs,
    reference: PairLogProbs,
    where: Bool[Array, " n"],
) -> Float[Array, " n"]:
    match config.method:
        case "ipo":
            return losses.ipo(policy, reference, tau=config.tau, where=where)
        case "dpop":
            constants = {"beta": config.beta, "penalty": config.penalty}
            return losses.dpop(policy, reference, **constants, where=where)
        case "chi_po":
            constants = {"beta": config.beta, "reward_max": config.reward_max}
            return losses.chi_po(policy, reference, **constants, where=where)
        case _:
            constants = {"beta": config.beta, "label_smoothing": config.label_smoothing}
            return losses.dpo(policy, reference, **constants, where=where)


def _against_reference(
    config: ObjectiveConfig,
    policy: Float[Array, "n k"],
    reference: Float[Array, "n k"],
    batch: Batch,
) -> Totals:
    """What needs the reference: preference loss, implicit rewards, adversarial value."""
    where = jnp.asarray(batch.present)
    own = PairLogProbs(policy[:, CHOSEN], policy[:, REJECTED])
    theirs = PairLogProbs(reference[:, CHOSEN], reference[:, REJECTED])
    rewards = config.beta * (policy - reference)
    chosen, rejected = rewards[:, CHOSEN], rewards[:, REJECTED]
    dpo = losses.dpo(own, theirs, beta=config.beta, where=where)
    per_pair = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).astype(policy.dtype),
        # F at the implicit reward, eq. 4.5: log Z has cancelled from both terms.
        "theory/adversarial_value": dpo - config.eta * rewards[:, _baseline_role(batch)],
    }
    if config.method != "sft":
        per_pair[_preference_name(config)] = _preference_loss(config, own, theirs, where)
    return {name: _mean_over_pairs(values, batch) for name, values in per_pair.items()}


def _mean_over_pairs(values: Float[Array, " n"], batch: Batch) -> Reduction:
    kept = jnp.where(jnp.asarray(batch.present), values, 0.0)
    return reduce_mean(kept, _pair_weights(batch, values.dtype))


def _sft_total(
    config: ObjectiveConfig, per_response: Float[Array, "*n"], batch: Batch
) -> Reduction:
    dtype = per_response.dtype
    return reduce_sft(
        per_response,
        jnp.asarray(batch.lengths)[..., _baseline_role(batch)].astype(dtype),
        reduction=config.sft_reduction,
        weights=_pair_weights(batch, dtype),
        where=jnp.asarray(batch.present),
    )


def _pair_weights(batch: Batch, dtype: DTypeLike) -> Float[Array, "*n"]:
    present = jnp.asarray(batch.present)
    if batch.weights is None:
        return present.astype(dtype)
    return jnp.where(present, jnp.asarray(batch.weights).astype(dtype), 0.0)


def _baseline_role(batch: Batch) -> int:
    """The response of the SFT term: a baseline of its own, or the chosen one."""
    return BASELINE if batch.lengths.shape[-1] > BASELINE else CHOSEN


def _over(reduction: Reduction, weight: Float[Array, ""]) -> Float[Array, ""]:
    return Reduction(reduction.total, weight.astype(reduction.total.dtype)).mean()
