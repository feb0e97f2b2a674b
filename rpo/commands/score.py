"""Log-probabilities of the responses of preference data under a model, a JSON line a row."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

DTYPES = ("float32", "bfloat16", "float64")

EXAMPLES = ("rpo score --model policy --data rows.jsonl --out scores.jsonl",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_arguments(parser)
    add_data_arguments(parser, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE.jsonl", help="where the rows are written"
    )


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Declare which model is run, and how."""
    from rpo.runtime.errors import whole_number

    parser.add_argument(
        "--model",
        required=required,
        metavar="DIR",
        help="Hugging Face folder, or a name on the hub",
    )
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder, hub name, or bytes (default: the model's)"
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=8,
        metavar="N",
        help="pairs or prompts worked on at a time (default 8)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="to compute in (default float32)"
    )


def add_data_arguments(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Declare which preference data are read, and how."""
    from rpo.runtime.errors import whole_number

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
        help="most tokens of prompt and response together (default 1024, or the model's limit)",
    )
    parser.add_argument(
        "--skip-bad-rows", action="store_true", help="count rows that cannot be used, and go on"
    )


def run(args: argparse.Namespace) -> int:
    """PairScore every row, and say how many."""
    from rpo.runtime.errors import user_input
    from rpo.runtime.loading import load, prepare_file, read_pairs
    from rpo.runtime.output import tell
    from rpo.runtime.progress import with_progress
    from rpo_io.atomic import write_atomic

    with user_input():
        prepare_file(args.out)
    from llm.inference.score import score_pairs
    from llm.precision import computing_in

    with user_input(), computing_in(args.dtype):
        model, tokenizer = load(args.model, args.tokenizer, args.dtype)
        pairs = read_pairs(args, model, tokenizer)
        scores = score_pairs(
            model,
            pairs,
            batch_size=args.batch_size,
            progress=lambda batches, total: with_progress(batches, total, "batches scored"),
        )
        lines = (json.dumps(one._asdict(), allow_nan=False) + "\n" for one in scores)
        write_atomic(args.out, "".join(lines).encode())
    text = f"written to {args.out}: {len(scores):,} rows\n"
    tell(args, {"out": str(args.out), "rows": len(scores)}, text)
    return 0
