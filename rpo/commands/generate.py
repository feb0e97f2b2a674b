"""Generate the reply to a prompt, or replies to a file of prompts.

Questions of AlpacaEval and MT-Bench are answered in the form that their judges read.
"""

from __future__ import annotations

import argparse
from typing import Any

from rpo.runtime.errors import any_path, number, whole_number

from .score import add_model_arguments, count, model_options

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
    parser.add_argument(
        "--out", type=any_path, metavar="FILE", help="file for the replies to --data"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="name of the model in --out (default: the folder's name)"
    )
    add_generation_arguments(parser)


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the generation of replies."""
    stored = "default: that of the model's generation_config.json, or"
    parser.add_argument(
        "--max-new-tokens",
        type=whole_number(1),
        metavar="N",
        help=f"largest number of tokens of a reply ({stored} 256)",
    )
    parser.add_argument(
        "--temperature",
        type=number(0.0, inclusive=True),
        metavar="T",
        help=f"sampling temperature; 0 takes the most likely token ({stored} 0)",
    )
    parser.add_argument(
        "--top-p",
        type=number(0.0, inclusive=False),
        metavar="P",
        help=f"sample from the most likely tokens with this total probability ({stored} 1)",
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(0),
        metavar="K",
        help=f"sample from this number of most likely tokens; 0 for all ({stored} 0)",
    )
    parser.add_argument(
        "--min-p",
        type=number(0.0, inclusive=True),
        metavar="P",
        help=f"sample from tokens at least this likely, relative to the most likely ({stored} 0)",
    )
    parser.add_argument(
        "--repetition-penalty",
        type=number(0.0, inclusive=False),
        metavar="F",
        help=f"factor by which earlier tokens become less likely ({stored} 1)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="S",
        help="random seed of the samples (default 0)",
    )


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of :func:`add_generation_arguments` by the arguments of ``rpo.api``."""
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return {name: getattr(args, name) for name in (*names, "seed")}


def run(args: argparse.Namespace) -> int:
    """Generate and print the reply, or where the replies are."""
    from rpo.api import generate
    from rpo.results import Reply
    from rpo.runtime.output import print_result

    names = ("prompt", "data", "out", "name")
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    result = generate(**given, **model_options(args), **generation_options(args))
    if isinstance(result, Reply):
        text = result.text + "\n"
    else:
        limit = result.settings["max_new_tokens"]
        text = (
            f"written to {result.path}: {count(result.questions, 'answer')} as {result.format}, "
            f"{result.truncated:,} truncated at {count(limit, 'token')}; "
            f"{count(result.tokens, 'token')}, {result.tokens_per_second:,.1f} tokens per second\n"
        )
    if args.group.is_first:
        print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
