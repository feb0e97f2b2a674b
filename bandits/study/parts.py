"""Parts of a study: slices of its draws that are fitted and stored together.

A draw is a scenario with a seed. The parts follow from the configuration alone, so that the records
depend neither on the number of devices or processes nor on interruptions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from bandits.environments.base import Instance
from bandits.environments.registry import draw_environment

from .config import Scenario, StudyConfig, expand_scenarios, expand_weights

MAX_COUNTS_PER_PART = 4_000_000
"""Largest number of win counts in a part, over all its weights; it bounds the solvers' memory."""
MAX_DRAWS_PER_PART = 20_000
"""Largest number of draws in a part; it bounds the memory of what NumPy draws."""


class StudyPart(NamedTuple):
    """Draws (scenario and seed) of a study whose arrays have the same shape.

    Attributes:
        number: index of the part in the study, from 0.
        scenarios: all scenarios of this shape.
        scenario_index: index into ``scenarios`` of each draw, ascending, shape ``[B]``.
        seeds: seed of each draw, shape ``[B]``.
        n_draws: number of draws to record. The draws after them repeat the last one and are
            discarded: parts of one shape have one size, so that methods are compiled once.
    """

    number: int
    scenarios: tuple[Scenario, ...]
    scenario_index: Int[np.ndarray, " B"]
    seeds: Int[np.ndarray, " B"]
    n_draws: int


def plan_parts(study: StudyConfig) -> list[StudyPart]:
    """Split the draws of a study into parts.

    Args:
        study: configuration of the study.

    Returns:
        Parts in the order of the scenarios; within one shape all have the same size.

    Examples:
        >>> from bandits.study.config import MethodConfig
        >>> study = StudyConfig(
        ...     name="a", methods=[MethodConfig(method="rpo")], comparisons=[9, 99], seeds=3)
        >>> [(part.n_draws, part.scenario_index.tolist()) for part in plan_parts(study)]
        [(6, [0, 0, 0, 1, 1, 1])]
    """
    parts: list[StudyPart] = []
    for scenarios in _group_by_shape(study):
        n_draws = len(scenarios) * study.seeds
        n_counts = _draw_one(scenarios[0]).problem.wins[0].size * len(expand_weights(study))
        size = min(n_draws, max(1, MAX_COUNTS_PER_PART // n_counts), MAX_DRAWS_PER_PART)
        size = -(-n_draws // -(-n_draws // size))  # the same number of parts, as equal as possible
        for start in range(0, n_draws, size):
            draws = np.minimum(np.arange(start, start + size), n_draws - 1)
            scenario_index, seed = np.divmod(draws, study.seeds)
            parts.append(
                StudyPart(
                    number=len(parts),
                    scenarios=tuple(scenarios),
                    scenario_index=scenario_index,
                    seeds=seed + study.first_seed,
                    n_draws=min(size, n_draws - start),
                )
            )
    return parts


def draw_part(part: StudyPart) -> Instance:
    """Draw the bandits and data of a part.

    Args:
        part: a part, see :func:`plan_parts`.

    Returns:
        Instances with a leading batch axis, one per draw.
    """
    batches = []
    for index in np.unique(part.scenario_index):
        environment, design, comparisons = part.scenarios[index]
        seeds = part.seeds[part.scenario_index == index]
        batches.append(draw_environment(environment, comparisons, seeds, design=design))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def _group_by_shape(study: StudyConfig) -> list[list[Scenario]]:
    """Return groups of scenarios whose arrays have the same shapes, in order of appearance."""
    groups: dict[Any, list[Scenario]] = {}
    shapes: dict[Any, Any] = {}
    for scenario in expand_scenarios(study):
        design = scenario.design
        key = scenario.environment, design.contexts, design.actions, design.reward, design.features
        if key not in shapes:
            instance = _draw_one(scenario)
            leaves = [np.shape(leaf) for leaf in jax.tree.leaves(instance)]
            shapes[key] = type(instance.reward_class).__name__, tuple(leaves)
        groups.setdefault(shapes[key], []).append(scenario)
    return list(groups.values())


def _draw_one(scenario: Scenario) -> Instance:
    environment, design, comparisons = scenario
    return draw_environment(environment, comparisons, np.zeros(1, int), design=design)
