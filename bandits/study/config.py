r"""A study as a choice: methods, and axes whose every combination is run over the same seeds.

What is drawn (environment, design, :math:`N`, seed) is told apart from how it is answered (method,
:math:`\eta`, :math:`\beta`): all answers to one draw share it, so that methods are compared on the
same bandits and the same labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

from bandits.environments.designs import Design
from bandits.environments.registry import NAMED_INSTANCES
from bandits.methods.base import MethodOptions
from bandits.methods.registry import METHODS

WeightRule = Literal["theorem", "tight", "given"]
r"""Weights by rule: :math:`\beta=1/\sqrt N` and Theorem 5.3's :math:`\eta` (``theorem``) or the one
with the sharpest constant (``tight``), or those of the environment (``given``)."""

METHODS_WITHOUT_ETA = {
    "dpo",
    "two_stage",
    "greedy_mle",
    "behavior_cloning",
    "pessimistic_mle",
    "ipo",
    "dpop",
    "chi_po",
}
r"""Methods that :math:`\eta` is nothing to: each is run once and its answer stands for all."""

METHODS_WITHOUT_BETA = {"greedy_mle", "behavior_cloning", "pessimistic_mle"}
r"""Methods that :math:`\beta` is nothing to."""

MAX_COMBINATIONS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method as a study names it.

    Attributes:
        method: a name of :data:`bandits.methods.registry.METHODS`.
        label: what records and figures call it; by default the method, with its baseline if the
            study has the method twice; printable, without ``$``.
        options: its options.

    Raises:
        ValueError: an unknown method, or a label that is no plain text.
    """

    method: str
    label: str | None = None
    options: MethodOptions = field(default_factory=MethodOptions)

    def __post_init__(self) -> None:
        """Refuse an unknown name."""
        if self.method not in METHODS:
            rule = f"must be one of {', '.join(METHODS)}"
            raise ValueError(f"`method` {rule}, got {self.method!r}")
        # It goes to terminals, which obey control characters, and figures, where $ is mathematics.
        if self.label is not None and not (self.label.isprintable() and "$" not in self.label):
            raise ValueError(f"`label` must be printable text without $, got {self.label!r}")


