r"""Configuration of a study in rounds: methods that choose the comparisons they fit next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from bandits.environments.designs import Design
from bandits.methods.method_config import MethodConfig

Sampling = Literal["baseline", "reference", "policy"]
r"""Policy that gives the second response of a new pair; the first is always from :math:`\pi_t`.
"baseline" is :math:`\pi_{base}` of the environment, "reference" :math:`\pi_{ref}` as in XPO, and
"policy" :math:`\pi_t` itself as in VPO online."""

EtaRule = Literal["inverse_sqrt", "constant"]
r"""Schedule of the weight: :math:`\eta_t=\eta/\sqrt{n_t}` for :math:`n_t` comparisons so far, or
:math:`\eta_t=\eta`."""

MAX_ROUNDS = 100_000
"""Largest number of rounds."""


@dataclass(frozen=True, kw_only=True)
class RoundsMethod(MethodConfig):
    """A method of a study in rounds; a method's name alone stands for its defaults.

    "rpo_optimistic" is optimistic, "rpo" pessimistic, and with "dpo" or "two_stage" the rounds are
    greedy. The default baseline is that of the environment.

    Attributes:
        sampling: policy of the second response; None for that of the study.

    Raises:
        ValueError: if the method, an option or the sampling is unknown, or the label is not
            printable.
    """

    sampling: Sampling | None = None

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for an unknown name or an unprintable label."""
        has_baseline = hasattr(self.record.options(), "baseline")
        if isinstance(self.options, Mapping) and has_baseline:
            object.__setattr__(self, "options", {"baseline": "given", **self.options})
        MethodConfig.__post_init__(self)
        if self.sampling is not None:
            _check_name("sampling", self.sampling, get_args(Sampling))


@dataclass(frozen=True, kw_only=True)
class QuickRounds:
    """Smaller sizes of a quick run.

    Attributes:
        seeds: number of seeds; None keeps the study's.
        rounds: number of rounds; None keeps the study's.
        pairs_per_round: comparisons of a round; None keeps the study's.
    """

    seeds: int | None = None
    rounds: int | None = None
    pairs_per_round: int | None = None


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    r"""A study in rounds: every method on the same bandits, each with the data it collects.

    Attributes:
        kind: "rounds".
        name: name of the study; letters, digits, ``_``, ``-``.
        methods: methods to compare.
        rounds: number :math:`T` of rounds.
        pairs_per_round: number of new comparisons after each round.
        comparisons: number of comparisons before the first round.
        seeds: number of seeds; each draws a new bandit and new data.
        first_seed: the smallest seed.
        sampling: policy of the second response of a new pair.
        environment: source of the bandits and of the first comparisons, see
            :func:`bandits.environments.registry.draw_environment`.
        design: design of the bandits; named instances ignore it.
        beta: weight of the KL term, the same in all rounds.
        eta: weight of the adversarial or optimistic term, before its schedule.
        eta_rule: schedule of that weight.
        quick: smaller sizes for a quick run.

    Raises:
        ValueError: if a value is out of range, or two methods have one label.

    Examples:
        >>> methods = [RoundsMethod(method="rpo_optimistic"), RoundsMethod(method="two_stage")]
        >>> config = RoundsConfig(name="a", methods=methods, rounds=50, seeds=9)
        >>> config.pairs_per_round, method_labels(config)
        (10, ['rpo_optimistic', 'two_stage'])
    """

    kind: Literal["rounds"] = "rounds"
    name: str
    methods: list[RoundsMethod]
    rounds: int
    seeds: int
    pairs_per_round: int = 10
    comparisons: int = 100
    first_seed: int = 0
    sampling: Sampling = "baseline"
    environment: str = "design"
    design: Design = field(default_factory=Design)
    beta: float = 0.05
    eta: float = 0.1
    eta_rule: EtaRule = "inverse_sqrt"
    quick: QuickRounds = field(default_factory=QuickRounds)

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for a study that cannot be run."""
        if not self.name.replace("_", "").replace("-", "").isalnum():
            rule = "must consist of letters, digits, `_` and `-`"
            raise ValueError(f"`name` {rule}, got {self.name!r}")
        if not self.methods:
            raise ValueError("`methods` must not be empty: name at least one method")
        for name, least, most in (
            ("rounds", 1, MAX_ROUNDS),
            ("pairs_per_round", 1, 10**9),
            ("comparisons", 1, 10**15),
            ("seeds", 1, 2**31 - 1),
            ("first_seed", 0, 2**31 - 1),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                rule = f"must be a whole number from {least} to {most}"
                raise ValueError(f"`{name}` {rule}, got {value}")
        _check_name("sampling", self.sampling, get_args(Sampling))
        _check_name("eta_rule", self.eta_rule, get_args(EtaRule))
        if not 0.0 < self.beta < math.inf:
            raise ValueError(f"`beta` must be finite and greater than 0, got {self.beta}")
        if not 0.0 <= self.eta < math.inf:
            raise ValueError(f"`eta` must be finite and at least 0, got {self.eta}")
        labels = method_labels(self)
        if len(set(labels)) < len(labels):
            raise ValueError(f"`label` must differ between methods, got {labels}")
        if self.quick != QuickRounds():
            try:
                self.quick_version()
            except ValueError as error:
                raise ValueError(f"the sizes under `quick`: {error}") from error

    def quick_version(self) -> RoundsConfig:
        """Return the study with its quick sizes."""
        sizes = {name: value for name, value in vars(self.quick).items() if value is not None}
        return dataclasses.replace(self, **sizes, quick=QuickRounds())


def method_labels(config: RoundsConfig) -> list[str]:
    """Return the labels of the methods in records and figures.

    Args:
        config: configuration of the study.

    Returns:
        One label per method, in the order of :attr:`RoundsConfig.methods`.

    Examples:
        >>> methods = [RoundsMethod(method="dpo"), RoundsMethod(method="dpo", sampling="policy")]
        >>> method_labels(RoundsConfig(name="a", methods=methods, rounds=1, seeds=1))
        ['dpo, baseline', 'dpo, policy']
    """
    names = [method.record.name for method in config.methods]
    return [
        method.label or (_detailed(method, config) if names.count(name) > 1 else name)
        for name, method in zip(names, config.methods, strict=True)
    ]


def _detailed(method: RoundsMethod, config: RoundsConfig) -> str:
    """Return the name of a method with its sampling and its baseline."""
    details = method.record.name, method.sampling or config.sampling
    baseline = getattr(method.options, "baseline", None)
    return ", ".join([*details, *([baseline] if baseline else [])])


def _check_name(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"`{key}` must be one of {', '.join(allowed)}, got {value!r}")
