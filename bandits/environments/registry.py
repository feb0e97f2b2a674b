r"""Registry of environments by name: designs, named instances, votes, files and functions.

===================== ============================================================================
name                  environment
===================== ============================================================================
``design``            random bandits, see :func:`bandits.environments.designs.draw_design`
``named:INSTANCE``    an instance of :mod:`bandits.environments.instances` with its exact expected
                      counts, the same for every seed
``votes:FILE.csv``    new data from the pairs of a file of votes, labeled by the reward that fits
                      the votes best
``file:FILE.npz``     new data of a bandit in a file, see :mod:`bandits.environments.table_files`;
                      also ``.parquet``
``module:function``   bandits of a function of the user's own, see
                      :mod:`bandits.environments.user_environments`
===================== ============================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from rpo_io.user_modules import is_reference, load_object
from rpo_theory import minimax
from rpo_theory.rewards import TabularBox
from rpo_theory.types import Problem

from . import instances
from .base import Instance, baseline_policy, best_action_policy
from .designs import Design, draw_design
from .sampling import check_draw
from .table_files import read_tables
from .tables import draw_from_instances, instance_from_tables
from .user_environments import instances_from_function
from .votes import read_votes

WORST_DEFICIT = 1.2785
r"""Maximizer :math:`u` of :math:`u/(1+e^u)`: a deficit of :math:`u\beta` costs RPO the most."""

TIE_BREAKING_ETA = 1e-6
r"""Weight :math:`\eta` of the fit to votes, so small that it only decides what votes leave open."""

NAMED_INSTANCES: dict[str, Callable[[int], Instance]] = {
    "four_arms": instances.four_arms,
    "type_i_hacking": instances.type_i_hacking,
    "type_ii_hacking": instances.type_ii_hacking,
    "ghost_arm": lambda n: instances.ghost_arm(n, deficit=min(0.5, WORST_DEFICIT / math.sqrt(n))),
    "coverage_is_necessary": lambda n: instances.coverage_is_necessary(n, 0.1),
}
"""Named instances that depend on nothing but the number of comparisons."""


class Environment(NamedTuple):
    """Source of bandits with their data.

    Attributes:
        draw: draws one bandit for every seed from a design, a number of comparisons, and seeds.
        design_fields: fields of the design that it uses; None for all, so that a study combines it
            with every design.
        files: files that it reads.
        source: function of the user's own, whose file a study's fingerprint contains; else None.
    """

    draw: Callable[[Design, int, Int[np.ndarray, " B"]], Instance]
    design_fields: tuple[str, ...] | None = ()
    files: tuple[Path, ...] = ()
    source: Any = None


def find_environment(name: str) -> Environment:
    """Return the environment of a name.

    Args:
        name: see :mod:`bandits.environments.registry`.

    Returns:
        The environment.

    Raises:
        ValueError: if there is no such environment.

    Examples:
        >>> find_environment("votes:v.csv").design_fields
        ('reward_max', 'label_noise')
    """
    kind, _, rest = name.partition(":")
    if kind in KINDS:
        if bool(rest) == (kind == "design"):
            raise _unknown(name)
        return KINDS[kind](rest)
    if is_reference(name):
        try:
            function = load_object(name, "function")
        except ValueError as error:
            raise ValueError(f"`environments` {name}: {error}") from error
        if not callable(function):
            raise ValueError(f"`environments` {name} is not a function")
        return Environment(partial(_draw_from_function, function), ("label_noise",), (), function)
    raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(
        "`environments` must be 'design', 'votes:FILE.csv', 'file:FILE.npz', 'file:FILE.parquet', "
        f"'module:function', or 'named:' and one of {', '.join(NAMED_INSTANCES)}, got {name!r}"
    )


def draw_environment(
    environment: str, n_comparisons: int, seeds: Int[np.ndarray, " B"], *, design: Design
) -> Instance:
    r"""Draw an environment by its name, one bandit for every seed.

    Args:
        environment: name, see :mod:`bandits.environments.registry`.
        n_comparisons: number of comparisons :math:`N`, at least 1.
        seeds: whole numbers, at least 0.
        design: what "design" draws. Other environments use the fields of it that
            :attr:`Environment.design_fields` lists.

    Returns:
        Instances with a leading batch axis on every array.

    Raises:
        ValueError: if the name is unknown, a number is out of range, or a file or function does not
            give a bandit.
        OSError: if a file cannot be opened.

    Examples:
        >>> name = "named:type_i_hacking"
        >>> draw_environment(name, 100, np.arange(2), design=Design()).true_reward.tolist()
        [[[1.0, 0.5, 0.0]], [[1.0, 0.5, 0.0]]]
    """
    return find_environment(environment).draw(design, n_comparisons, seeds)


def _named(name: str) -> Environment:
    if name not in NAMED_INSTANCES:
        raise _unknown(f"named:{name}")

    def draw(design: Design, n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Instance:
        del design
        check_draw(n_comparisons, seeds)
        return _repeat(NAMED_INSTANCES[name](n_comparisons), len(seeds))

    return Environment(draw)


def _file(name: str) -> Environment:
    path = Path(name)

    def draw(design: Design, n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Instance:
        single = _read_instance(path, path.stat().st_mtime_ns)
        batch = _repeat(single, len(seeds))
        return draw_from_instances(batch, n_comparisons, seeds, label_noise=design.label_noise)

    return Environment(draw, ("label_noise",), (path,))


def _votes(name: str) -> Environment:
    path = Path(name)

    def draw(design: Design, n_comparisons: int, seeds: Int[np.ndarray, " B"]) -> Instance:
        fitted = _fit_votes(path, design.reward_max, path.stat().st_mtime_ns)
        batch = _repeat(fitted, len(seeds))
        return draw_from_instances(batch, n_comparisons, seeds, label_noise=design.label_noise)

    return Environment(draw, ("reward_max", "label_noise"), (path,))


KINDS: dict[str, Callable[[str], Environment]] = {
    "design": lambda _: Environment(draw_design, None),
    "named": _named,
    "votes": _votes,
    "file": _file,
}
"""Environments by what stands before the colon in their names."""


def _draw_from_function(
    function: Callable[..., Any],
    design: Design,
    n_comparisons: int,
    seeds: Int[np.ndarray, " B"],
) -> Instance:
    instances = instances_from_function(function, n_comparisons, check_draw(n_comparisons, seeds))
    return draw_from_instances(instances, n_comparisons, seeds, label_noise=design.label_noise)


@lru_cache(maxsize=8)
def _read_instance(path: Path, _modified: int) -> Instance:
    try:
        return instance_from_tables(read_tables(path))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(f"{path}:") else f"{path}: {text}") from error


@lru_cache(maxsize=8)
def _fit_votes(path: Path, reward_max: float, _modified: int) -> Instance:
    r"""Return the votes as an instance whose truth is the maximum likelihood reward in the box.

    :math:`d_0` is each context's share of the votes, :math:`\pi_{ref}` is uniform over the actions
    that occur in the context, and :math:`\pi_{base}` is the distribution of both members of a pair.
    """
    votes = read_votes(path)
    wins, reference = votes.wins, votes.reference_policy()
    problem = Problem(
        context_weights=wins.sum(axis=(1, 2)) / wins.sum(),
        reference_policy=reference,
        baseline_policy=baseline_policy("data_marginal", wins=wins, reference=reference),
        wins=wins,
        beta=np.array(1.0),
        eta=np.array(TIE_BREAKING_ETA),
    )
    reward_class = TabularBox(np.array(reward_max))
    truth = np.asarray(minimax.solve(problem, reward_class).reward)
    comparator = best_action_policy(np.where(votes.occurs, truth, -np.inf))
    return Instance(problem, reward_class, truth, comparator, wins / wins.sum())


def _repeat(instance: Instance, times: int) -> Instance:
    """Stack copies of an instance along a new leading axis."""
    return jax.tree.map(lambda leaf: np.repeat(np.asarray(leaf)[None], times, axis=0), instance)
