r"""Theory of Regularized Preference Optimization (RPO) on finitely many contexts and actions.

Build a :class:`Problem` from preference data, choose a reward class, and solve the max-min problem
by one of three routes: :mod:`~rpo_theory.minimax`, :mod:`~rpo_theory.maximin` or
:mod:`~rpo_theory.direct`. :func:`certify` bounds the duality gap of any policy and reward.

    >>> import numpy as np
    >>> import rpo_theory as rt
    >>> problem = rt.Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=1.0, eta=1e-3)
    >>> solution = rt.minimax.solve(problem, rt.TabularBox(2.0))
    >>> solution.policy.round(3).tolist()
    [[0.75, 0.25]]

The losses in :mod:`~rpo_theory.losses` are the ones that the language-model trainer uses.
Everything that is not listed in ``__all__`` is implementation.
"""

from . import (
    bounds,
    convex_likeness,
    direct,
    double_oracle,
    losses,
    maximin,
    minimax,
    network_rewards,
    objectives,
    policies,
    rewards,
    rigorous,
    stationarity,
)
from .adversary import adversarial_reward
from .certificate import Certificate, certify
from .counted_choices import count_choices
from .coverage import coverage_coefficient, coverage_coefficient_batch
from .data_splits import DataSplits, split_data
from .density_ratio import density_ratio_bound
from .influence import Influence, influence
from .intervals import EndProof, Interval, confidence_interval
from .losses import PairLogProbs
from .objectives import minimax_objective, saddle_objective
from .policies import (
    chosen_policy,
    data_marginal_policy,
    gibbs_policy,
    implicit_reward,
    kl_divergence,
    log_gibbs_policy,
    log_partition,
    total_variation,
)
from .policy_error import PolicyError, policy_error
from .preference import (
    data_loss,
    expected_wins,
    negative_log_likelihood,
    preference_probability,
    sample_wins,
    win_counts,
)
from .preference_data import Choices, DavidsonTies, RaoKupperTies
from .problems import InvalidProblemError, normalize, validate
from .reductions import WeightedSum, reduce_mean, reduce_sft, weight_per_token
from .rewards import (
    FiniteClass,
    KernelBall,
    LinearBall,
    Lipschitz,
    Polytope,
    RewardClass,
    TabularBox,
    Unbounded,
    check_reward_class,
    log_covering_number,
)
from .tie_parameter import fit_tie_parameter
from .tuning import EtaPath, TunedEta, eta_path, tune_eta
from .types import Problem, Solution, Status

__all__ = [  # noqa: RUF022  # in groups
    # problems and solutions
    "Problem",
    "Solution",
    "Status",
    "InvalidProblemError",
    "normalize",
    "validate",
    # reward classes
    "RewardClass",
    "TabularBox",
    "LinearBall",
    "KernelBall",
    "Lipschitz",
    "Polytope",
    "FiniteClass",
    "Unbounded",
    "rewards",
    "check_reward_class",
    "log_covering_number",
    # solvers and certificates
    "minimax",
    "maximin",
    "direct",
    "Certificate",
    "certify",
    "PolicyError",
    "policy_error",
    "rigorous",
    "adversarial_reward",
    # guarantees
    "coverage_coefficient",
    "coverage_coefficient_batch",
    "density_ratio_bound",
    "confidence_interval",
    "Interval",
    "EndProof",
    "split_data",
    "DataSplits",
    "bounds",
    "stationarity",
    # classes that are not convex
    "double_oracle",
    "network_rewards",
    "convex_likeness",
    # derivatives
    "Influence",
    "influence",
    "EtaPath",
    "eta_path",
    "TunedEta",
    "tune_eta",
    # objectives
    "objectives",
    "minimax_objective",
    "saddle_objective",
    # policies
    "policies",
    "chosen_policy",
    "data_marginal_policy",
    "gibbs_policy",
    "implicit_reward",
    "kl_divergence",
    "log_gibbs_policy",
    "log_partition",
    "total_variation",
    # preferences
    "Choices",
    "DavidsonTies",
    "RaoKupperTies",
    "count_choices",
    "data_loss",
    "fit_tie_parameter",
    "expected_wins",
    "negative_log_likelihood",
    "preference_probability",
    "sample_wins",
    "win_counts",
    # losses and their reductions
    "losses",
    "PairLogProbs",
    "WeightedSum",
    "reduce_mean",
    "reduce_sft",
    "weight_per_token",
]


def __dir__() -> list[str]:
    return sorted(__all__)
