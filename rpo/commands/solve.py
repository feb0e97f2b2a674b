"""Solve one max-min problem against an adversarial reward, with a proof of optimality.

The problem is a JSON file, or a file of votes with the columns context, winner, loser and count, or
model_a, model_b and winner. The answer is printed to stdout as one JSON object; the human-readable
summary goes to stderr. A complete problem file:

  {"context_weights": [1], "reference_policy": [[0.5, 0.3, 0.2]],
   "baseline_policy": "chosen", "comparisons": [[0, 0, 1, 6], [0, 1, 0, 4], [0, 2, 0, 1]],
   "beta": 0.3, "eta": 0.3, "reward_class": {"kind": "tabular", "max": 4}}

A comparison is [context, winner, loser, count], with indices from 0. Further data are "rankings"
[context, [best, ..., worst], count], "choices" [context, [actions of the set], chosen, count] and
"ties" [context, action, action, count], which need a "tie_model". The reward class may also be
{"kind": "linear", "features": [x][a][d], "radius": 1}, {"kind": "lipschitz", "constant": 1,
"distance": [n][n], "max": 4} or "embedding": [x][a][k] instead of the distances, {"kind":
"polytope", "matrix": [m][x][a], "limits": [m], "max": 4}, {"kind": "kernel", "gram": [n][n],
"radius": 1}, {"kind": "finite", "rewards": [k][x][a]} or {"kind": "unbounded"}; the axes are
context x, action a, feature d, inequality m and reward k, and n is x times a. For a class of your
own (--reward-class) the keys of "reward_class" are its parameters. With "true_reward" [x][a] the
answer also has the gap to the "comparator" [x][a], by default the best action of each context, and
the coverage coefficient of the comparator.
"""

from __future__ import annotations

import argparse
import sys

from rpo.runtime.compilation import keep_compiled_programs, prefer_fast_compilation
from rpo.runtime.errors import number, whole_number

EXAMPLES = (
    "rpo solve problem.json --eta 0.1",
    "rpo solve --votes votes.csv --eta 0.01 --contexts > answer.json",
    "rpo solve --votes votes.csv --confidence 0.95",
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
        "--votes",
        metavar="FILE.csv",
        help="file of the votes, with the columns context,winner,loser[,count] or "
        "model_a,model_b,winner; the reference policy is uniform over the actions that occur in a "
        "context, and the reward class is tabular",
    )
    parser.add_argument(
        "--formulation",
        choices=("minimax", "maximin", "policy"),
        default="minimax",
        help="minimax: minimize over rewards (default); maximin: maximize over policies, Algorithm "
        "1; policy: minimize the RPO loss over policies, Algorithm 2",
    )
    default = "default: that of the problem file; for votes, 1 / sqrt(number of votes)"
    parser.add_argument(
        "--beta", type=number(0.0, inclusive=False), help=f"weight of the KL term ({default})"
    )
    parser.add_argument(
        "--eta",
        type=number(0.0, inclusive=True),
        help=f"weight of the adversarial term ({default})",
    )
    parser.add_argument(
        "--reward-max",
        type=number(0.0, inclusive=False),
        help="upper bound of the rewards of a tabular class; the lower bound is 0 (default: that "
        "of the problem file; for votes, 4)",
    )
    parser.add_argument(
        "--reward-class",
        metavar="MODULE:CLASS",
        help="reward class of your own module, which may lie in the current folder; its parameters "
        "are the keys of `reward_class` in the problem file",
    )
    parser.add_argument(
        "--baseline",
        choices=("chosen", "reference"),
        help="baseline policy: the distribution of the winners in each context, or the reference "
        "policy (default: that of the problem file; for votes, chosen)",
    )
    parser.add_argument(
        "--context-weights",
        choices=("votes", "uniform"),
        help="for votes: weight contexts by their share of the votes (default), or uniformly",
    )
    parser.add_argument(
        "--tie-model",
        choices=("davidson", "rao_kupper"),
        help="for votes: model of wins and ties (default: a tie counts as half a win for either "
        "side)",
    )
    parser.add_argument(
        "--tie-parameter",
        type=number(0.0, inclusive=False),
        help="for votes with --tie-model: parameter of the model (default: that of maximum "
        "likelihood over the reward class)",
    )
    parser.add_argument(
        "--rigorous",
        action="store_true",
        help="also prove an upper bound on the duality gap in ball arithmetic, with all rounding "
        "errors enclosed (needs the extra `rigorous`)",
    )
    parser.add_argument(
        "--confidence",
        type=number(0.0, inclusive=False),
        metavar="LEVEL",
        help="also print a confidence interval for the value of the policy minus that of the "
        "baseline, such as 0.95: valid for every number of comparisons if the class contains the "
        "true reward; needs whole counts",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        help="with --confidence: seed of the random split of the data (default: 0)",
    )
    parser.add_argument(
        "--contexts",
        action="store_true",
        help="show the probability of every action in every context, however many there are",
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
        reward_class=args.reward_class,
        baseline=args.baseline,
        context_weights=args.context_weights,
        tie_model=args.tie_model,
        tie_parameter=args.tie_parameter,
        contexts=args.contexts,
        rigorous=args.rigorous,
        confidence=args.confidence,
        seed=args.seed,
    )
    sys.stdout.write(format_document(answer.to_dict()))
    write_summary(answer, sys.stderr)
    return answer.exit_code
