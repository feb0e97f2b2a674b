"""Run a simulation study: every method on every combination of the axes, then its figures."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpo.runtime import processes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from bandits.study.config import StudyConfig
    from bandits.study.records import RecordStore
    from bandits.study.run import StudyPart

OVERRIDES = True  # of the configuration, such as --seeds 100

EXAMPLES = (
    "rpo study configs/study_rate_in_n.yaml --quick",
    'rpo study my_study.yaml --seeds 500 --eta "[theorem, 0.01]" --dry-run',
    "rpo study my_study.yaml --resume",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the study")
    parser.add_argument("--quick", action="store_true", help="in the study's quick sizes")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for records, figures and the resolved configuration (default out/NAME)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue a study that was begun in the folder"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be run, and write nothing"
    )
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Run the study, merge its records, draw what its axes allow, say what was found."""
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import duration

    with user_input():
        study = _read(args)
        group = processes.group_from(args)
    from bandits.study.records import RecordStore
    from bandits.study.run import count_fits, plan_parts, resolved_config

    with user_input():
        parts = plan_parts(study)
    if args.dry_run:
        from bandits.study.run import estimate_cost

        cost = estimate_cost(study, parts)
        _say(
            f"{study.name}: {count_fits(study):,} fits in {len(parts)} parts; about "
            f"{duration(cost.seconds)} and {cost.bytes / 2**30:.1f} GiB, by {cost.fits:,} fits "
            "that were made to see"
        )
        sys.stdout.write(json.dumps(resolved_config(study), indent=1) + "\n")
        return 0
    out = args.out or Path("out") / study.name
    store = RecordStore(out, resolved_config(study))
    with group.connected(out):
        if group.is_first:
            _run_first(args, study, store, parts)
        else:
            _share(args, study, store, parts)
    return 0


def document(
    study: StudyConfig, summary: Mapping[str, np.ndarray], violations: list[dict[str, Any]]
) -> dict[str, Any]:
    """Content of ``summary.json``: a row a cell, every mean with its interval.

    Args:
        study: the study.
        summary: of :func:`bandits.study.summary.summarize`.
        violations: of :func:`bandits.study.summary.count_violations`.

    Returns:
        ``study``, ``bounds`` and ``cells``; what is not finite is null.
    """
    return {"study": study.name, "bounds": violations, "cells": rows(summary)}


def rows(summary: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A summary, a row a cell.

    Args:
        summary: of :func:`bandits.study.summary.summarize`.

    Returns:
        Plain values; what is not finite is None.
    """
    import numpy as np

    def plain(value: Any) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not np.isfinite(value) else value

    names = list(summary)
    cells = zip(*(summary[name] for name in names), strict=True)
    return [dict(zip(names, map(plain, cell), strict=True)) for cell in cells]


def _read(args: argparse.Namespace) -> StudyConfig:
    from bandits.study.config import StudyConfig
    from rpo.runtime.config_files import read_config

    study = read_config(args.config, StudyConfig, args.overrides)
    return study.quick_version() if args.quick else study


def _run_first(
    args: argparse.Namespace, study: StudyConfig, store: RecordStore, parts: list[StudyPart]
) -> None:
    """What the first process, often the only one, does: it alone owns the folder."""
    from rpo.runtime.errors import user_input
    from rpo_io.locks import folder_lock
    from rpo_io.paths import name_os_errors, prepare_folder

    with name_os_errors(store.folder), ExitStack() as held:
        with user_input():
            prepare_folder(store.folder)
            held.enter_context(folder_lock(store.folder))
            store.check(resume=args.resume)
        _write_config(study, store.folder)
        if not store.is_finished():
            _share(args, study, store, parts)
            with user_input(), name_os_errors(store.folder):
                store.merge(len(parts))
        store.drop_parts()
        found = _conclude(study, store)
    if args.json:
        sys.stdout.write(json.dumps(found) + "\n")


def _share(
    args: argparse.Namespace, study: StudyConfig, store: RecordStore, parts: list[StudyPart]
) -> None:
    """Run this process's share of the parts, and wait for the others."""
    from bandits.study.run import run_parts
    from rpo.runtime.errors import user_input
    from rpo.runtime.progress import with_progress
    from rpo_io.paths import name_os_errors

    mine = parts[args.process_id :: args.num_processes]
    _meet(args, "begun")
    # A method that cannot answer an environment says so when it is asked.
    with user_input(), name_os_errors(store.folder):
        for _ in with_progress(run_parts(study, store, mine), len(mine), f"parts of {study.name}"):
            pass
    _meet(args, "done")


def _meet(args: argparse.Namespace, where: str) -> None:
    if args.num_processes > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


def _write_config(study: StudyConfig, folder: Path) -> None:
    from rpo.runtime.config_files import to_yaml
    from rpo_io.atomic import write_atomic

    write_atomic(folder / "config.yaml", to_yaml(study))


def _conclude(study: StudyConfig, store: RecordStore) -> dict[str, Any]:
    """Figures and the summary, from the records; what a program should know of them."""
    from matplotlib.figure import Figure

    from bandits.study.figures import draw_figure, figure_kinds
    from bandits.study.summary import count_violations, is_summary_column, summarize
    from rpo_io.atomic import write_atomic
    from rpo_io.figures import png_bytes, svg_bytes
    from rpo_io.strict_json import format_document

    summary = summarize(store.tables(is_summary_column))
    written = ["records.parquet", "summary.json", "config.yaml"]
    violations = count_violations(store.tables(is_summary_column))
    result = document(study, summary, violations)
    write_atomic(store.folder / "summary.json", format_document(result).encode())
    for kind in figure_kinds(summary):
        figure = draw_figure(summary, kind, Figure())
        for render, ending in ((png_bytes, "png"), (svg_bytes, "svg")):
            write_atomic(store.folder / f"{kind}.{ending}", render(figure))
        written.append(f"{kind}.png")
    _say(_findings(summary))
    for row in violations:
        if row["form"] == "bound":
            counted = f"{row['violations']:,} of {row['draws']:,} draws"
            _say(f"{row['label']}: the gap is above the theorem's corrected bound in {counted}")
    parts = store.tables(lambda name: name == "status")
    words = {word for part in parts for word in part["status"].unique().to_pylist()}
    if words - {"SOLVED", "NOT_ATTAINED"}:
        _say("some problems were not solved to their tolerance: see the column `status`")
    _say(f"written to {store.folder}: {', '.join(written)}")
    return {"study": study.name, "out": str(store.folder), "written": written, "bounds": violations}


def _findings(summary: Mapping[str, np.ndarray]) -> str:
    """The gap of every method, at the most data, with its interval."""
    from bandits.study.summary import by_environment, curve, has_unique_rows, labels, with_most_data

    lines = []
    for environment, part in by_environment(summary).items():
        most = with_most_data(part)
        over = "" if has_unique_rows(most) else ", over all other axes"
        where = f"{environment}, N = {most['comparisons'][0]:,}"
        lines.append(f"{where}: mean gap (95 % interval){over}")
        for label in labels(most):
            _, (gap, low, high) = curve(most, "comparisons", "gap", label)
            lines.append(f"  {label:24s} {gap[0]:.4f} ({low[0]:.4f} to {high[0]:.4f})")
    return "\n".join(lines)


def _say(text: str) -> None:
    from rpo.runtime.output import inert

    sys.stderr.write(inert(text) + "\n")
