"""Check the theorem on random bandits by three routes, and on negative controls that must fail."""

from __future__ import annotations

import argparse
from pathlib import Path

from rpo.runtime.errors import any_path, whole_number

EXAMPLES = (
    "rpo verify",
    "rpo verify --instances 1000 --seed 7 --out out/verify",
    "rpo verify --reward-class examples.budget:Budget --problem examples/budget_problem.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo verify``."""
    parser.add_argument(
        "--instances",
        type=whole_number(1),
        default=200,
        metavar="N",
        help="number of random bandits, half tabular, half linear; from 500 on, some have kernel "
        "balls, Lipschitz classes and polytopes, whose solvers take minutes to compile (default "
        "200)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="S",
        help="random seed of the bandits (default 0)",
    )
    parser.add_argument(
        "--reward-class",
        metavar="MODULE:CLASS",
        help="also solve 20 random bandits with a convex, compact reward class of your own module, "
        "which may lie in the current folder",
    )
    parser.add_argument(
        "--problem",
        metavar="PROBLEM.json",
        help="with --reward-class: problem file as of rpo solve, whose `reward_class` has the "
        "parameters of the class, and whose `reference_policy` gives the numbers of contexts and "
        "actions (default: no parameters, 2 contexts and 3 actions)",
    )
    parser.add_argument(
        "--rigorous",
        action="store_true",
        help="also prove an upper bound on the duality gap of every bandit in ball arithmetic, "
        "with all rounding errors enclosed (needs the extra `rigorous`)",
    )
    parser.add_argument(
        "--out",
        type=any_path,
        default=Path("out/verify"),
        metavar="DIR",
        help="folder for verify.json and verify.png (default out/verify)",
    )


def run(args: argparse.Namespace) -> int:
    """Check the claims and print the verdicts; return 1 if a claim fails."""
    from rpo.api import verify
    from rpo.report.claims import summarize_claims
    from rpo.runtime.compilation import keep_compiled_programs
    from rpo.runtime.output import print_result

    keep_compiled_programs()
    result = verify(
        instances=args.instances,
        seed=args.seed,
        out=args.out,
        rigorous=args.rigorous,
        reward_class=args.reward_class,
        problem=args.problem,
    )
    text = summarize_claims(result.claims, f"written to {args.out}: verify.json, verify.png")
    print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
