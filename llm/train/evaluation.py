"""Metrics of held-out pairs under the current policy of a run."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import numpy as np

from llm.config import ObjectiveConstants
from llm.data.pair_table import PairTable
from llm.evaluation.metrics import add_metric_sums, finalize_metrics
from llm.parallel.mesh import on_host
from llm.types import Batch

from .diagnostics import NonFiniteError, name_rows
from .objective import chosen_log_ratio_quantiles, whole_batch_sums
from .row_locations import shown_sources
from .run import Run


def measure_pairs(
    run: Run,
    pairs: PairTable,
    with_reference: Callable[[Batch], Batch],
    constants: ObjectiveConstants | None,
    is_stop_requested: Callable[[], bool],
) -> dict[str, float] | None:
    """Measure pairs under the current policy.

    Args:
        run: the run.
        pairs: held-out pairs.
        with_reference: adds reference log-probabilities to a batch, or returns it as it is.
        constants: scheduled constants of the objective; None if they are constant.
        is_stop_requested: asked before every batch.

    Returns:
        Metrics by name, without the prefix of an evaluation; empty without pairs. None if the run
        was asked to stop meanwhile.

    Raises:
        NonFiniteError: if a log-probability of the policy is not finite.

    Examples:
        >>> measure_pairs(run, pairs, lambda batch: batch, None, lambda: False)  # doctest: +SKIP
    """
    objective, sums, scored = run.config.objective, None, []
    for batch in run.batches_in_order(pairs):
        if is_stop_requested():
            return None
        batch = with_reference(batch)
        more, log_probs = run.evaluation_step(
            run.state.trainable, run.frozen, run.put_on_devices(batch), constants
        )
        sums = more if sums is None else add_metric_sums(sums, more)
        present, log_probs = np.asarray(batch.present), on_host(log_probs)
        flags = present & ~np.isfinite(log_probs).all(axis=-1)
        if flags.any():
            raise NonFiniteError(f"not finite in {_name_held_out(run, batch, flags)}")
        scored.append((batch, log_probs))
    if sums is None:
        return {}
    if objective.needs_global_batch:
        sums |= whole_batch_sums(objective, scored, constants)
    means = finalize_metrics(objective, sums, constants)
    metrics = {name: float(on_host(value)) for name, value in means.items()}
    if objective.needs_reference:
        metrics |= chosen_log_ratio_quantiles(scored)
    return metrics


def _name_held_out(run: Run, batch: Batch, flags: np.ndarray) -> str:
    """Name rows by their numbers in their own file."""
    data = run.config.data
    if data.eval is None:
        return f"{name_rows(batch, flags)} of {shown_sources(data.train_sources)}"
    rows = name_rows(batch, flags, run.data.report["rows"])
    return f"{rows} of {shown_sources(list(chain(*data.evaluation_sources.values())))}"
