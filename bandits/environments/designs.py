r"""Coverage designs: random bandits whose data cover the best policy and leave others in the dark.

Responses have roles by their rank under :math:`r^\star`, prompt by prompt. The **best** one is the
comparator; the **baseline** response, in the middle of the others, is :math:`\pi_{base}`; the
**rare** ones are the worst; the rest are **ordinary**. The best and the rare ones are compared with
the baseline alone, so in the comparison graph they hang on it by one edge, and their coefficients
are exact and free of each other: with a share :math:`w` of the comparisons on that edge,

.. math:: C^2 = \frac1w\sum_x \frac{d_0(x)^2}{\mu_D(x)},

which is :math:`1/w` if the data have the prompts of :math:`d_0`. What is left is spent on the
baseline and the ordinary responses, each with each. True rewards stay off the bounds of their
class, so that the box makes no coefficient smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri

from rpo_theory.rewards import LinearBall, RewardClass, TabularBox
from rpo_theory.types import Problem

from .random import Instance
from .sampling import check_draw, draw_uniforms, draw_win_counts

INSIDE = 0.1
"""Share of the range of rewards, at either end, that true rewards keep away from."""

DECADES = 4.0
"""Ratio of the widest to the narrowest gap under the "log_uniform" law, in powers of ten."""


@dataclass(frozen=True, kw_only=True)
class Design:
    r"""Which bandits are drawn, and what their data cover.

    Attributes:
        contexts: number of prompts; :math:`d_0` is uniform.
        actions: number of responses, at least 2 that are not rare.
        reward: "tabular" or "linear", on features that are drawn.
        gaps: law of a response's distance from the best one, for tabular rewards: "uniform", or
            "log_uniform" over :data:`DECADES`, near ties at every scale, with the rare responses
            at the far end: then what a method loses by an error in its rewards is in proportion
            to that error, however small it is.
        features: dimension :math:`d` of the features, of norm 1; for linear rewards.
        features_file: features to use instead, a NumPy file of shape ``[x a d]``.
        misspecification: size of a table added to the linear reward, outside of its class.
        reward_max: :math:`R_{max}`; linear rewards lie within half of it on either side of 0.
        target_coverage: target :math:`C \ge 1` of the best responses against the baseline. For linear
            rewards it is an upper bound: features carry what is learnt from pair to pair.
        rare: number of rare responses.
        coverage_all: target :math:`C` of the worst comparator, that plays the rare responses.
        rare_comparisons: instead of ``coverage_all``, how often a rare response is compared at a
            prompt, on average, whatever :math:`N`: the worst :math:`C^2` then grows like
            :math:`N`. 0 is never, :math:`C = \infty`.
        imbalance: how many times as often as the last pair of ordinary responses the first is
            compared, at least 1.
        missing_edges: probability that two ordinary responses, or one and the baseline, are never
            compared at a prompt.
        reference: :math:`\pi_{ref}`: "uniform", or "data", the law of a response of the data, as of
            a model that was fine-tuned on them: what is rare in the data is rare under it.
        label_noise: probability that a label is flipped.
        prompts_shift: log of how many times as often as the last prompt the first one is in the
            data; 0 for prompts from :math:`d_0`.
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
        """Refuse what no bandit can have."""
        _check(self)

    def data_prompts(self) -> Float[np.ndarray, " x"]:
        r"""Law of the prompts in the data, :math:`\mu_D(x)`.

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
        r"""What the prompts alone cost, :math:`\sum_x d_0(x)^2/\mu_D(x) \ge 1`.

        Returns:
            A factor of the square of the coverage.

        Examples:
            >>> round(Design(contexts=2, prompts_shift=float(np.log(3.0))).prompt_factor(), 12)
            1.333333333333
            >>> Design(contexts=4).prompt_factor()
            1.0
        """
        return float(np.sum(self.contexts**-2.0 / self.data_prompts()))

    def baseline_rank(self) -> int:
        """Rank of the baseline response: in the middle of those that are not rare.

        Returns:
            A rank, from 0 for the best response.

        Examples:
            >>> Design(actions=10).baseline_rank(), Design(actions=10, rare=3).baseline_rank()
            (5, 3)
        """
        return (self.actions - self.rare) // 2


def draw_design(design: Design, n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Instance:
    r"""Draw one bandit and its data for every seed.

    The bandit depends on the seed alone, the data on seed and :math:`N`; neither on the rest of
    the batch. Rewards, features and missing edges are drawn anew for every seed.

    Args:
        design: what is drawn.
        n_comparisons: :math:`N`, at least 1.
        seeds: whole numbers from 0 on.

    Returns:
        Instances with a leading batch axis on every array; :math:`\beta = \eta = 1/\sqrt N`.

    Raises:
        ValueError: the design asks for more data than there are, or a number is out of range.

    Examples:
        >>> bandits = draw_design(Design(actions=4, rare=1, coverage_all=9.0), 100, np.arange(3))
        >>> bandits.problem.wins.sum(axis=(1, 2, 3)).tolist()
        [100.0, 100.0, 100.0]
    """
    check_draw(n_comparisons, seeds)
    n_batch, contexts, actions = len(seeds), design.contexts, design.actions
    pairs = contexts * actions**2 if design.missing_edges > 0 else 0
    numbers, present = np.split(
        draw_uniforms(seeds, _n_uniforms(design) + pairs), [_n_uniforms(design)], axis=1
    )
    reward, reward_class = _truth(design, numbers)
    order = np.argsort(-reward, axis=2, kind="stable")  # action of each rank
    by_rank = np.take_along_axis(reward, order, axis=2)

    edges = np.ones((1, contexts, actions, actions), bool)  # all seeds alike
    if pairs:
        edges = present.reshape(n_batch, *edges.shape[1:]) >= design.missing_edges
    law = _law_by_rank(design, n_comparisons, edges)
    law = np.broadcast_to(law, (n_batch, *law.shape[1:]))
    wins = draw_win_counts(
        by_rank, law, comparisons=n_comparisons, seeds=seeds, label_noise=design.label_noise
    )
    rank = np.argsort(order, axis=2, kind="stable")
    scale = np.full(n_batch, n_comparisons**-0.5)
    problem = Problem(
        context_weights=np.full((n_batch, contexts), 1.0 / contexts),
        reference_policy=_reference(design, _by_action(law, rank)),
        baseline_policy=(rank == design.baseline_rank()).astype(np.float64),
        wins=_by_action(wins, rank),
        beta=scale,
        eta=scale,
    )
    comparator = (rank == 0).astype(np.float64)
    return Instance(problem, reward_class, reward, comparator, _by_action(law, rank))


def designed_coverage(design: Design, n_comparisons: int) -> tuple[float, float]:
    r"""Coverage :math:`C` of the best responses and of the worst comparator, as designed.

    For tabular rewards and no missing edges they are exact; otherwise measure them with
    :func:`rpo_theory.coverage.coverage_coefficient`.

    Args:
        design: the design.
        n_comparisons: :math:`N`.

    Returns:
        Both coefficients, at least 1; the second is ``inf`` if a response is never compared.

    Examples:
        >>> [round(c, 6) for c in designed_coverage(Design(rare=1, rare_comparisons=1.0), 100)]
        [2.0, 10.0]
    """
    everywhere = np.ones((1, 1, design.actions, design.actions), bool)
    one_prompt = _shares_by_rank(design, n_comparisons, everywhere)[0, 0]
    weights = one_prompt + one_prompt.T
    np.fill_diagonal(weights, 0.0)
    baseline = design.baseline_rank()
    seen = np.flatnonzero(weights.any(axis=0))
    laplacian = np.diag(weights.sum(axis=0)) - weights
    inverse = np.linalg.pinv(laplacian[np.ix_(seen, seen)], hermitian=True)
    resistance = np.full(design.actions, np.inf)
    here = np.flatnonzero(seen == baseline)[0]
    resistance[seen] = np.diag(inverse) + inverse[here, here] - 2.0 * inverse[here]
    best, worst = design.prompt_factor() * resistance[[0, np.argmax(resistance)]]
    return float(np.sqrt(best)), float(np.sqrt(worst))


def _truth(
    design: Design, numbers: Float[np.ndarray, "B k"]
) -> tuple[Float[np.ndarray, "B x a"], RewardClass]:
    """True rewards from uniform numbers, and the class that they are sought in."""
    n_batch, shape = len(numbers), (design.contexts, design.actions)
    cells = design.contexts * design.actions
    table, more, numbers = np.split(numbers, [cells, 2 * cells], axis=1)
    table, more = table.reshape(n_batch, *shape), more.reshape(n_batch, *shape)
    full = np.full(n_batch, design.reward_max)
    if design.reward == "tabular":
        level = table if design.gaps == "uniform" else _near_ties(design, table, more)
        spread = INSIDE + (1.0 - 2.0 * INSIDE) * level
        return design.reward_max * spread, TabularBox(full)
    normal = ndtri(np.clip(numbers, 1e-16, None))
    if design.features_file is None:
        features = _unit(normal[:, : cells * design.features].reshape(n_batch, *shape, -1))
    else:
        features = _given_features(design.features_file, shape)
        features = np.repeat(features[None], n_batch, axis=0)
    d = features.shape[-1]
    theta = _unit(normal[:, normal.shape[1] - d :]) * 0.5 * (1.0 - INSIDE) * design.reward_max
    reward = np.einsum("bxad,bd->bxa", features, theta)
    reward += design.misspecification * (2.0 * table - 1.0)
    return reward, LinearBall(features, 0.5 * full)


@lru_cache(maxsize=8)
def _given_features(path: str, shape: tuple[int, int]) -> Float[np.ndarray, "x a d"]:
    """Features from a file, divided by the longest, so that rewards keep to their range."""
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
    design: Design, table: Float[np.ndarray, "B x a"], more: Float[np.ndarray, "B x a"]
) -> Float[np.ndarray, "B x a"]:
    """Levels in [0, 1]: one response at the top, the rare ones at the bottom, others near it."""
    place = np.argsort(np.argsort(-table, axis=2), axis=2)
    level = 1.0 - 10.0 ** (-DECADES * more)
    level = np.where(place == 0, 1.0, level)
    return np.where(place >= design.actions - design.rare, 0.0, level)


def _reference(
    design: Design, pair_distribution: Float[np.ndarray, "B x a a"]
) -> Float[np.ndarray, "B x a"]:
    if design.reference == "uniform":
        return np.full(pair_distribution.shape[:3], 1.0 / design.actions)
    seen = pair_distribution.sum(axis=2) + pair_distribution.sum(axis=3)
    return seen / seen.sum(axis=2, keepdims=True)


def _n_uniforms(design: Design) -> int:
    cells = design.contexts * design.actions
    if design.reward == "tabular":
        normals = 0
    elif design.features_file is None:
        normals = design.features * (cells + 1)
    else:
        shape = (design.contexts, design.actions)
        normals = _given_features(design.features_file, shape).shape[-1]
    return 2 * cells + normals


def _law_by_rank(
    design: Design, n_comparisons: int, edges: np.ndarray
) -> Float[np.ndarray, "B x a a"]:
    shares = _shares_by_rank(design, n_comparisons, edges)
    return shares * design.data_prompts()[:, None, None]


def _shares_by_rank(
    design: Design, n_comparisons: int, edges: np.ndarray
) -> Float[np.ndarray, "B x a a"]:
    """Shares of a prompt's comparisons, as ``[rank, rank]``, each pair in one order."""
    baseline, core = design.baseline_rank(), design.actions - design.rare
    best, rare = _pendant_shares(design, n_comparisons)
    left = 1.0 - best - design.rare * rare

    first, second = np.triu_indices(core - 1, 1)
    among = np.geomspace(design.imbalance, 1.0, max(len(first), 1))[: len(first)]
    among = among * edges[:, :, first + 1, second + 1]
    total = among.sum(axis=2, keepdims=True)
    shares = np.zeros((*edges.shape[:2], design.actions, design.actions))
    shares[:, :, first + 1, second + 1] = left * among / np.where(total > 0, total, 1.0)
    # Where nobody is left to compare the baseline with, it is compared with itself.
    shares[:, :, baseline, baseline] = np.where(total[..., 0] > 0, 0.0, left)
    shares[:, :, 0, baseline] = best
    shares[:, :, core:, baseline] = rare
    return shares


