"""Solve one problem of the adversarial max-min, with a proof of optimality beside the answer.

The problem is a JSON file, or votes in a CSV file with the columns context, winner, loser and
count. One JSON object goes to standard output, a summary to standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from rpo.runtime.compilation_cache import keep_compiled_programs
from rpo.runtime.errors import UsageError, number, user_input

_VOTES_OPTIONS = ("beta", "eta", "reward_max", "baseline", "context_weights")

EXAMPLES = (
    "rpo solve problem.json",
    "rpo solve --votes votes.csv --eta 0.01 > answer.json",
    "cat problem.json | rpo solve - --formulation maximin",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``rpo solve``."""
    parser.add_argument(
        "problem", nargs="?", metavar="PROBLEM.json", help="the problem; - reads standard input"
    )
    parser.add_argument(
        "--formulation",
        choices=("minimax", "maximin", "policy"),
        default="minimax",
        help="the exact minimax (default), the maximin of Algorithm 1 by an independent method, "
        "or the RPO loss of Algorithm 2 minimised over policies",
    )
    votes = parser.add_argument_group(
        "votes", "The reference policy is uniform over the actions, the reward class tabular."
    )
    positive, not_negative = number(0.0, inclusive=False), number(0.0, inclusive=True)
    root = "default: 1 over the square root of the number of votes"
    votes.add_argument("--votes", metavar="FILE.csv", help="columns context,winner,loser[,count]")
    votes.add_argument("--beta", type=positive, help=f"weight of the KL term ({root})")
    votes.add_argument("--eta", type=not_negative, help=f"weight of the adversarial term ({root})")
    votes.add_argument(
        "--reward-max", type=positive, help="rewards lie between 0 and this (default: 4)"
    )
    votes.add_argument(
        "--baseline",
        choices=("chosen", "reference"),
        help="the law of the winners in each context (default), or the reference policy",
    )
    votes.add_argument(
        "--context-weights",
        choices=("votes", "uniform"),
        help="a context counts by its share of the votes (default), or all count the same",
    )


def run(args: argparse.Namespace) -> int:
    """Solve the problem and write the answer; 1 if there is none."""
    _configure_jax()
    keep_compiled_programs()
    chosen = _votes_options(args)
    from rpo.solving.tasks import task_from_file, task_from_votes

    with user_input():
        if args.votes is None:
            task = task_from_file(args.problem)
        else:
            task = task_from_votes(args.votes, **chosen)
    from rpo.solving.answer import answer, to_json
    from rpo.solving.summary import write_summary

    result = answer(task, args.formulation)
    sys.stdout.write(to_json(result))
    write_summary(result, sys.stderr)
    return 0 if result["status"] in ("solved", "not_attained") else 1


def _configure_jax() -> None:
    """Settle where and how the solver is compiled, unless the user or the caller has."""
    if "jax" in sys.modules:
        return
    # Small matrices in float64 are a processor's work, and it starts in a fraction of the time.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # One problem is solved once, in milliseconds: to compile takes longer, by half without this.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def _votes_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of votes that were given; they go with votes alone."""
    if (args.problem is None) == (args.votes is None):
        raise UsageError("give either a problem file or --votes FILE.csv; see rpo solve --help")
    chosen = {name: getattr(args, name) for name in _VOTES_OPTIONS}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if args.votes is None and chosen:
        option = "--" + next(iter(chosen)).replace("_", "-")
        raise UsageError(f"argument {option}: goes with --votes, not with a problem file")
    return chosen
