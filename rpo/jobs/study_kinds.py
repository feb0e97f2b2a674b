"""Kinds of studies beside the comparison of methods: what they write, and how they are run.

A study's YAML file names its kind by the key ``kind``. Each of these runs in one process within
minutes. The kinds "laws" and "rounds" continue after an interruption.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bandits.methods.method_config import MethodConfig
from bandits.steps import KeepStep
from bandits.study.inputs import code_and_file_digests
from rpo.report.figure_files import FigureFormat, write_figure
from rpo.report.kind_tables import (
    laws_captions,
    laws_table,
    minimax_captions,
    minimax_table,
    rounds_captions,
    rounds_table,
)
from rpo.report.tables import CaptionedTable, write_captions, write_tables
from rpo.results import StudyKindResult
from rpo.runtime.config_files import to_yaml
from rpo.runtime.errors import user_input
from rpo_io.atomic import atomic_file, write_atomic
from rpo_io.config_types import to_plain
from rpo_io.folders import name_os_errors
from rpo_io.outputs import output_folder
from rpo_io.strict_json import format_document, null_non_finite

from .kind_steps import StepStore

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

    from bandits.minimax_regret.config import MinimaxRegretConfig
    from bandits.overoptimization.config import LawsConfig
    from bandits.rounds.config import RoundsConfig

_logger = logging.getLogger(__name__)


class KindOutput(NamedTuple):
    """What a study of some kind found.

    Attributes:
        outcome: what the function of ``bandits`` returned.
        tables: tables by file name.
        rows: rows of the summary, one mapping each.
        findings: lines for the log.
        figures: functions that draw into an empty figure, by file name without its ending.
        captions: captions of the figures, by the same names.
        table: table for a paper; None if the study has no means to list.
    """

    outcome: Any
    tables: Mapping[str, pa.Table]
    rows: list[dict[str, Any]]
    findings: list[str]
    figures: Mapping[str, Callable[[Figure], Any]]
    captions: Mapping[str, str]
    table: CaptionedTable | None


class StudyKind(NamedTuple):
    """A kind of study.

    Attributes:
        load_config: returns the class of its configuration.
        run: runs a study, given a function that keeps the tables of its steps.
    """

    load_config: Callable[[], type]
    run: Callable[[Any, KeepStep], KindOutput]


def run_study_kind(
    config: Any, folder: Path, *, resume: bool, figures: FigureFormat, table: bool
) -> StudyKindResult:
    """Run a study of a kind of its own, and write its tables, summary and figures.

    Args:
        config: the configuration, of a class of :data:`KINDS`.
        folder: output folder.
        resume: continue a study that was begun in the folder; run a finished one again.
        figures: formats, width and style of the figures.
        table: whether to write a table for a paper.

    Returns:
        The result.

    Raises:
        ValueError: if the folder holds other results, or results and ``resume`` is false.
    """
    with name_os_errors(folder), user_input(), output_folder(folder, "study"):
        _check_folder(folder, config, resume=resume)
        for note in _unused_keys(config):
            _logger.info("note: %s", note)
        steps = StepStore(folder, _plain(config), _input_digests(config))
        steps.check(resume=resume)
        output = KINDS[config.kind].run(config, steps.keep)
        write_atomic(folder / "config.yaml", to_yaml(config))
        result = _write(folder, config, output, figures, table=table)
        steps.remove()
        return result


def _check_folder(folder: Path, config: Any, *, resume: bool) -> None:
    path = folder / "summary.json"
    if not path.is_file():
        return
    if not resume:
        rule = "results of a study are there already: run it again with --resume"
        raise ValueError(f"{folder}: {rule}, or choose another --out")
    stored = json.loads(path.read_text(encoding="utf-8")).get("config")
    if stored != _plain(config):
        raise ValueError(f"{folder}: holds results of another study: choose another --out")


def _unused_keys(config: Any) -> list[str]:
    """Return a note for every key that is given, and that no method or environment uses."""
    from bandits.environments.designs import Design
    from bandits.environments.registry import find_environment
    from bandits.methods.registry import find_method

    if config.kind == "minimax_regret":  # its methods have weights of their own
        return []
    records = [find_method(getattr(item, "method", item)) for item in config.methods]
    uses_eta = any(record.uses_eta for record in records)
    unused = [] if uses_eta else ["eta", "eta_rule"]
    if "best_of_n" not in [record.name for record in records]:
        unused.append("best_of_n")
    if not any(hasattr(record.options(), "baseline") for record in records):
        unused.append("baseline")
    default = type(config)(**{name: getattr(config, name) for name in _REQUIRED[config.kind]})
    notes = [
        f"`{name}` has no effect: no method of the study uses it."
        for name in unused
        if getattr(config, name, None) != getattr(default, name, None)
    ]
    if config.kind == "rounds":
        used = find_environment(config.environment).design_fields
        notes += [
            f"`design.{item.name}` has no effect: the environment does not use it."
            for item in dataclasses.fields(Design)
            if used is not None
            and item.name not in used
            and getattr(config.design, item.name) != item.default
        ]
    return notes


_REQUIRED = {
    "laws": ("name", "methods", "comparisons", "seeds"),
    "rounds": ("name", "methods", "rounds", "seeds"),
}
"""Keys without a default value."""


def _input_digests(config: Any) -> dict[str, str]:
    """Return the digests of the files and sources that a study in steps reads."""
    design = getattr(config, "design", {})
    features = design.get("features_file") if isinstance(design, dict) else design.features_file
    methods = [method for method in config.methods if isinstance(method, MethodConfig)]
    environment = getattr(config, "environment", "design")
    return code_and_file_digests(
        environments=[environment], features_files=[features], methods=methods
    )


def _plain(config: Any) -> Any:
    """Return a configuration as JSON gives it back."""
    return json.loads(json.dumps(to_plain(config)))


def _write(
    folder: Path, config: Any, output: KindOutput, figures: FigureFormat, *, table: bool
) -> StudyKindResult:
    import pyarrow.parquet as pq

    files = []
    for name, records in output.tables.items():
        with atomic_file(folder / name, durable=True) as part:
            pq.write_table(_null_for_nan(records), part, compression="zstd")
        files.append(name)
    rows = [dict(zip(row, null_non_finite(list(row.values())), strict=True)) for row in output.rows]
    document = {"study": config.name, "kind": config.kind, "config": _plain(config), "rows": rows}
    write_atomic(folder / "summary.json", format_document(document).encode())
    files += ["summary.json", "config.yaml"]
    for name, draw in output.figures.items():
        files += write_figure(draw, folder, name, figures)
    captions = dict(output.captions)
    if table and output.table is not None:
        captions["table"] = output.table.caption
        files += write_tables({"": output.table}, folder, name=config.name)
    files.append(write_captions(captions, folder))
    for line in output.findings:
        _logger.info("%s", line)
    _logger.info("written to %s: %s", folder, ", ".join(files))
    return StudyKindResult(config.name, config.kind, folder, tuple(files), output.outcome)


def _null_for_nan(table: pa.Table) -> pa.Table:
    """Return a table in which NaN is null, as in the records of other studies."""
    import pyarrow as pa

    for index, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            numbers = pa.array(table.column(index).to_numpy(), from_pandas=True)
            table = table.set_column(index, field.name, numbers)
    return table.combine_chunks()


def _run_minimax_regret(config: MinimaxRegretConfig, keep: KeepStep) -> KindOutput:
    from bandits.minimax_regret.plots import draw_minimax_figure
    from bandits.minimax_regret.run import run_minimax_regret

    del keep  # it takes seconds
    result = run_minimax_regret(config)
    columns = ("label", "comparisons", "eta", "worst_case_regret", "minimax_regret", "ratio")
    rows = result.records.select(list(columns)).to_pylist()
    findings = ["worst-case regret, and its ratio to the minimax regret"]
    findings += [
        f"  N = {row['comparisons']:<6,} {row['label']:36s} {row['worst_case_regret']:.4f}"
        f"  {row['ratio'] or float('nan'):6.2f}"
        for row in rows
    ]
    figures = _figures(draw_minimax_figure, result)
    tables = {"records.parquet": result.records, "optima.parquet": result.optima}
    captions = minimax_captions(tuple(figures))
    return KindOutput(result, tables, rows, findings, figures, captions, minimax_table(result))


def _figures(draw: Callable[..., Any], result: Any) -> dict[str, Callable[[Figure], Any]]:
    """Return a function that draws into an empty figure, for each figure of a result."""

    def drawing(kind: str) -> Callable[[Figure], Any]:
        return lambda figure: draw(result, kind, figure)

    return {kind: drawing(kind) for kind in result.figure_kinds}


def _run_laws(config: LawsConfig, keep: KeepStep) -> KindOutput:
    from bandits.overoptimization.figures import draw_laws_figure
    from bandits.overoptimization.run import run_laws

    result = run_laws(config, keep=keep)
    rows = result.fits.to_pylist()
    findings = ["coefficients of the laws, with their intervals"]
    findings += [
        f"  {row['reward_class']}, N = {row['comparisons']:,}, {row['method']}"
        f"{_eta(row['eta'])}: alpha {row['alpha']:.3f}"
        f" ({row['alpha_low']:.3f} to {row['alpha_high']:.3f}), gamma {row['gamma']:.3f}"
        f" ({row['gamma_low']:.3f} to {row['gamma_high']:.3f})"
        for row in rows
    ]
    figures = _figures(draw_laws_figure, result)
    tables = {"records.parquet": result.records, "fits.parquet": result.fits}
    captions = laws_captions(tuple(figures), config.seeds, config.confidence)
    return KindOutput(result, tables, rows, findings, figures, captions, laws_table(result))


def _eta(eta: float) -> str:
    return "" if isnan(eta) else f" (eta {eta:g})"


def _run_rounds(config: RoundsConfig, keep: KeepStep) -> KindOutput:
    from bandits.rounds.plots import draw_rounds_figure
    from bandits.rounds.run import run_rounds

    result = run_rounds(config, keep=keep)
    rows = [growth._asdict() for growth in result.growth]
    findings = [f"cumulative regret after {config.rounds:,} rounds, and the slope of its logarithm"]
    findings += [
        f"  {row['label']:28s} {row['final']:10.3f}  {row['slope']:.2f}"
        f" ({row['low']:.2f} to {row['high']:.2f})"
        for row in rows
    ]
    figures = _figures(draw_rounds_figure, result)
    captions = rounds_captions(tuple(figures), config.seeds)
    tables = {"records.parquet": result.records}
    return KindOutput(result, tables, rows, findings, figures, captions, rounds_table(result))


def _minimax_regret_config() -> type:
    from bandits.minimax_regret.config import MinimaxRegretConfig

    return MinimaxRegretConfig


def _laws_config() -> type:
    from bandits.overoptimization.config import LawsConfig

    return LawsConfig


def _rounds_config() -> type:
    from bandits.rounds.config import RoundsConfig

    return RoundsConfig


KINDS = {
    "minimax_regret": StudyKind(_minimax_regret_config, _run_minimax_regret),
    "laws": StudyKind(_laws_config, _run_laws),
    "rounds": StudyKind(_rounds_config, _run_rounds),
}
"""Kinds of studies by the key ``kind`` of their files; without it, a study compares methods."""


def config_class(kind: Any) -> type:
    """Return the class of the configuration of a kind of study.

    Args:
        kind: value of the key ``kind``; None for the comparison of methods.

    Raises:
        ValueError: if there is no such kind.

    Examples:
        >>> config_class("rounds").__name__
        'RoundsConfig'
    """
    from bandits.study.config import StudyConfig

    if kind is None:
        return StudyConfig
    if kind not in KINDS:
        names = ", ".join(KINDS)
        raise ValueError(f"`kind` must be one of {names}, or be left out, got {kind!r}")
    return KINDS[kind].load_config()
