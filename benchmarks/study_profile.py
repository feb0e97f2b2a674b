"""Time per fit of every stage of a study, in this process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from pkgutil import resolve_name
from typing import Any
from unittest import mock

from rpo import api

STAGES = {
    "drawing (a second thread)": "bandits.study.run.draw_part",
    "coverage coefficient": "bandits.study.metrics.coverage_coefficient_batch",
    "other inputs of the bounds": "bandits.study.run.compute_bound_inputs",
    "membership of the true reward": "bandits.study.run.is_member",
    "solver": "rpo_theory.minimax.solve_batch",
    "metrics of the policies": "bandits.study.run.measure_policy",
    "bounds on the gap": "bandits.study.run.gap_bounds",
    "table of records": "bandits.study.run.record_table",
    "writing of parts": "bandits.study.records.RecordStore.write_part",
    "merging of parts": "bandits.study.records.RecordStore.merge",
    "summary and figures": "rpo.jobs.studies.write_study_files",
}
"""Function of every stage. The second is called by the third, which is reported without it."""


def profile_study(config: Path, folder: Path, fits: int) -> dict[str, float]:
    """Run a study twice, and return the times of the second run.

    Args:
        config: file of the study.
        folder: output folder; what it holds is removed.
        fits: number of fits of the study.

    Returns:
        Microseconds per fit of every stage and of the whole run ("in all"), and the seconds that
        the first run took longer, mostly to compile ("first run").
    """
    first = _run(config, folder)
    seconds = dict.fromkeys(STAGES, 0.0)
    with ExitStack() as stack:
        for stage, target in STAGES.items():
            stack.enter_context(mock.patch(target, _timed(resolve_name(target), stage, seconds)))
        second = _run(config, folder)
    seconds["other inputs of the bounds"] -= seconds["coverage coefficient"]
    profile = {stage: 1e6 * elapsed / fits for stage, elapsed in seconds.items()}
    return profile | {"in all": 1e6 * second / fits, "first run": first - second}


def print_profile(profile: dict[str, float]) -> None:
    """Print a profile as a table."""
    print("microseconds per fit")
    for stage, value in profile.items():
        unit = " s longer" if stage == "first run" else ""
        print(f"{value:9.2f}{unit}  {stage}")


def _timed(
    function: Callable[..., Any], stage: str, seconds: dict[str, float]
) -> Callable[..., Any]:
    """Return a function that adds the time of its calls to a stage."""

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[stage] += time.perf_counter() - start

    return timed


def _run(config: Path, folder: Path) -> float:
    """Run the study, and return its seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    api.study(config, out=folder)
    return time.perf_counter() - start
