"""Tasks of ``rpo solve``: a problem from a JSON file or arrays, or a ranking from votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from bandits.environments.class_documents import class_of_module
from bandits.environments.votes import read_votes
from rpo_io.json_document import document_from_values
from rpo_theory.problems import (
    InvalidProblemError,
    PreferenceData,
    named_baseline,
    normalize,
    validate,
)
from rpo_theory.rewards import RewardClass, TabularBox, Unbounded, is_compact, is_convex
from rpo_theory.tie_parameter import fit_tie_parameter
from rpo_theory.types import ArrayLike, Problem
from rpo_theory.validation import plain_array

from .problem_files import Overrides, ProblemFile, from_document, read_problem

DEFAULT_REWARD_MAX = 4.0
"""Upper bound of the rewards if neither the input nor an option gives one."""
FITTED_TIES = "The parameter of the ties is that of maximum likelihood."
"""Remark on a tie parameter that is not given."""
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
        occurs: whether an action occurs in a context, shape ``[x a]``; None unless the task comes
            from votes.
        baseline: name of the baseline policy, "given" if it is a table.
        notes: remarks on the input, which the answer repeats.
        observations: number of ``comparisons``, ``rankings``, ``choices`` and ``ties``.
    """

    problem: Problem
    reward_class: RewardClass
    true_reward: Float[np.ndarray, "x a"] | None = None
    comparator: Float[np.ndarray, "x a"] | None = None
    contexts: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    occurs: Bool[np.ndarray, "x a"] | None = None
    baseline: str = "given"
    notes: tuple[str, ...] = ()
    observations: Mapping[str, float] = MappingProxyType({})


def task_from_problem(
    source: str | Mapping[str, Any] | Problem | ArrayLike | Sequence[Any],
    *,
    beta: float | None = None,
    eta: float | None = None,
    reward_max: float | None = None,
    baseline: Literal["chosen", "reference"] | None = None,
    reward_class: str | RewardClass | None = None,
) -> SolveTask:
    r"""Read a task from a problem file, from its content as Python values, or from arrays.

    The comparator is that of the file. By default it takes, in each context, the best action that
    the reference policy can choose.

    Args:
        source: path of a JSON file in the form of :mod:`rpo.solving.problem_files`, ``-`` for
            standard input; a mapping of the same form, whose values may be arrays; a problem; or
            win counts of shape ``[x a a]``, for which the reference policy is uniform.
        beta: weight of the KL term, instead of that of the source; :math:`1/\sqrt N` by default
            for win counts.
        eta: weight of the adversarial term, likewise.
        reward_max: upper bound of the rewards of a tabular class, instead of that of the source;
            4 by default for arrays.
        baseline: baseline policy by name, instead of that of the source; ``"chosen"`` by default
            for win counts.
        reward_class: class of the user's own, ``module:Class``, whose parameters are the keys of
            ``reward_class`` in a file; or an instance.

    Returns:
        The task.

    Raises:
        ValueError: if the source is invalid, or an option does not apply to it.
        OSError: if the file cannot be read.
    """
    overrides = Overrides(beta, eta, reward_max, baseline, reward_class)
    if isinstance(source, str):
        return _task_of_file(read_problem(source, overrides))
    if isinstance(source, Mapping):
        root = document_from_values(source, name="the problem")
        return _task_of_file(from_document(root, overrides))
    if not isinstance(source, Problem):
        source, baseline = _from_wins(source, overrides), baseline or "chosen"
    elif baseline is not None or beta is not None or eta is not None:
        data = PreferenceData(source.wins, source.choices, source.ties)
        policy = baseline or np.asarray(source.baseline_policy)
        source = source._replace(
            beta=source.beta if beta is None else beta,
            eta=source.eta if eta is None else eta,
            baseline_policy=named_baseline(policy, np.asarray(source.reference_policy), data),
        )
        validate(source, Unbounded())
        source = normalize(source)
    adversary = _class_of_arrays(reward_class, reward_max)
    validate(source, adversary)
    return SolveTask(source, adversary, baseline=baseline or "given", observations=_numbers(source))


