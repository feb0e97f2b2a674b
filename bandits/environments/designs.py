r"""Coverage designs: random bandits whose data cover the best policy to a chosen degree.

The responses of a prompt (its actions) have roles by their rank under :math:`r^\star`:

* the **best** response is the comparator;
* the **baseline** response, in the middle of those that are not rare, is :math:`\pi_{base}`;
* the **rare** responses are the worst ones;
* all others are **ordinary**.

The best and the rare responses are compared only with the baseline. In the graph of comparisons
each of them hangs on the baseline by one edge, so its coverage coefficient is exact and independent
of the others: with a share :math:`w` of the comparisons on that edge,

.. math:: C^2 = \frac1w\sum_x \frac{d_0(x)^2}{\mu_D(x)},

which is :math:`1/w` if the prompts of the data have the distribution :math:`d_0`. The remaining
comparisons go to the pairs among the baseline and the ordinary responses. True rewards keep away
from the bounds of their class, so the bounds do not make any coefficient smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem

from .base import Instance
from .design_checks import check_design
from .random import unit_vectors
from .sampling import (
    check_draw,
    count_wins,
    draw_pair_counts,
    draw_uniforms,
    find_pairs,
    pair_cells,
)

MARGIN = 0.1
"""Share of the reward range, at either end, that true rewards keep away from."""

DECADES = 4.0
"""Ratio of the widest to the narrowest "log_uniform" gap, in powers of ten."""


RARE_COMPARISONS = 1.0
"""Mean number of comparisons of a rare response by default: one lucky win misleads."""


@dataclass(frozen=True, kw_only=True)
class Design:
    r"""Description of random bandits: sizes, rewards, and the coverage of their data.

    Attributes:
        contexts: number of prompts; :math:`d_0` is uniform.
        actions: number of responses, of which at least 2 are not rare.
        reward: "tabular", or "linear" on features.
        gaps: distribution of a response's distance from the best one, for tabular rewards:
            "uniform", or "log_uniform" over :data:`DECADES` with the rare responses at the far end.
            Near ties at every scale make the loss of a method proportional to the error of its
            rewards, however small the error is.
        features: dimension :math:`d` of the random features, which have norm 1; for linear rewards.
        features_file: NumPy file with features of shape ``[x a d]`` to use instead of random ones.
        misspecification: size of a table that is added to the linear reward and lies outside of its
            class.
        reward_max: :math:`R_{max}`; linear rewards lie within half of it on either side of 0.
        target_coverage: target :math:`C \ge 1` of the best responses against the baseline. For
            linear rewards it is an upper bound, because pairs share what they say about features.
        rare: number of rare responses.
        coverage_all: target :math:`C` of the worst comparator, the one that plays rare responses.
        rare_comparisons: mean number of comparisons of a rare response at a prompt, whatever
            :math:`N` is, so that the worst :math:`C^2` grows like :math:`N`. If None,
            :data:`RARE_COMPARISONS`, or what ``coverage_all`` sets. With 0, rare responses are
            never compared: no data mislead a method, and :math:`C = \infty`.
        imbalance: ratio of the comparisons of the first pair of ordinary responses to those of the
            last, at least 1.
        missing_edges: probability that a pair among the baseline and the ordinary responses is
            never compared at a prompt.
        reference: :math:`\pi_{ref}`: "uniform", or "data" for the distribution of the responses in
            the data, as of a model that was fine-tuned on them; it makes rare responses rare.
        label_noise: probability that a label is flipped.
        prompts_shift: logarithm of the ratio between the first and the last prompt's share of the
            data; 0 for prompts distributed like :math:`d_0`.

    Raises:
        ValueError: if a field is out of range, or two exclusive fields are given.
    """

    contexts: int = 1
    actions: int = 10
    reward: str = "tabular"
    gaps: str = "uniform"
    features: int = 4
    features_file: str | None = None
    misspecification: float = 0.0
    reward_max: float = 1.0
    target_coverage: float = 2.0
    rare: int = 0
    coverage_all: float | None = None
    rare_comparisons: float | None = None
    imbalance: float = 1.0
    missing_edges: float = 0.0
    reference: str = "uniform"
    label_noise: float = 0.0
    prompts_shift: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a field that is out of range."""
        check_design(self)

    def data_prompts(self) -> Float[np.ndarray, " x"]:
        r"""Return the distribution of the prompts in the data, :math:`\mu_D(x)`.

        Returns:
            Probabilities.

        Examples:
            >>> shifted = Design(contexts=2, prompts_shift=float(np.log(3.0)))
            >>> shifted.data_prompts().round(12).tolist()
            [0.75, 0.25]
        """
        tilt = np.exp(-self.prompts_shift * np.linspace(0.0, 1.0, self.contexts))
        return tilt / tilt.sum()

    def prompt_factor(self) -> float:
        r"""Return the part of :math:`C^2` due to prompts, :math:`\sum_x d_0(x)^2/\mu_D(x) \ge 1`.

        Returns:
            The factor; 1 if the prompts of the data have the distribution :math:`d_0`.

        Examples:
            >>> round(Design(contexts=2, prompts_shift=float(np.log(3.0))).prompt_factor(), 12)
            1.333333333333
            >>> Design(contexts=4).prompt_factor()
            1.0
        """
        return float(np.sum(self.contexts**-2.0 / self.data_prompts()))

    def baseline_rank(self) -> int:
        """Return the rank of the baseline response, in the middle of those that are not rare.

        Returns:
            A rank; the best response has rank 0.

        Examples:
            >>> Design(actions=10).baseline_rank(), Design(actions=10, rare=3).baseline_rank()
            (5, 3)
        """
        return (self.actions - self.rare) // 2


