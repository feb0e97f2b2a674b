r"""Configuration of a simulation study: methods, and axes whose combinations are run over seeds.

A scenario (environment, design, number of comparisons) and a seed determine the data. A method and
its weights :math:`\eta` and :math:`\beta` determine the fit. All fits to one scenario and seed
share the same bandit and the same labels, so that methods are compared on equal data.
"""

from __future__ import annotations

import difflib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, cast

from bandits.environments.class_documents import class_values
from bandits.environments.designs import Design
from bandits.environments.registry import find_environment
from bandits.methods.base import Method
from bandits.methods.method_config import MethodConfig, as_method_config, method_labels
from rpo_io.config_types import to_plain
from rpo_io.user_modules import is_reference
from rpo_theory.rewards import RewardClass

WeightRule = Literal["theorem", "tight", "given"]
r"""Rules for the weights. ``theorem`` is :math:`\beta=1/\sqrt N` and the :math:`\eta` of Theorem
5.3; ``tight`` is the same with the sharpest constant; ``given`` is the environment's weight."""

NUMBA_FITS = 100_000
"""Number of fits from which the Numba kernel pays off, within a factor of three for all sizes of
problems, if it has to be compiled first. Loading a compiled one takes less time than compiling the
JAX path."""

MAX_NUMBER = 10**15
"""Upper limit of a number in the design."""

MAX_COMBINATIONS = 1_000_000
"""Largest number of combinations of scenarios, methods and weights."""


