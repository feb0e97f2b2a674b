r"""Run a study: draw, learn and measure in batches, a part of the grid at a time.

A part is a slice of the list of all draws of one shape, cells and seeds together; every method
answers all of a part, at all its weights, in one batched call. What a part holds follows from the
configuration alone, so that its records do not depend on devices, processes or interruptions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from bandits.environments.random import Instance
from bandits.environments.registry import draw_environment
from bandits.methods.base import CertificateKind, FitResult
from bandits.methods.registry import METHODS
from rpo_theory.types import Problem, Status

from .config import (
    METHODS_WITHOUT_BETA,
    METHODS_WITHOUT_ETA,
    MethodConfig,
    Scenario,
    StudyConfig,
    WeightRule,
    design_axes,
    expand_scenarios,
    method_labels,
)
from .metrics import BoundInputs, compute_bound_inputs, eta_by_rule, gap_bounds, measure_policy
from .records import RecordStore, TableBuilder

MAX_ENTRIES_PER_PART = 4_000_000
"""Entries of win counts in a part, over all its weights: they bound the memory."""
MAX_DRAWS_PER_PART = 20_000
"""Draws of a part at most: what is drawn in NumPy is not counted above."""
TRIAL_DRAWS = 256
"""Draws by which the time of a study is estimated: more are faster each, until all cores work."""
ARRAYS_PER_SOLVE = 6
"""Arrays of the size of the win counts that a solver holds, about."""
BOUNDED = ("rpo", "rpo_maximin", "rpo_policy")
"""Methods that the theorem is about."""
KINDS = get_args(CertificateKind)
BOUNDS = (
    "bound",
    "bound_tight",
    "bound_printed",
    "bound_coverage",
    "bound_complexity",
    "bound_kl",
)


class StudyPart(NamedTuple):
    """A slice of the draws of one shape.

    Attributes:
        number: place among the parts of a study.
        cells: cells of what is drawn.
        cell: which of them each draw is of, ascending.
        seeds: seed of each draw.
        length: draws that count; the others fill the part up to the common length.
    """

    number: int
    cells: tuple[Scenario, ...]
    cell: Int[np.ndarray, " B"]
    seeds: Int[np.ndarray, " B"]
    length: int


class EtaBeta(NamedTuple):
    """A combination of weights, as the study names them."""

    eta: float | WeightRule
    beta: float | WeightRule


def plan_parts(study: StudyConfig) -> list[StudyPart]:
    """Cut a study into parts.

    Args:
        study: the study.

    Returns:
        Parts, all of one shape of the same length.

    Examples:
        >>> from bandits.study.config import Method
        >>> one = StudyConfig(name="a", methods=[MethodConfig(method="rpo")], comparisons=[9, 99], seeds=5)
        >>> [(part.length, part.cell.tolist()) for part in plan_parts(one)]
        [(10, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])]
    """
    parts: list[StudyPart] = []
    for cells in _by_shape(study):
        n_draws = len(cells) * study.seeds
        shape = _one(cells[0])
        entries = shape.problem.wins[0].size * len(study.eta) * len(study.beta)
        size = min(n_draws, max(1, MAX_ENTRIES_PER_PART // entries), MAX_DRAWS_PER_PART)
        size = -(-n_draws // -(-n_draws // size))  # parts as equal as they can be
        for start in range(0, n_draws, size):
            place = np.minimum(np.arange(start, start + size), n_draws - 1)
            cell, seed = np.divmod(place, study.seeds)
            length = min(size, n_draws - start)
            parts.append(StudyPart(len(parts), tuple(cells), cell, seed + study.first_seed, length))
    return parts


def count_fits(study: StudyConfig) -> int:
    """How many policies a study learns: methods times weights times draws."""
    return len(expand_scenarios(study)) * study.seeds * len(study.methods) * len(_weights(study))


class CostEstimate(NamedTuple):
    """What a study is expected to take.

    Attributes:
        seconds: on this machine, by one process.
        bytes: at the fullest, of arrays.
        fits: that were made to find out.
    """

    seconds: float
    bytes: int
    fits: int


def estimate_cost(study: StudyConfig, parts: Sequence[StudyPart]) -> CostEstimate:
    """What a study will take, by a few of its fits.

    Args:
        study: the study.
        parts: of :func:`plan_parts`.

    Returns:
        The cost; the first of every shape, which is compiled, is not counted.
    """
    seconds, most, fits = 0.0, 0, 0
    for part in {part.cells: part for part in parts}.values():
        few = part._replace(cell=part.cell[:TRIAL_DRAWS], seeds=part.seeds[:TRIAL_DRAWS])
        few = few._replace(length=len(few.cell))
        run_part(study, few, draw_part(few))  # compiles
        start = time.perf_counter()
        instance = draw_part(few)
        run_part(study, few, instance)
        took = time.perf_counter() - start
        draws_of_shape = sum(other.length for other in parts if other.cells == part.cells)
        seconds += took * draws_of_shape / few.length
        fits += few.length * len(study.methods) * len(_weights(study))
        entries = instance.problem.wins[0].size * len(_weights(study)) * part.length
        most = max(most, ARRAYS_PER_SOLVE * 8 * entries)
    return CostEstimate(seconds, most, fits)


def run_parts(
    study: StudyConfig, store: RecordStore, parts: Sequence[StudyPart]
) -> Iterator[StudyPart]:
    """Run the parts that the store does not have yet.

    Args:
        study: the study.
        store: where records go.
        parts: which, of :func:`plan_parts`.

    Yields:
        Every part when its records are there.
    """
    missing = [part for part in parts if not store.has_part(part.number)]
    yield from (part for part in parts if store.has_part(part.number))
    with ThreadPoolExecutor(1) as ahead:
        # While a part is solved, the next one is drawn.
        upcoming = [ahead.submit(draw_part, part) for part in missing[:1]]
        for place, part in enumerate(missing):
            instance = upcoming.pop().result()
            upcoming += [ahead.submit(draw_part, other) for other in missing[place + 1 : place + 2]]
            store.write_part(part.number, *run_part(study, part, instance))
            yield part


def run_part(study: StudyConfig, part: StudyPart, instance: Instance) -> tuple[pa.Table, pa.Table]:
    """Learn and measure one part.

    Args:
        study: the study.
        part: of :func:`plan_parts`.
        instance: what :func:`draw_part` drew.

    Returns:
        Its records, a row a fit, and what each method took.
    """
    start = time.perf_counter()
    comparisons = np.array([part.cells[cell].comparisons for cell in part.cell], np.float64)
    setting = compute_bound_inputs(instance, comparisons, study.delta)
    every = [_weighted(instance, setting, comparisons, each) for each in _weights(study)]
    seconds = {"setting": time.perf_counter() - start}
    tables = []
    for place, method in enumerate(study.methods):
        start = time.perf_counter()
        learned = _learn(study, method, instance, every)
        seconds[method_labels(study)[place]] = time.perf_counter() - start
        for weights, (eta, beta), answer in zip(_weights(study), every, learned, strict=True):
            measured = measure_policy(answer, instance)
            if method.method in BOUNDED and method.options.baseline == "given":
                measured |= gap_bounds(setting, comparisons=comparisons, eta=eta, beta=beta)
            tables.append(
                _records(study, part, place, weights, (eta, beta), setting, measured, answer)
            )
    fits = {name: part.length * (1 if name == "setting" else len(every)) for name in seconds}
    timings = pa.table(
        {
            "part": [part.number] * len(seconds),
            "what": list(seconds),
            "fits": list(fits.values()),
            "seconds": list(seconds.values()),
        }
    )
    return pa.concat_tables(tables), timings


def draw_part(part: StudyPart) -> Instance:
    """Draw the instances of a part.

    Args:
        part: of :func:`plan_parts`.

    Returns:
        Instances with a leading batch axis.
    """
    drawn = []
    for cell in np.unique(part.cell):
        environment, design, comparisons = part.cells[cell]
        seeds = part.seeds[part.cell == cell]
        drawn.append(draw_environment(environment, comparisons, seeds, design=design))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *drawn)


def _by_shape(study: StudyConfig) -> list[list[Scenario]]:
    """Cells whose arrays have the same shapes, in the order of the first of them."""
    groups: dict[Any, list[Scenario]] = {}
    shapes: dict[Any, Any] = {}
    for cell in expand_scenarios(study):
        design = cell.design
        key = cell.environment, design.contexts, design.actions, design.reward, design.features
        if key not in shapes:
            one = _one(cell)
            leaves = [np.shape(leaf) for leaf in jax.tree.leaves(one)]
            shapes[key] = type(one.reward_class).__name__, tuple(leaves)
        groups.setdefault(shapes[key], []).append(cell)
    return list(groups.values())


def _one(cell: Scenario) -> Instance:
    environment, design, comparisons = cell
    return draw_environment(environment, comparisons, np.zeros(1, int), design=design)


def _weights(study: StudyConfig) -> list[EtaBeta]:
    return [EtaBeta(eta, beta) for eta in study.eta for beta in study.beta]


def _weighted(
    instance: Instance, setting: BoundInputs, comparisons: Float[np.ndarray, " B"], weights: EtaBeta
) -> tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]:
    """Numbers that the weights of a study stand for, draw by draw."""
    eta, beta = weights
    match eta:
        case "theorem" | "tight":
            etas = eta_by_rule(setting, comparisons, eta)
        case "given":
            etas = np.asarray(instance.problem.eta)
        case number:
            etas = np.full(len(comparisons), float(number))
    match beta:
        case "theorem" | "tight":
            betas = comparisons**-0.5
        case "given":
            betas = np.asarray(instance.problem.beta)
        case number:
            betas = np.full(len(comparisons), float(number))
    return etas, betas


def _learn(
    study: StudyConfig,
    method: MethodConfig,
    instance: Instance,
    every: Sequence[tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]]],
) -> list[FitResult]:
    """Answers at all weights, in one call over those that the method can tell apart."""
    n_beta = len(study.beta)
    standing = []
    for place in range(len(every)):
        eta, beta = divmod(place, n_beta)
        eta = 0 if method.method in METHODS_WITHOUT_ETA else eta
        beta = 0 if method.method in METHODS_WITHOUT_BETA else beta
        standing.append(eta * n_beta + beta)
    told_apart = sorted(set(standing))

    def repeated(leaf: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf)] * len(told_apart))

    problem: Problem = jax.tree.map(repeated, instance.problem)
    problem = problem._replace(
        eta=np.concatenate([every[place][0] for place in told_apart]),
        beta=np.concatenate([every[place][1] for place in told_apart]),
    )
    reward_class = jax.tree.map(repeated, instance.reward_class)
    together = METHODS[method.method](problem, reward_class, method.options)
    n = len(every[0][0])

    def answer(place: int) -> FitResult:
        start = told_apart.index(standing[place]) * n
        kind: CertificateKind = together.certificate_kind
        arrays = {
            name: getattr(together, name)[start : start + n]
            for name in ("policy", "reward", "certificate", "status")
        }
        return FitResult(**arrays, certificate_kind=kind)

    return [answer(place) for place in range(len(every))]


def _records(
    study: StudyConfig,
    part: StudyPart,
    place: int,
    weights: EtaBeta,
    numbers: tuple[Float[np.ndarray, " B"], Float[np.ndarray, " B"]],
    setting: BoundInputs,
    measured: dict[str, Float[np.ndarray, " B"]],
    answer: FitResult,
) -> pa.Table:
    """Rows of one method at one combination of weights."""
    kept = slice(part.length)
    columns = TableBuilder(part.length)
    columns.words("method", np.array(place), [each.method for each in study.methods])
    columns.words("label", np.array(place), method_labels(study))
    cells = part.cell[kept]
    environments = [cell.environment for cell in part.cells]
    code = np.array([study.environments.index(name) for name in environments])
    columns.words("environment", code[cells], study.environments)
    columns.numbers("comparisons", np.array([cell.comparisons for cell in part.cells])[cells])
    for name, rule, rules, value in zip(
        ("eta", "beta"), weights, (study.eta, study.beta), numbers, strict=True
    ):
        columns.words(f"{name}_rule", np.array(rules.index(rule)), [str(each) for each in rules])
        columns.numbers(name, value[kept])
    columns.numbers("seed", part.seeds[kept])
    for axis in (
        "target_coverage",
        *(name for name in design_axes(study) if name != "target_coverage"),
    ):
        _design_column(columns, axis, part.cells, cells)
    unknown = dict.fromkeys(BOUNDS, np.full(len(part.cell), np.nan))
    for name, values in (unknown | setting._asdict() | measured).items():
        columns.numbers(name, values[kept])
    columns.numbers("certificate", answer.certificate[kept])
    columns.words("certificate_kind", np.array(KINDS.index(answer.certificate_kind)), KINDS)
    codes = [status.value for status in Status]
    columns.words(
        "status",
        np.array([codes.index(code) for code in answer.status[kept]]),
        [status.name for status in Status],
    )
    return columns.table()


def _design_column(
    columns: TableBuilder, axis: str, drawn: Sequence[Scenario], cells: Int[np.ndarray, " B"]
) -> None:
    """A field of the design as a column; null for what was not drawn from a design."""
    values = [
        getattr(cell.design, axis) if cell.environment == "design" else None for cell in drawn
    ]
    words = sorted({value for value in values if isinstance(value, str)})
    if words:
        code = np.array([words.index(value) if value in words else -1 for value in values])
        columns.words(f"design.{axis}", code[cells], words)
    else:
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
        columns.numbers(f"design.{axis}", numbers[cells])


def resolved_config(study: StudyConfig) -> dict[str, Any]:
    """A study as plain values, for its files."""
    return dataclasses.asdict(study)
