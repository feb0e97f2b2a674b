"""Run every part at small scale, without downloads, and write a report.

The parts are the checks of the theorem, a study on bandits, and tiny transformers trained with DPO
and RPO.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rpo.runtime.errors import any_path

EXAMPLES = (
    "rpo demo",
    "rpo demo --out report --json > numbers.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``rpo demo``."""
    parser.add_argument(
        "--out",
        type=any_path,
        default=Path("out/demo"),
        metavar="DIR",
        help="folder for report.html, summary.json and the figures (default out/demo)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and print the claims; return 1 if one of them fails."""
    from rpo.api import demo
    from rpo.report.claims import summarize_claims
    from rpo.runtime.compilation import keep_compiled_programs
    from rpo.runtime.output import print_result

    keep_compiled_programs()
    result = demo(out=args.out)
    reduced = (f"{part}: {text}" for part, text in result.summary["reduced"].items())
    text = summarize_claims(result.claims, *reduced, f"report: {args.out / 'report.html'}")
    print_result(result.to_dict(), text, as_json=args.json)
    return result.exit_code