def draw_design(design: Design, n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Instance:
    r"""Draw one bandit and its data for every seed.

    A bandit (rewards, features, missing edges) depends on its seed alone, its data on the seed and
    :math:`N`; neither depends on the rest of the batch.

    Args:
        design: what to draw.
        n_comparisons: number of comparisons :math:`N`, at least 1.
        seeds: whole numbers, at least 0.

    Returns:
        Instances with a leading batch axis on every array; :math:`\beta = \eta = 1/\sqrt N`.

    Raises:
        ValueError: if the design needs more comparisons than :math:`N`, or a number is out of
            range.

    Examples:
        >>> bandits = draw_design(Design(actions=4, rare=1, coverage_all=9.0), 100, np.arange(3))
        >>> bandits.problem.wins.sum(axis=(1, 2, 3)).tolist()
        [100.0, 100.0, 100.0]
    """
    check_draw(n_comparisons, seeds)
    n_batch, contexts, actions = len(seeds), design.contexts, design.actions
    n_pairs = contexts * actions**2 if design.missing_edges > 0 else 0
    for_truth = _n_uniforms(design)
    truth_uniforms, edge_uniforms = np.split(
        draw_uniforms(seeds, for_truth + n_pairs), [for_truth], axis=1
    )
    reward, reward_class = _truth(design, truth_uniforms)
    order = np.argsort(-reward, axis=2, kind="stable")  # action of each rank
    reward_by_rank = np.take_along_axis(reward, order, axis=2)

    edges = np.ones((1, contexts, actions, actions), bool)  # the same for all seeds
    if n_pairs:
        edges = edge_uniforms.reshape(n_batch, *edges.shape[1:]) >= design.missing_edges
    shares = _shares_by_rank(design, n_comparisons, edges)
    pairs_by_rank = shares * design.data_prompts()[:, None, None]
    pairs = find_pairs(pairs_by_rank)
    probability = pairs_by_rank[:, *pairs]
    counts = draw_pair_counts(
        reward_by_rank,
        pairs,
        probability,
        comparisons=n_comparisons,
        seeds=seeds,
        label_noise=design.label_noise,
    )
    cells = pair_cells(pairs, order)
    pair_distribution = np.zeros((n_batch, contexts, actions, actions))
    pair_distribution.reshape(-1)[cells[0]] = probability
    rank = np.argsort(order, axis=2, kind="stable")
    scale = np.full(n_batch, n_comparisons**-0.5)
    problem = Problem(
        context_weights=np.full((n_batch, contexts), 1.0 / contexts),
        reference_policy=_reference(design, pair_distribution),
        baseline_policy=(rank == design.baseline_rank()).astype(np.float64),
        wins=count_wins(counts, cells, reward.shape),
        beta=scale,
        eta=scale,
    )
    comparator = (rank == 0).astype(np.float64)
    return Instance(problem, reward_class, reward, comparator, pair_distribution)


def designed_coverage(design: Design, n_comparisons: int) -> tuple[float, float]:
    r"""Return the coverage :math:`C` of the best responses and of the worst comparator.

    They are exact for tabular rewards without missing edges. Otherwise measure them with
    :func:`rpo_theory.coverage.coverage_coefficient`.

    Args:
        design: the design.
        n_comparisons: number of comparisons :math:`N`.

    Returns:
        Both coefficients, at least 1; the second is ``inf`` if a response is never compared.

    Examples:
        >>> [round(c, 6) for c in designed_coverage(Design(rare=1, rare_comparisons=1.0), 100)]
        [2.0, 10.0]
    """
    all_edges = np.ones((1, 1, design.actions, design.actions), bool)
    shares = _shares_by_rank(design, n_comparisons, all_edges)[0, 0]
    weights = shares + shares.T
    np.fill_diagonal(weights, 0.0)
    compared = np.flatnonzero(weights.any(axis=0))
    laplacian = np.diag(weights.sum(axis=0)) - weights
    inverse = np.linalg.pinv(laplacian[np.ix_(compared, compared)], hermitian=True)
    # Effective resistance between each response and the baseline.
    resistance = np.full(design.actions, np.inf)
    baseline = np.flatnonzero(compared == design.baseline_rank())[0]
    resistance[compared] = np.diag(inverse) + inverse[baseline, baseline] - 2.0 * inverse[baseline]
    best, worst = design.prompt_factor() * resistance[[0, np.argmax(resistance)]]
    return float(np.sqrt(best)), float(np.sqrt(worst))


def _truth(
    design: Design, uniforms: Float[np.ndarray, "B k"]
) -> tuple[Float[np.ndarray, "B x a"], RewardClass]:
    """Turn uniform numbers into true rewards, and return the class in which to search for them."""
    n_batch, shape = len(uniforms), (design.contexts, design.actions)
    cells = design.contexts * design.actions
    table, gaps, uniforms = np.split(uniforms, [cells, 2 * cells], axis=1)
    table, gaps = table.reshape(n_batch, *shape), gaps.reshape(n_batch, *shape)
    reward_max = np.full(n_batch, design.reward_max)
    if design.reward == "tabular":
        level = table if design.gaps == "uniform" else _near_ties(design, table, gaps)
        share_of_range = MARGIN + (1.0 - 2.0 * MARGIN) * level
        return design.reward_max * share_of_range, TabularBox(reward_max)
    normal = ndtri(np.clip(uniforms, 1e-16, None))
    if design.features_file is None:
        features = normal[:, : cells * design.features].reshape(n_batch, *shape, -1)
        features = unit_vectors(features)
    else:
        features = _features_from_file(design.features_file, shape)
        features = np.repeat(features[None], n_batch, axis=0)
    d = features.shape[-1]
    theta = unit_vectors(normal[:, normal.shape[1] - d :])
    theta = theta * 0.5 * (1.0 - MARGIN) * design.reward_max
    reward = np.einsum("bxad,bd->bxa", features, theta)
    reward += design.misspecification * (2.0 * table - 1.0)
    return reward, LinearBall(features, 0.5 * reward_max)


@lru_cache(maxsize=8)
def _features_from_file(path: str, shape: tuple[int, int]) -> Float[np.ndarray, "x a d"]:
    """Read features and divide them by the largest norm, so that rewards stay in their range."""
    try:
        features = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"`features_file` must be a NumPy file, got {path}: {error}") from error
    if features.ndim != 3 or features.shape[:2] != shape or not np.isfinite(features).all():
        rule = f"must hold finite numbers of shape ({shape[0]}, {shape[1]}, d)"
        raise ValueError(f"`features_file` {rule}, got shape {features.shape} in {path}")
    longest = np.linalg.norm(features, axis=-1).max()
    if longest == 0:
        raise ValueError(f"`features_file` must not be all zero, got {path}")
    return np.asarray(features / longest, np.float64)


