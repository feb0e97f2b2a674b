"""Train a transformer on preferences, from a YAML file: SFT, RPO, DPO and others."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import TYPE_CHECKING

from rpo.runtime import processes
from rpo.runtime.compilation import keep_compiled_programs
from rpo.runtime.errors import any_path

if TYPE_CHECKING:
    from rpo.results import TrainEstimate

TAKES_OVERRIDES = True
STOPPED = 143
"""Exit code of a run that was asked to stop, as after SIGTERM."""

EXAMPLES = (
    "rpo train configs/rpo_smollm2_hh.yaml --model.path FOLDER",
    "rpo train run.yaml --objective.eta 0.01 --trainer.max_steps 500",
    "rpo train run.yaml --dry-run",
    "rpo train run.yaml --resume",
)
_logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo train``."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument(
        "--out",
        type=any_path,
        metavar="DIR",
        help="folder for metrics, checkpoints and the resolved configuration (default out/NAME)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in the folder; start from the beginning if there "
        "is none",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved configuration and an estimate of the cost; write nothing",
    )
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train; with ``--json``, print the last line of the metrics."""
    from rpo.api import estimate_train, train
    from rpo.runtime.config_files import read_config
    from rpo.runtime.errors import user_input

    with user_input():
        from llm.config import TrainConfig

        config = read_config(args.config, TrainConfig, args.overrides)
    if args.dry_run:
        return _print_estimate(estimate_train(config))
    keep_compiled_programs()
    from llm.train.trainer import InterruptedRunError

    try:
        result = train(config, out=args.out, resume=args.resume, processes=args.group)
    except InterruptedRunError as error:
        _logger.info("%s", error)
        return STOPPED
    if args.json and args.group.is_first:
        sys.stdout.write(json.dumps(result.to_dict()) + "\n")
    return result.exit_code


def _print_estimate(estimate: TrainEstimate) -> int:
    import jax

    from rpo.runtime.output import count_noun, format_bytes, format_duration

    devices = count_noun(jax.device_count(), f"{jax.default_backend().upper()} device")
    memory = format_bytes(estimate.peak_bytes_per_device)
    verdict = "estimated"
    if estimate.limit_bytes_per_device is not None:
        memory += f" of {format_bytes(estimate.limit_bytes_per_device)}"
        verdict = "fits" if estimate.fits else "does not fit"
    lines = [
        f"{verdict}: about {format_duration(estimate.seconds)} and {memory} per device on "
        f"{devices} (an estimate, without compilation and evaluations)",
        f"{count_noun(estimate.pairs, 'pair')}, {estimate.pairs_per_step:,} per step; "
        f"{count_noun(estimate.steps, 'step')} of about {estimate.tokens_per_step:,} tokens and "
        f"{estimate.flops_per_step:.2g} FLOPs",
        *estimate.notes,
        "rpo plan compiles the step for a TPU slice or estimates it for GPUs",
    ]
    for line in lines:
        _logger.info("%s", line)
    sys.stdout.write(json.dumps(estimate.to_dict(), indent=1) + "\n")
    return estimate.exit_code
