r"""Registry of the preference losses that a run can train with.

A loss is a record: its function of log-probabilities, its options, and what the trainer must know
of it. Nothing else lists the losses: a new record is a new value of ``objective.method`` and of
``objective.preference``, a metric ``loss/NAME`` and a row of the tests of all losses.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from rpo_io.config_types import build
from rpo_theory import losses
from rpo_theory.types import ArrayLike

from . import loss_options as options_of
from .loss_inputs import PairInputs
from .loss_options import LossOptions

Scope = Literal["pair", "batch"]
"""Whether a loss is a mean over pairs, or a function of the whole global batch."""
TokenStatistic = Literal["sum_squares", "shared_length"]
"""What a loss takes from the tokens besides the sums of their log-probabilities."""

RANKING_LOSS = "plackett_luce"
"""The loss of ranked rows, and the only one that trains on them."""

Beta = Float[ArrayLike, ""] | float
LossFunction = Callable[[PairInputs, Beta, Any], Array]
"""Signature of a loss: inputs, :math:`\beta` and options, to the loss of every pair."""


def log_two(beta: float, options: Any) -> float:
    r"""Return :math:`\log 2`, the loss at the reference of every logistic loss of the margin.

    Args:
        beta: ignored.
        options: ignored.

    Returns:
        Nats.

    Examples:
        >>> round(log_two(0.1, None), 4)
        0.6931
    """
    del beta, options
    return math.log(2.0)


class PreferenceLoss(NamedTuple):
    r"""A preference loss and what the trainer must know of it.

    Attributes:
        name: name in configurations and, after ``loss/``, in the metrics.
        function: see :data:`LossFunction`.
        options: dataclass of its options.
        at_reference: exact value for a policy that is equal to its reference, a function of
            :math:`\beta` and the options; None if it depends on the data.
        needs_reference: whether it uses log-probabilities of a reference.
        uses_beta: whether :math:`\beta` scales it.
        scope: see :data:`Scope`.
        statistic: see :data:`TokenStatistic`; None for none.
        section_keys: options that may be given as keys of the section ``objective`` itself.
    """

    name: str
    function: LossFunction
    options: type[LossOptions] = LossOptions
    at_reference: Callable[[float, Any], float] | None = log_two
    needs_reference: bool = True
    uses_beta: bool = True
    scope: Scope = "pair"
    statistic: TokenStatistic | None = None
    section_keys: tuple[str, ...] = ()

    def make_options(self, values: Mapping[str, Any], key: str) -> Any:
        """Return the options of the loss from plain values.

        Args:
            values: options by name.
            key: dotted key of the options, for messages.

        Returns:
            The dataclass of the options.

        Raises:
            ValueError: if the loss does not have an option, or it is out of range.
        """
        names = [field.name for field in dataclasses.fields(self.options)]
        for name in values:
            if name not in names:
                raise ValueError(f"`{key}.{name}`: {_unknown_option(self, name, names)}")
        try:
            return build(self.options, values, key)
        except ValueError as error:
            text = str(error)
            named = text if text.startswith(f"`{key}.") else text.replace("`", f"`{key}.", 1)
            raise ValueError(named) from error


def _unknown_option(loss: PreferenceLoss, name: str, names: list[str]) -> str:
    """Return what is wrong with the name of an option, and what may have been meant."""
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"loss {loss.name!r} has no option {name!r}: did you mean {near[0]!r}?"
    has = f"its options are {', '.join(names)}" if names else "it has no options"
    owners = [
        other.name
        for other in PREFERENCE_LOSSES.values()
        if name in {field.name for field in dataclasses.fields(other.options)}
    ]
    verb = "has" if len(owners) == 1 else "have"
    of_others = f"; {', '.join(map(repr, owners))} {verb} it" if owners else ""
    return f"loss {loss.name!r} has no option {name!r}: {has}{of_others}"


def _of_pairs(loss: Callable[..., Array]) -> LossFunction:
    """Make a record's function of a loss of policy and reference whose options have its names."""

    def function(inputs: PairInputs, beta: Beta, options: Any) -> Array:
        constants = dataclasses.asdict(options)
        return loss(inputs.policy, inputs.reference, beta=beta, where=inputs.where, **constants)

    return function


def _of_policy(loss: Callable[..., Array], *, scaled: bool = True) -> LossFunction:
    """Make a record's function of a loss of the policy alone."""

    def function(inputs: PairInputs, beta: Beta, options: Any) -> Array:
        constants = dataclasses.asdict(options) | ({"beta": beta} if scaled else {})
        return loss(inputs.policy, where=inputs.where, **constants)

    return function


def _of_averages(loss: Callable[..., Array], *, scaled: bool = True) -> LossFunction:
    """Make a record's function of a loss of average log-probabilities of the policy."""

    def function(inputs: PairInputs, beta: Beta, options: Any) -> Array:
        constants = dataclasses.asdict(options) | ({"beta": beta} if scaled else {})
        return loss(inputs.policy, inputs.weights, where=inputs.where, **constants)

    return function


