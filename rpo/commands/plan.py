"""Compile the training step for a TPU slice, without a TPU, and report whether it fits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.train.memory_plan import MemoryPlan

TAKES_OVERRIDES = True

EXAMPLES = (
    "rpo plan configs/rpo_smollm2_hh.yaml --model.path FOLDER --topology v5e:2x2",
    "rpo plan run.yaml --topology h100:8 --largest",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo plan``."""
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SHAPE",
        help="the devices, such as v5e:4x4, v5p:4x4x4, v6e:2x4 (TPUs, compiled) or h100:8 (GPUs, "
        "estimated)",
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="search for the largest number of pairs per device that fits, up to 64",
    )


def run(args: argparse.Namespace) -> int:
    """Plan the step and print the plan; return 1 if it does not fit."""
    from rpo.api import plan
    from rpo.runtime.config_files import read_config
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import print_result

    with user_input():
        from llm.config import TrainConfig

        config = read_config(args.config, TrainConfig, args.overrides)
    result = plan(config, args.topology, largest=args.largest)
    print_result(result.to_dict(), _table(result.plan), as_json=args.json)
    return result.exit_code


def _table(plan: MemoryPlan) -> str:
    from rpo.runtime.output import count_noun, format_bytes

    def shown(size: int | None) -> str:
        return "unknown" if size is None else format_bytes(size)

    method = "compiled" if plan.compiled else "estimated, not compiled"
    peak, limit = plan.peak_bytes_per_device, plan.limit_bytes_per_device
    verdict = (
        f"{'fits' if plan.fits else 'does not fit'}: {shown(peak)} of {shown(limit)} per device"
    )
    if peak is not None:
        room = limit - peak
        verdict += f", {shown(abs(room))} {'left' if room >= 0 else 'too much'}"
    reference = plan.reference_bytes_per_device
    rows = [
        ("devices", f"{plan.topology}, {count_noun(plan.devices, 'device')} ({method})"),
        ("pairs per device", f"{plan.pairs_per_device:,}"),
        ("peak memory per device", f"{shown(peak)} of {shown(limit)}"),
        ("  parameters", shown(plan.parameter_bytes_per_device)),
        ("  optimizer", shown(plan.optimizer_bytes_per_device)),
        *([("  reference", shown(reference))] if reference else []),
        ("  activations and gradients", shown(plan.activation_bytes_per_device)),
        ("communication per device", shown(plan.collective_bytes_per_device)),
        ("FLOPs per step", f"{plan.flops_per_step:.3g}"),
        ("tokens per step", f"{plan.tokens_per_step:,}"),
    ]
    return f"{plan.topology}: {verdict}\n" + "".join(f"{name:<31}{value}\n" for name, value in rows)