@dataclass(frozen=True, kw_only=True)
class QuickSizes:
    """Smaller sizes that ``--quick`` uses instead of the study's own.

    Attributes:
        seeds: number of seeds; None keeps the study's.
        comparisons: values of :math:`N`; None keeps the study's.
        eta: weights of the adversary; None keeps the study's.
        beta: weights of the KL term; None keeps the study's.
        design: fields of the design to replace; the others are kept.
    """

    seeds: int | None = None
    comparisons: list[int] | None = None
    eta: list[float | WeightRule] | None = None
    beta: list[float | WeightRule] | None = None
    design: dict[str, Any] = field(default_factory=dict, metadata={"keys_of": Design})


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    r"""A simulation study: every method on every combination of the axes, over the same seeds.

    Attributes:
        name: name of the study and of its default output folder; letters, digits, ``_``, ``-``.
        methods: methods to compare: names, or mappings with options; in Python also functions and
            records, see :class:`bandits.methods.method_config.MethodConfig`.
        comparisons: values of :math:`N`, the number of comparisons in a data set.
        seeds: number of seeds; each draws a new bandit and new data.
        first_seed: the smallest seed.
        environments: sources of bandits: "design", "named:INSTANCE", "votes:FILE.csv",
            "file:FILE.npz", "file:FILE.parquet" or "module:function", see
            :mod:`bandits.environments.registry`; in Python also functions.
        design: fields of :class:`bandits.environments.designs.Design`; a list makes an axis.
        reward_class: class in which the methods search, instead of that of the environments: a
            mapping with ``kind`` (a kind of problem files, or ``module:Class`` for a class of your
            own) and the parameters of the class. ``module:Class`` alone stands for a class
            without parameters. In Python it may be an instance. None for the environments' own.
        eta: weights of the adversary, as numbers or rules.
        beta: weights of the KL term, as numbers or rules.
        delta: :math:`\delta` in :math:`\iota`, the probability with which the bound may fail.
        intervals: level, such as 0.95, of confidence intervals for the value of every policy minus
            that of the baseline, see :mod:`bandits.study.intervals`; None for no intervals, which
            take longer than most fits.
        win_rates: whether to measure the win rate of every policy against the baseline, and to
            estimate it from a second log of the same size, see :mod:`bandits.study.win_rates`.
        kernel: compiled code that solves boxes, see :func:`rpo_theory.minimax.solve_batch`; "auto"
            is replaced before the run, see :func:`choose_kernel`.
        quick: smaller sizes for a quick run.

    Raises:
        ValueError: if a value is out of range, or an axis is empty or has a value twice.
    """

    name: str
    methods: list[MethodConfig | Method | Callable[..., Any] | str]
    comparisons: list[int]
    seeds: int
    first_seed: int = 0
    environments: list[str | Callable[..., Any]] = field(default_factory=lambda: ["design"])
    design: dict[str, Any] = field(default_factory=dict, metadata={"keys_of": Design})
    reward_class: dict[str, Any] | str | RewardClass | None = None
    eta: list[float | WeightRule] = field(default_factory=lambda: ["theorem"])
    beta: list[float | WeightRule] = field(default_factory=lambda: ["theorem"])
    delta: float = 0.05
    intervals: float | None = None
    win_rates: bool = False
    kernel: Literal["auto", "jax", "numba"] = "auto"
    quick: QuickSizes = field(default_factory=QuickSizes)

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for a study that cannot be run."""
        object.__setattr__(self, "methods", [as_method_config(item) for item in self.methods])
        names = [_environment_name(item) for item in self.environments]
        object.__setattr__(self, "environments", names)
        object.__setattr__(self, "reward_class", _class_values(self.reward_class))
        _check_axes(self)
        _check_environments(self)
        expand_designs(self)
        labels = method_labels(self.method_configs)
        if len(set(labels)) < len(labels):
            raise ValueError(f"`label` must differ between methods, got {labels}")
        if self.quick != QuickSizes():
            try:
                self.quick_version()
            except ValueError as error:
                raise ValueError(f"the sizes under `quick`: {error}") from error

    @property
    def method_configs(self) -> list[MethodConfig]:
        """The methods, each with its options."""
        return cast("list[MethodConfig]", self.methods)

    @property
    def environment_names(self) -> list[str]:
        """The names of the environments."""
        return cast("list[str]", self.environments)

    @property
    def class_values(self) -> dict[str, Any] | None:
        """The values of ``reward_class``: ``kind`` and its parameters; None without one."""
        return cast("dict[str, Any] | None", self.reward_class)

    def quick_version(self) -> StudyConfig:
        """Return the study with its quick sizes."""
        sizes = {
            name: getattr(self.quick, name)
            for name in ("seeds", "comparisons", "eta", "beta")
            if getattr(self.quick, name) is not None
        }
        design = {**self.design, **self.quick.design}
        return replace(self, **sizes, design=design, quick=QuickSizes())


class Scenario(NamedTuple):
    """Distribution of a bandit and its data; a seed selects one draw from it.

    Attributes:
        environment: source of the bandits, an item of :attr:`StudyConfig.environments`.
        design: design of the bandits; named instances and vote files ignore it.
        comparisons: :math:`N`, the number of comparisons.
    """

    environment: str
    design: Design
    comparisons: int


class EtaBeta(NamedTuple):
    r"""Weights of one fit as the study gives them.

    Attributes:
        eta: weight of the adversary, :math:`\eta`, or a rule for it.
        beta: weight of the KL term, :math:`\beta`, or a rule for it.
    """

    eta: float | WeightRule
    beta: float | WeightRule


def expand_designs(study: StudyConfig) -> list[Design]:
    """Return every combination of the axes of the design.

    Args:
        study: configuration of the study; the list-valued fields of its ``design`` are axes.

    Returns:
        Designs; the last axis varies fastest.

    Raises:
        ValueError: if a field is unknown, has a wrong type, is empty or is out of range.

    Examples:
        >>> study = StudyConfig(
        ...     name="a", methods=["rpo"], comparisons=[9], seeds=1,
        ...     design={"target_coverage": [2.0, 4.0]})
        >>> [design.target_coverage for design in expand_designs(study)]
        [2.0, 4.0]
    """
    known = {item.name: type(item.default) for item in fields(Design)}
    axes = {}
    for name, value in study.design.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it must be one of {', '.join(known)}"
            raise ValueError(f"`design.{name}` is unknown: {hint}")
        values = value if isinstance(value, list) else [value]
        _check_values(f"design.{name}", values)
        axes[name] = [_converted(name, item, known[name]) for item in values]
    combinations = itertools.product(*axes.values())
    return [Design(**dict(zip(axes, values, strict=True))) for values in combinations]


def expand_scenarios(study: StudyConfig) -> list[Scenario]:
    """Return every combination of environments, designs and numbers of comparisons.

    Args:
        study: configuration of the study.

    Returns:
        Scenarios; the number of comparisons varies fastest. Only the environment ``design`` is
        combined with every design, because the others ignore it.

    Examples:
        >>> study = StudyConfig(
        ...     name="a", methods=["rpo"], comparisons=[9, 99], seeds=1,
        ...     environments=["named:four_arms"])
        >>> [scenario.comparisons for scenario in expand_scenarios(study)]
        [9, 99]
    """
    designs = expand_designs(study)
    return [
        Scenario(environment, design, comparisons)
        for environment in study.environment_names
        for design, comparisons in itertools.product(
            designs if uses_designs(environment) else designs[:1], study.comparisons
        )
    ]


def uses_designs(environment: str) -> bool:
    """Return whether an environment is combined with every design of a study.

    Args:
        environment: its name.

    Examples:
        >>> uses_designs("design"), uses_designs("named:four_arms")
        (True, False)
    """
    return find_environment(environment).design_fields is None


def expand_weights(study: StudyConfig) -> list[EtaBeta]:
    r"""Return every combination of the weights; :math:`\beta` varies fastest."""
    return [EtaBeta(eta, beta) for eta in study.eta for beta in study.beta]


def count_fits(study: StudyConfig) -> int:
    """Return the number of fits in a study: scenarios times seeds, methods and weights."""
    n_draws = len(expand_scenarios(study)) * study.seeds
    return n_draws * len(study.methods) * len(expand_weights(study))


def choose_kernel(study: StudyConfig) -> StudyConfig:
    """Return the study with the kernel that its planned number of fits calls for.

    The Numba kernel is compiled for several seconds and then several times as fast. The choice is
    made once for the whole study: its parts, a resumed run and other processes use the same.

    Args:
        study: configuration of the whole study.

    Returns:
        The same study; ``kernel`` is "jax" or "numba".

    Examples:
        >>> study = StudyConfig(
        ...     name="a", methods=["rpo"], comparisons=[9], seeds=10)
        >>> choose_kernel(study).kernel
        'jax'
    """
    if study.kernel != "auto":
        return study
    return replace(study, kernel="numba" if count_fits(study) >= NUMBA_FITS else "jax")


def design_axes(study: StudyConfig) -> list[str]:
    """Return the names of the design's fields that are axes, that is, lists."""
    return [name for name, value in study.design.items() if isinstance(value, list)]


