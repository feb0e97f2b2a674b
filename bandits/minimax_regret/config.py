r"""Configuration of a study of minimax regret: worlds, data and the methods that are compared."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np
from jaxtyping import Float

from bandits.environments.base import Baseline, BaselineName
from bandits.methods.registry import find_method
from rpo_theory.bounds import (
    complexity,
    covering_scale,
    printed_modulus,
    theorem_beta,
    tight_modulus,
    tuned_eta,
)
from rpo_theory.rewards import TabularBox

from .rules import method_options
from .worlds import (
    MAX_OUTCOMES,
    MAX_PROBABILITIES,
    Worlds,
    count_outcomes,
    rewards_from_margins,
)

EtaRule = Literal["theorem", "tight", "inverse_sqrt"]
r"""Rules for :math:`\eta`. ``theorem`` is the formula of Theorem 5.3, ``tight`` the same with the
sharpest constant, and ``inverse_sqrt`` is :math:`1/\sqrt N`."""
BetaRule = Literal["theorem"]
r"""Rule for :math:`\beta`: ``theorem`` is :math:`1/\sqrt N`, as in Theorem 5.3."""
SUM_TOLERANCE = 1e-6
"""Largest distance from one of a sum of probabilities; the sum is divided out."""
MAX_REWARD = 1e6
"""Largest size of a reward or margin."""


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    r"""A method with its weights, as a decision rule; a method's name stands for its defaults.

    Attributes:
        method: name in :data:`bandits.methods.METHODS`, or ``module:name`` of the user's own.
        label: name in records and figures; printable text without ``$``. The default is the name of
            the method.
        eta: weight :math:`\eta` of the adversarial term, a number or a rule.
        beta: weight :math:`\beta` of the KL term, a number or a rule.
        baseline: baseline policy :math:`\pi_{base}`: "chosen", "data_marginal", "reference", or the
            index of the action that it always takes.
        options: options of the method by name, without ``baseline``.

    Raises:
        ValueError: if a value is out of range.
    """

    SHORTHAND: ClassVar[str] = "method"

    method: str
    label: str | None = None
    eta: float | EtaRule = "theorem"
    beta: float | BetaRule = "theorem"
    baseline: Baseline = "chosen"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for a value that is out of range."""
        record = find_method(self.method)
        # Terminals obey control characters, and Matplotlib reads text between $ as mathematics.
        label = self.label
        if label is not None and not (label.strip() and label.isprintable() and "$" not in label):
            raise ValueError(f"`label` must be printable text without $, got {label!r}")
        _check_weight("eta", self.eta, 0.0, get_args(EtaRule))
        _check_weight("beta", self.beta, sys.float_info.min, get_args(BetaRule))
        names = get_args(BaselineName)
        baseline = self.baseline
        is_valid = baseline in names if isinstance(baseline, str) else baseline >= 0
        if not is_valid or isinstance(baseline, bool):
            rule = f"must be one of {', '.join(names)}, or the index of an action"
            raise ValueError(f"`baseline` {rule}, got {self.baseline!r}")
        method_options(record, self.options)

    @property
    def display_label(self) -> str:
        """Label, or the name of the method if there is none."""
        return self.label or self.method