def _class_of_arrays(named: str | RewardClass | None, reward_max: float | None) -> RewardClass:
    """Return the class for arrays and votes: the user's own, or a box."""
    if named is None:
        return TabularBox(DEFAULT_REWARD_MAX if reward_max is None else reward_max)
    if reward_max is not None:
        rule = "applies to the tabular class, not to one of your own: give it a parameter"
        raise ValueError(f"argument --reward-max: {rule}")
    return class_of_module(named) if isinstance(named, str) else named


def _numbers(problem: Problem) -> dict[str, float]:
    """Return the number of observations of each kind; choices include rankings."""
    numbers = {"comparisons": float(np.sum(problem.wins))}
    if problem.choices is not None:
        first = np.asarray(problem.choices.first, bool)
        numbers["choices"] = float(np.asarray(problem.choices.wins)[first].sum())
    if problem.ties is not None:
        numbers["ties"] = float(np.sum(problem.ties.counts))
    return numbers


def _from_wins(wins: ArrayLike | Sequence[Any], overrides: Overrides) -> Problem:
    if isinstance(wins, bytes) or hasattr(wins, "_fields"):
        rule = "must be a path, a mapping, a Problem or an array of win counts"
        raise ValueError(f"`problem` {rule}, got {type(wins).__name__}")
    wins = plain_array("wins", wins)
    Problem.from_wins(wins, beta=1.0, eta=1.0, context_weights="uniform")  # checks the counts
    comparisons = float(np.sum(wins))
    if comparisons == 0 and None in (overrides.beta, overrides.eta):
        name = "beta" if overrides.beta is None else "eta"
        raise ValueError(f"`{name}` must be given if there are no comparisons")
    root = 1.0 / np.sqrt(comparisons or 1.0)
    return Problem.from_wins(
        wins,
        beta=root if overrides.beta is None else overrides.beta,
        eta=root if overrides.eta is None else overrides.eta,
        baseline_policy=overrides.baseline or "chosen",
    )


def _task_of_file(file: ProblemFile) -> SolveTask:
    comparator = file.comparator
    if file.true_reward is not None and comparator is None:
        reachable = np.asarray(file.problem.reference_policy) > 0
        best = np.where(reachable, file.true_reward, -np.inf).argmax(axis=1)
        comparator = np.eye(file.true_reward.shape[1])[best]
    notes = _fallback_notes([str(x) for x in file.fallback_contexts])
    with_itself = float(np.trace(np.asarray(file.problem.wins), axis1=1, axis2=2).sum())
    if with_itself > 0:
        effect = "They say nothing about rewards, and count in N."
        notes = (*notes, f"Comparisons of an action with itself: {with_itself:g}. {effect}")
    if file.fitted_ties:
        notes = (*notes, FITTED_TIES)
    return SolveTask(
        file.problem,
        file.reward_class,
        file.true_reward,
        comparator,
        baseline=file.baseline,
        notes=notes,
        observations=file.observations,
    )


