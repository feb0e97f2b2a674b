"""The functions ``study`` and ``estimate_study``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpo.report.figure_files import DEFAULT_FORMAT, FigureFormat
from rpo.results import StudyEstimate, StudyKindEstimate, StudyKindResult, StudyResult
from rpo.runtime.config_files import load_config, read_kind
from rpo.runtime.errors import UsageError, user_input
from rpo.runtime.processes import ProcessGroup

if TYPE_CHECKING:
    from bandits.minimax_regret.config import MinimaxRegretConfig
    from bandits.overoptimization.config import LawsConfig
    from bandits.rounds.config import RoundsConfig
    from bandits.study.config import StudyConfig

    AnyStudy = StudyConfig | MinimaxRegretConfig | LawsConfig | RoundsConfig

PathLike = str | os.PathLike[str]
_logger = logging.getLogger(__name__)


def study(
    config: PathLike | AnyStudy,
    overrides: Mapping[str, Any] | None = None,
    *,
    quick: bool = False,
    out: PathLike | None = None,
    resume: bool = False,
    processes: ProcessGroup | None = None,
    figures: FigureFormat = DEFAULT_FORMAT,
    table: bool = False,
    part: str | None = None,
    merge: bool = False,
    scheduler: str | None = None,
) -> StudyResult | StudyKindResult:
    """Run a simulation study: every method on every combination of the axes.

    Args:
        config: YAML file or configuration. The key ``kind`` of a file selects another kind of
            study: "minimax_regret", "laws" or "rounds".
        overrides: new values by dotted key of the configuration, such as ``{"seeds": 50}``.
        quick: use the smaller sizes under the key ``quick`` of the study.
        out: folder for records, figures and the resolved configuration; ``out/NAME`` by default.
        resume: continue the study in the folder, possibly for more seeds; start it if the folder
            has no results.
        processes: the processes that share the work; by default those that JAX has connected, or
            this one alone.
        figures: formats, width and style of the figures. With ``resume`` and a finished study,
            figures and table are written again and nothing is run.
        table: whether to write the mean gaps and the paired differences from the first method,
            with their intervals, as ``table.tex``, ``table.csv`` and ``table.md``.
        part: ``"K/N"`` to compute the share of job K of N alone, into a folder of its own in
            ``out``; None for the whole study.
        merge: join the shares of all jobs in ``out``, and finish the study.
        scheduler: address of a running Dask scheduler whose workers fit the parts.

    Returns:
        Records and figures; of a job, its part files.

    Raises:
        ValueError: if the configuration is invalid, or the folder holds other results.
        OSError: if a file cannot be read or written.

    Examples:
        >>> study = api.study("configs/study_rate_in_n.yaml", {"seeds": 20})  # doctest: +SKIP
        >>> study.plot("gap_against_comparisons")  # doctest: +SKIP
    """
    from bandits.study.config import StudyConfig
    from rpo.jobs.dask_study import run_on_dask
    from rpo.jobs.studies import run_study
    from rpo.jobs.study_kinds import run_study_kind
    from rpo.jobs.study_merge import gather_shares
    from rpo.jobs.study_parts import check_sharing, run_share
    from rpo_io.outputs import local_folder

    resolved = _load_study(config, overrides, quick=quick)
    with user_input():
        folder = Path("out") / resolved.name if out is None else local_folder(out, "study")
    if not isinstance(resolved, StudyConfig):
        with user_input():
            if processes is not None and processes.num_processes > 1:
                raise ValueError(f"a study of the kind {resolved.kind} runs in one process")
            if part is not None or merge or scheduler is not None:
                raise ValueError(f"a study of the kind {resolved.kind} has no parts to share")
        return run_study_kind(resolved, folder, resume=resume, figures=figures, table=table)
    check_sharing(part=part, merge=merge, scheduler=scheduler, processes=processes)
    if part is not None:
        if table or figures != DEFAULT_FORMAT:
            option = "--table" if table else "--format, --width or --style"
            rule = "not allowed with argument --part: give it with --merge"
            raise UsageError(f"argument {option}: {rule}")
        return run_share(resolved, folder, part)
    if scheduler is not None:
        return run_on_dask(resolved, folder, scheduler, resume=resume, figures=figures, table=table)
    if merge:
        gather_shares(resolved, folder)
    return run_study(
        resolved,
        folder,
        resume=resume or merge,
        processes=processes,
        figures=figures,
        table=table,
    )


def estimate_study(
    config: PathLike | AnyStudy,
    overrides: Mapping[str, Any] | None = None,
    *,
    quick: bool = False,
) -> StudyEstimate | StudyKindEstimate:
    """Estimate the duration and the memory of a study from a few trial fits; write nothing.

    Args:
        config: YAML file or configuration.
        overrides: new values by dotted key of the configuration.
        quick: use the smaller sizes under the key ``quick`` of the study.

    Returns:
        The estimate for this machine and one process; of another kind of study than the comparison
        of methods, its cells, fits and files with the duration.

    Raises:
        ValueError: if the configuration is invalid.
        OSError: if a file cannot be read.

    Examples:
        >>> api.estimate_study("configs/study_rate_in_n.yaml").seconds  # doctest: +SKIP
    """
    from bandits.study.config import StudyConfig, count_fits
    from bandits.study.notes import study_notes
    from bandits.study.parts import plan_parts
    from bandits.study.run import estimate_run
    from rpo.jobs.kind_estimates import estimate_study_kind

    resolved = _load_study(config, overrides, quick=quick)
    with user_input():
        if not isinstance(resolved, StudyConfig):
            return estimate_study_kind(resolved)
        parts = plan_parts(resolved)
    cost = estimate_run(resolved, parts)
    return StudyEstimate(
        config=resolved,
        fits=count_fits(resolved),
        parts=len(parts),
        seconds=cost.seconds,
        bytes=cost.bytes,
        trial_fits=cost.fits,
        notes=study_notes(resolved),
    )


def _load_study(
    config: PathLike | AnyStudy, overrides: Mapping[str, Any] | None, *, quick: bool
) -> Any:
    from bandits.study.config import QuickSizes, StudyConfig, choose_kernel
    from rpo.jobs.study_kinds import config_class

    with user_input():
        is_path = isinstance(config, str | os.PathLike)
        cls = config_class(read_kind(config)) if is_path else type(config)
        study = load_config(config, cls, overrides)
        if not isinstance(study, StudyConfig):
            shorten, sizes = getattr(study, "quick_version", None), getattr(study, "quick", None)
            if quick and shorten is None:
                _logger.info("%s: --quick has no effect on a study of this kind", study.name)
            elif quick and sizes == type(sizes)():
                _logger.info("%s: --quick has no effect: the study has no key `quick`", study.name)
            return shorten() if quick and shorten else study
        if quick and study.quick == QuickSizes():
            _logger.info("%s: --quick has no effect: the study has no key `quick`", study.name)
        return choose_kernel(study.quick_version() if quick else study)
