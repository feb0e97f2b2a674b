"""Random problems at extreme scales, in batches of one shape.

Context weights and reference probabilities go down to 1e-300 and to zero, counts from fractions to
1e15, eta and beta from 1e-8 to 1e8, boxes and balls from 1e-6 to 1e6. Comparisons may be
disconnected, one-sided, of a response with itself, or absent; responses may be duplicates, and
features may lack full rank. All problems are valid; :func:`poison` makes invalid ones, with one
number that is not finite.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from rpo_theory.problems import normalize
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.types import Problem

KINDS = ("box", "ball", "finite", "unbounded")
EXTREMES = (1e-8, 1e-4, 1.0, 1e4, 1e8)
MIN_LOG = -690.0
"""Natural logarithm of 1e-300, rounded."""


def problems(rng: np.random.Generator, n: int, n_contexts: int, n_actions: int) -> Problem:
    """Draw problems with a leading batch axis.

    Args:
        rng: random number generator.
        n: number of problems.
        n_contexts: number of contexts of each problem.
        n_actions: number of actions of each problem.

    Returns:
        Valid problems in float64.
    """
    shape = (n, n_contexts, n_actions)
    wins = _wins(rng, shape)
    reference = distributions(rng, shape)
    wins, reference = _with_duplicates(rng, wins, reference)
    return normalize(
        Problem(
            context_weights=distributions(rng, shape[:2]),
            reference_policy=reference,
            baseline_policy=_baseline(rng, wins, reference),
            wins=wins,
            beta=scale(rng, n, 1e-8, 1e8),
            eta=np.where(rng.random(n) < 0.05, 0.0, scale(rng, n, 1e-8, 1e8)),
        )
    )


def reward_classes(
    rng: np.random.Generator, kind: str, n: int, n_contexts: int, n_actions: int
) -> RewardClass:
    """Draw reward classes of one kind, with a leading batch axis."""
    size = scale(rng, n, 1e-6, 1e6)
    shape = (n, n_contexts, n_actions)
    match kind:
        case "box":
            return TabularBox(size)
        case "ball":
            return LinearBall(_features(rng, (*shape, n_actions)), size)
        case "finite":
            rewards = size[:, None, None, None] * rng.random((n, 4, n_contexts, n_actions))
            twins = rng.random(n) < 0.1
            rewards[twins, 1] = rewards[twins, 0]
            return FiniteClass(rewards)
    return Unbounded()


def poison(rng: np.random.Generator, problems: Problem) -> Problem:
    """Put one NaN or infinite number into each problem.

    Args:
        rng: random number generator.
        problems: problems with a leading batch axis.

    Returns:
        Invalid problems, which no solver may report as solved.
    """
    arrays: list[Any] = [np.array(field) for field in problems[:6]]
    for row, field in enumerate(rng.integers(len(arrays), size=len(problems.wins))):
        entry = arrays[field][row : row + 1].reshape(-1)
        entry[rng.integers(entry.size)] = rng.choice([np.nan, np.inf])
        arrays[field][row] = entry.reshape(arrays[field][row].shape)
    return Problem(*arrays)


def scale(rng: np.random.Generator, n: int, low: float, high: float) -> np.ndarray:
    """Draw positive numbers, log-uniform, a tenth of them at round values and at the ends."""
    drawn = np.exp(rng.uniform(np.log(low), np.log(high), n))
    ends = np.clip(rng.choice(EXTREMES, n), low, high)
    return np.where(rng.random(n) < 0.1, ends, drawn)


def distributions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw distributions over the last axis: uniform, ordinary, or down to 1e-300 and to zero."""
    rows = shape[:-1]
    pick = rng.integers(4, size=rows)[..., None]
    logs = np.select(
        [pick == 0, pick == 1, pick == 2],
        [np.zeros(shape), rng.normal(size=shape), rng.uniform(-40.0, 0.0, shape)],
        rng.uniform(MIN_LOG, 0.0, shape),
    )
    zero = (rng.random(shape) < 0.3) & (rng.random(rows) < 0.3)[..., None]
    zero &= np.arange(shape[-1]) != rng.integers(shape[-1], size=rows)[..., None]
    weight = np.where(zero, 0.0, np.exp(logs - np.where(zero, -np.inf, logs).max(-1)[..., None]))
    return weight / weight.sum(axis=-1, keepdims=True)