def _near_ties(
    design: Design, table: Float[np.ndarray, "B x a"], gaps: Float[np.ndarray, "B x a"]
) -> Float[np.ndarray, "B x a"]:
    """Return reward levels: 1 for the best response, 0 for rare ones, near 1 for the others."""
    rank = np.argsort(np.argsort(-table, axis=2), axis=2)
    level = 1.0 - 10.0 ** (-DECADES * gaps)
    level = np.where(rank == 0, 1.0, level)
    return np.where(rank >= design.actions - design.rare, 0.0, level)


def _reference(
    design: Design, pair_distribution: Float[np.ndarray, "B x a a"]
) -> Float[np.ndarray, "B x a"]:
    if design.reference == "uniform":
        return np.full(pair_distribution.shape[:3], 1.0 / design.actions)
    frequency = pair_distribution.sum(axis=2) + pair_distribution.sum(axis=3)
    return frequency / frequency.sum(axis=2, keepdims=True)


def _n_uniforms(design: Design) -> int:
    """Return how many uniform numbers the true reward of one bandit needs."""
    cells = design.contexts * design.actions
    if design.reward == "tabular":
        normals = 0
    elif design.features_file is None:
        normals = design.features * (cells + 1)
    else:
        shape = (design.contexts, design.actions)
        normals = _features_from_file(design.features_file, shape).shape[-1]
    return 2 * cells + normals


