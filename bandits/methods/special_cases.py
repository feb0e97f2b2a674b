r"""Methods of other papers that are RPO with particular policies or weights.

VPO is RPO with a calibration policy as baseline (`cen:24`), and the base loss of POWER-DL is RPO
with a uniform reference (`rashidinejad:24`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bandits.environments.base import baseline_policy
from rpo_theory.rewards import RewardClass
from rpo_theory.types import Problem

from .base import FitContext, FitResult, Method, with_baseline
from .options import RpoOptions, SearchOptions, check_number
from .saddle_methods import search_class, solve_exactly, uniform_reference


@dataclass(frozen=True, kw_only=True)
class VpoOptions(RpoOptions):
    r"""Options of VPO; its baseline is the calibration policy.

    Attributes:
        vpo_alpha: weight :math:`\alpha` of VPO's term against the *sum* of the DPO losses, so that
            :math:`\eta = \alpha/N`; None for the :math:`\eta` of the problem.

    Raises:
        ValueError: if an option is out of range.
    """

    vpo_alpha: float | None = None

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        RpoOptions.__post_init__(self)
        check_number("vpo_alpha", self.vpo_alpha, least=0.0)

    def sets_eta(self) -> bool:
        r"""Return whether ``vpo_alpha`` sets :math:`\eta`."""
        return self.vpo_alpha is not None


def vpo(
    problem: Problem, reward_class: RewardClass, options: VpoOptions, context: FitContext
) -> FitResult:
    r"""Fit VPO on a fixed data set: the DPO losses minus :math:`\alpha\beta E_{\pi_{cal}}\log\pi`.

    Args:
        problem: instances, with a leading batch axis.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies of RPO with :math:`\eta=\alpha/N`.

    References:
        `cen:24`, objective for fixed data.
    """
    if options.vpo_alpha is not None:
        n_comparisons = np.asarray(problem.wins).sum(axis=(1, 2, 3))
        problem = problem._replace(eta=options.vpo_alpha / np.maximum(n_comparisons, 1.0))
    problem = with_baseline(problem, options)
    return solve_exactly(problem, search_class(reward_class, options), context)


def power(
    problem: Problem, reward_class: RewardClass, options: SearchOptions, context: FitContext
) -> FitResult:
    r"""Fit the base loss of POWER-DL, for responses of equal weight 1.

    It has no reference policy: the entropy of the policy takes the place of the divergence, which
    amounts to a uniform reference. Its SFT term is on the chosen responses of the same pairs.

    Args:
        problem: instances, with a leading batch axis; only the support of the
            reference policy is used.
        reward_class: reward class of each problem, with the same leading axis.
        options: options of the method.
        context: kernel of the study.

    Returns:
        The policies.

    References:
        `rashidinejad:24`.
    """
    uniform = problem._replace(reference_policy=uniform_reference(problem))
    prompt_counts = np.asarray(problem.wins, np.float64).sum(axis=(2, 3))
    n_comparisons = prompt_counts.sum(axis=1, keepdims=True)
    prompt_shares = np.where(
        n_comparisons > 0,
        prompt_counts / np.maximum(n_comparisons, 1e-300),
        problem.context_weights,
    )
    chosen = baseline_policy("chosen", wins=problem.wins, reference=uniform.reference_policy)
    on_pairs = uniform._replace(context_weights=prompt_shares, baseline_policy=chosen)
    return solve_exactly(on_pairs, search_class(reward_class, options), context)


METHODS = (
    Method("vpo", vpo, "VPO", VpoOptions),
    Method("power", power, "POWER", SearchOptions),
)
"""Methods of this module."""