def _ipo(inputs: PairInputs, beta: Beta, options: options_of.IpoOptions) -> Array:
    del beta
    weights = inputs.weights if options.per_token else None
    pairs = inputs.policy, inputs.reference
    return losses.ipo(*pairs, tau=options.tau, weights=weights, where=inputs.where)


def _sigmoid_norm(inputs: PairInputs, beta: Beta, options: LossOptions) -> Array:
    del options
    pairs = inputs.policy, inputs.reference, inputs.weights
    return losses.sigmoid_norm(*pairs, beta=beta, where=inputs.where)


def _wpo(inputs: PairInputs, beta: Beta, options: options_of.SmoothingOptions) -> Array:
    if inputs.log_sum_squares is None:
        raise ValueError("`log_sum_squares` must be given for the loss 'wpo', got None")
    statistics = inputs.policy, inputs.log_sum_squares, inputs.weights
    weights = losses.wpo_weights(*statistics, where=inputs.where)
    smoothing, where = options.label_smoothing, inputs.where
    pairs = inputs.policy, inputs.reference
    return weights * losses.dpo(*pairs, beta=beta, label_smoothing=smoothing, where=where)


def _ld_dpo(inputs: PairInputs, beta: Beta, options: options_of.LengthOptions) -> Array:
    del options  # the log-probabilities are those of weighted tokens
    return losses.dpo(inputs.policy, inputs.reference, beta=beta, where=inputs.where)


def _plackett_luce(inputs: PairInputs, beta: Beta, options: LossOptions) -> Array:
    """Return the loss of every ranked row; a pair is a ranking of two responses."""
    del options
    if inputs.ranking is None:
        pairs = (jnp.stack(pair, axis=-1) for pair in (inputs.policy, inputs.reference))
        return losses.plackett_luce(*pairs, beta=beta, where=inputs.where[:, None].repeat(2, 1))
    policy, reference, where = inputs.ranking
    return losses.plackett_luce(policy, reference, beta=beta, where=where)


def kto_reference_point(inputs: PairInputs) -> Float[Array, ""]:
    r"""Estimate :math:`KL(\pi\|\pi_{ref})` for KTO by a mean log-ratio of the whole batch.

    Args:
        inputs: the whole batch. For unpaired rows the mean is over the responses to other prompts,
            as in TRL; for pairs over all responses.

    Returns:
        Nats, at least 0, without a gradient.

    References:
        `ethayarajh:24`, sec. 4.1.

    Examples:
        >>> zeros, ones, one_row = jnp.zeros(1), jnp.ones(1), jnp.array([True])
        >>> pair = losses.PairLogProbs
        >>> policy, reference = pair(zeros, -ones), pair(zeros, -3 * ones)
        >>> inputs = PairInputs(policy, reference, policy, one_row)
        >>> float(kto_reference_point(inputs))
        1.0
        >>> float(kto_reference_point(inputs._replace(desirable=one_row)))
        2.0
    """
    roles = range(2) if inputs.desirable is None else (1,)
    ratios = [jnp.where(inputs.where, inputs.policy[i] - inputs.reference[i], 0.0) for i in roles]
    count = jnp.maximum(len(roles) * inputs.where.sum(), 1).astype(ratios[0].dtype)
    return jax.lax.stop_gradient(jnp.maximum(jnp.stack(ratios).sum() / count, 0.0))


def _kto(inputs: PairInputs, beta: Beta, options: options_of.KtoOptions) -> Array:
    """Return the KTO loss of every unpaired row, or the mean of those of a pair's responses."""
    where = inputs.where
    labels = [jnp.full(where.shape, True), jnp.full(where.shape, False)]
    if inputs.desirable is not None:
        labels = [inputs.desirable]
    is_zero = options.reference_point == "zero"
    constants = {
        "beta": beta,
        "reference_point": 0.0 if is_zero else kto_reference_point(inputs),
        "desirable_weight": options.desirable_weight,
        "undesirable_weight": options.undesirable_weight,
    }
    by_response = [
        losses.kto(policy, reference, desirable, where=where, **constants)
        for policy, reference, desirable in zip(
            inputs.policy, inputs.reference, labels, strict=False
        )
    ]
    return jnp.stack(by_response).mean(axis=0)


def _exo_at_reference(beta: float, options: options_of.ExoOptions) -> float:
    del beta
    smoothing = options.label_smoothing
    return -math.log(2.0) - 0.5 * (math.log1p(-smoothing) + math.log(smoothing))


def _bco_at_reference(beta: float, options: options_of.BcoOptions) -> float:
    del beta
    return math.log1p(math.exp(options.shift)) + math.log1p(math.exp(-options.shift))


