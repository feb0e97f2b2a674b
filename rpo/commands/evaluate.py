"""Measure a model against a reference: rewards, margins and win rates.

Rewards and margins are measured on preference data, win rates with a reward function or by a judge.
The metrics are printed to stdout as one JSON object.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rpo.runtime.errors import any_path, number, whole_number

from .generate import add_generation_arguments, generation_options
from .score import add_data_arguments, add_model_arguments, model_options

EXAMPLES = (
    "rpo evaluate --model policy --reference FOLDER --data rows.jsonl",
    "rpo evaluate --model policy --reference FOLDER --data rows.jsonl --reward my_reward.py:reward",
    "rpo evaluate --model NAME --reference OTHER --judgments annotations.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo evaluate``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--reference",
        required=True,
        metavar="DIR",
        help="the model to compare with; with --judgments, --model and --reference are names of "
        "models in that file",
    )
    add_data_arguments(parser, required=False)
    parser.add_argument(
        "--judgments",
        metavar="FILE",
        help="AlpacaEval's annotations (.json) or MT-Bench's pair judgments (.jsonl)",
    )
    parser.add_argument(
        "--gamed",
        metavar="FILE.csv",
        help="AlpacaEval's df_gamed.csv, to compute the length-controlled win rate of --judgments "
        "as well",
    )
    parser.add_argument(
        "--beta",
        type=number(0.0, inclusive=False),
        default=0.01,
        help="factor in the rewards, beta log(policy/reference) (default 0.01)",
    )
    parser.add_argument(
        "--eta",
        type=number(0.0, inclusive=True),
        default=0.005,
        help="weight of the adversarial term in theory/adversarial_value (default 0.005)",
    )
    parser.add_argument(
        "--reward",
        metavar="FILE.py:NAME",
        help="function, in a file or as MODULE:NAME, that scores a reply, from the prompt's "
        "messages and the reply's text; the reply with the higher score wins",
    )
    parser.add_argument(
        "--prompts",
        type=whole_number(1),
        default=100,
        metavar="N",
        help="number of prompts to answer for --reward, from the start of --data (default 100)",
    )
    parser.add_argument(
        "--out", type=any_path, metavar="FILE.json", help="also write the metrics to this file"
    )
    add_generation_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print the metrics."""
    from rpo.api import evaluate
    from rpo_io.strict_json import format_document

    names = ("reference", "data", "judgments", "gamed", "beta", "eta", "reward", "prompts", "out")
    names += ("max_length", "skip_bad_rows")
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    result = evaluate(**given, **model_options(args), **generation_options(args))
    if args.group.is_first:
        sys.stdout.write(format_document(result.to_dict()))
    return result.exit_code