@dataclass(frozen=True, kw_only=True)
class MinimaxRegretConfig:
    r"""A study of how far the worst-case regret of methods is from the smallest possible.

    There is one prompt. The worlds are the rows of ``rewards``, or those in which one action is
    better than all others by one of the ``margins``.

    Attributes:
        kind: "minimax_regret".
        name: name of the study and of its default output folder; letters, digits, ``_``, ``-``.
        methods: methods to compare, with different labels.
        comparisons: values of :math:`N`, the number of comparisons.
        margins: differences of reward, greater than 0; None if ``rewards`` is given.
        rewards: true reward of each action in each world; None if ``margins`` is given.
        actions: number of actions, at least 2.
        pair_distribution: probability that a comparison is of each ordered pair of actions; the
            diagonal holds the comparisons of an action with itself. They carry no information, but
            the baseline "chosen" counts them as wins. None for equal probabilities of all pairs of
            different actions.
        reference: reference policy :math:`\pi_{ref}`; None for equal probabilities.
        reward_max: :math:`R_{max}` of the reward class of the methods, the box of all rewards in
            :math:`[0, R_{max}]`.
        delta: :math:`\delta` in the formula of Theorem 5.3 for :math:`\eta`.

    Raises:
        ValueError: if a value is out of range, or there are too many outcomes to enumerate.
    """

    kind: Literal["minimax_regret"] = "minimax_regret"
    name: str
    methods: list[RuleConfig]
    comparisons: list[int]
    margins: list[float] | None = None
    rewards: list[list[float]] | None = None
    actions: int = 2
    pair_distribution: list[list[float]] | None = None
    reference: list[float] | None = None
    reward_max: float
    delta: float = 0.05

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for a study that cannot be run."""
        _check_plain_values(self)
        _check_worlds(self)
        for name, values, size in (
            ("pair_distribution", self.pair_distribution, (self.actions, self.actions)),
            ("reference", self.reference, (self.actions,)),
        ):
            if values is not None:
                _check_distribution(name, values, size)
        for method in self.methods:
            if not isinstance(method.baseline, str) and method.baseline >= self.actions:
                rule = f"must be an action from 0 to {self.actions - 1}"
                raise ValueError(
                    f"`baseline` of {method.display_label!r} {rule}, got {method.baseline}"
                )
        _check_size(self)


def worlds_of(config: MinimaxRegretConfig, comparisons: int) -> Worlds:
    """Return the worlds of a study for one number of comparisons.

    Args:
        config: configuration of the study.
        comparisons: number of comparisons.

    Returns:
        The worlds; the distribution of the pairs sums to one up to rounding.

    Examples:
        >>> config = MinimaxRegretConfig(
        ...     name="a", methods=[RuleConfig(method="dpo")], comparisons=[9], margins=[1.0],
        ...     reward_max=2.0)
        >>> worlds_of(config, 9).rewards.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if config.rewards is not None:
        rewards = np.asarray(config.rewards, np.float64)
    else:
        rewards = rewards_from_margins(np.asarray(config.margins, np.float64), config.actions)
    pairs = config.pair_distribution
    if pairs is None:
        table = np.triu(np.ones((config.actions, config.actions)), 1)
    else:
        table = np.asarray(pairs, np.float64)
    return Worlds(rewards, table / table.sum(), comparisons)


def reference_policy_of(config: MinimaxRegretConfig) -> Float[np.ndarray, " a"]:
    """Return the reference policy of a study.

    Args:
        config: configuration of the study.

    Returns:
        Probabilities, which sum to one up to rounding.

    Examples:
        >>> config = MinimaxRegretConfig(
        ...     name="a", methods=[RuleConfig(method="dpo")], comparisons=[9], margins=[1.0],
        ...     reward_max=2.0)
        >>> reference_policy_of(config).tolist()
        [0.5, 0.5]
    """
    reference = [1.0] * config.actions if config.reference is None else config.reference
    policy = np.asarray(reference, np.float64)
    return policy / policy.sum()


def weights_of(
    config: MinimaxRegretConfig, method: RuleConfig, comparisons: int
) -> tuple[float, float]:
    r"""Return the numbers that the weights of a method stand for.

    Args:
        config: configuration of the study.
        method: one of its methods.
        comparisons: number :math:`N` of comparisons.

    Returns:
        :math:`\eta` and :math:`\beta`.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> method = RuleConfig(method="rpo", eta="inverse_sqrt")
        >>> config = MinimaxRegretConfig(
        ...     name="a", methods=[method], comparisons=[64], margins=[1.0], reward_max=2.0)
        >>> weights_of(config, method, 64)
        (0.125, 0.125)
    """
    with jax.enable_x64(True):
        root = float(theorem_beta(comparisons))
        eta = root if method.eta == "inverse_sqrt" else method.eta
        if isinstance(eta, str):
            modulus = printed_modulus if eta == "theorem" else tight_modulus
            scale = float(covering_scale(comparisons, config.reward_max))
            box = TabularBox(np.float64(config.reward_max))
            iota = complexity(box.log_covering_number(scale, config.actions), config.delta)
            eta = tuned_eta(modulus(config.reward_max), n_pairs=comparisons, complexity=iota)
    return float(eta), root if isinstance(method.beta, str) else float(method.beta)


