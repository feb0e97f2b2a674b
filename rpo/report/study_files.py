"""Summary, figures and findings of a study, from its records."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.report.figure_files import FigureFormat, write_figure
from rpo.report.study_captions import (
    difference_caption,
    difference_table,
    figure_caption,
    gap_table,
    table_caption,
)
from rpo.report.tables import CaptionedTable, write_captions, write_tables
from rpo.results import StudyResult
from rpo_io.strict_json import null_non_finite

if TYPE_CHECKING:
    from bandits.study.config import StudyConfig
    from bandits.study.records import RecordStore

_logger = logging.getLogger(__name__)


def write_study_files(
    study: StudyConfig, store: RecordStore, figures: FigureFormat, *, table: bool
) -> StudyResult:
    """Write summary, figures and captions of a finished study, and log what was found.

    Args:
        study: the configuration.
        store: the merged records.
        figures: formats, width and style of the figures.
        table: whether to write a table of the mean gaps and of their paired differences.

    Returns:
        The result of the study.
    """
    from bandits.study.failures import FAILURE_COLUMNS, count_failures
    from bandits.study.figures import draw_figure, figure_kinds
    from bandits.study.paired import is_paired_column, paired_differences
    from bandits.study.summary import count_violations, is_summary_column, summarize
    from bandits.study.summary_queries import labels, without_labels
    from rpo_io.atomic import write_atomic
    from rpo_io.strict_json import format_document

    summary = summarize(store.iter_tables(is_summary_column))
    violations = count_violations(store.iter_tables(is_summary_column))
    failures = count_failures(store.iter_tables(lambda name: name in FAILURE_COLUMNS))
    first, *others = labels(summary)
    paired = paired_differences(store.iter_tables(is_paired_column), first, others)
    document = {
        "study": study.name,
        "bounds": violations,
        "failures": failures,
        "cells": summary_rows(summary),
        "paired": {"first": first, "cells": summary_rows(paired)},
    }
    write_atomic(store.folder / "summary.json", format_document(document).encode())
    files = ["records.parquet", "summary.json", "config.yaml"]
    left_out = [row["label"] for row in failures]
    drawn = without_labels(summary, left_out)
    kinds = figure_kinds(drawn) if len(drawn["label"]) else ()
    for kind in kinds:
        files += write_figure(partial(draw_figure, drawn, kind), store.folder, kind, figures)
    captions = {kind: figure_caption(drawn, kind, left_out) for kind in kinds}
    if table and len(drawn["label"]):
        tables = {"": CaptionedTable(gap_table(drawn), table_caption(drawn, left_out))}
        if paired and others and first not in left_out:
            differences = difference_table(drawn, paired, first)
            caption = difference_caption(without_labels(paired, left_out), first, left_out)
            tables["differences"] = CaptionedTable(differences, caption)
            captions["table_differences"] = caption
        captions["table"] = tables[""].caption
        files += write_tables(tables, store.folder, name=study.name)
    files.append(write_captions(captions, store.folder))
    _logger.info("%s", _findings(summary))
    if paired:
        _logger.info("%s", _paired_findings(paired, first))
    for row in violations:
        if row["form"] == "bound":
            _logger.info(
                "%s: the gap exceeds the theorem's corrected bound in %s of %s draws",
                row["label"],
                f"{row['violations']:,}",
                f"{row['draws']:,}",
            )
    for row in failures:
        _logger.info(
            "%s: %s of %s fits gave no policy, so that figures leave the method out: %s",
            row["label"],
            f"{row['failed']:,}",
            f"{row['fits']:,}",
            row["message"],
        )
    tables = store.iter_tables(lambda name: name == "status")
    statuses = {status for table in tables for status in table["status"].unique().to_pylist()}
    if statuses - {"SOLVED", "NOT_ATTAINED", "FAILED"}:
        _logger.info("some problems were not solved to their tolerance: see the column `status`")
    _logger.info("written to %s: %s", store.folder, ", ".join(files))
    return StudyResult(study.name, store.folder, tuple(files), tuple(violations))


def summary_rows(summary: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the cells of a summary as plain values, one mapping per cell.

    Args:
        summary: columns, as :func:`bandits.study.summary.summarize` returns them.

    Returns:
        Every mean with its interval; None stands for a number that is not finite.
    """
    columns = {name: null_non_finite(list(values)) for name, values in summary.items()}
    cells = zip(*columns.values(), strict=True)
    return [dict(zip(columns, cell, strict=True)) for cell in cells]


def _findings(summary: Mapping[str, np.ndarray]) -> str:
    """Return the gap of every method with its interval, at the largest number of comparisons."""
    from bandits.study.summary_queries import (
        by_environment,
        curve,
        has_unique_rows,
        labels,
        with_most_data,
    )

    lines = []
    for environment, part in by_environment(summary).items():
        most = with_most_data(part)
        over = "" if has_unique_rows(most) else ", over all other axes"
        title = f"{environment}, N = {most['comparisons'][0]:,}"
        lines.append(f"{title}: mean gap (95 % interval){over}")
        for label in labels(most):
            _, (gap, low, high) = curve(most, "comparisons", "gap", label)
            lines.append(f"  {label:24s} {gap[0]:.4f} ({low[0]:.4f} to {high[0]:.4f})")
    return "\n".join(lines)


def _paired_findings(paired: Mapping[str, np.ndarray], first: str) -> str:
    """Return what every method's gap exceeds the first one's by, on the same draws."""
    from bandits.study.summary_queries import (
        by_environment,
        curve,
        has_unique_rows,
        labels,
        with_most_data,
    )

    lines = []
    for environment, part in by_environment(paired).items():
        most = with_most_data(part)
        over = "" if has_unique_rows(most) else ", over all other axes"
        title = f"{environment}, N = {most['comparisons'][0]:,}"
        lines.append(f"{title}: gap minus that of {first}, same draws (95 % interval){over}")
        for label in labels(most):
            _, (mean, low, high) = curve(most, "comparisons", "difference", label)
            lines.append(f"  {label:24s} {mean[0]:+.4f} ({low[0]:+.4f} to {high[0]:+.4f})")
    return "\n".join(lines)