def resolved_config(study: StudyConfig) -> dict[str, Any]:
    """Return a study as plain values, for records and for ``--dry-run``.

    Args:
        study: configuration of the study.

    Returns:
        Every field by name, defaults included; nested dataclasses are dictionaries. The kernel is
        the one that is used.
    """
    return to_plain(choose_kernel(study))


def _class_values(reward_class: Any) -> dict[str, Any] | None:
    """Return the plain values of a reward class that is given by name, by values or as one."""
    if reward_class is None or isinstance(reward_class, dict):
        return reward_class
    if isinstance(reward_class, str):
        return {"kind": reward_class}
    return class_values(reward_class)


def _check_axes(study: StudyConfig) -> None:
    if study.kernel not in ("auto", "jax", "numba"):
        raise ValueError(f"`kernel` must be 'auto', 'jax' or 'numba', got {study.kernel!r}")
    if not study.name.replace("_", "").replace("-", "").isalnum():
        rule = "must consist of letters, digits, `_` and `-`"
        raise ValueError(f"`name` {rule}, got {study.name!r}")
    for name in ("methods", "comparisons", "environments", "eta", "beta"):
        _check_values(name, getattr(study, name))
    for name, least in (("seeds", 1), ("first_seed", 0)):
        value = getattr(study, name)
        if not least <= value < 2**31:
            rule = f"of at least {least}" if value < least else "below 2^31"
            raise ValueError(f"`{name}` must be a whole number {rule}, got {value}")
    for value in study.comparisons:
        if not 1 <= value <= 10**15:
            raise ValueError(f"`comparisons` must be between 1 and 10^15, got {value}")
    for name, least in (("eta", 0.0), ("beta", sys.float_info.min)):  # smaller ones become 0
        for value in getattr(study, name):
            if not isinstance(value, str) and not least <= value < math.inf:
                sign = "greater than 0" if least else "at least 0"
                if 0 < value < least:
                    sign = f"at least {least:.3g}"
                raise ValueError(f"`{name}` must be finite and {sign}, got {value}")
    if study.intervals is not None and not 0.0 < study.intervals < 1.0:
        raise ValueError(f"`intervals` must be a level between 0 and 1, got {study.intervals}")
    if not 0.0 < study.delta < math.exp(-1.0):
        raise ValueError(f"`delta` must be greater than 0 and less than 1/e, got {study.delta}")


def _environment_name(environment: str | Callable[..., Any]) -> str:
    """Return the name of an environment that is given by name or as a function."""
    if isinstance(environment, str):
        return environment
    name = f"{environment.__module__}:{getattr(environment, '__name__', '')}"
    if is_reference(name) and find_environment(name).source is environment:
        return name
    rule = "must be a function at the top level of a module"
    raise ValueError(f"`environments` {rule}, got {environment!r}")


def _check_environments(study: StudyConfig) -> None:
    for name in study.environment_names:
        find_environment(name)
    if not any(map(uses_designs, study.environment_names)) and design_axes(study):
        name = design_axes(study)[0]
        raise ValueError(
            f"`design.{name}` must not be a list, because no environment uses the design: "
            "add 'design' to `environments`, or give one value"
        )
    n_scenarios = len(expand_scenarios(study))
    if n_scenarios * len(study.methods) * len(study.eta) * len(study.beta) > MAX_COMBINATIONS:
        raise ValueError(
            f"`design` and the other axes must have at most {MAX_COMBINATIONS:,} combinations"
        )


def _check_values(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"`{name}` must have at least one value, got an empty list")
    repeated = [value for index, value in enumerate(values) if value in values[:index]]
    if repeated:
        shown = getattr(repeated[0], "reference", repeated[0])
        raise ValueError(f"`{name}` must not repeat a value, got {shown} twice")


def _converted(name: str, value: Any, field_type: type) -> Any:
    """Return a value of the design in the type of its field; integers may stand for floats."""
    if value is None and field_type is type(None):
        return None
    if name == "features_file" or field_type is str:
        wanted = str
    else:
        wanted = int if field_type is int else float
    accepted = (int, float) if wanted is float else wanted
    if isinstance(value, bool) or not isinstance(value, accepted):
        what = {int: "a whole number", float: "a number", str: "text"}[wanted]
        raise ValueError(f"`design.{name}` must be {what}, got {value!r}")
    if not isinstance(value, str) and abs(value) >= MAX_NUMBER:
        raise ValueError(f"`design.{name}` must be less than {MAX_NUMBER:.0e} in size")
    return wanted(value)
