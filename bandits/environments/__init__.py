"""Environments: contextual bandits with preference data and a known true reward.

They are random bandits (:func:`random_tabular`, :func:`random_linear`), random bandits whose data
have a chosen coverage coefficient (:class:`Design`, :func:`draw_design`), named instances from the
literature, bandits fitted to a file of votes, and bandits of files and functions of the user's own.
:func:`draw_environment` draws any of those that a study can name. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Baseline, BaselineName, Instance, baseline_policy, best_action_policy
    from .designs import Design, designed_coverage, draw_design
    from .instances import (
        coverage_is_necessary,
        four_arms,
        ghost_arm,
        likelihood_displacement,
        non_convex_class,
        type_i_hacking,
        type_ii_hacking,
    )
    from .random import random_linear, random_tabular
    from .registry import NAMED_INSTANCES, Environment, draw_environment, find_environment
    from .sampling import draw_win_counts
    from .tables import draw_from_instances, instance_from_tables
    from .votes import Votes, VotesFileError, parse_votes, read_votes

_EXPORTS = {
    "NAMED_INSTANCES": "registry",
    "Baseline": "base",
    "BaselineName": "base",
    "Design": "designs",
    "Environment": "registry",
    "Instance": "base",
    "Votes": "votes",
    "VotesFileError": "votes",
    "baseline_policy": "base",
    "best_action_policy": "base",
    "coverage_is_necessary": "instances",
    "designed_coverage": "designs",
    "draw_design": "designs",
    "draw_environment": "registry",
    "draw_from_instances": "tables",
    "draw_win_counts": "sampling",
    "find_environment": "registry",
    "four_arms": "instances",
    "ghost_arm": "instances",
    "instance_from_tables": "tables",
    "likelihood_displacement": "instances",
    "non_convex_class": "instances",
    "parse_votes": "votes",
    "random_linear": "random",
    "random_tabular": "random",
    "read_votes": "votes",
    "type_i_hacking": "instances",
    "type_ii_hacking": "instances",
}

__all__ = [  # noqa: RUF022  # in groups
    # instances, policies and data
    "Baseline",
    "BaselineName",
    "Instance",
    "baseline_policy",
    "best_action_policy",
    "draw_win_counts",
    # random bandits
    "random_linear",
    "random_tabular",
    "Design",
    "designed_coverage",
    "draw_design",
    # named instances
    "four_arms",
    "type_i_hacking",
    "type_ii_hacking",
    "non_convex_class",
    "ghost_arm",
    "likelihood_displacement",
    "coverage_is_necessary",
    # votes
    "Votes",
    "VotesFileError",
    "parse_votes",
    "read_votes",
    # bandits of tables
    "instance_from_tables",
    "draw_from_instances",
    # environments by name
    "NAMED_INSTANCES",
    "Environment",
    "draw_environment",
    "find_environment",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
