"""Will it fit: compile the training step for a TPU slice without a TPU, and read its memory."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.train.memory_plan import MemoryPlan

OVERRIDES = True  # of the configuration, such as --model.remat full
GIB = 2**30

EXAMPLES = (
    "rpo plan configs/rpo_smollm2_hh.yaml --model.path FOLDER --topology v5e:2x2",
    "rpo plan run.yaml --topology h100:8 --largest",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="the run")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SHAPE",
        help="such as v5e:4x4, v5p:4x4x4, v6e:2x4 or h100:8",
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="search for the most pairs a device that fit, from 64 down",
    )


def run(args: argparse.Namespace) -> int:
    """Make the plan; exit code 1 if it does not fit."""
    from rpo.runtime.config_files import read_config
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import tell

    with user_input():
        from llm.config import TrainConfig
        from llm.train.memory_plan import largest_fitting_plan, make_plan

        config = read_config(args.config, TrainConfig, args.overrides)
        if args.largest:
            plan = largest_fitting_plan(config, args.topology)
            if plan is None:
                raise ValueError(f"{args.topology}: not even one pair a device fits")
        else:
            plan = make_plan(config, args.topology)
    tell(args, asdict(plan), _table(plan))
    return 0 if plan.fits else 1


def _table(plan: MemoryPlan) -> str:
    how = "compiled" if plan.compiled else "an estimate: nothing was compiled"
    peak = plan.peak_bytes_per_device
    room = None if peak is None else plan.limit_bytes_per_device - peak
    verdict = "fits" if plan.fits else "does not fit"
    if room is not None:
        verdict += f", {_gib(abs(room))} {'left' if room >= 0 else 'too much'}"
    rows = [
        ("slice", f"{plan.topology}, {plan.devices} devices ({how})"),
        ("verdict", verdict),
        ("pairs a device", f"{plan.pairs_per_device:,}"),
        ("peak of a device", f"{_gib(peak)} of {_gib(plan.limit_bytes_per_device)}"),
        ("  parameters", _gib(plan.parameter_bytes_per_device)),
        ("  optimizer", _gib(plan.optimizer_bytes_per_device)),
        ("  activations and gradients", _gib(plan.activation_bytes_per_device)),
        ("exchanges of a step, a device", _gib(plan.collective_bytes_per_device)),
        ("FLOPs of a step", f"{plan.flops_per_step:.3g}"),
        ("tokens of a step", f"{plan.tokens_per_step:,}"),
    ]
    return "".join(f"{name:<31}{value}\n" for name, value in rows)


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / GIB:.2f} GiB"
