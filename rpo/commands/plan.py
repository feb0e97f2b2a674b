"""Compile the training step for TPU slices, without a TPU, and report whether it fits."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rpo.runtime.errors import whole_number

if TYPE_CHECKING:
    from llm.config import TrainConfig
    from llm.train.inference_plan import InferencePlan
    from llm.train.memory_plan import MemoryPlan

TAKES_OVERRIDES = True
WORKLOADS = ("train", "score", "generate")

EXAMPLES = (
    "rpo plan configs/rpo_smollm2_hh.yaml --model.path FOLDER --topology v5e:2x2",
    "rpo plan run.yaml --topology v5litepod-16 --slices 2 --largest max_length",
    "rpo plan run.yaml --topology h100:8 --largest",
    "rpo plan run.yaml --topology v5p:4x4x4 --workload generate --mesh.tensor 8",
)
KEYS = {"pairs": "trainer.per_device_train_batch_size", "max_length": "data.max_length"}
"""Keys of the quantities that ``--largest`` searches for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo plan``."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration of the run")
    parser.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="the devices, such as v5e:4x4, v5p:4x4x4, v5litepod-16, v6e-8, v5p-128 (TPUs, "
        "compiled) or h100:8 (GPUs, estimated)",
    )
    parser.add_argument(
        "--slices",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="number of slices; the mesh axis data goes across them (default: 1)",
    )
    parser.add_argument(
        "--largest",
        nargs="?",
        const="pairs",
        choices=list(KEYS),
        help="search for the largest number of pairs per device that fits, up to 64 (the default), "
        "or for the largest max_length, to within a sixteenth",
    )
    parser.add_argument(
        "--workload",
        choices=WORKLOADS,
        default="train",
        help="what is compiled: the training step, or the scoring of a batch of pairs or the "
        "generation of a batch of replies, with trainer.per_device_train_batch_size rows on each "
        "device (default train)",
    )


def run(args: argparse.Namespace) -> int:
    """Plan the step and print the plan; return 1 if it does not fit."""
    from rpo.api import plan, plan_inference
    from rpo.runtime.config_files import read_config
    from rpo.runtime.errors import UsageError, user_input
    from rpo.runtime.output import print_result

    with user_input():
        from llm.config import TrainConfig

        config = read_config(args.config, TrainConfig, args.overrides)
    if args.workload != "train":
        if args.largest or args.slices > 1:
            name = "--largest" if args.largest else "--slices"
            raise UsageError(f"argument {name}: goes with --workload train")
        planned = plan_inference(config, args.topology, args.workload)
        print_result(planned.to_dict(), _inference_table(planned.plan), as_json=args.json)
        return planned.exit_code
    largest = args.largest or False
    result = plan(config, args.topology, slices=args.slices, largest=largest)
    command = _train_command(args.config, config, args.overrides, result.plan, args.largest)
    text = _table(result.plan) + f"{'command on every host':<31}{command}\n"
    print_result(result.to_dict() | {"command": command}, text, as_json=args.json)
    return result.exit_code


def _train_command(
    path: str,
    config: TrainConfig,
    overrides: Sequence[str],
    plan: MemoryPlan,
    largest: str | None,
) -> str:
    """Return the command that trains as planned; it is the same on every host."""
    arguments = ["rpo", "train", str(path), *overrides]
    if largest is not None:
        value = plan.max_length if largest == "max_length" else plan.pairs_per_device
        option = f"--{KEYS[largest]}"
        arguments = [*_without_override(arguments, option), option, str(value)]
    if plan.slices > 1 and config.mesh.data is None:
        arguments += ["--mesh.data", str(plan.slices)]
    if plan.hosts > 1 and config.name:
        arguments += ["--out", f"gs://BUCKET/{config.name}"]
    return shlex.join(arguments)


def _without_override(arguments: Sequence[str], option: str) -> list[str]:
    """Return the arguments of a command without ``--KEY VALUE`` or ``--KEY=VALUE``."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [
        argument
        for previous, argument in pairs
        if option not in (previous, argument, argument.partition("=")[0])
    ]


def _table(plan: MemoryPlan) -> str:
    from rpo.runtime.output import count_noun, format_bytes

    def shown(size: int | None) -> str:
        return "unknown" if size is None else format_bytes(size)

    name = plan.topology if plan.slices == 1 else f"{plan.slices} x {plan.topology}"
    if plan.accelerator_type is not None:
        name += f" ({plan.accelerator_type})"
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
        ("devices", f"{name}, {count_noun(plan.devices, 'device')} ({method})"),
        ("hosts", f"{plan.hosts:,}"),
        ("pairs per device", f"{plan.pairs_per_device:,}"),
        ("pairs per step", f"{plan.pairs_per_step:,}"),
        ("max_length", f"{plan.max_length:,}"),
        ("peak memory per device", f"{shown(peak)} of {shown(limit)}"),
        ("  parameters", shown(plan.parameter_bytes_per_device)),
        ("  optimizer", shown(plan.optimizer_bytes_per_device)),
        *([("  reference", shown(reference))] if reference else []),
        ("  activations and gradients", shown(plan.activation_bytes_per_device)),
        ("communication per device", shown(plan.collective_bytes_per_device)),
        ("FLOPs per step", f"{plan.flops_per_step:.3g}"),
        ("tokens per step", f"{plan.tokens_per_step:,}"),
    ]
    return f"{name}: {verdict}\n" + "".join(f"{label:<31}{value}\n" for label, value in rows)


def _inference_table(plan: InferencePlan) -> str:
    from rpo.runtime.output import count_noun, format_bytes

    peak, limit = plan.peak_bytes_per_device, format_bytes(plan.limit_bytes_per_device)
    shown = "unknown" if peak is None else format_bytes(peak)
    verdict = f"{'fits' if plan.fits else 'does not fit'}: {shown} of {limit} per device"
    rows = [
        ("devices", f"{plan.topology}, {count_noun(plan.devices, 'device')} (compiled)"),
        (f"{'pairs' if plan.workload == 'score' else 'prompts'} per device", plan.rows_per_device),
        ("tokens of the longest", f"{plan.tokens_per_row:,}"),
        ("peak memory per device", f"{shown} of {limit}"),
        ("  parameters", format_bytes(plan.parameter_bytes_per_device)),
        ("  keys and values", format_bytes(plan.cache_bytes_per_device)),
    ]
    title = f"{plan.topology}: {plan.workload} {verdict}\n"
    return title + "".join(f"{name:<31}{value}\n" for name, value in rows)
