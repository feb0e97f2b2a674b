"""Run a simulation study and write its records and figures.

A YAML file defines the methods and the axes; every method is run on every combination of the axes.
A complete file has four keys:

  {name: first, methods: [rpo, dpo], comparisons: [100, 1000], seeds: 50}

The key kind selects another kind of study: minimax_regret, laws or rounds (docs/studies.md). With
--resume, interrupted studies of the kinds laws and rounds continue; minimax_regret, and a finished
study of any of these kinds, start again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rpo.runtime import processes
from rpo.runtime.errors import any_path

if TYPE_CHECKING:
    from rpo.results import StudyEstimate, StudyKindEstimate

TAKES_OVERRIDES = True

EXAMPLES = (
    "rpo study configs/study_rate_in_n.yaml --quick",
    'rpo study my_study.yaml --seeds 500 --eta "[theorem, 0.01]" --dry-run',
    "rpo study my_study.yaml --resume --seeds 1000",
    "rpo study my_study.yaml --resume --format pdf --width icml-column --table",
    "rpo study my_study.yaml --part 2/5 --out out/shared",
    "rpo study my_study.yaml --merge --out out/shared",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo study``."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the study")
    parser.add_argument(
        "--quick", action="store_true", help="use the smaller sizes under the key quick"
    )
    parser.add_argument(
        "--out",
        type=any_path,
        metavar="DIR",
        help="folder for records, figures and the resolved configuration (default out/NAME)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the study in the folder, also for more seeds; start it if new",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and an estimate of the cost; write nothing",
    )
    _add_figure_arguments(parser)
    parser.add_argument(
        "--part",
        metavar="K/N",
        help="compute only the share of job K of N, from 1, into a folder of its own in DIR",
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="join the shares of all jobs, and write the records and figures of the study",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="let the workers of a running Dask scheduler fit the study, as tcp://HOST:8786",
    )
    processes.add_arguments(parser)


def _add_figure_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that change figures and tables, and no record."""
    parser.add_argument(
        "--format", metavar="NAMES", help="formats of figures: pdf, png, svg (default png,svg)"
    )
    parser.add_argument(
        "--width",
        metavar="WIDTH",
        help="width of figures: a venue such as neurips or icml-column, or inches (default 6.4)",
    )
    parser.add_argument(
        "--style", metavar="FILE", help="Matplotlib style file, or name of one of its styles"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="write the mean gaps, and their differences from the first method, with intervals as "
        "table.tex, table.csv and table.md",
    )


def run(args: argparse.Namespace) -> int:
    """Run the study; with ``--json``, print where its files are."""
    from rpo.api import estimate_study, study
    from rpo.runtime.config_files import read_config, read_kind
    from rpo.runtime.errors import user_input
    from rpo_io.user_modules import printing_to_stderr

    with user_input():
        from rpo.jobs.study_kinds import config_class
        from rpo.jobs.study_parts import read_share
        from rpo.report.figure_files import parse_figure_format

        config = read_config(args.config, config_class(read_kind(args.config)), args.overrides)
        figures = parse_figure_format(args.format, args.width, args.style)
        if args.part is not None:
            read_share(args.part)
    if args.dry_run:
        with printing_to_stderr():
            estimate = estimate_study(config, quick=args.quick)
        return _print_estimate(estimate, args.out)
    # Methods and environments of the user's own may print; stdout is for the JSON document.
    with _naming_the_command(args), printing_to_stderr():
        result = study(
            config,
            quick=args.quick,
            out=args.out,
            resume=args.resume,
            processes=args.group,
            part=args.part,
            merge=args.merge,
            figures=figures,
            table=args.table,
            scheduler=args.scheduler,
        )
    if args.json and args.group.is_first:
        sys.stdout.write(json.dumps(result.to_dict()) + "\n")
    return result.exit_code


@contextmanager
def _naming_the_command(args: argparse.Namespace) -> Iterator[None]:
    """Add the command that computes a missing part to the error of a merge."""
    from rpo.jobs.study_merge import MissingPartError
    from rpo.runtime.errors import UsageError

    try:
        yield
    except MissingPartError as error:
        command = ["rpo", "study", str(args.config), *args.overrides]
        command += ["--quick"] if args.quick else []
        command += ["--part", error.share, *(["--out", str(args.out)] if args.out else [])]
        raise UsageError(f"{error}: run {shlex.join(command)}") from error


def _print_estimate(estimate: StudyEstimate | StudyKindEstimate, out: Path | None) -> int:
    from rpo.results import StudyEstimate

    is_comparison = isinstance(estimate, StudyEstimate)
    lines = _cost(estimate) if is_comparison else _outline(estimate, out)
    for line in lines:
        logging.getLogger(__name__).info("%s: %s", estimate.config.name, line)
    sys.stdout.write(json.dumps(estimate.to_dict(), indent=1) + "\n")
    return estimate.exit_code


def _cost(estimate: StudyEstimate) -> list[str]:
    """Return what a comparison of methods costs, and notes on its configuration."""
    from rpo.runtime.output import format_duration

    cost = (
        f"about {format_duration(estimate.seconds)} and {_format_bytes(estimate.bytes)} for "
        f"{_count(estimate.fits, 'fit')} (estimated from "
        f"{_count(estimate.trial_fits, 'trial fit')})"
    )
    return [cost, *(f"note: {note}" for note in estimate.notes)]


def _outline(estimate: StudyKindEstimate, out: Path | None) -> list[str]:
    """Return what a study of another kind would run and write."""
    from math import isnan

    from rpo.runtime.output import format_duration

    duration = "the duration is not estimated"
    if not isnan(estimate.seconds):
        duration = f"about {format_duration(estimate.seconds)}, without compilation"
    folder = Path("out") / estimate.config.name if out is None else out
    return [
        f"a study of the kind {estimate.config.kind}",
        *estimate.cells,
        f"{_count(estimate.fits, 'fit')}: {duration}",
        f"would write to {folder}: {', '.join(estimate.files)}",
    ]


def _format_bytes(number: float) -> str:
    mebibytes = max(1.0, number / 2**20)
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
