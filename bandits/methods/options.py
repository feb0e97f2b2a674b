r"""Options of the methods, as frozen dataclasses; :math:`\beta` and :math:`\eta` are the problem's.

Every method names the dataclass of its options. A study reads them from YAML, refuses keys that the
dataclass does not have, and stores all of them, defaults included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from bandits.environments.base import BaselineName

BaselineOption = Literal[BaselineName, "given"]
"""Baseline policy by name, or "given" for the one of the problem."""

RewardsOption = Literal["given", "unbounded"]
"""Reward class of the problem, or all rewards."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options of a method that has none; the base class of all options."""

    def sets_eta(self) -> bool:
        r"""Return whether the options set :math:`\eta`, so that the one of a study is unused."""
        return False


@dataclass(frozen=True, kw_only=True)
class BaselineOptions(MethodOptions):
    r"""Options of a method that measures rewards against a baseline policy.

    Attributes:
        baseline: :math:`\pi_{base}`: "chosen" for the distribution of the winners at each prompt,
            "data_marginal" for that of both members of a pair, "reference" for
            :math:`\pi_{ref}`, or "given" for the baseline of the problem.

    Raises:
        ValueError: if an option is out of range.
    """

    baseline: BaselineOption = "chosen"

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_option("baseline", self.baseline, get_args(BaselineOption))


@dataclass(frozen=True, kw_only=True)
class SearchOptions(MethodOptions):
    """Options of a method that searches for a reward.

    Attributes:
        rewards: "given" for the reward class of the problem, or "unbounded" for all rewards, as in
            training a tabular policy.

    Raises:
        ValueError: if an option is out of range.
    """

    rewards: RewardsOption = "given"

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        check_option("rewards", self.rewards, get_args(RewardsOption))


@dataclass(frozen=True, kw_only=True)
class RpoOptions(BaselineOptions, SearchOptions):
    """Options of RPO: its baseline policy, and the rewards over which it optimizes.

    Raises:
        ValueError: if an option is out of range.
    """

    def __post_init__(self) -> None:
        """Refuse an option that is out of range."""
        BaselineOptions.__post_init__(self)
        SearchOptions.__post_init__(self)


def check_option(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise unless an option has one of the allowed values.

    Args:
        name: name of the option.
        value: its value.
        allowed: the allowed values.

    Raises:
        ValueError: if it has another value; the message names the option.

    Examples:
        >>> check_option("baseline", "chosen", ("chosen", "given"))
    """
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {value!r}")


def check_number(
    name: str,
    value: float | None,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> None:
    """Raise unless a numerical option is finite and in its range; None is accepted.

    Args:
        name: name of the option.
        value: its value.
        above: number that it must exceed; None for no such limit.
        least: smallest accepted number; None for no such limit.
        below: number that it must be less than; None for no such limit.

    Raises:
        ValueError: if the number is out of range or not finite; the message names the option.

    Examples:
        >>> check_number("ridge", 0.1, above=0.0)
    """
    if value is None:
        return
    holds = math.isfinite(value)
    holds = holds and (above is None or value > above) and (least is None or value >= least)
    holds = holds and (below is None or value < below)
    if not holds:
        rule = f"at least {least:g}" if least is not None else f"greater than {above or 0.0:g}"
        rule += "" if below is None else f" and less than {below:g}"
        raise ValueError(f"`{name}` must be a finite number {rule}, got {value}")
