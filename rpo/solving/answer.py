"""The answer of ``rpo solve``: plain numbers, lists and strings, ready for JSON."""

from __future__ import annotations

import importlib
import json
from typing import Any

import jax
import numpy as np

from rpo_theory.certificate import certify
from rpo_theory.coverage import coverage
from rpo_theory.objectives import gap
from rpo_theory.rewards import FiniteClass, Unbounded
from rpo_theory.stationarity import s1_residual
from rpo_theory.types import ArrayLike, Problem, Status

from .tasks import Task

SOLVERS = {"minimax": "minimax", "maximin": "maximin", "policy": "direct"}
"""Module of ``rpo_theory`` behind each formulation; only the one that is asked for is loaded."""


def answer(task: Task, formulation: str = "minimax") -> dict[str, Any]:
    """Solve a task and certify the solution.

    Args:
        task: what is asked.
        formulation: a key of :data:`SOLVERS`.

    Returns:
        What ``rpo solve`` prints; ``None`` stands for a number that is not finite. With votes
        there is the same under DPO (``eta = 0``) as ``"dpo"``.
    """
    problem = task.problem
    with jax.enable_x64(True):
        result, notes = _solve(task, problem, formulation)
        judged, remarks = _judge(task, result["policy"])
        result, notes = result | judged, notes + remarks
        if task.contexts is not None and task.actions is not None:
            dpo, _ = _solve(task, problem._replace(eta=np.zeros(())), "minimax")
            result |= _ranking(result, problem, task.actions)
            result["dpo"] = dpo | _ranking(dpo, problem, task.actions)
            result["contexts"], result["actions"] = list(task.contexts), list(task.actions)
    result["formulation"] = formulation
    result["beta"], result["eta"] = float(problem.beta), float(problem.eta)
    result["comparisons"] = float(np.sum(problem.wins))
    result["notes"] = [*task.notes, *notes]
    return result


def to_json(result: dict[str, Any]) -> str:
    """One strict JSON object, a line for each key.

    Args:
        result: plain numbers, lists and strings, all finite.

    Returns:
        The text, with its last line ended.

    Examples:
        >>> to_json({"value": 0.5, "policy": [[1.0]]}).splitlines()
        ['{', '  "value": 0.5,', '  "policy": [[1.0]]', '}']
    """
    lines = (f"  {json.dumps(key)}: {json.dumps(v, allow_nan=False)}" for key, v in result.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _solve(task: Task, problem: Problem, formulation: str) -> tuple[dict[str, Any], list[str]]:
    """Policy, reward and certificate of a problem, with remarks on them."""
    solver = importlib.import_module(f"rpo_theory.{SOLVERS[formulation]}")
    solution = solver.solve(problem, task.reward_class, throw=False)
    policy, reward, status = solution.policy, solution.reward, Status(int(solution.status))
    arrays = {"policy": policy, "reward": reward, "value": solution.objective}
    result = {name: _plain(array) for name, array in arrays.items()}
    message, notes = status.sentence, []
    proof = certify(problem, task.reward_class, policy, reward)
    result["duality_gap"] = _plain(proof.duality_gap)
    result["kkt_residual"] = _plain(proof.kkt_residual)
    if isinstance(task.reward_class, Unbounded):
        residual = np.abs(s1_residual(problem, policy, reward)).max()
        result["stationarity_residual"] = _plain(residual)
        if result["kkt_residual"] is None:  # rewards of minus infinity: S1 is what is left of it
            result["kkt_residual"] = _plain(residual)
    else:
        result["value"] = _plain(proof.value)
    if isinstance(task.reward_class, FiniteClass) and status is Status.SOLVED:
        message = (
            "Solved. A finite class is not convex, so Theorem 5.6 does not speak of it, "
            "and the duality gap need not be 0."
        )
    if status is Status.NOT_ATTAINED:
        notes.append("A reward that tends to minus infinity is null.")
    return result | {"status": status.name.lower(), "message": message}, notes


def _judge(task: Task, policy: list[list[float]]) -> tuple[dict[str, Any], list[str]]:
    """Gap and coverage where the true reward is known, with remarks on them."""
    problem, truth, comparator = task.problem, task.true_reward, task.comparator
    if truth is None or comparator is None:
        return {}, []
    judged = {"gap": _plain(gap(np.asarray(policy), comparator, truth, problem.context_weights))}
    try:
        coefficient = coverage(
            task.reward_class,
            true_reward=truth,
            comparator=comparator,
            baseline=problem.baseline_policy,
            context_weights=problem.context_weights,
            pair_distribution=problem.wins,
        )
    except ValueError:  # everything else about the input has been checked
        remark = "The true reward is not in the class, as the theorem and the coverage ask."
        return judged | {"coverage": None}, [remark]
    judged["coverage"] = _plain(coefficient)
    if np.isinf(coefficient):
        remark = "The coverage is infinite: the data do not tell how good the comparator is."
        return judged, [remark]
    return judged, []


def _ranking(result: dict[str, Any], problem: Problem, actions: tuple[str, ...]) -> dict[str, Any]:
    """Actions by their probability under the law of the contexts; ties in the order of names."""
    policy = np.asarray(result["policy"], np.float64)
    probability = np.asarray(problem.context_weights) @ policy
    order = np.argsort(-probability, kind="stable")
    return {
        "ranking": [actions[a] for a in order],
        "ranking_probability": _plain(probability[order]),
    }


def _plain(value: ArrayLike) -> Any:
    """Nested lists, with None for what is not finite: JSON has no other numbers."""
    array = np.asarray(value, np.float64)
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()
