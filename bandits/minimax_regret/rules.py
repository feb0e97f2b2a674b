r"""Decision rules that the methods of :mod:`bandits.methods` induce.

A method that is fitted at every outcome of the comparisons is a decision rule: it maps each table
of win counts to a policy. Its regret in every world is then an exact sum, without sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from jaxtyping import Float

from bandits.environments.base import Baseline, baseline_policy
from bandits.methods.base import FitContext, FitResult, Method
from bandits.methods.policy_checks import require_policies
from bandits.methods.registry import find_method, fit_method
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem


def method_options(method: Method, options: Mapping[str, Any]) -> Any:
    """Return the options of a method whose problems carry their baseline policy.

    Args:
        method: record of the method.
        options: options of the method by name, without ``baseline``.

    Returns:
        The options; ``baseline`` is "given" if the method has it.

    Raises:
        ValueError: if the method does not have an option, or it is out of range.

    Examples:
        >>> method_options(find_method("rpo"), {}).baseline
        'given'
    """
    if "baseline" in options:
        raise ValueError("`options` must not have `baseline`: it is a key of the method itself")
    has_baseline = "baseline" in (item.name for item in fields(method.options))
    return method.make_options({**options, **({"baseline": "given"} if has_baseline else {})})


def fit_outcomes(
    method: str,
    wins: Float[np.ndarray, "o a a"],
    *,
    reference: Float[np.ndarray, " a"],
    baseline: Baseline,
    reward_max: float,
    eta: float,
    beta: float,
    options: Mapping[str, Any],
) -> FitResult:
    r"""Fit a method at every outcome, in one batch.

    Args:
        method: name in :data:`bandits.methods.METHODS`, or ``module:name`` of the user's own.
        wins: win counts of each outcome, on one prompt.
        reference: :math:`\pi_{ref}`.
        baseline: :math:`\pi_{base}` by name or as the action that it always takes, see
            :func:`bandits.environments.baseline_policy`.
        reward_max: :math:`R_{max}`; the reward class is the box :math:`[0, R_{max}]`.
        eta: weight :math:`\eta` of the adversarial term.
        beta: weight :math:`\beta` of the KL term.
        options: options of the method by name, without ``baseline``.

    Returns:
        The fits; ``policy`` has shape ``[o 1 a]`` and is the decision rule of the method.

    Raises:
        ValueError: if an argument is invalid, or the method gives no policy at an outcome.

    Examples:
        >>> wins, even = np.array([[[0.0, 3.0], [1.0, 0.0]]]), np.array([0.5, 0.5])
        >>> weights = {"reward_max": 2.0, "eta": 0.1, "beta": 1.0, "options": {}}
        >>> fits = fit_outcomes("dpo", wins, reference=even, baseline="chosen", **weights)
        >>> fits.policy.round(2).tolist()
        [[[0.75, 0.25]]]
    """
    n_outcomes, n_actions, _ = wins.shape
    wins = wins[:, None]
    references = np.broadcast_to(reference, (n_outcomes, 1, n_actions))
    problems = Problem(
        context_weights=np.ones((n_outcomes, 1)),
        reference_policy=references,
        baseline_policy=baseline_policy(baseline, wins=wins, reference=references),
        wins=wins,
        beta=np.full(n_outcomes, beta),
        eta=np.full(n_outcomes, eta),
    )
    reward_class = TabularBox(np.full(n_outcomes, reward_max))
    record = find_method(method)
    given = method_options(record, options)
    fits = fit_method(record, problems, reward_class, given, FitContext())
    return require_policies(fits, record.name)
