"""The Numba kernel of box problems: against the JAX solver, and its bits and its files on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from rpo_theory import certificate, minimax
from rpo_theory._kernels import check_kernel, solve_by_numba
from rpo_theory.numerics import box_kernel
from rpo_theory.rewards import FiniteClass, TabularBox
from rpo_theory.types import Problem, Solution, Status

CONTEXTS, ACTIONS = 2, 3
VALUE, POLICY = 1e-13, 1e-11


def hard_problems(n: int, actions: int = ACTIONS) -> tuple[Problem, TabularBox]:
    """Draw problems with weights from 1e-3 to 1e3, empty rows, and responses that cannot occur."""
    rng = np.random.default_rng(5)
    shape = (n, CONTEXTS, actions)
    wins = rng.poisson(rng.choice([0.0, 0.3, 4.0], (*shape, 1)), (*shape, actions)) * 1.0
    reference = rng.dirichlet(np.ones(actions), shape[:2])
    reference[: n // 4, 0, 0] = 0.0
    reference /= reference.sum(axis=-1, keepdims=True)
    baseline = rng.dirichlet(0.3 * np.ones(actions), shape[:2])
    weights = rng.dirichlet(np.ones(CONTEXTS), n)
    beta, eta = np.exp(rng.uniform(np.log(1e-3), np.log(1e3), (2, n)))
    eta[::7] = 0.0
    # Beyond a few thousand times beta the rounding of the reward alone is more than a proof allows.
    width = np.minimum(np.exp(rng.uniform(np.log(0.1), np.log(600.0), n)), 2000.0 * beta)
    return Problem(weights, reference, baseline, wins, beta, eta), TabularBox(width)


def solve(problems: Problem, boxes: TabularBox, kernel: str = "numba", **options: int) -> Solution:
    return minimax.solve_batch(problems, boxes, throw=False, kernel=kernel, **options)  # type: ignore[arg-type]


def rows(problems: Problem, boxes: TabularBox, index: object) -> tuple[Problem, TabularBox]:
    leaves: list[Any] = [cast(Any, leaf)[index] for leaf in problems[:6]]
    return Problem(*leaves), TabularBox(cast(Any, boxes.maximum)[index])


def same_bits(first: Solution, second: Solution) -> bool:
    pairs = [*zip(first[:4], second[:4], strict=True)]
    pairs += [(first.stats[name], second.stats[name]) for name in first.stats]
    return all(np.array_equal(one, other, equal_nan=True) for one, other in pairs)


@pytest.fixture(scope="module")
def instances() -> tuple[Problem, TabularBox]:
    return hard_problems(200)


@pytest.fixture(scope="module")
def solution(instances: tuple[Problem, TabularBox]) -> Solution:
    return solve(*instances)


def test_parity_the_kernel_agrees_with_the_jax_solver(
    instances: tuple[Problem, TabularBox], solution: Solution
) -> None:
    expected = solve(*instances, kernel="jax")
    assert (solution.status == Status.SOLVED.value).all()
    assert solution.status.dtype == expected.status.dtype
    size = np.maximum(1.0, np.maximum(np.abs(expected.objective), instances[0].eta))
    assert (np.abs(solution.objective - expected.objective) <= VALUE * size).all()
    # With weights of zero, or where the reward is free, policies are those of the central path.
    curved = (instances[0].eta > 0.1) & (instances[0].beta > 0.05) & (instances[0].beta < 10.0)
    assert np.abs(solution.policy - expected.policy)[curved].max() <= POLICY
    assert np.abs(solution.policy.sum(axis=-1) - 1.0).max() <= 1e-14


def test_parity_the_certificate_finds_the_value_and_the_gap_of_the_kernel(
    instances: tuple[Problem, TabularBox], solution: Solution
) -> None:
    for i in range(0, 200, 20):
        problem, box = rows(*instances, i)
        proof = certificate.certify(problem, box, solution.policy[i], solution.reward[i])
        size = max(1.0, float(problem.eta), abs(float(proof.value)))
        assert abs(proof.value - solution.objective[i]) <= VALUE * size
        assert proof.duality_gap <= 1e-10 * size
        assert proof.is_member


def test_property_a_problem_has_the_same_bits_in_any_batch(
    instances: tuple[Problem, TabularBox],
    solution: Solution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = np.random.default_rng(1).permutation(200)
    shuffled = solve(*rows(*instances, order))
    inverse = np.argsort(order)
    stats = {name: leaf[inverse] for name, leaf in shuffled.stats.items()}
    leaves: list[Any] = [leaf[inverse] for leaf in shuffled[:4]]
    assert same_bits(Solution(leaves[0], leaves[1], leaves[2], leaves[3], stats), solution)
    for i in (0, 7, 199):
        one = slice(i, i + 1)
        leaves = [leaf[one] for leaf in solution[:4]]
        expected = Solution(
            leaves[0],
            leaves[1],
            leaves[2],
            leaves[3],
            {name: leaf[one] for name, leaf in solution.stats.items()},
        )
        assert same_bits(solve(*rows(*instances, one)), expected)
    # Tasks of 16 contexts, on five threads.
    monkeypatch.setattr(box_kernel, "CONTEXTS_PER_TASK", 16)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert same_bits(solve(*instances), solution)


@pytest.mark.parametrize("field", Problem._fields[:6])
def test_extreme_a_number_that_is_not_finite_has_a_status(
    instances: tuple[Problem, TabularBox], solution: Solution, field: str
) -> None:
    problems, boxes = rows(*instances, slice(20))
    damaged = np.array(getattr(problems, field))
    damaged[3] = np.nan
    actual = solve(problems._replace(**{field: damaged}), boxes, max_steps=60)
    assert actual.status[3] == Status.NOT_FINITE.value
    others = np.arange(20) != 3
    assert np.array_equal(actual.policy[others], solution.policy[:20][others])


def test_limit_few_steps_leave_the_status_open(instances: tuple[Problem, TabularBox]) -> None:
    actual = solve(*instances, max_steps=4)
    assert (actual.stats["steps"] <= 4).all()
    assert (actual.status == Status.MAX_STEPS.value).any()


def test_closed_form_other_problems_are_solved_as_by_jax() -> None:
    problems, boxes = hard_problems(8)
    wide = TabularBox(np.where(np.arange(8) % 2, boxes.maximum, 1e3))
    mixed, by_jax = solve(problems, wide), solve(problems, wide, kernel="jax")
    by_numba = solve(problems, boxes)
    assert np.array_equal(mixed.policy[::2], by_jax.policy[::2])
    assert np.array_equal(mixed.policy[1::2], by_numba.policy[1::2])
    finite = FiniteClass(np.zeros((8, 1, CONTEXTS, ACTIONS)))
    first, second = [
        minimax.solve_batch(problems, finite, throw=False, kernel=name).policy
        for name in ("numba", "jax")
    ]
    assert np.array_equal(first, second)


def test_closed_form_the_kernel_applies_by_actions_and_width() -> None:
    widths = np.array([0.1, 700.0, 701.0])
    assert box_kernel.applies(12, widths).tolist() == [True, True, False]
    assert not box_kernel.applies(1, widths).any()
    assert not box_kernel.applies(13, widths).any()


def test_property_policies_of_the_kernel_are_gibbs_policies(
    instances: tuple[Problem, TabularBox],
) -> None:
    problems, boxes = rows(*instances, slice(3))
    limits: dict[str, Any] = {"tolerance": 1e-13, "max_steps": 60}
    found = box_kernel.solve(problems, np.asarray(boxes.maximum), **limits)
    weight = np.asarray(problems.reference_policy) * np.exp(
        (found.reward - found.reward.max(axis=-1, keepdims=True))
        / np.asarray(problems.beta)[:, None, None]
    )
    gibbs = weight / weight.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found.policy, gibbs, rtol=0.0, atol=POLICY)
    # No problem is left to the other solver.
    solution = solve_by_numba(problems, boxes, minimax.solve_batch, **limits)
    assert np.array_equal(solution.policy, found.policy)
    assert np.array_equal(solution.stats["steps"], found.steps)


def test_raises_an_unknown_kernel() -> None:
    with pytest.raises(ValueError, match="`kernel` must be 'jax' or 'numba', got 'c'"):
        check_kernel("c")


PROGRAM = """
import sys
import numpy as np
from rpo_theory.numerics import box_kernel
from rpo_theory.types import Problem
even = np.full((1, 1, 2), 0.5)
problem = Problem(np.ones((1, 1)), even, even, np.array([[[[0.0, 3.0], [1.0, 0.0]]]]),
                  np.ones(1), np.ones(1))