def _pendant_shares(design: Design, n_comparisons: int) -> tuple[float, float]:
    """Shares of the comparisons that the best response and each rare one have."""
    factor = design.prompt_factor()
    best = factor / design.target_coverage**2
    if design.coverage_all is not None:
        rare = factor / design.coverage_all**2
    else:
        rare = (design.rare_comparisons or 0.0) * design.contexts / n_comparisons
    if best + design.rare * rare > 1.0:
        raise ValueError(
            f"`target_coverage` must leave data for the rest, got {design.target_coverage:g}: it takes a share "
            f"{best:.3g} of the {n_comparisons} comparisons, and {design.rare} rare responses "
            f"take {rare:.3g} each, more than there are: raise `target_coverage` or `coverage_all`"
        )
    return best, rare


def _by_action(
    table: Float[np.ndarray, "B x a a"], rank: Int[np.ndarray, "B x a"]
) -> Float[np.ndarray, "B x a a"]:
    """Permute a table of pairs from ranks to actions."""
    n_batch, contexts, actions = rank.shape
    pair = rank[..., :, None] * actions + rank[..., None, :]
    flat = table.reshape(n_batch * contexts, -1), pair.reshape(n_batch * contexts, -1)
    return np.take_along_axis(*flat, axis=1).reshape(pair.shape)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _check(design: Design) -> None:
    """Every rule of a design that does not need the number of comparisons."""
    least = {
        "contexts": 1,
        "actions": 2,
        "features": 1,
        "rare": 0,
        "target_coverage": 1,
        "imbalance": 1,
    }
    least |= {"coverage_all": 1, "rare_comparisons": 0, "misspecification": 0, "prompts_shift": 0}
    for name, bound in least.items():
        value = getattr(design, name)
        if value is not None and not bound <= value < math.inf:
            raise ValueError(f"`{name}` must be at least {bound} and finite, got {value}")
    for name, bound in {"missing_edges": 1.0, "label_noise": 0.5}.items():
        value = getattr(design, name)
        if not 0.0 <= value <= bound:
            raise ValueError(f"`{name}` must be a probability in [0, {bound:g}], got {value}")
    if not 0.0 < design.reward_max < math.inf:
        raise ValueError(f"`reward_max` must be greater than 0, got {design.reward_max}")
    if design.reward not in ("tabular", "linear"):
        raise ValueError(f"`reward` must be 'tabular' or 'linear', got {design.reward!r}")
    if design.reference not in ("uniform", "data"):
        raise ValueError(f"`reference` must be 'uniform' or 'data', got {design.reference!r}")
    if design.gaps not in ("uniform", "log_uniform"):
        raise ValueError(f"`gaps` must be 'uniform' or 'log_uniform', got {design.gaps!r}")
    if design.actions - design.rare < 2:
        rule = "must leave two responses that are not rare, the best and the baseline"
        raise ValueError(f"`rare` {rule}, got {design.rare} of {design.actions}")
    if design.coverage_all is not None and design.rare_comparisons is not None:
        raise ValueError("`coverage_all` and `rare_comparisons` exclude each other: give one")
