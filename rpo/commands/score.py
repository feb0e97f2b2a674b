"""Compute the log-probabilities of the responses of preference data under a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpo.runtime.errors import whole_number
from rpo.runtime.loading import DTYPES

EXAMPLES = ("rpo score --model policy --data rows.jsonl --out scores.jsonl",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo score``."""
    add_model_arguments(parser)
    add_data_arguments(parser, required=True)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE.jsonl",
        help="file for the scores, one JSON object per row",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options that choose a model and how it is run."""
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="Hugging Face folder, or a name on the hub"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="folder, name on the hub, or bytes for byte tokens (default: that of the model)",
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=8,
        metavar="N",
        help="number of pairs or prompts that are processed together (default 8)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="dtype of the parameters and the computation (default float32)",
    )


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare the options that choose preference data and how they are read."""
    parser.add_argument(
        "--data",
        required=required,
        metavar="FILE",
        help="preference rows: JSONL, JSONL.gz, Parquet, or a data set on the hub",
    )
    parser.add_argument(
        "--max-length",
        type=whole_number(2),
        metavar="N",
        help="limit of prompt and response together, in tokens (default 1024, or the model's "
        "limit)",
    )
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="skip and count unusable rows; without it, such a row is an error",
    )


def run(args: argparse.Namespace) -> int:
    """Score every row and print the number of rows."""
    from rpo.api import score
    from rpo.runtime.output import print_result

    result = score(
        model=args.model,
        data=args.data,
        out=args.out,
        tokenizer=args.tokenizer,
        max_length=args.max_length,
        skip_bad_rows=args.skip_bad_rows,
        batch_size=args.batch_size,
        dtype=args.dtype,
    )
    text = f"written to {args.out}: {result.n_rows:,} rows\n"
    print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
