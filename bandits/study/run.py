"""Execution of a study: draw, fit and measure one part at a time, each method in batched calls."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from bandits.environments.base import Instance
from bandits.environments.registry import find_environment
from bandits.methods.base import FAILED, CertificateKind, FitContext, FitResult
from bandits.methods.method_config import MethodConfig, method_labels
from bandits.methods.registry import fit_method
from rpo_theory.minimax import Kernel
from rpo_theory.types import Problem

from .config import EtaBeta, Scenario, StudyConfig, choose_kernel, expand_weights
from .intervals import value_intervals
from .metrics import (
    BoundInputs,
    compute_bound_inputs,
    eta_by_rule,
    gap_bounds,
    is_member,
    measure_policy,
)
from .parts import PartPlan, StudyPart, draw_part
from .projection import gap_at_projection, project_truth
from .record_table import WeightValues, record_table
from .records import RecordStore
from .regularized_gaps import regularized_bound, regularized_gap, regularized_optimum
from .win_rates import draw_log, measure_win_rates

TRIAL_DRAWS = 256
"""Number of draws that a run estimate times. Larger batches take less time per draw, until all
cores are busy."""
ARRAYS_PER_FIT = 6
"""Approximate number of arrays of the size of the win counts that a solver holds."""


class RunEstimate(NamedTuple):
    """Estimated cost of a study on this machine.

    Attributes:
        seconds: wall time of one process.
        bytes: peak memory of the arrays.
        fits: number of trial fits that the estimate is based on.
    """

    seconds: float
    bytes: int
    fits: int


def estimate_run(study: StudyConfig, plan: PartPlan) -> RunEstimate:
    """Estimate the cost of a study from a few of its fits.

    Args:
        study: configuration of the study.
        plan: all its parts, see :func:`bandits.study.parts.plan_parts`.

    Returns:
        The estimate, extrapolated from trial fits of every array shape. Compilation is excluded.
    """
    seconds, peak_bytes, fits = 0.0, 0, 0
    n_weights = len(expand_weights(study))
    for group in plan.groups:
        part = plan[group.first_part]
        trial = part._replace(
            scenario_index=part.scenario_index[:TRIAL_DRAWS], seeds=part.seeds[:TRIAL_DRAWS]
        )
        trial = trial._replace(n_draws=len(trial.seeds))
        run_part(study, trial, draw_part(trial))  # compiles
        start = time.perf_counter()
        instance = draw_part(trial)
        run_part(study, trial, instance)
        elapsed = time.perf_counter() - start
        seconds += elapsed * group.n_draws / trial.n_draws
        fits += trial.n_draws * len(study.methods) * n_weights
        n_counts = instance.problem.wins[0].size * n_weights * group.size
        peak_bytes = max(peak_bytes, ARRAYS_PER_FIT * 8 * n_counts)
    return RunEstimate(seconds, peak_bytes, fits)


def run_parts(
    study: StudyConfig, store: RecordStore, parts: Sequence[StudyPart]
) -> Iterator[StudyPart]:
    """Run the parts that the store does not have yet.

    Args:
        study: configuration of the study.
        store: store that receives the records.
        parts: parts to run, see :func:`bandits.study.parts.plan_parts`.

    Yields:
        Every part once its records are stored: first those that were stored before.
    """
    missing = []  # indices: the parts of a large study together do not fit into memory
    for index in range(len(parts)):
        if store.has_part(parts[index].number):
            yield parts[index]
        else:
            missing.append(index)
    with ThreadPoolExecutor(1) as executor:
        # The next part is drawn while the present one is fitted.
        pending = [executor.submit(draw_part, parts[index]) for index in missing[:1]]
        for order, index in enumerate(missing):
            part, instance = parts[index], pending.pop().result()
            pending += [
                executor.submit(draw_part, parts[following])
                for following in missing[order + 1 : order + 2]
            ]
            store.write_part(part.number, *run_part(study, part, instance))
            yield part


def run_part(study: StudyConfig, part: StudyPart, instance: Instance) -> tuple[pa.Table, pa.Table]:
    """Fit every method to the data of one part, and measure the policies.

    Args:
        study: configuration of the study.
        part: one of its parts.
        instance: the bandits and data of the part, see :func:`bandits.study.parts.draw_part`.

    Returns:
        The records, one row per fit, and the timings, one row per method.
    """
    start = time.perf_counter()
    comparisons = np.array(
        [part.scenarios[index].comparisons for index in part.scenario_index], np.float64
    )
    inputs = compute_bound_inputs(instance, comparisons, study.delta, _kernel(study))
    noise = np.array([_label_noise(scenario) for scenario in part.scenarios])[part.scenario_index]
    realizable = is_member(instance) & (noise == 0.0)
    projected = project_truth(
        instance, inputs, ~realizable, label_noise=noise, kernel=_kernel(study)
    )
    weights = expand_weights(study)
    values = [_weight_values(instance, inputs, comparisons, pair) for pair in weights]
    has_bounds = any(method.record.bound for method in study.method_configs)
    optima = [
        regularized_optimum(
            instance, pair.beta, covered=realizable & has_bounds, kernel=_kernel(study)
        )
        for pair in values[: len(study.beta)]
    ]
    seconds = {"bound_inputs": time.perf_counter() - start}
    log = draw_log(instance, part.seeds, comparisons, noise) if study.win_rates else None
    tables = []
    labels = method_labels(study.method_configs)
    for method_index, method in enumerate(study.method_configs):
        start = time.perf_counter()
        results = _fit(study, method, instance, values, part.seeds)
        seconds[labels[method_index]] = time.perf_counter() - start
        for index, result in enumerate(results):
            pair_values, optimum = values[index], optima[index % len(optima)]
            measured = measure_policy(result, instance) | {
                "gap_regularized": regularized_gap(
                    result.policy, optimum, instance.problem.context_weights
                ),
                "gap_projected": gap_at_projection(result.policy, instance, projected),
                "coverage_projected": projected.inputs.coverage,
                "projection_shift": projected.shift,
            }
            if log is not None:
                measured |= measure_win_rates(result, instance, log, noise)
            if study.intervals is not None:
                measured |= value_intervals(
                    result.policy, instance, part.seeds, confidence=study.intervals
                )
            if method.record.bound and getattr(method.options, "baseline", "given") == "given":
                is_bounded = getattr(method.options, "rewards", "given") != "unbounded"
                is_bounded = is_bounded and not method.options.sets_eta()
                terms = {"comparisons": comparisons, **pair_values._asdict()}
                measured |= gap_bounds(inputs, valid=realizable & is_bounded, **terms)
                at_projection = gap_bounds(
                    projected.inputs, valid=~realizable & is_bounded, **terms
                )
                measured["bound_projected"] = at_projection["bound"]
                if is_bounded:
                    measured["bound_regularized"] = regularized_bound(
                        optimum, inputs, comparisons=comparisons, eta=pair_values.eta
                    )
            failed = result.status == FAILED
            measured = {name: np.where(failed, np.nan, column) for name, column in measured.items()}
            tables.append(
                record_table(
                    study, part, method_index, weights[index], pair_values, inputs, measured, result
                )
            )
    fits = [part.n_draws * (1 if name == "bound_inputs" else len(weights)) for name in seconds]
    timings = pa.table(
        {
            "part": [part.number] * len(seconds),
            "what": list(seconds),
            "fits": fits,
            "seconds": list(seconds.values()),
        }
    )
    return pa.concat_tables(tables), timings


def _label_noise(scenario: Scenario) -> float:
    """Return the probability of a flipped label; not every environment flips any."""
    fields = find_environment(scenario.environment).design_fields
    return scenario.design.label_noise if fields is None or "label_noise" in fields else 0.0


def _weight_values(
    instance: Instance, inputs: BoundInputs, comparisons: Float[np.ndarray, " B"], weights: EtaBeta
) -> WeightValues:
    """Return the numbers that a pair of weights stands for, one per draw."""
    eta, beta = weights
    match eta:
        case "theorem" | "tight":
            etas = eta_by_rule(inputs, comparisons, eta)
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
    return WeightValues(etas, betas)


def _fit(
    study: StudyConfig,
    method: MethodConfig,
    instance: Instance,
    values: Sequence[WeightValues],
    seeds: Int[np.ndarray, " B"],
) -> list[FitResult]:
    """Fit the method for every (eta, beta) pair, in the order of ``expand_weights``.

    Pairs that differ only in a weight the method ignores share one fit. All fits are one call.
    """
    n_beta = len(study.beta)
    ignores_eta = not method.record.uses_eta or method.options.sets_eta()
    representatives = []  # for every pair, the index of the pair whose fit it shares
    for index in range(len(values)):
        eta_index, beta_index = divmod(index, n_beta)
        eta_index = 0 if ignores_eta else eta_index
        beta_index = beta_index if method.record.uses_beta else 0
        representatives.append(eta_index * n_beta + beta_index)
    fitted = sorted(set(representatives))

    def repeat(leaf: Any) -> np.ndarray:
        return np.concatenate([np.asarray(leaf)] * len(fitted))

    problem: Problem = jax.tree.map(repeat, instance.problem)
    problem = problem._replace(
        eta=np.concatenate([values[index].eta for index in fitted]),
        beta=np.concatenate([values[index].beta for index in fitted]),
    )
    reward_class = jax.tree.map(repeat, instance.reward_class)
    context = FitContext(_kernel(study), np.concatenate([seeds] * len(fitted)))
    results = fit_method(method.record, problem, reward_class, method.options, context)
    n_draws = len(values[0].eta)

    def result_of_pair(index: int) -> FitResult:
        start = fitted.index(representatives[index]) * n_draws
        kind: CertificateKind = results.certificate_kind
        arrays = {
            name: getattr(results, name)[start : start + n_draws]
            for name in ("policy", "reward", "certificate", "status")
        }
        messages = results.messages and results.messages[start : start + n_draws]
        return FitResult(**arrays, certificate_kind=kind, messages=messages)

    return [result_of_pair(index) for index in range(len(values))]


def _kernel(study: StudyConfig) -> Kernel:
    return cast("Kernel", choose_kernel(study).kernel)