RECORDS = (
    PreferenceLoss(
        "dpo",
        _of_pairs(losses.dpo),
        options_of.SmoothingOptions,
        section_keys=("label_smoothing",),
    ),
    PreferenceLoss(
        "ipo",
        _ipo,
        options_of.IpoOptions,
        lambda beta, options: 0.25 / options.tau**2,
        uses_beta=False,
        section_keys=("tau",),
    ),
    PreferenceLoss(
        "dpop", _of_pairs(losses.dpop), options_of.DpopOptions, section_keys=("penalty",)
    ),
    PreferenceLoss(
        "chi_po", _of_pairs(losses.chi_po), options_of.ChiPoOptions, section_keys=("reward_max",)
    ),
    PreferenceLoss("hinge", _of_pairs(losses.hinge), at_reference=lambda beta, options: 1.0),
    PreferenceLoss("robust", _of_pairs(losses.robust), options_of.RobustOptions),
    PreferenceLoss(
        "exo_pair", _of_pairs(losses.exo_pair), options_of.ExoOptions, _exo_at_reference
    ),
    PreferenceLoss(
        "discopop",
        _of_pairs(losses.discopop),
        options_of.DiscoPopOptions,
        lambda beta, options: 0.5 * (math.log(2.0) + 1.0),
    ),
    PreferenceLoss("sigmoid_norm", _sigmoid_norm),
    PreferenceLoss("f_dpo", _of_pairs(losses.f_dpo), options_of.DivergenceOptions),
    PreferenceLoss(
        "nca_pair",
        _of_pairs(losses.nca_pair),
        at_reference=lambda beta, options: 2.0 * math.log(2.0),
    ),
    PreferenceLoss(
        "bco_pair", _of_pairs(losses.bco_pair), options_of.BcoOptions, _bco_at_reference
    ),
    PreferenceLoss(
        "sppo_hard",
        _of_pairs(losses.sppo_hard),
        at_reference=lambda beta, options: 0.5 / beta**2,
    ),
    PreferenceLoss("apo_zero", _of_pairs(losses.apo_zero), at_reference=lambda beta, options: 1.0),
    PreferenceLoss("apo_down", _of_pairs(losses.apo_down), at_reference=lambda beta, options: 1.0),
    PreferenceLoss(
        "kto",
        _kto,
        options_of.KtoOptions,
        lambda beta, options: 0.25 * (options.desirable_weight + options.undesirable_weight),
        scope="batch",
    ),
    PreferenceLoss("aot", _of_pairs(losses.aot), options_of.SmoothingOptions, scope="batch"),
    PreferenceLoss(
        "aot_unpaired",
        _of_pairs(losses.aot_unpaired),
        options_of.SmoothingOptions,
        scope="batch",
    ),
    PreferenceLoss(
        "wpo",
        _wpo,
        options_of.SmoothingOptions,
        at_reference=None,
        statistic="sum_squares",
    ),
    PreferenceLoss(RANKING_LOSS, _plackett_luce),
    PreferenceLoss("ld_dpo", _ld_dpo, options_of.LengthOptions, statistic="shared_length"),
    PreferenceLoss(
        "cpo", _of_policy(losses.cpo), options_of.CpoOptions, None, needs_reference=False
    ),
    PreferenceLoss(
        "slic",
        _of_policy(losses.slic, scaled=False),
        options_of.SlicOptions,
        None,
        needs_reference=False,
        uses_beta=False,
    ),
    PreferenceLoss(
        "simpo", _of_averages(losses.simpo), options_of.SimpoOptions, None, needs_reference=False
    ),
    PreferenceLoss(
        "orpo",
        _of_averages(losses.orpo, scaled=False),
        options_of.OrpoOptions,
        None,
        needs_reference=False,
        uses_beta=False,
    ),
    PreferenceLoss(
        "power", _of_averages(losses.power), options_of.PowerOptions, None, needs_reference=False
    ),
)
PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {record.name: record for record in RECORDS}
"""Every preference loss by its name."""


def find_preference_loss(name: Any, key: str, *, besides: tuple[str, ...] = ()) -> PreferenceLoss:
    """Return the record of a loss.

    Args:
        name: its name.
        key: key of the configuration that has the name, for the message.
        besides: further names that the key accepts, for the message.

    Returns:
        The record.

    Raises:
        ValueError: if there is no such loss.

    Examples:
        >>> find_preference_loss("hinge", "objective.method").name
        'hinge'
    """
    if isinstance(name, str) and name in PREFERENCE_LOSSES:
        return PREFERENCE_LOSSES[name]
    names = [*besides, *PREFERENCE_LOSSES]
    near = difflib.get_close_matches(str(name).lower(), names, 1)
    hint = f": did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(map(repr, names))
    raise ValueError(f"`{key}` must be one of {shown}, got {name!r}{hint}")