assert "numba" not in sys.modules
box_kernel.solve(problem, np.ones(1), tolerance=1e-13, max_steps=50).policy.tofile(sys.argv[1])
"""


def start(output: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(output)]
    variables = {**os.environ, "XDG_CACHE_HOME": "", **environment}
    return subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages


@pytest.mark.slow
def test_extreme_the_cache_may_be_missing_damaged_or_shared(tmp_path: Path) -> None:
    home = tmp_path / "home"
    outputs = [tmp_path / f"{i}.bin" for i in range(6)]
    # Two processes at once compile into an empty home.
    for process in [start(output, HOME=str(home)) for output in outputs[:2]]:
        finish(process)
    kernels = home / ".cache" / "rpo" / "kernels"
    stored = sorted(path for path in kernels.rglob("*") if path.is_file())
    assert any(path.suffix == ".nbc" for path in stored)
    assert not any(path.suffix == ".part" for path in stored)
    for path in stored:
        path.write_bytes(path.read_bytes()[:100])
    finish(start(outputs[2], HOME=str(home)))
    finish(start(outputs[3], HOME=""))
    blocked = tmp_path / "file"
    blocked.write_text("a home that is a file takes no folder")
    finish(start(outputs[4], HOME=str(blocked)))
    finish(start(outputs[5], HOME=str(home), NUMBA_NUM_THREADS="1"))
    assert len({output.read_bytes() for output in outputs}) == 1