def _check_plain_values(config: MinimaxRegretConfig) -> None:
    if not config.name.replace("_", "").replace("-", "").isalnum():
        rule = "must consist of letters, digits, `_` and `-`"
        raise ValueError(f"`name` {rule}, got {config.name!r}")
    _check_list("methods", [method.display_label for method in config.methods], "label")
    _check_list("comparisons", config.comparisons)
    for value in config.comparisons:
        if not (_is_whole(value) and value >= 1):
            raise ValueError(f"`comparisons` must be whole numbers of at least 1, got {value!r}")
    if not (_is_whole(config.actions) and config.actions >= 2):
        raise ValueError(f"`actions` must be a whole number of at least 2, got {config.actions!r}")
    if not 0.0 < config.reward_max < math.inf:
        rule = "must be a finite number greater than 0"
        raise ValueError(f"`reward_max` {rule}, got {config.reward_max}")
    if not 0.0 < config.delta < math.exp(-1.0):
        raise ValueError(f"`delta` must be greater than 0 and less than 1/e, got {config.delta}")


def _check_worlds(config: MinimaxRegretConfig) -> None:
    if (config.margins is None) == (config.rewards is None):
        got = "neither" if config.margins is None else "both"
        raise ValueError(f"`margins` or `rewards` must define the worlds, got {got}: give one")
    if config.margins is not None:
        _check_list("margins", config.margins)
        for value in config.margins:
            if not 0.0 < value <= MAX_REWARD:
                rule = f"must be greater than 0 and at most {MAX_REWARD:.0e}"
                raise ValueError(f"`margins` {rule}, got {value}")
    if config.rewards is not None:
        _check_list("rewards", config.rewards)
        for index, row in enumerate(config.rewards):
            if len(row) != config.actions:
                rule = f"must have one number for each of the {config.actions} actions"
                raise ValueError(f"`rewards[{index}]` {rule}, got {len(row)}: set `actions`")
            if not all(abs(value) <= MAX_REWARD for value in row):
                rule = f"must be numbers of at most {MAX_REWARD:.0e} in size"
                raise ValueError(f"`rewards[{index}]` {rule}, got {row}")


def _check_size(config: MinimaxRegretConfig) -> None:
    worlds = worlds_of(config, max(config.comparisons))
    outcomes = count_outcomes(worlds.pair_distribution, worlds.comparisons)
    remedy = "use fewer comparisons, or compare fewer pairs of actions"
    if outcomes > MAX_OUTCOMES:
        raise ValueError(
            f"`comparisons` must have at most {MAX_OUTCOMES:,} outcomes, got {outcomes:,} with "
            f"N = {worlds.comparisons}: {remedy}"
        )
    probabilities = outcomes * len(worlds.rewards)
    if probabilities > MAX_PROBABILITIES:
        raise ValueError(
            f"`comparisons` must have at most {MAX_PROBABILITIES:,} outcomes times worlds, got "
            f"{probabilities:,} with N = {worlds.comparisons}: {remedy}, or use fewer worlds"
        )


def _check_weight(name: str, value: float | str, least: float, rules: Sequence[str]) -> None:
    if isinstance(value, str):
        is_valid = value in rules
    else:
        is_valid = not isinstance(value, bool) and least <= value < math.inf
    if not is_valid:
        sign = "greater than 0" if least else "at least 0"
        rule = f"must be finite and {sign}, or one of {', '.join(rules)}"
        raise ValueError(f"`{name}` {rule}, got {value!r}")


def _check_distribution(name: str, values: Sequence[Any], size: tuple[int, ...]) -> None:
    try:
        table = np.asarray(values, np.float64)
    except ValueError:  # rows of different lengths
        table = np.empty(0)
    if table.shape != size:
        axes = " x ".join(str(length) for length in size)
        raise ValueError(f"`{name}` must be {axes} probabilities, got {values}")
    if not (np.isfinite(table) & (table >= 0.0)).all():
        raise ValueError(f"`{name}` must be finite and at least 0, got {values}")
    if abs(table.sum() - 1.0) > SUM_TOLERANCE:
        raise ValueError(f"`{name}` must sum to 1, got {table.sum():.6g}")


def _check_list(name: str, values: Sequence[Any], what: str = "value") -> None:
    if not values:
        raise ValueError(f"`{name}` must have at least one value, got an empty list")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise ValueError(f"`{name}` must not repeat a {what}, got {repeated[0]!r} twice")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
