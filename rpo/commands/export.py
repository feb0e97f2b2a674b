"""Write the policy of a training run as a folder that transformers, or PEFT, can load."""

from __future__ import annotations

import argparse

from rpo.runtime import processes
from rpo.runtime.errors import any_path, whole_number
from rpo.runtime.loading import DTYPES
from rpo.runtime.meshes import add_mesh_arguments, mesh_option

EXAMPLES = (
    "rpo export out/run --out policy",
    "rpo export out/run --step 300 --dtype bfloat16 --out policy",
    "rpo export out/run --adapter --out adapter",
    "rpo export out/run --out policy --push-to-hub ORG/NAME --private",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo export``."""
    parser.add_argument("run", type=any_path, metavar="RUN", help="folder that rpo train wrote")
    parser.add_argument(
        "--out",
        type=any_path,
        required=True,
        metavar="DIR",
        help="folder to write; must be new or empty",
    )
    parser.add_argument(
        "--step",
        type=whole_number(1),
        metavar="N",
        help="training step of the checkpoint (default: the last)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of the tensors (default: that of the base model; of an adapter, float32)",
    )
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the LoRA adapter as a PEFT folder instead of the whole model",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder or hub name whose tokenizer files are copied (default: that of the run)",
    )
    parser.add_argument(
        "--push-to-hub",
        metavar="ORG/NAME",
        help="repository of the Hugging Face hub to which the folder is uploaded; created first",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="create the repository as private, and refuse a public one",
    )
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch of the repository, created if it is missing (default: main)",
    )
    add_mesh_arguments(parser)
    processes.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Export the policy; print where it is, its size, and what merging has lost."""
    from rpo.api import export
    from rpo.runtime.output import print_result

    result = export(
        args.run,
        out=args.out,
        step=args.step,
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        adapter=args.adapter,
        push_to_hub=args.push_to_hub,
        private=args.private,
        revision=args.revision,
        mesh=mesh_option(args),
        processes=args.group,
    )
    what = "adapter" if args.adapter else "policy"
    about = f"({result.dtype}, {_size(result.n_bytes)})"
    text = f"written to {args.out}: the {what} after step {result.step} {about}\n"
    lost = result.rounding
    if lost is not None and lost.n_unchanged:
        text += (
            f"rounded once to {result.dtype}: {lost.unchanged_share:.1%} of the weights that the "
            "run changed are equal to the base model's again; the norm of the rounding error is "
            f"{lost.lost_norm:.1%} of the update's (`--dtype float32` keeps the whole update)\n"
        )
    if result.url is not None:
        text += f"uploaded to {result.url}\n"
    if args.group.is_first:
        print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code


def _size(n_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes} bytes"
