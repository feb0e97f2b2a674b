r"""Configuration of the study of overoptimization laws."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from bandits.environments.designs import Design
from bandits.methods.options import BaselineOption
from bandits.methods.registry import find_method

from .fitting import BEST_OF_N, has_curve

ClassName = Literal["tabular", "linear"]
"""Reward class of the bandits and of the methods, as in :attr:`bandits.Design.reward`."""

MAX_FITS = 100_000_000
"""Largest number of fits of a study."""


@dataclass(frozen=True, kw_only=True)
class GeometricGrid:
    r"""Values of :math:`\beta` with a constant ratio.

    Attributes:
        smallest: the smallest value, greater than 0: the policies farthest from the reference.
        largest: the largest value, greater than the smallest.
        count: number of values, at least 3.

    Raises:
        ValueError: if a field is out of range.
    """

    smallest: float = 0.01
    largest: float = 100.0
    count: int = 21

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for a grid that is out of range."""
        if not 0.0 < self.smallest < self.largest < math.inf:
            rule = "must be finite numbers with 0 < smallest < largest"
            raise ValueError(f"`beta` {rule}, got {self.smallest} and {self.largest}")
        if self.count < 3:
            raise ValueError(f"`beta.count` must be at least 3, got {self.count}")

    def values(self) -> Float[np.ndarray, " p"]:
        """Return the values, the largest first.

        Examples:
            >>> GeometricGrid(smallest=0.1, largest=10.0, count=3).values().round(12).tolist()
            [10.0, 1.0, 0.1]
        """
        return np.geomspace(self.largest, self.smallest, self.count)


@dataclass(frozen=True, kw_only=True)
class LawsQuickSizes:
    """Smaller sizes that ``--quick`` uses instead of the study's own.

    Attributes:
        seeds: number of seeds; None keeps the study's.
        comparisons: values of :math:`N`; None keeps the study's.
        reward_classes: reward classes; None keeps the study's.
        eta: weights of the adversary; None keeps the study's.
        beta_count: number of values of beta; None keeps the study's.
        resamples: number of resamples; None keeps the study's.
    """

    seeds: int | None = None
    comparisons: list[int] | None = None
    reward_classes: list[ClassName] | None = None
    eta: list[float] | None = None
    beta_count: int | None = None
    resamples: int | None = None


