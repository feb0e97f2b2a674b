"""Generate the reply to a prompt, or replies to a file of prompts.

Questions of AlpacaEval and MT-Bench are answered in the form that their judges read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rpo.runtime.errors import number, whole_number

from .score import add_model_arguments

EXAMPLES = (
    "rpo generate --model policy --prompt 'Why is the sky blue?'",
    "rpo generate --model policy --data prompts.jsonl --out replies.jsonl --temperature 0.7",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo generate``."""
    add_model_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", metavar="TEXT", help="print the reply to this user message")
    source.add_argument(
        "--data",
        metavar="FILE",
        help="file of prompts: rows with a field prompt, AlpacaEval's instructions, or MT-Bench's "
        "questions",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="file for the replies to --data")
    parser.add_argument(
        "--name", metavar="NAME", help="name of the model in --out (default: the folder's name)"
    )
    add_generation_arguments(parser)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the generation of replies."""
    parser.add_argument(
        "--max-new-tokens",
        type=whole_number(1),
        default=256,
        metavar="N",
        help="largest number of tokens of a reply (default 256)",
    )
    parser.add_argument(
        "--temperature",
        type=number(0.0, inclusive=True),
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 takes the most likely token (default 0)",
    )
    parser.add_argument(
        "--top-p",
        type=number(0.0, inclusive=False),
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens with this total probability (default 1)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="S",
        help="random seed of the samples (default 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Generate and print the reply, or where the replies are."""
    from rpo.api import generate
    from rpo.results import Reply
    from rpo.runtime.output import print_result

    names = ("model", "prompt", "data", "out", "name", "tokenizer", "max_new_tokens")
    names += ("temperature", "top_p", "seed", "batch_size", "dtype")
    result = generate(**{name: getattr(args, name) for name in names})
    if isinstance(result, Reply):
        text = result.text + "\n"
    else:
        text = (
            f"written to {result.path}: {result.questions:,} answers as {result.format}, "
            f"{result.truncated:,} replies truncated at {args.max_new_tokens} tokens\n"
        )
    print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