def _shares_by_rank(
    design: Design, n_comparisons: int, edges: Bool[np.ndarray, "B x a a"]
) -> Float[np.ndarray, "B x a a"]:
    """Return the share of a prompt's comparisons of each pair of ranks, in one order per pair."""
    baseline, n_core = design.baseline_rank(), design.actions - design.rare
    best, rare = _pendant_shares(design, n_comparisons)
    remaining = 1.0 - best - design.rare * rare

    first, second = np.triu_indices(n_core - 1, 1)
    weights = np.geomspace(design.imbalance, 1.0, max(len(first), 1))[: len(first)]
    weights = weights * edges[:, :, first + 1, second + 1]
    weight_sum = weights.sum(axis=2, keepdims=True)
    shares = np.zeros((*edges.shape[:2], design.actions, design.actions))
    divisor = np.where(weight_sum > 0, weight_sum, 1.0)
    shares[:, :, first + 1, second + 1] = remaining * weights / divisor
    # If no pair is left, the remaining comparisons are of the baseline with itself.
    shares[:, :, baseline, baseline] = np.where(weight_sum[..., 0] > 0, 0.0, remaining)
    shares[:, :, 0, baseline] = best
    shares[:, :, n_core:, baseline] = rare
    return shares


def _pendant_shares(design: Design, n_comparisons: int) -> tuple[float, float]:
    """Return the share of comparisons that hold the best response, and that of each rare one."""
    factor = design.prompt_factor()
    best = factor / design.target_coverage**2
    if design.coverage_all is not None:
        rare = factor / design.coverage_all**2
    else:
        given = design.rare_comparisons
        rare = (RARE_COMPARISONS if given is None else given) * design.contexts / n_comparisons
    if best + design.rare * rare > 1.0:
        raise ValueError(
            f"`target_coverage` must leave data for the rest, got {design.target_coverage:g}: the "
            f"best response takes a share {best:.3g} of the {n_comparisons} comparisons and each "
            f"of the {design.rare} rare responses {rare:.3g}, together more than 1: raise "
            "`target_coverage` or `coverage_all`, or lower `rare_comparisons`"
        )
    return best, rare
