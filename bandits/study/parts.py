"""Parts of a study: slices of its draws that are fitted and stored together.

A draw is a scenario with a seed. The parts follow from the configuration alone, so that the records
depend neither on the number of devices or processes nor on interruptions. A part is built when it
is asked for: a study of a billion seeds takes no more memory than one of a thousand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, overload

import jax
import numpy as np
from jaxtyping import Int

from bandits.environments.base import Instance
from bandits.environments.class_documents import class_from_values
from bandits.environments.registry import draw_environment
from rpo_theory.rewards import RewardClass, reward_max
from rpo_theory.validation import validate_reward_class

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
        reward_class: class in which the methods search instead of that of the environment; None
            for the latter.
    """

    number: int
    scenarios: tuple[Scenario, ...]
    scenario_index: Int[np.ndarray, " B"]
    seeds: Int[np.ndarray, " B"]
    n_draws: int
    reward_class: RewardClass | None = None


class ShapeGroup(NamedTuple):
    """Scenarios whose arrays have the same shape, and how their draws are split into parts.

    Attributes:
        scenarios: the scenarios; their draws are in this order, and by seed within a scenario.
        n_draws: number of draws, scenarios times seeds.
        size: number of draws in a part.
        first_part: number of the group's first part.
    """

    scenarios: tuple[Scenario, ...]
    n_draws: int
    size: int
    first_part: int

    def n_parts(self) -> int:
        """Return the number of parts."""
        return -(-self.n_draws // self.size)


class PartPlan(Sequence[StudyPart]):
    """The parts of a study, or some of them, in order."""

    def __init__(
        self, study: StudyConfig, groups: Sequence[ShapeGroup], numbers: range | None = None
    ) -> None:
        """Describe parts without building them.

        Args:
            study: configuration of the study.
            groups: all its groups of scenarios.
            numbers: numbers of the parts that the plan holds; all parts if None.
        """
        self.study: StudyConfig = study
        self.groups: tuple[ShapeGroup, ...] = tuple(groups)
        self.numbers: range = (
            range(sum(group.n_parts() for group in groups)) if numbers is None else numbers
        )
        self.reward_class: RewardClass | None = class_of_study(study)

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> StudyPart: ...

    @overload
    def __getitem__(self, index: slice) -> PartPlan: ...

    def __getitem__(self, index: int | slice) -> StudyPart | PartPlan:
        """Return a part, or the plan of several parts."""
        if isinstance(index, slice):
            return PartPlan(self.study, self.groups, self.numbers[index])
        number = self.numbers[index]
        group = self.group_of(number)
        start = (number - group.first_part) * group.size
        draws = np.minimum(np.arange(start, start + group.size), group.n_draws - 1)
        scenario_index, seed = np.divmod(draws, self.study.seeds)
        return StudyPart(
            number=number,
            scenarios=group.scenarios,
            scenario_index=scenario_index,
            seeds=seed + self.study.first_seed,
            n_draws=min(group.size, group.n_draws - start),
            reward_class=self.reward_class,
        )

    def group_of(self, number: int) -> ShapeGroup:
        """Return the group of scenarios that a part belongs to.

        Args:
            number: number of the part.
        """
        return [group for group in self.groups if group.first_part <= number][-1]


def plan_parts(study: StudyConfig) -> PartPlan:
    """Split the draws of a study into parts.

    Args:
        study: configuration of the study.

    Returns:
        Parts in the order of the scenarios; within one shape all have the same size.

    Raises:
        ValueError: if a scenario cannot be drawn, the reward class of the study does not fit its
            shape, or a weight by the theorem's rule needs what the class does not have.

    Examples:
        >>> study = StudyConfig(
        ...     name="a", methods=["rpo"], comparisons=[9, 99], seeds=3)
        >>> [(part.n_draws, part.scenario_index.tolist()) for part in plan_parts(study)]
        [(6, [0, 0, 0, 1, 1, 1])]
    """
    groups: list[ShapeGroup] = []
    first_part = 0
    for scenarios in _group_by_shape(study):
        n_draws = len(scenarios) * study.seeds
        trial = _draw_one(scenarios[0], class_of_study(study))
        _check_weights(study, trial)
        n_counts = trial.problem.wins[0].size * len(expand_weights(study))
        size = min(n_draws, max(1, MAX_COUNTS_PER_PART // n_counts), MAX_DRAWS_PER_PART)
        size = -(-n_draws // -(-n_draws // size))  # the same number of parts, as equal as possible
        groups.append(ShapeGroup(tuple(scenarios), n_draws, size, first_part))
        first_part += groups[-1].n_parts()
    return PartPlan(study, groups)


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
    instance: Instance = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    return _with_class(instance, part.reward_class)


def class_of_study(study: StudyConfig) -> RewardClass | None:
    """Return the reward class that a study names for its methods; None for the environments' own.

    Args:
        study: configuration of the study.

    Raises:
        ValueError: if the class cannot be found or called.
    """
    return None if study.class_values is None else class_from_values(study.class_values)


def _group_by_shape(study: StudyConfig) -> list[list[Scenario]]:
    """Return groups of scenarios whose arrays have the same shapes, in order of appearance."""
    groups: dict[Any, list[Scenario]] = {}
    shapes: dict[Any, Any] = {}
    reward_class = class_of_study(study)
    for scenario in expand_scenarios(study):
        design = scenario.design
        key = scenario.environment, design.contexts, design.actions, design.reward, design.features
        if key not in shapes:
            instance = _draw_one(scenario, reward_class)
            leaves = [np.shape(leaf) for leaf in jax.tree.leaves(instance)]
            shapes[key] = type(instance.reward_class).__name__, tuple(leaves)
        groups.setdefault(shapes[key], []).append(scenario)
    return list(groups.values())


def _check_weights(study: StudyConfig, instance: Instance) -> None:
    """Refuse a rule for eta that needs a range or a covering number that the class lacks."""
    rule = next((eta for eta in study.eta if eta in ("theorem", "tight")), None)
    reward_class = jax.tree.map(lambda leaf: np.asarray(leaf)[0], instance.reward_class)
    missing = missing_for_bounds(reward_class)
    if rule is not None and missing:
        name = type(reward_class).__name__
        raise ValueError(
            f"`eta` must be numbers, got {rule!r}: {name} has no {' and no '.join(missing)}"
        )


def missing_for_bounds(reward_class: RewardClass) -> list[str]:
    """Return which of the two numbers that the bounds need a reward class does not have.

    Args:
        reward_class: class of one problem.

    Returns:
        Names out of ``reward_max`` and ``log_covering_number``.

    Examples:
        >>> from rpo_theory.rewards import TabularBox
        >>> missing_for_bounds(TabularBox(np.array(2.0)))
        []
    """
    has_range = not np.isnan(np.asarray(reward_max(reward_class), np.float64))
    has_covering = hasattr(reward_class, "log_covering_number")
    present = {"`reward_max`": has_range, "`log_covering_number`": has_covering}
    return [name for name, is_present in present.items() if not is_present]


def _draw_one(scenario: Scenario, reward_class: RewardClass | None) -> Instance:
    environment, design, comparisons = scenario
    instance = draw_environment(environment, comparisons, np.zeros(1, int), design=design)
    return _with_class(instance, reward_class)


def _with_class(instance: Instance, reward_class: RewardClass | None) -> Instance:
    """Return instances whose methods search in the given class."""
    if reward_class is None:
        return instance
    n_batch, *shape = np.shape(instance.true_reward)
    validate_reward_class(reward_class, (shape[0], shape[1]))
    batch = jax.tree.map(
        lambda leaf: np.repeat(np.asarray(leaf, np.float64)[None], n_batch, axis=0), reward_class
    )
    return instance._replace(reward_class=batch)