def _wins(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Draw counts of wins, of which many are zero."""
    n, square = shape[0], (*shape, shape[-1])
    each = (n, 1, 1, 1)
    pick = rng.integers(5, size=each)
    counts = np.select(
        [pick == 0, pick == 1, pick == 2, pick == 3],
        [
            rng.integers(0, 5, square).astype(float),
            rng.uniform(0.0, 100.0, square),
            np.floor(10.0 ** rng.uniform(0.0, 15.0, square)),
            10.0 ** rng.uniform(-15.0, 15.0, square),
        ],
        10.0 ** rng.uniform(0.0, 15.0, each) * rng.random(square),
    )
    present = rng.random(square) < rng.choice([0.2, 0.6, 1.0], each)
    one_sided = (rng.random(each) < 0.2) & (rng.random(square) < 0.5)
    present &= ~(one_sided & np.swapaxes(present, -1, -2))
    present &= (rng.random((*shape[:2], 1, 1)) < 0.8) & (rng.random(each) < 0.95)
    with_itself = np.eye(shape[-1], dtype=bool)
    present &= ~with_itself | (rng.random(each) < 0.1)
    return np.where(present, counts, 0.0)


def _baseline(rng: np.random.Generator, wins: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Draw baselines: chosen, reference, one action, or any distribution, mostly supported."""
    shape = reference.shape
    won = wins.sum(axis=-1) * (reference > 0)
    n_won = won.sum(axis=-1, keepdims=True)
    chosen = np.where(n_won > 0, won / np.where(n_won > 0, n_won, 1.0), reference)
    single = np.eye(shape[-1])[np.argmax(reference * rng.random(shape), axis=-1)]
    anything = distributions(rng, shape)
    inside = anything * (reference > 0) + reference * (rng.random((shape[0], 1, 1)) < 0.5)
    inside = np.where(inside.sum(axis=-1, keepdims=True) > 0, inside, reference)
    pick = rng.integers(9, size=(shape[0], 1, 1))
    masks = [pick < 3, pick < 4, pick < 6, pick < 8]
    return np.select(masks, [chosen, reference, single, inside], anything)


def _with_duplicates(
    rng: np.random.Generator, wins: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Make the first two actions of a tenth of the problems duplicates."""
    if reference.shape[-1] < 2:
        return wins, reference
    twins = (rng.random(len(reference)) < 0.1) & (reference[:, :, 0] > 0).all(axis=-1)
    wins, reference = wins.copy(), reference.copy()
    wins[twins, :, 1] = wins[twins, :, 0]
    wins[twins, :, :, 1] = wins[twins, :, :, 0]
    reference[twins, :, 1] = reference[twins, :, 0]
    return wins, reference


def _features(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw features at any scale; some of rank one, some zero, some equal for two actions."""
    each = (shape[0], 1, 1, 1)
    features = rng.normal(size=shape) * 10.0 ** rng.choice([0, 0, 0, -3, 3], each)
    stretch = rng.uniform(-4.0, 0.0, (shape[0], 1, 1, shape[-1])) * rng.integers(2, size=each)
    features *= 10.0**stretch
    pick = rng.integers(10, size=each)
    rank_one = features[..., :1] * features[:, :1, :1, :]
    features = np.where(pick == 0, rank_one, features)
    twins = np.broadcast_to(features[:, :, :1], shape)
    return np.select([pick == 1, pick == 2], [np.zeros(shape), twins], features)


def select_rows(tree, index):
    """Select rows of every array of a tree."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)