@dataclass(frozen=True, kw_only=True)
class QuickSizes:
    """What ``--quick`` puts in the place of a study's own sizes; None keeps them.

    Attributes:
        seeds: number of seeds.
        comparisons: values of :math:`N`.
        eta: weights of the adversary.
        beta: weights of the KL term.
        design: axes of the design, one by one.
    """

    seeds: int | None = None
    comparisons: list[int] | None = None
    eta: list[float | WeightRule] | None = None
    beta: list[float | WeightRule] | None = None
    design: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    r"""A simulation study: every method on every combination of the axes, over the same seeds.

    Attributes:
        name: of the study; figures and folders carry it.
        methods: what is compared.
        comparisons: values of :math:`N`, the number of comparisons in a data set.
        seeds: number of seeds; each has a bandit and data of its own.
        first_seed: the first of them.
        environments: what is drawn, see :func:`bandits.environments.registry.draw_environment`.
        design: fields of :class:`bandits.environments.designs.Design`; a list is an axis.
        eta: weights of the adversary, numbers or rules.
        beta: weights of the KL term, numbers or rules.
        delta: :math:`\delta`, the probability that the guarantee may fail, in :math:`\iota`.
        quick: smaller sizes, for a look.

    Raises:
        ValueError: a value out of range, an empty axis, or one that is given twice.
    """

    name: str
    methods: list[MethodConfig]
    comparisons: list[int]
    seeds: int
    first_seed: int = 0
    environments: list[str] = field(default_factory=lambda: ["design"])
    design: dict[str, Any] = field(default_factory=dict)
    eta: list[float | WeightRule] = field(default_factory=lambda: ["theorem"])
    beta: list[float | WeightRule] = field(default_factory=lambda: ["theorem"])
    delta: float = 0.05
    quick: QuickSizes = field(default_factory=QuickSizes)

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is."""
        _check_axes(self)
        _check_environments(self)
        expand_designs(self)
        if len(set(method_labels(self))) < len(self.methods):
            raise ValueError(
                f"`label` must differ from method to method, got {method_labels(self)}"
            )

    def quick_version(self) -> StudyConfig:
        """The study in its quick sizes."""
        sizes = {
            name: getattr(self.quick, name)
            for name in ("seeds", "comparisons", "eta", "beta")
            if getattr(self.quick, name) is not None
        }
        design = {**self.design, **self.quick.design}
        return replace(self, **sizes, design=design, quick=QuickSizes())


class Scenario(NamedTuple):
    """A cell of what is drawn.

    Attributes:
        environment: its name.
        design: of the bandits; for named instances it has no say.
        comparisons: :math:`N`.
    """

    environment: str
    design: Design
    comparisons: int


def expand_designs(study: StudyConfig) -> list[Design]:
    """Every combination of the axes of the design.

    Args:
        study: the study.

    Returns:
        Designs, the last axis moving fastest.

    Raises:
        ValueError: an unknown field, a wrong type, an empty axis, or a value out of range.

    Examples:
        >>> one = StudyConfig(
        ...     name="a", methods=[MethodConfig(method="rpo")], comparisons=[9], seeds=1,
        ...     design={"target_coverage": [2.0, 4.0]})
        >>> [design.target_coverage for design in expand_designs(one)]
        [2.0, 4.0]
    """
    known = {each.name: type(each.default) for each in fields(Design)}
    axes = {}
    for name, given in study.design.items():
        if name not in known:
            raise ValueError(f"`design.{name}` is unknown: it must be one of {', '.join(known)}")
        values = given if isinstance(given, list) else [given]
        _check_values(f"design.{name}", values)
        axes[name] = [_typed(name, value, known[name]) for value in values]
    combinations = itertools.product(*axes.values())
    return [Design(**dict(zip(axes, values, strict=True))) for values in combinations]


def expand_scenarios(study: StudyConfig) -> list[Scenario]:
    """Every cell of what is drawn: a design has no say in a named instance, which comes once."""
    return list(_draws(study))


def design_axes(study: StudyConfig) -> list[str]:
    """Fields of the design that have several values."""
    return [name for name, given in study.design.items() if isinstance(given, list)]


def method_labels(study: StudyConfig) -> list[str]:
    """What records call the methods.

    Args:
        study: the study.

    Returns:
        One label a method.

    Examples:
        >>> given = MethodConfig(method="rpo", options=MethodOptions(baseline="given"))
        >>> methods = [MethodConfig(method="rpo"), given, MethodConfig(method="dpo")]
        >>> method_labels(StudyConfig(name="a", methods=methods, comparisons=[9], seeds=1))
        ['rpo, chosen', 'rpo, given', 'dpo']
    """
    names = [method.method for method in study.methods]
    return [
        method.label
        or method.method
        + (f", {method.options.baseline}" if names.count(method.method) > 1 else "")
        for method in study.methods
    ]


def _draws(study: StudyConfig) -> Iterator[Scenario]:
    for environment in study.environments:
        every = expand_designs(study) if environment == "design" else expand_designs(study)[:1]
        for design, comparisons in itertools.product(every, study.comparisons):
            yield Scenario(environment, design, comparisons)


def _check_axes(study: StudyConfig) -> None:
    if not study.name.replace("_", "").replace("-", "").isalnum():
        rule = "must be of letters, digits, `_` and `-`"
        raise ValueError(f"`name` {rule}, got {study.name!r}")
    for name in ("methods", "comparisons", "environments", "eta", "beta"):
        _check_values(name, getattr(study, name))
    for name, least in (("seeds", 1), ("first_seed", 0)):
        if not least <= getattr(study, name) < 2**31:
            value = getattr(study, name)
            raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value}")
    for value in study.comparisons:
        if not 1 <= value <= 10**15:
            raise ValueError(f"`comparisons` must be between 1 and 10^15, got {value}")
    for name, least in (("eta", 0.0), ("beta", 5e-324)):
        for value in getattr(study, name):
            if not isinstance(value, str) and not least <= value < math.inf:
                sign = "greater than 0" if least else "at least 0"
                raise ValueError(f"`{name}` must be finite and {sign}, got {value}")
    if not 0.0 < study.delta < math.exp(-1.0):
        raise ValueError(f"`delta` must be greater than 0 and less than 1/e, got {study.delta}")


def _check_environments(study: StudyConfig) -> None:
    for name in study.environments:
        kind, _, rest = name.partition(":")
        if not (
            name == "design"
            or (kind == "named" and rest in NAMED_INSTANCES)
            or (kind == "votes" and rest)
        ):
            rule = f"must be 'design', 'votes:FILE.csv' or 'named:' and one of {', '.join(NAMED_INSTANCES)}"
            raise ValueError(f"`environments` {rule}, got {name!r}")
    if "design" not in study.environments and design_axes(study):
        name = design_axes(study)[0]
        raise ValueError(
            f"`design.{name}` must not be a list: none of the `environments` is 'design', so that "
            "it has no say"
        )
    if (
        len(expand_scenarios(study)) * len(study.methods) * len(study.eta) * len(study.beta)
        > MAX_COMBINATIONS
    ):
        raise ValueError(
            f"`design` and the other axes have more than {MAX_COMBINATIONS:,} combinations"
        )


def _check_values(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"`{name}` must have at least one value, got an empty list")
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"`{name}` must have every value once, got {twice[0]} twice")


def _typed(name: str, value: Any, kind: type) -> Any:
    """A value of the design with the type of its field; YAML's whole numbers may be real ones."""
    if value is None and kind is type(None):
        return None
    wanted = str if name == "features_file" or kind is str else (int if kind is int else float)
    accepted = (int, float) if wanted is float else wanted
    if isinstance(value, bool) or not isinstance(value, accepted):
        what = {int: "a whole number", float: "a number", str: "a word"}[wanted]
        raise ValueError(f"`design.{name}` must be {what}, got {value!r}")
    return wanted(value)
