"""The answer of ``rpo solve``: a certified solution, judged by the true reward if it is known."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float

from bandits.environments.class_documents import class_document
from rpo.results import Answer, CertifiedSolution
from rpo_theory import direct, maximin, minimax
from rpo_theory.certificate import certify
from rpo_theory.coverage import coverage_coefficient
from rpo_theory.objectives import gap
from rpo_theory.observations import compared_pairs, n_observations
from rpo_theory.policy_error import policy_error
from rpo_theory.preference_data import TIE_MODELS
from rpo_theory.rewards import is_compact, is_convex
from rpo_theory.rigorous import duality_gap_bound, exact_form
from rpo_theory.stationarity import s1_residual
from rpo_theory.types import Problem, Status

from .improvement import check_confidence, improvement
from .tasks import SolveTask

SOLVERS = {"minimax": minimax.solve, "maximin": maximin.solve, "policy": direct.solve}
"""Solver of each formulation."""


def check_provable(task: SolveTask) -> None:
    """Refuse a reward class for which no proof in ball arithmetic exists.

    Args:
        task: problem, reward class and names.

    Raises:
        ValueError: if the class has no exact form; the message names the class.
    """
    exact_form(task.reward_class, np.shape(task.problem.reference_policy))


def solve_task(
    task: SolveTask,
    formulation: str = "minimax",
    *,
    rigorous: bool = False,
    confidence: float | None = None,
    seed: int = 0,
) -> Answer:
    """Solve a task and certify the solution, in float64.

    Args:
        task: problem, reward class and names.
        formulation: a key of :data:`SOLVERS`.
        rigorous: whether to prove the duality gap in ball arithmetic too.
        confidence: level of a confidence interval for the improvement on the baseline; None for no
            interval. See :func:`check_confidence`.
        seed: seed of the split of the data for the interval.

    Returns:
        The answer. For a task from votes it also holds the rankings, and the solution of DPO
        (``eta = 0``).
    """
    problem = task.problem
    with jax.enable_x64(True):
        solution, notes = _solve(task, problem, formulation)
        gap_to_comparator, coefficient, remarks = _judge(task, solution.policy)
        proven = _proven_gap(task, solution) if rigorous else None
        interval = None
        if confidence is not None and np.isfinite(solution.policy).all():
            splits, level = check_confidence(task, seed), {"confidence": confidence, "seed": seed}
            interval = improvement(task, solution.policy, splits, **level)
        dpo = None
        if task.actions is not None:
            dpo, _ = _solve(task, problem._replace(eta=np.zeros(())), "minimax")
    return Answer(
        **vars(solution),
        formulation=formulation,
        beta=float(problem.beta),
        eta=float(problem.eta),
        reward_class=class_document(task.reward_class),
        baseline=task.baseline,
        comparisons=task.observations["comparisons"],
        observations=float(n_observations(problem)),
        further_data=_further_data(task),
        notes=(*task.notes, *notes, *remarks),
        gap=gap_to_comparator,
        coverage=coefficient,
        proven_duality_gap=proven,
        improvement=interval,
        contexts=task.contexts,
        actions=task.actions,
        occurs=task.occurs,
        dpo=dpo,
    )


def _solve(
    task: SolveTask, problem: Problem, formulation: str
) -> tuple[CertifiedSolution, list[str]]:
    """Solve a problem; return the certified solution and remarks on it."""
    solution = SOLVERS[formulation](problem, task.reward_class, throw=False)
    policy, reward, status = solution.policy, solution.reward, Status(int(solution.status))
    value = kkt_residual = duality_gap = float("nan")
    stationarity_residual = None
    is_finite = bool(np.isfinite(policy).all() and not np.isnan(reward).any())
    if is_finite:
        proof = certify(problem, task.reward_class, policy, reward)
        value, kkt_residual = float(proof.value), float(proof.kkt_residual)
        duality_gap = float(proof.duality_gap)
    if not is_compact(task.reward_class):
        value = float(solution.objective)
        residual = np.abs(s1_residual(problem, policy, reward)).max()
        stationarity_residual = float(residual)
        if not np.isfinite(kkt_residual):  # rewards of minus infinity leave only identity S1
            kkt_residual = stationarity_residual
    message = status.sentence
    if not is_convex(task.reward_class) and status is Status.SOLVED:
        message = (
            "Solved. The class is not convex, so Theorem 5.6 does not apply, "
            "and the duality gap need not be 0."
        )
    if not is_compact(task.reward_class) and status is Status.SOLVED:
        message = (
            "Solved: the stationarity residual meets the tolerance. It stands in for the duality "
            "gap, for which the unbounded class has no bound."
        )
    notes = []
    if np.isneginf(reward).any():
        notes.append("A reward that tends to minus infinity is null.")
    if np.isposinf(reward).any():
        notes.append("A reward that tends to plus infinity is null.")
    policy = np.asarray(policy, np.float64)
    distance = policy_error(problem, duality_gap if np.isfinite(duality_gap) else np.inf)
    certified = CertifiedSolution(
        policy=policy,
        reward=np.asarray(reward, np.float64),
        value=value,
        duality_gap=duality_gap if np.isfinite(duality_gap) else float("inf"),
        kkt_residual=kkt_residual,
        policy_kl_bound=float(distance.kl),
        policy_tv_bound=float(distance.total_variation),
        stationarity_residual=stationarity_residual,
        status=status.name.lower(),
        message=message,
        ranking=None if task.actions is None else _ranking(policy, problem, task.actions),
    )
    return certified, notes


def _proven_gap(task: SolveTask, solution: CertifiedSolution) -> float:
    """Prove a bound on the duality gap of a solution; infinite if its numbers are not finite."""
    pair = (solution.policy, solution.reward)
    if not all(np.isfinite(table).all() for table in pair):
        return float("inf")
    return duality_gap_bound(task.problem, task.reward_class, *pair)


def _further_data(task: SolveTask) -> dict[str, float | str]:
    """Return the number of rankings, choices and ties, and the model of ties."""
    numbers = {kind: task.observations.get(kind, 0.0) for kind in ("rankings", "choices", "ties")}
    found: dict[str, float | str] = {kind: number for kind, number in numbers.items() if number}
    ties = task.problem.ties
    if ties is not None:
        name = next(name for name, model in TIE_MODELS.items() if type(ties) is model)
        found |= {"tie_model": name, "tie_parameter": float(ties.parameter)}
    return found


def _judge(
    task: SolveTask, policy: Float[np.ndarray, "x a"]
) -> tuple[float | None, float | None, list[str]]:
    """Return the gap to the comparator, its coverage and remarks, if the true reward is known."""
    problem, truth, comparator = task.problem, task.true_reward, task.comparator
    if truth is None or comparator is None:
        return None, None, []
    gap_to_comparator = float(gap(policy, comparator, truth, problem.context_weights))
    try:
        coefficient = coverage_coefficient(
            task.reward_class,
            true_reward=truth,
            comparator=comparator,
            baseline=problem.baseline_policy,
            context_weights=problem.context_weights,
            pair_distribution=compared_pairs(problem.wins, problem.choices, problem.ties),
        )
    except ValueError:  # everything else about the input has been checked
        remark = "The true reward is not in the class, as the theorem and the coverage require."
        return gap_to_comparator, None, [remark]
    remarks = []
    if problem.choices is not None:
        remarks.append("The coverage is by the pairs of the compared sets, each with equal weight.")
    if np.isinf(coefficient):
        remarks.append("The coverage is infinite: the data say nothing about the comparator.")
    return gap_to_comparator, float(coefficient), remarks


def _ranking(
    policy: Float[np.ndarray, "x a"], problem: Problem, actions: tuple[str, ...]
) -> tuple[tuple[str, float], ...]:
    """Rank actions by their mean probability over the contexts; ties are in the order of names."""
    probability = np.asarray(problem.context_weights) @ policy
    order = np.argsort(-probability, kind="stable")
    return tuple((actions[a], float(probability[a])) for a in order)
