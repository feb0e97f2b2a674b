"""Solve a million random problems at hostile scales with every exact solver.

    python tests/torture/problems.py --problems 1000000 --spot-checks 1000 [--seed 0] [--out DIR]

Checked for every problem: there is no exception, the solution of a solved problem is finite, sums
to one and is in its class, and its duality gap, recomputed from the solution, is within the bound.
If float64 finds a larger gap, it is recomputed with fifty digits. A sample is recomputed with fifty
digits and CVXPY (``fifty_digits.py``): no certificate may state less than the true gap. One problem
in two hundred contains a NaN or an infinite number, and may not have status ``SOLVED``. Prints a
table by solver and class, writes faulty problems to ``offenders.json``, and exits with 1 if there
are any.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import fifty_digits
import hostile
import jax
import numpy as np

from rpo_theory import certificate, coverage_coefficient_batch, direct, maximin, minimax
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem, Solution, Status

SOLVERS = {"minimax": minimax, "maximin": maximin, "direct": direct}
LARGE = (4, 16)
POISONED = 200  # one problem in 200 contains a number that is not finite
SUM_ROUNDING = 1e-9  # of the sum of probabilities
KEPT = 5  # number of problems stored per fault and family


class Family(NamedTuple):
    """Problems of one solver, class and shape, and their share of all problems."""

    solver: str
    kind: str
    shape: tuple[int, int]
    batch: int
    share: float


class Finding(NamedTuple):
    """Faulty problem."""

    family: Family
    fault: str
    problem: Any


class Tally:
    """Counts by solver and class, findings, and a sample for the spot checks."""

    def __init__(self) -> None:
        """Start with empty counts."""
        self.statuses: dict[tuple[str, str], Counter[str]] = {}
        self.worst: dict[tuple[str, str], float] = {}
        self.faults: Counter[str] = Counter()
        self.findings: list[Finding] = []
        self.sample: list[tuple[Family, tuple]] = []
        self.n_rechecked = 0

    def note(self, family: Family, fault: str, problem: Any) -> None:
        """Count a fault, and store the problem of the first few of a kind."""
        self.faults[fault] += 1
        if sum(finding[:2] == (family, fault) for finding in self.findings) < KEPT:
            self.findings.append(Finding(family, fault, problem))


def families() -> list[Family]:
    """Return the families: mostly small problems of few shapes, for few compilations."""
    drawn = []
    small_shapes = {(1, 1): 0.2, (1, 2): 3.0, (2, 3): 8.0, (3, 4): 4.0}
    for kind in hostile.KINDS:
        drawn += [
            Family("minimax", kind, shape, 4000, share) for shape, share in small_shapes.items()
        ]
        drawn.append(Family("minimax", kind, LARGE, 250, 0.1))
        for solver in ("maximin", "direct", "coverage"):
            drawn.append(Family(solver, kind, (2, 3), 4000, 1.5))
    shares = sum(family.share for family in drawn)
    return [family._replace(share=family.share / shares) for family in drawn]


def main() -> int:
    """Draw, solve and check all problems; return 0 if there is no fault."""
    parser = argparse.ArgumentParser(description="hostile problems through every exact solver")
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--spot-checks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/problems"))
    options = parser.parse_args()
    started = time.perf_counter()
    tally, drawn = Tally(), families()
    warnings.filterwarnings("ignore", "Solution may be inaccurate")  # CVXPY only proposes rewards
    for index, family in enumerate(drawn):
        rng = np.random.default_rng([options.seed, index])
        n_batches = max(1, round(options.problems * family.share / family.batch))
        spots = 2 * options.spot_checks // len(drawn)  # more than needed: some have no certificate
        for number in range(n_batches):
            run_batch(family, rng, tally, spots if number == 0 else 0)
        say(f"{family.solver} {family.kind} {family.shape}: {n_batches * family.batch:,}")
    spot = spot_checks(tally, options.spot_checks)
    report(tally, spot, time.perf_counter() - started)
    if not tally.faults:
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    offenders = [finding._asdict() for finding in tally.findings]
    (options.out / "offenders.json").write_text(json.dumps(offenders, default=plain) + "\n")
    say(f"faulty problems written to {options.out / 'offenders.json'}")
    return 1


def run_batch(family: Family, rng: np.random.Generator, tally: Tally, spots: int) -> None:
    """Draw a batch, solve it and check every solution."""
    problems = hostile.problems(rng, family.batch, *family.shape)
    classes = hostile.reward_classes(rng, family.kind, family.batch, *family.shape)
    if family.solver == "coverage":
        check_coverage(family, rng, problems, classes, tally)
        return
    poisoned = np.arange(family.batch) % POISONED == POISONED - 1
    bad = hostile.poison(rng, problems)
    problems = jax.tree.map(
        lambda wrong, field: np.where(
            poisoned.reshape(-1, *[1] * (np.ndim(field) - 1)), wrong, field
        ),
        bad,
        problems,
    )
    try:
        solution = SOLVERS[family.solver].solve_batch(problems, classes, throw=False)
    except Exception as error:
        tally.note(family, f"exception {type(error).__name__}: {error}", (problems, classes))
        return
    check(family, problems, classes, solution, poisoned, tally)
    for row in np.flatnonzero(~poisoned)[:spots]:
        tally.sample.append((family, hostile.select_rows((problems, classes, solution), row)))


def check(
    family: Family,
    problems: Problem,
    classes: RewardClass,
    solution: Solution,
    poisoned: np.ndarray,
    tally: Tally,
) -> None:
    """Check every solution of a batch against its status."""
    key = (family.solver, family.kind)
    status = np.asarray(solution.status)
    names = [Status(int(code)).name for code in status[~poisoned]]
    tally.statuses.setdefault(key, Counter()).update(names)
    solved = status == Status.SOLVED
    claimed = solved | (status == Status.NOT_ATTAINED)
    gap = recomputed_gap(problems, classes, solution)
    with np.errstate(invalid="ignore"):
        value = np.abs(np.asarray(solution.objective))
        relative = gap / np.maximum(np.maximum(1.0, problems.eta), value)
        # Programs round differently: if float64 finds too large a gap, fifty digits decide.
        for row in np.flatnonzero(claimed & ~poisoned & ~(relative <= certificate.GAP_TOLERANCE)):
            selected = hostile.select_rows((problems, classes, solution), row)
            eta = float(np.asarray(problems.eta)[row])
            relative[row] = float(exact_gap(*selected)) / max(1.0, eta, value[row])
            tally.n_rechecked += 1
        policy, reward = map(np.asarray, solution[:2])
        sums_to_one = (np.abs(policy.sum(axis=-1) - 1.0) <= SUM_ROUNDING).all(axis=-1)
        sums_to_one &= ((policy >= 0) & ((policy == 0) | (problems.reference_policy > 0))).all(
            (1, 2)
        )
        member = in_class(classes, reward) | (status == Status.NOT_ATTAINED)
    faults = {
        "wrong certificate: the gap exceeds its bound": (
            claimed & ~poisoned & ~(relative <= certificate.GAP_TOLERANCE)
        ),
        "no distribution: the policy of a solved problem": claimed & ~poisoned & ~sums_to_one,
        "not finite or not in the class: the reward of a solved problem": solved
        & ~poisoned
        & ~member,
        "not finite: the value of a solved problem": claimed & ~poisoned & ~np.isfinite(value),
        "solved: a problem with a NaN or an infinite number": claimed & poisoned,
    }
    for fault, rows in faults.items():
        for row in np.flatnonzero(rows):
            tally.note(family, fault, hostile.select_rows((problems, classes, solution), row))
    proven = relative[claimed & ~poisoned]
    tally.worst[key] = max(tally.worst.get(key, 0.0), float(np.max(proven, initial=0.0)))


def recomputed_gap(problems: Problem, classes: RewardClass, solution: Solution) -> np.ndarray:
    """Return the gap of each solution, to the best member for an enumerated finite class."""
    policy, reward = solution.policy, solution.reward
    with jax.enable_x64(True):
        if isinstance(classes, Unbounded):
            gap = RESIDUALS(problems, policy, reward)
        elif not isinstance(classes, FiniteClass):
            gap = GAPS(problems, classes, policy, reward)
        elif "mixture" in solution.stats:
            gap = MIXTURES(problems, classes, policy, solution.stats["mixture"])
        else:
            gap = solution.objective - VALUES(problems, classes.rewards).min(axis=1)
        return np.asarray(gap)


def exact_gap(problem: Problem, reward_class: RewardClass, solution: Solution) -> Any:
    """Return an upper bound on the gap of one solution with fifty digits."""
    policy, reward = solution.policy, solution.reward
    if isinstance(reward_class, Unbounded):
        return fifty_digits.stationarity(problem, policy, reward)
    if not isinstance(reward_class, FiniteClass):
        return fifty_digits.gap_bounds(problem, reward_class, policy, reward).upper
    if "mixture" in solution.stats:
        mixture = solution.stats["mixture"]
        return fifty_digits.mixture_gap(problem, reward_class, policy, mixture)
    return fifty_digits.excess(problem, reward_class, reward)


GAPS = jax.jit(jax.vmap(certificate.duality_gap_bound))
RESIDUALS = jax.jit(jax.vmap(certificate.unbounded_residual))
MIXTURES = jax.jit(jax.vmap(certificate.mixture_gap))
VALUES = jax.jit(
    jax.vmap(jax.vmap(certificate.minimax_objective, in_axes=(None, 0)), in_axes=(0, 0))
)


def in_class(classes: RewardClass, reward: np.ndarray) -> Any:
    """Return whether rewards are finite and, if that can be checked directly, in their class."""
    finite = np.isfinite(reward).all(axis=(1, 2))
    match classes:
        case TabularBox(maximum):
            inside = (reward >= 0) & (reward <= np.asarray(maximum)[:, None, None])
            return finite & inside.all(axis=(1, 2))
        case FiniteClass(rewards):
            return finite & (rewards == reward[:, None]).all(axis=(2, 3)).any(axis=1)
        case LinearBall(features, radius):
            longest = np.linalg.norm(features, axis=-1) * np.asarray(radius)[:, None, None]
            return finite & (np.abs(reward) <= longest * (1 + SUM_ROUNDING)).all(axis=(1, 2))
    return finite


def check_coverage(
    family: Family,
    rng: np.random.Generator,
    problems: Problem,
    classes: RewardClass,
    tally: Tally,
) -> None:
    """Check that the coverage of the reference is at least the ratio of any member."""
    truth, member = (members(rng, classes, problems.reference_policy.shape) for _ in range(2))
    pairs = (
        problems.wins
        + np.eye(family.shape[1]) * (problems.wins.sum(axis=(1, 2, 3)) == 0)[:, None, None, None]
    )
    query = {
        "true_reward": truth,
        "comparator": problems.reference_policy,
        "baseline": problems.baseline_policy,
        "context_weights": problems.context_weights,
        "pair_distribution": pairs,
    }
    try:
        coefficients = np.asarray(coverage_coefficient_batch(classes, **query))
    except Exception as error:
        tally.note(family, f"exception {type(error).__name__}: {error}", (query, classes))
        return
    counts = Counter("FINITE" if finite else "INFINITE" for finite in np.isfinite(coefficients))
    tally.statuses.setdefault(("coverage", family.kind), Counter()).update(counts)
    lower = ratio(query, truth - member)
    for row in np.flatnonzero(np.isnan(coefficients) | (coefficients < 0)):
        tally.note(family, "no number: a coverage", hostile.select_rows((query, classes), row))
    for row in np.flatnonzero(lower > coefficients * (1 + 1e-6) + 1e-6):
        tally.note(
            family,
            "wrong certificate: a member has a larger ratio",
            hostile.select_rows((query, classes), row),
        )


def members(rng: np.random.Generator, classes: RewardClass, shape: tuple[int, ...]) -> Any:
    """Draw a reward of every class, some of them on the boundary."""
    n = shape[0]
    match classes:
        case TabularBox(maximum):
            unit = np.where(rng.random(shape) < 0.3, rng.integers(2, size=shape), rng.random(shape))
            return unit * np.asarray(maximum)[:, None, None]
        case LinearBall(features, radius):
            theta = rng.normal(size=(n, features.shape[-1]))
            length = np.where(rng.random(n) < 0.3, 1.0, rng.random(n)) * radius
            theta *= (length / np.linalg.norm(theta, axis=-1))[:, None]
            return np.einsum("pxad,pd->pxa", features, theta)
        case FiniteClass(rewards):
            return rewards[np.arange(n), rng.integers(rewards.shape[1], size=n)]
    return rng.normal(size=shape) * hostile.scale(rng, n, 1e-6, 1e6)[:, None, None]


def ratio(query: dict[str, np.ndarray], shortfall: np.ndarray) -> np.ndarray:
    """Return the ratio of A 5.2 for one reward, 0 if its numerator is within rounding of 0."""
    difference = query["comparator"] - query["baseline"]
    terms = query["context_weights"][..., None] * difference * shortfall
    numerator = terms.sum(axis=(1, 2))
    numerator = np.where(numerator > 1e-9 * np.abs(terms).sum(axis=(1, 2)), numerator, 0.0)
    counts = query["pair_distribution"]
    frequency = counts / counts.sum(axis=(1, 2, 3), keepdims=True)
    margin = shortfall[:, :, :, None] - shortfall[:, :, None, :]
    denominator = np.sqrt((frequency * margin**2).sum(axis=(1, 2, 3)))
    positive = np.where(denominator > 0, denominator, np.inf)
    return np.where(numerator > 0, numerator / positive, 0.0)


def spot_checks(tally: Tally, wanted: int) -> dict[str, float]:
    """Recompute the sample with fifty digits, and count its faults."""
    summary = {"recomputed": 0, "conclusive": 0, "worst": 0.0}
    order = np.random.default_rng(0).permutation(len(tally.sample))
    for family, (problem, reward_class, solution) in (tally.sample[i] for i in order):
        if summary["recomputed"] == wanted:
            break
        status = Status(int(solution.status))
        if status in (Status.NOT_FINITE, Status.UNBOUNDED):
            continue
        summary["recomputed"] += 1
        claimed = status in (Status.SOLVED, Status.NOT_ATTAINED)
        size = max(1.0, float(problem.eta), abs(float(solution.objective)))
        promise = certificate.GAP_TOLERANCE * size
        try:
            fault, gap = spot_check(problem, reward_class, solution, claimed, promise)
        except Exception as error:
            fault, gap = f"exception {type(error).__name__}: {error} (spot check)", 0.0
        if fault:
            tally.note(family, fault, (problem, reward_class, solution))
        if claimed:
            summary["conclusive"] += 1
            summary["worst"] = max(summary["worst"], float(gap) / size)
    return summary


def spot_check(
    problem: Problem, reward_class: RewardClass, solution: Solution, claimed: bool, promise: float
) -> tuple[str, float]:
    """Return the fault of one certificate, if any, and the gap with fifty digits."""
    policy, reward, value = solution[:3]
    if isinstance(reward_class, Unbounded):
        residual = fifty_digits.stationarity(problem, policy, reward)
        wrong = bool(claimed and residual > promise)
        return "wrong certificate: identity S1 with fifty digits" * wrong, float(residual)
    if isinstance(reward_class, FiniteClass) and "mixture" in solution.stats:
        mixture = solution.stats["mixture"]
        gap = fifty_digits.mixture_gap(problem, reward_class, policy, mixture)
        wrong = bool(claimed and gap > promise)
        return "wrong certificate: the gap of the mixture with fifty digits" * wrong, float(gap)
    bounds = fifty_digits.gap_bounds(problem, reward_class, policy, reward)
    # A solved problem gets no allowance for rounding.
    allowance = 0.0 if claimed else bounds.roundoff
    exact_value = claimed or "duality_gap" in solution.stats  # else a bound on it
    if exact_value and abs(bounds.value - float(value)) > promise + allowance:
        return "wrong value: F with fifty digits", 0.0
    stated = float(solution.stats.get("duality_gap", np.inf))
    if bounds.lower > stated + bounds.roundoff:
        return "wrong certificate: it states less than the true gap", 0.0
    if isinstance(reward_class, FiniteClass):
        return "", 0.0  # enumeration is exact; the gap comes from the class
    wrong = bool(claimed and bounds.upper > promise)
    return "wrong certificate: the gap with fifty digits" * wrong, float(bounds.upper)


def report(tally: Tally, spot: dict[str, float], seconds: float) -> None:
    """Print the table and the counts."""
    n_problems = 0
    for key, counts in sorted(tally.statuses.items()):
        n = sum(counts.values())
        n_problems += n
        solved = counts["SOLVED"] + counts["NOT_ATTAINED"] + counts["FINITE"] + counts["INFINITE"]
        listed = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
        worst = tally.worst.get(key)
        gap = "" if worst is None else f"; worst gap {worst:.1e}"
        say(f"{' '.join(key):24} {n:>9,}  solved {solved / n:7.2%}{gap}; {listed}")
    exceptions = sum(n for fault, n in tally.faults.items() if fault.startswith("exception"))
    wrong = sum(n for fault, n in tally.faults.items() if fault.startswith("wrong"))
    others = sum(tally.faults.values()) - exceptions - wrong
    say(
        f"{n_problems:,} problems in {seconds:,.0f} s: {exceptions} exceptions, {wrong} wrong "
        f"certificates, {others} other faults"
    )
    say(
        f"fifty digits: {spot['recomputed']} recomputed, {spot['conclusive']} of them solved, "
        f"worst gap of these {spot['worst']:.1e} of max(1, eta, |F|); {tally.n_rechecked} with too "
        "large a gap in float64 rechecked"
    )
    for fault, count in tally.faults.most_common():
        where = {f"{f.family.solver} {f.family.kind}" for f in tally.findings if f.fault == fault}
        say(f"  {count:>6} {fault} ({', '.join(sorted(where))})")


def plain(value: Any) -> Any:
    """Return an array as nested lists, for JSON."""
    return np.asarray(value).tolist()


def say(message: str) -> None:
    """Print a line and flush it, because runs take minutes."""
    sys.stdout.write(message + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
