"""Write the policy of a training run as a Hugging Face folder that transformers can load."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpo.runtime.errors import whole_number
from rpo.runtime.loading import DTYPES

EXAMPLES = (
    "rpo export out/run --out policy",
    "rpo export out/run --step 300 --dtype bfloat16 --out policy",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo export``."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder that rpo train wrote")
    parser.add_argument(
        "--out",
        type=Path,
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
        "--dtype", choices=DTYPES, help="dtype of the tensors (default: that of the parameters)"
    )


def run(args: argparse.Namespace) -> int:
    """Export the policy and print where it is."""
    from rpo.api import export
    from rpo.runtime.output import print_result

    result = export(args.run, out=args.out, step=args.step, dtype=args.dtype)
    text = f"written to {args.out}: the policy after step {result.step}\n"
    print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
