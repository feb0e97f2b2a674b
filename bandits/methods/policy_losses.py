r"""Methods that minimize a loss of log-probabilities over the policies of a reward class.

One construction serves every loss of :mod:`rpo_theory.losses` that is a function of the
log-probabilities of pairs: the policies are :math:`\pi_r\propto\pi_{ref}e^{r/\beta}` with :math:`r`
in a box or a ball, and Newton's method follows the central path from the reference. On tables a
response is one token, so weights by length are 1.

The certificate is the Frank-Wolfe gap :math:`\max_{r'}\langle\nabla L(r), r-r'\rangle` over the
class. It is 0 at stationary points alone. Where the loss is convex in the reward, it bounds the
distance from the minimum; a kink adds at most its smoothing error. Losses that are not convex may
have several minima: paths start from the reference and from rewards that favor the responses that
won most, or least, and the best end is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from rpo_theory import losses
from rpo_theory.losses import Divergence, PairLogProbs
from rpo_theory.policies import gibbs_policy
from rpo_theory.policy_loss import log_policy, pairs
from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem, Status

from . import path_following
from .base import FitContext, FitResult, Method, require_box_or_ball
from .class_search import (
    fit_by_prompts,
    from_unit_set,
    unit_dimension,
    unit_direction,
    win_shares,
)
from .options import MethodOptions, check_number, check_option
from .path_following import PathState
from .saddle_methods import uniform_reference

GAP_TOLERANCE = 1e-6  # of the mean loss of a comparison, in units of the loss
START = 0.8  # distance of the further starts from the center, in units of the set
LARGEST_FLIP = 0.5  # a flipped label must be less likely than a right one


class PairTables(NamedTuple):
    r"""What the loss of a method is a function of: tables ``[x, chosen, rejected]``.

    Attributes:
        policy: log-probabilities under the policy.
        reference: log-probabilities under the reference.
        beta: :math:`\beta` of the problem.
        temperature: scale at which a kink is smoothed.
    """

    policy: PairLogProbs
    reference: PairLogProbs
    beta: Float[Array, ""]
    temperature: Float[Array, ""]


TableLoss = Callable[[PairTables, Any], Float[Array, "x a a"]]
"""Loss of every ordered pair of responses, from the tables and the options of the method."""


class PolicyLoss(NamedTuple):
    r"""A loss, as a method of the studies.

    Attributes:
        name: name of the method, and of the loss in :mod:`rpo_theory.losses`.
        title: its name in figures.
        loss: see :data:`TableLoss`; of order one for rewards of order one.
        options: dataclass of its options.
        is_convex: whether it is convex in the reward.
        has_kink: whether it is smoothed at the temperature of the path.
        has_reference: whether the policies are relative to the reference, or to the uniform policy
            on its support.
    """

    name: str
    title: str
    loss: TableLoss
    options: type = MethodOptions
    is_convex: bool = False
    has_kink: bool = False
    has_reference: bool = True


@dataclass(frozen=True, kw_only=True)
class RobustOptions(MethodOptions):
    r"""Options of robust DPO.

    Attributes:
        robust_flip_probability: probability in [0, 1/2) that a label is flipped.

    Raises:
        ValueError: if an option is out of range.
    """

    robust_flip_probability: float = 0.1

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number(
            "robust_flip_probability", self.robust_flip_probability, least=0.0, below=LARGEST_FLIP
        )


@dataclass(frozen=True, kw_only=True)
class ExoOptions(MethodOptions):
    r"""Options of EXO.

    Attributes:
        exo_label_smoothing: probability in (0, 1/2) that a label is flipped.

    Raises:
        ValueError: if an option is out of range.
    """

    exo_label_smoothing: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("exo_label_smoothing", self.exo_label_smoothing, above=0.0, below=LARGEST_FLIP)


@dataclass(frozen=True, kw_only=True)
class DiscoPopOptions(MethodOptions):
    r"""Options of DiscoPOP.

    Attributes:
        discopop_tau: temperature in (0, 1) of the mixture.

    Raises:
        ValueError: if an option is out of range.
    """

    discopop_tau: float = 0.05

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("discopop_tau", self.discopop_tau, above=0.0, below=1.0)


@dataclass(frozen=True, kw_only=True)
class DivergenceOptions(MethodOptions):
    r"""Options of DPO with an f-divergence.

    Attributes:
        divergence: name of the divergence, see :func:`rpo_theory.losses.f_dpo`.
        divergence_alpha: order of ``"alpha_divergence"``.

    Raises:
        ValueError: if an option is out of range.
    """

    divergence: Divergence = "forward_kl"
    divergence_alpha: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_option("divergence", self.divergence, get_args(Divergence))
        check_number("divergence_alpha", self.divergence_alpha, least=0.0)


@dataclass(frozen=True, kw_only=True)
class CpoOptions(MethodOptions):
    r"""Options of CPO.

    Attributes:
        cpo_sft_weight: weight of the SFT loss, at least 0.

    Raises:
        ValueError: if an option is out of range.
    """

    cpo_sft_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("cpo_sft_weight", self.cpo_sft_weight, least=0.0)


@dataclass(frozen=True, kw_only=True)
class SlicOptions(MethodOptions):
    r"""Options of SLiC-HF.

    Attributes:
        slic_delta: target of the margin of log-probabilities, nats.
        slic_sft_weight: weight of the SFT loss, at least 0.

    Raises:
        ValueError: if an option is out of range.
    """

    slic_delta: float = 1.0
    slic_sft_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_number("slic_delta", self.slic_delta, above=0.0)
        check_number("slic_sft_weight", self.slic_sft_weight, least=0.0)


def make_method(record: PolicyLoss) -> Method:
    """Make the method that minimizes a loss of log-probabilities.

    Args:
        record: the loss.

    Returns:
        The method. Its fits refuse classes that are neither boxes nor balls.

    Examples:
        >>> make_method(LOSSES[0]).name
        'hinge'
    """

    def fit(
        problem: Problem, reward_class: RewardClass, options: Any, context: FitContext
    ) -> FitResult:
        del context
        if not record.has_reference:
            problem = problem._replace(reference_policy=uniform_reference(problem))
        reward_class = require_box_or_ball(record.name, reward_class)
        compiled = partial(_fit, record, options)
        policy, reward, gap = fit_by_prompts(compiled, problem, reward_class)
        kind = "duality_gap" if record.is_convex else "stationarity_residual"
        status = np.where(gap <= GAP_TOLERANCE, Status.SOLVED.value, Status.MAX_STEPS.value)
        return FitResult(policy, reward, gap, kind, status)

    return Method(record.name, fit, record.title, record.options, uses_eta=False)


@partial(jax.jit, static_argnums=(0, 1))
@partial(jax.vmap, in_axes=(None, None, 0, 0))
def _fit(
    record: PolicyLoss, options: Any, problem: Problem, reward_class: TabularBox | LinearBall
) -> tuple[Float[Array, "x a"], Float[Array, "x a"], Float[Array, ""]]:
    """Return policy, reward and gap of one problem."""
    share = win_shares(problem)
    shape, beta = share.shape[:2], jnp.asarray(problem.beta)

    def mean_loss(reward: Float[Array, "x a"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        policy, reference = log_policy(problem, reward)
        tables = PairTables(pairs(policy), pairs(reference), beta, temperature)
        return jnp.sum(jnp.where(share > 0, share * record.loss(tables, options), 0.0))

    def smoothed(point: Float[Array, " p"], temperature: Float[Array, ""]) -> Float[Array, ""]:
        reward, barrier = from_unit_set(reward_class, point, shape)
        return mean_loss(reward, temperature) + temperature * barrier

    def search(start: Float[Array, " p"]) -> PathState:
        return path_following.follow_path(smoothed, start, is_convex=record.is_convex)

    center = jnp.zeros(unit_dimension(reward_class, shape), share.dtype)
    if record.is_convex:
        path = search(center)
    else:
        toward = START * unit_direction(reward_class, share.sum(axis=2) - share.sum(axis=1))
        paths = jax.vmap(search)(jnp.stack([center, toward, -toward]))
        values = jax.vmap(smoothed)(paths.point, paths.temperature)
        path = jax.tree.map(lambda leaf: leaf[jnp.argmin(values)], paths)
    reward, _ = from_unit_set(reward_class, path.point, shape)
    gradient = jax.grad(mean_loss)(reward, path.temperature)
    gap = jnp.maximum(reward_class.linear_gap(gradient, reward), 0.0)
    if record.has_kink:
        gap += path.temperature * jnp.log(2.0)
    return gibbs_policy(reward, problem.reference_policy, problem.beta), reward, gap


def _hinge(tables: PairTables, options: MethodOptions) -> Float[Array, "x a a"]:
    """Return the hinge loss, smoothed: it exceeds the hinge by at most log 2 temperatures."""
    del options
    margin = losses.margin(tables.policy, tables.reference)
    return _smoothed_relu(1.0 - tables.beta * margin, tables.temperature)


def _slic(tables: PairTables, options: SlicOptions) -> Float[Array, "x a a"]:
    chosen, rejected = map(jnp.asarray, tables.policy)
    short = _smoothed_relu(options.slic_delta - (chosen - rejected), tables.temperature)
    return short - options.slic_sft_weight * chosen


def _smoothed_relu(
    value: Float[Array, "x a a"], temperature: Float[Array, ""]
) -> Float[Array, "x a a"]:
    return temperature * jax.nn.softplus(value / temperature)


def _of_pairs(loss: Callable[..., Array], **names: str) -> TableLoss:
    """Make a table loss; ``names`` maps an option of the loss to that of the method."""

    def table_loss(tables: PairTables, options: Any) -> Float[Array, "x a a"]:
        constants = {name: getattr(options, of_method) for name, of_method in names.items()}
        return loss(tables.policy, tables.reference, beta=tables.beta, **constants)

    return table_loss


def _cpo(tables: PairTables, options: CpoOptions) -> Float[Array, "x a a"]:
    return losses.cpo(tables.policy, beta=tables.beta, sft_weight=options.cpo_sft_weight)


def _sppo(tables: PairTables, options: MethodOptions) -> Float[Array, "x a a"]:
    """Return the SPPO loss in units of the squared reward, which are of order one."""
    del options
    loss = losses.sppo_hard(tables.policy, tables.reference, beta=tables.beta)
    return jnp.square(tables.beta) * loss


LOSSES = (
    PolicyLoss("hinge", "Hinge", _hinge, is_convex=True, has_kink=True),
    PolicyLoss(
        "robust",
        "Robust DPO",
        _of_pairs(losses.robust, flip_probability="robust_flip_probability"),
        RobustOptions,
        is_convex=True,
    ),
    PolicyLoss(
        "exo_pair",
        "EXO",
        _of_pairs(losses.exo_pair, label_smoothing="exo_label_smoothing"),
        ExoOptions,
    ),
    PolicyLoss(
        "discopop", "DiscoPOP", _of_pairs(losses.discopop, tau="discopop_tau"), DiscoPopOptions
    ),
    PolicyLoss(
        "f_dpo",
        "f-DPO",
        _of_pairs(losses.f_dpo, divergence="divergence", alpha="divergence_alpha"),
        DivergenceOptions,
    ),
    PolicyLoss("nca_pair", "NCA", _of_pairs(losses.nca_pair)),
    PolicyLoss("bco_pair", "BCO", _of_pairs(losses.bco_pair)),
    PolicyLoss("sppo_hard", "SPPO", _sppo),
    PolicyLoss("apo_zero", "APO-zero", _of_pairs(losses.apo_zero)),
    PolicyLoss("apo_down", "APO-down", _of_pairs(losses.apo_down)),
    PolicyLoss("cpo", "CPO", _cpo, CpoOptions, is_convex=True, has_reference=False),
    PolicyLoss(
        "slic", "SLiC", _slic, SlicOptions, is_convex=True, has_kink=True, has_reference=False
    ),
)
"""Losses of this module."""
METHODS = tuple(map(make_method, LOSSES))
"""Methods of this module."""