@dataclass(frozen=True, kw_only=True)
class LawsConfig:
    r"""A study of overoptimization: the gain of each method against :math:`d`, and its law.

    A curve belongs to a method, a reward class, a number of comparisons and, if the method uses it,
    an :math:`\eta`. All curves of a class and :math:`N` share bandits and data.

    Attributes:
        kind: "laws".
        name: name of the study and of its default output folder; letters, digits, ``_``, ``-``.
        methods: methods that use :math:`\beta`, and "best_of_n".
        comparisons: values of :math:`N`, the number of comparisons in a data set.
        seeds: number of seeds; each draws a new bandit and new data.
        first_seed: the smallest seed.
        reward_classes: classes in which rewards are drawn and searched, "tabular" or "linear".
        design: fields of :class:`bandits.environments.designs.Design` other than ``reward``.
        baseline: baseline policy of RPO: "given" for that of the design, or another option of
            :class:`bandits.methods.options.BaselineOptions`.
        eta: weights of the adversary, at least 0.
        beta: weights of the KL term.
        best_of_n: numbers of responses :math:`n`, real numbers of at least 1.
        resamples: number of bootstrap resamples of the intervals.
        confidence: probability with which each interval covers its coefficient.
        quick: smaller sizes for a quick run.

    Raises:
        ValueError: if a value is out of range, or an axis is empty or has a value twice.
    """

    kind: Literal["laws"] = "laws"
    name: str
    methods: list[str]
    comparisons: list[int]
    seeds: int
    first_seed: int = 0
    reward_classes: list[ClassName] = field(default_factory=lambda: ["tabular"])
    design: dict[str, Any] = field(default_factory=dict, metadata={"keys_of": Design})
    baseline: BaselineOption = "given"
    eta: list[float] = field(default_factory=lambda: [0.01])
    beta: GeometricGrid = field(default_factory=GeometricGrid)
    best_of_n: list[float] = field(
        default_factory=lambda: [1.001, 1.1, 1.5, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0, 1024.0]
    )
    resamples: int = 2000
    confidence: float = 0.95
    quick: LawsQuickSizes = field(default_factory=LawsQuickSizes)

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for a study that cannot be run."""
        _check(self)
        for reward_class in self.reward_classes:
            self.design_of(reward_class)
        if self.quick != LawsQuickSizes():
            try:
                self.quick_version()
            except ValueError as error:
                raise ValueError(f"the sizes under `quick`: {error}") from error

    def quick_version(self) -> LawsConfig:
        """Return the study with its quick sizes."""
        given = {name: value for name, value in vars(self.quick).items() if value is not None}
        count = given.pop("beta_count", self.beta.count)
        return replace(self, **given, beta=replace(self.beta, count=count), quick=LawsQuickSizes())

    def design_of(self, reward_class: ClassName) -> Design:
        """Return the design of the bandits of one reward class.

        Args:
            reward_class: one of :attr:`reward_classes`.

        Returns:
            The design.

        Raises:
            ValueError: if a field is unknown, has a wrong type or is out of range.

        Examples:
            >>> config = LawsConfig(
            ...     name="a", methods=["dpo"], comparisons=[9], seeds=1, design={"actions": 4})
            >>> config.design_of("linear").actions
            4
        """
        return Design(**_design_values(self.design), reward=reward_class)

    def etas_of(self, method: str) -> list[float]:
        r"""Return the values of :math:`\eta` that give curves of a method.

        Args:
            method: one of :attr:`methods`.

        Returns:
            The values; NaN alone if the method does not use :math:`\eta`.

        Examples:
            >>> config = LawsConfig(
            ...     name="a", methods=["rpo"], comparisons=[9], seeds=1, eta=[0.1, 1.0])
            >>> config.etas_of("rpo"), config.etas_of("dpo")
            ([0.1, 1.0], [nan])
        """
        uses_eta = method != BEST_OF_N and find_method(method).uses_eta
        return self.eta if uses_eta else [math.nan]


def _check(config: LawsConfig) -> None:
    if not config.name.replace("_", "").replace("-", "").isalnum():
        rule = "must consist of letters, digits, `_` and `-`"
        raise ValueError(f"`name` {rule}, got {config.name!r}")
    _check_values("methods", config.methods)
    for method in config.methods:
        if method != BEST_OF_N and not has_curve(method):
            rule = "must use beta and approach the reference policy as beta grows"
            raise ValueError(f"`methods` {rule}, got {method!r}")
    _check_values("reward_classes", config.reward_classes)
    for value in config.reward_classes:
        if value not in get_args(ClassName):
            names = ", ".join(get_args(ClassName))
            raise ValueError(f"`reward_classes` must be one of {names}, got {value!r}")
    if config.baseline not in get_args(BaselineOption):
        names = ", ".join(get_args(BaselineOption))
        raise ValueError(f"`baseline` must be one of {names}, got {config.baseline!r}")
    for name, least, below in (
        ("comparisons", 1, 10**15),
        ("eta", 0.0, math.inf),
        ("best_of_n", 1.0, math.inf),
    ):
        _check_values(name, getattr(config, name))
        for value in getattr(config, name):
            _check_number(name, value, least, below)
    for name, least in (("seeds", 1), ("first_seed", 0), ("resamples", 1)):
        _check_number(name, getattr(config, name), least, 2**31)
    if not 0.0 < config.confidence < 1.0:
        raise ValueError(f"`confidence` must be between 0 and 1, got {config.confidence}")
    if BEST_OF_N in config.methods and len(config.best_of_n) < 3:
        raise ValueError(f"`best_of_n` must have at least 3 values, got {config.best_of_n}")
    if count_fits(config) > MAX_FITS:
        raise ValueError(
            f"`seeds` and the axes must give at most {MAX_FITS:,} fits, got {count_fits(config):,}"
        )


def count_fits(config: LawsConfig) -> int:
    """Return the number of fits in a study.

    Args:
        config: configuration of the study.

    Returns:
        One for each seed, class, number of comparisons and point of a curve; best-of-n needs one
        for its whole curve.

    Examples:
        >>> count_fits(LawsConfig(name="a", methods=["dpo"], comparisons=[9, 99], seeds=5))
        210
    """
    settings = len(config.reward_classes) * len(config.comparisons) * config.seeds
    points = sum(
        1 if method == BEST_OF_N else len(config.etas_of(method)) * config.beta.count
        for method in config.methods
    )
    return settings * points


def _check_values(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"`{name}` must have at least one value, got an empty list")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        raise ValueError(f"`{name}` must not repeat a value, got {repeated[0]} twice")


def _check_number(name: str, value: int | float, least: int | float, below: int | float) -> None:
    if not least <= value < below:
        upper = "finite" if below == math.inf else f"less than {below:,}"
        raise ValueError(f"`{name}` must be at least {least:g} and {upper}, got {value}")


def _design_values(design: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the design, checked for their names and types."""
    known = {item.name: item.default for item in dataclasses.fields(Design)}
    values = {}
    for name, value in design.items():
        if name == "reward":
            raise ValueError("`design.reward` must not be given: list it in `reward_classes`")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(known)}"
            raise ValueError(f"`design.{name}` is unknown: {hint}")
        is_text = isinstance(known[name], str) or name == "features_file"
        accepted: Any = str if is_text else int if isinstance(known[name], int) else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, accepted)):
            what = {str: "text", int: "a whole number"}.get(accepted, "a number")
            raise ValueError(f"`design.{name}` must be {what}, got {value!r}")
        values[name] = value
    return values