def task_from_votes(
    path: str,
    *,
    beta: float | None = None,
    eta: float | None = None,
    reward_max: float | None = None,
    reward_class: str | RewardClass | None = None,
    baseline: Literal["chosen", "reference"] = "chosen",
    context_weights: Literal["votes", "uniform"] = "votes",
    tie_model: Literal["davidson", "rao_kupper"] | None = None,
    tie_parameter: float | None = None,
) -> SolveTask:
    r"""Read a task from votes; the reward class is tabular by default.

    An action belongs to the contexts in which it occurs: there the reference policy is uniform
    over them, and elsewhere the action has probability 0.

    With :math:`N` votes, :math:`\beta = 1/\sqrt N` is the choice of Theorem 5.3. The default
    :math:`\eta = 1/\sqrt N` gives the adversarial term the weight of :math:`\sqrt N` votes: that
    of their noise. The theorem's own :math:`\eta` covers the worst case and is so small
    that the solution would be that of DPO.

    Args:
        path: a file of votes, see :mod:`bandits.environments.votes`.
        beta: weight of the KL term, greater than 0; :math:`1/\sqrt N` if None.
        eta: weight of the adversarial term, at least 0; :math:`1/\sqrt N` if None.
        reward_max: upper bound of the rewards of the tabular class, greater than 0; 4 if None. The
            lower bound is 0.
        reward_class: class of the user's own, ``module:Class`` without parameters, or an instance.
        baseline: ``"chosen"`` for the distribution of the winners in each context, or
            ``"reference"`` for the uniform reference policy.
        context_weights: ``"votes"`` to weight a context by its share of the votes, or
            ``"uniform"``.
        tie_model: model of wins and ties; a tie counts as half a win for either side if None.
        tie_parameter: parameter of the model; that of maximum likelihood over the reward class if
            None.

    Returns:
        The task.

    Raises:
        ValueError: if the file is invalid, or the tie parameter is out of range.
        OSError: if the file cannot be read.

    References:
        `liu:24`, Theorem 5.3.
    """
    votes, ties = read_votes(path), None
    if tie_model is not None and votes.tie_counts is not None:
        votes, ties = votes.with_ties_apart(), votes.tie_counts
    votes_in_context = votes.wins.sum(axis=(1, 2)) + (0.0 if ties is None else ties.sum((1, 2)))
    root = 1.0 / np.sqrt(votes_in_context.sum())
    fits = ties is not None and tie_parameter is None
    problem = Problem.from_wins(
        votes.wins,
        beta=float(root if beta is None else beta),
        eta=float(root if eta is None else eta),
        context_weights="comparisons" if context_weights == "votes" else "uniform",
        reference_policy=votes.reference_policy(),
        baseline_policy=baseline,
        ties=ties,
        tie_model=tie_model,
        tie_parameter=2.0 if fits else tie_parameter,
    )
    adversary = _class_of_arrays(reward_class, reward_max)
    validate(problem, adversary)
    if fits:
        problem = _with_fitted_ties(path, problem, adversary)
    without_votes = np.flatnonzero(votes_in_context == 0) if baseline == "chosen" else []
    return SolveTask(
        problem,
        adversary,
        contexts=votes.contexts,
        actions=votes.actions,
        occurs=votes.occurs,
        baseline=baseline,
        notes=(
            *votes.notes,
            *((FITTED_TIES,) if fits else ()),
            *_fallback_notes([votes.contexts[x] for x in without_votes]),
            *_absence_notes(votes.occurs),
            *_connection_notes(votes.unconnected_contexts()),
        ),
        observations=_numbers(problem),
    )


def _with_fitted_ties(path: str, problem: Problem, reward_class: RewardClass) -> Problem:
    bounded = is_convex(reward_class) and is_compact(reward_class)
    try:
        return fit_tie_parameter(problem, reward_class if bounded else None)
    except InvalidProblemError as error:
        raise ValueError(f"{path}: `--tie-parameter` {error.rule}") from error


def _fallback_notes(contexts: Sequence[str]) -> tuple[str, ...]:
    if not contexts:
        return ()
    return (f"Without comparisons the baseline is the reference policy; {_listed(contexts)}.",)


def _absence_notes(occurs: Bool[np.ndarray, "x a"]) -> tuple[str, ...]:
    n_absent = int(np.sum(~occurs.all(axis=0)))
    if not n_absent:
        return ()
    number = f"{n_absent} of {occurs.shape[1]} actions {'do' if n_absent > 1 else 'does'}"
    return (
        f"{number} not occur in every context, and have probability 0 in the others: the ranking "
        "is over all contexts.",
    )


def _connection_notes(contexts: Sequence[str]) -> tuple[str, ...]:
    if not contexts:
        return ()
    return (
        "The votes do not connect all actions of a context, so they leave the order between the "
        f"groups open; {_listed(contexts)}.",
    )


def _listed(contexts: Sequence[str]) -> str:
    """Return the number of some contexts and the names of the first ones."""
    names = ", ".join(contexts[:_LISTED]) + (", ..." if len(contexts) > _LISTED else "")
    return f"{len(contexts)} context{'s' if len(contexts) > 1 else ''}: {names}"
