"""Tasks of ``rpo solve``: a problem from a JSON file, or a ranking from votes in a CSV file."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from bandits.environments.votes import read_votes
from rpo_theory.rewards import RewardClass, TabularBox
from rpo_theory.types import Problem

from .problem_files import read_problem

_LISTED = 5


class SolveTask(NamedTuple):
    """A problem to solve, with the names of its contexts and actions.

    Attributes:
        problem: preference data, policies and weights.
        reward_class: the adversary's class.
        true_reward: the true reward, shape ``[x a]``; None if it is not known.
        comparator: the policy that the solution is compared with, shape ``[x a]``; None if and
            only if the true reward is not known.
        contexts: names of the contexts; None unless the task comes from votes.
        actions: names of the actions; None unless the task comes from votes.
        notes: remarks on the input, which the answer repeats.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[np.ndarray, "x a"] | None = None
    comparator: Float[np.ndarray, "x a"] | None = None
    contexts: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def task_from_file(path: str) -> SolveTask:
    """Read a task from a problem file, or from standard input for ``-``.

    The comparator is that of the file. By default it takes, in each context, the best action that
    the reference policy can choose.

    Args:
        path: a JSON file in the form of :mod:`rpo.solving.problem_files`.

    Returns:
        The task.

    Raises:
        ValueError: if the file is invalid.
        OSError: if the file cannot be read.
    """
    file = read_problem(path)
    comparator = file.comparator
    if file.true_reward is not None and comparator is None:
        reachable = np.asarray(file.problem.reference_policy) > 0
        best = np.where(reachable, file.true_reward, -np.inf).argmax(axis=1)
        comparator = np.eye(file.true_reward.shape[1])[best]
    notes = _fallback_notes([str(x) for x in file.fallback_contexts])
    return SolveTask(file.problem, file.reward_class, file.true_reward, comparator, notes=notes)


def task_from_votes(
    path: str,
    *,
    beta: float | None = None,
    eta: float | None = None,
    reward_max: float = 4.0,
    baseline: Literal["chosen", "reference"] = "chosen",
    context_weights: Literal["votes", "uniform"] = "votes",
) -> SolveTask:
    r"""Read a task from votes; the reference policy is uniform and the reward class tabular.

    With :math:`N` votes, :math:`\beta = 1/\sqrt N` is the choice of Theorem 5.3. The default
    :math:`\eta = 1/\sqrt N` gives the adversarial term the weight of :math:`\sqrt N` votes: that
    of their noise. The theorem's own :math:`\eta` covers the worst case and is so small
    that the solution would be that of DPO.

    Args:
        path: a CSV file with the columns context, winner, loser and optionally count.
        beta: weight of the KL term, greater than 0; :math:`1/\sqrt N` if None.
        eta: weight of the adversarial term, at least 0; :math:`1/\sqrt N` if None.
        reward_max: upper bound of the rewards, greater than 0; the lower bound is 0.
        baseline: ``"chosen"`` for the distribution of the winners in each context, or
            ``"reference"`` for the uniform reference policy.
        context_weights: ``"votes"`` to weight a context by its share of the votes, or
            ``"uniform"``.

    Returns:
        The task.

    Raises:
        ValueError: if the file is invalid.
        OSError: if the file cannot be read.

    References:
        `liu:24`, Theorem 5.3.
    """
    votes = read_votes(path)
    votes_in_context = votes.wins.sum(axis=(1, 2))
    root = 1.0 / np.sqrt(votes_in_context.sum())
    problem = Problem.from_wins(
        votes.wins,
        beta=float(root if beta is None else beta),
        eta=float(root if eta is None else eta),
        context_weights="comparisons" if context_weights == "votes" else "uniform",
        baseline_policy=baseline,
    )
    without_votes = np.flatnonzero(votes_in_context == 0) if baseline == "chosen" else []
    return SolveTask(
        problem,
        TabularBox(reward_max),
        contexts=votes.contexts,
        actions=votes.actions,
        notes=_fallback_notes([votes.contexts[x] for x in without_votes]),
    )


def _fallback_notes(contexts: list[str]) -> tuple[str, ...]:
    if not contexts:
        return ()
    listed = ", ".join(contexts[:_LISTED]) + (", ..." if len(contexts) > _LISTED else "")
    count = f"{len(contexts)} context{'s' if len(contexts) > 1 else ''}"
    return (f"Without comparisons the baseline is the reference policy; {count}: {listed}.",)
