"""What ``rpo solve`` is asked: a problem from a file, or a ranking from votes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from bandits.environments.votes import read_votes
from rpo_theory.policies import chosen_policy
from rpo_theory.problems import normalised
from rpo_theory.rewards import RewardClass, TabularBox
from rpo_theory.types import Problem

from .problem_files import read_problem

_LISTED = 5


class Task(NamedTuple):
    """What is to be solved, and what its indices are called.

    Attributes:
        problem: the instance.
        reward_class: the class that its reward is sought in.
        true_reward: the true reward if it is known, shape ``[x a]``.
        comparator: the policy that the answer is compared with; there is one where there is a
            true reward, shape ``[x a]``.
        contexts: names of the contexts if the task comes from votes.
        actions: names of the actions if the task comes from votes.
        notes: sentences on the input that belong beside the answer.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[np.ndarray, "x a"] | None = None
    comparator: Float[np.ndarray, "x a"] | None = None
    contexts: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def task_from_file(path: str) -> Task:
    """Read a problem file, or standard input for ``-``.

    The comparator is the best action of each context that the reference policy reaches, unless
    the file names another.

    Args:
        path: the file.

    Returns:
        The task.

    Raises:
        ValueError: a mistake in the file.
        OSError: the file cannot be read.
    """
    file = read_problem(path)
    comparator = file.comparator
    if file.true_reward is not None and comparator is None:
        reachable = np.asarray(file.problem.reference_policy) > 0
        best = np.where(reachable, file.true_reward, -np.inf).argmax(axis=1)
        comparator = np.eye(file.true_reward.shape[1])[best]
    notes = _fallback_notes([str(x) for x in file.fallback_contexts])
    return Task(file.problem, file.reward_class, file.true_reward, comparator, notes=notes)


def task_from_votes(
    path: str,
    *,
    beta: float | None = None,
    eta: float | None = None,
    reward_max: float = 4.0,
    baseline: str = "chosen",
    context_weights: str = "votes",
) -> Task:
    r"""Read votes; the reference is uniform, the class tabular.

    With :math:`N` votes, :math:`\beta = 1/\sqrt N` is the choice of Theorem 5.3. The same for
    :math:`\eta` lets the adversarial term weigh as much as :math:`\sqrt N` of the votes, the size
    of their noise; the :math:`\eta` of the theorem itself is made for the worst case, and so small
    that the answer is DPO's.

    Args:
        path: the CSV file.
        beta: weight of the KL term; :math:`1/\sqrt N` if None.
        eta: weight of the adversarial term; :math:`1/\sqrt N` if None.
        reward_max: rewards lie in [0, this].
        baseline: ``"chosen"``, the law of the winners in each context, or ``"reference"``.
        context_weights: ``"votes"``, the share of the votes, or ``"uniform"``.

    Returns:
        The task.

    Raises:
        ValueError: a mistake in the file.
        OSError: the file cannot be read.

    References:
        `liu:24`, Theorem 5.3.
    """
    votes = read_votes(path)
    n_contexts, n_actions = votes.wins.shape[:2]
    votes_in_context = votes.wins.sum(axis=(1, 2))
    root = 1.0 / np.sqrt(votes_in_context.sum())
    reference = baseline_policy = np.full((n_contexts, n_actions), 1.0 / n_actions)
    silent: list[str] = []
    if baseline == "chosen":
        with jax.enable_x64(True):
            baseline_policy = np.asarray(jax.jit(chosen_policy)(votes.wins, reference))
        silent = [votes.contexts[x] for x in np.flatnonzero(votes_in_context == 0)]
    problem = Problem(
        context_weights=votes_in_context if context_weights == "votes" else np.ones(n_contexts),
        reference_policy=reference,
        baseline_policy=baseline_policy,
        wins=votes.wins,
        beta=np.asarray(root if beta is None else beta),
        eta=np.asarray(root if eta is None else eta),
    )
    return Task(
        normalised(problem),
        TabularBox(np.asarray(reward_max)),
        contexts=votes.contexts,
        actions=votes.actions,
        notes=_fallback_notes(silent),
    )


def _fallback_notes(contexts: list[str]) -> tuple[str, ...]:
    if not contexts:
        return ()
    listed = ", ".join(contexts[:_LISTED]) + (", ..." if len(contexts) > _LISTED else "")
    count = f"{len(contexts)} context{'s' if len(contexts) > 1 else ''}"
    return (f"Without comparisons the baseline is the reference policy; {count}: {listed}.",)
