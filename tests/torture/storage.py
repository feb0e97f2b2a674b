"""Damaged files, full disks and read-only folders: detected or harmless, never silently wrong."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

import damages
import full_disks
from crashes import SUBJECTS, prepare


def line(kind: str, tally: Counter[str]) -> str:
    """Return a row of the table."""
    detected, harmless = tally["detected"], tally["harmless"]
    wrong = tally.total() - detected - harmless
    return f"{kind:36}{tally.total():>8}{detected:>10}{harmless:>10}{wrong:>16}"


def main() -> int:
    """Run all trials, print the table, and return 1 if anything was silently wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=300, help="of each kind (default 300)")
    parser.add_argument("--sizes", type=int, default=10, help="of disks, a command (default 10)")
    parser.add_argument("--fillings", type=int, default=10, help="of disks, a command (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    wrong: list[str] = []
    print(f"{'kind':36}{'trials':>8}{'detected':>10}{'harmless':>10}{'silently wrong':>16}")
    for kind in damages.KINDS:
        tally, more = damages.torture(kind, args.damages, args.seed)
        print(line(kind, tally), flush=True)
        wrong += more
    with tempfile.TemporaryDirectory(prefix="storage") as name:
        folder = Path(name)
        reason = full_disks.may_mount(folder)
        prepare(folder)
        for subject in SUBJECTS.values() if reason is None else ():
            results = full_disks.torture(subject, folder, args.sizes, args.fillings, args.seed)
            for kind, (tally, more) in results.items():
                print(line(kind, tally), flush=True)
                wrong += more
    if reason is not None:
        print(f"full disks and read-only folders are skipped: {reason}")
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
