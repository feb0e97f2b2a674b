"""Solve one problem of the adversarial max-min, with a proof of optimality.

The problem is a JSON file, or a CSV file of votes with the columns context, winner, loser and
count. The answer is printed to stdout as one JSON object; the human-readable summary goes to
stderr.
"""

from __future__ import annotations

import argparse
import sys

from rpo.runtime.compilation import keep_compiled_programs, prefer_fast_compilation
from rpo.runtime.errors import number

EXAMPLES = (
    "rpo solve problem.json",
    "rpo solve --votes votes.csv --eta 0.01 > answer.json",
    "cat problem.json | rpo solve - --formulation maximin",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo solve``."""
    parser.add_argument(
        "problem",
        nargs="?",
        metavar="PROBLEM.json",
        help="JSON file of the problem; - reads it from standard input",
    )
    parser.add_argument(
        "--formulation",
        choices=("minimax", "maximin", "policy"),
        default="minimax",
        help="minimax: minimize over rewards (default); maximin: maximize over policies, Algorithm "
        "1; policy: minimize the RPO loss over policies, Algorithm 2",
    )
    votes = parser.add_argument_group(
        "votes", "The reference policy is uniform over the actions; the reward class is tabular."
    )
    default = "default: 1 / sqrt(number of votes)"
    votes.add_argument(
        "--votes",
        metavar="FILE.csv",
        help="file of the votes, with the columns context,winner,loser[,count]",
    )
    votes.add_argument(
        "--beta", type=number(0.0, inclusive=False), help=f"weight of the KL term ({default})"
    )
    votes.add_argument(
        "--eta",
        type=number(0.0, inclusive=True),
        help=f"weight of the adversarial term ({default})",
    )
    votes.add_argument(
        "--reward-max",
        type=number(0.0, inclusive=False),
        help="upper bound of the rewards; the lower bound is 0 (default: 4)",
    )
    votes.add_argument(
        "--baseline",
        choices=("chosen", "reference"),
        help="baseline policy: the distribution of the winners in each context (default), or the "
        "reference policy",
    )
    votes.add_argument(
        "--context-weights",
        choices=("votes", "uniform"),
        help="weight of a context: its share of the votes (default), or the same for all contexts",
    )


def run(args: argparse.Namespace) -> int:
    """Solve the problem and print the answer; return 1 if there is no solution."""
    prefer_fast_compilation()
    keep_compiled_programs()
    from rpo.api import solve
    from rpo.solving.summary import write_summary
    from rpo_io.strict_json import format_document

    answer = solve(
        args.problem,
        votes=args.votes,
        formulation=args.formulation,
        beta=args.beta,
        eta=args.eta,
        reward_max=args.reward_max,
        baseline=args.baseline,
        context_weights=args.context_weights,
    )
    sys.stdout.write(format_document(answer.to_dict()))
    write_summary(answer, sys.stderr)
    return answer.exit_code
