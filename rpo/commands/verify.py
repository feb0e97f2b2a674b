"""Check the theorem on random instances by three routes, and see it fail where it must."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bandits.theorem_check.agreement import Agreement
    from bandits.theorem_check.negative_controls import NegativeControl

GAP_BAR = 1e-10
DISTANCE_BAR = 1e-6
CONTROL_BAR = 5e-4  # three digits
BARS = {"duality gap": GAP_BAR, "Algorithm 1": DISTANCE_BAR, "RPO loss": DISTANCE_BAR}

EXAMPLES = (
    "rpo verify",
    "rpo verify --instances 1000 --seed 7 --out out/verify",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    from rpo.runtime.errors import whole_number

    parser.add_argument(
        "--instances",
        type=whole_number(1),
        default=200,
        metavar="N",
        help="random bandits, half tabular, half linear (default 200)",
    )
    parser.add_argument(
        "--seed",
        type=whole_number(0),
        default=0,
        metavar="S",
        help="seed that the bandits are drawn with (default 0)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/verify"),
        metavar="DIR",
        help="folder for verify.json and verify.png (default out/verify)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, write the records and the figure, say which claims hold; 1 if one fails."""
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import tell
    from rpo.runtime.progress import with_progress
    from rpo_io.atomic import write_atomic
    from rpo_io.figures import png_bytes
    from rpo_io.paths import prepare_folder
    from rpo_io.strict_json import format_document

    with user_input():
        prepare_folder(args.out)
    from bandits.theorem_check.agreement import measure_agreement
    from bandits.theorem_check.negative_controls import solve_negative_controls

    measured = measure_agreement(args.instances, args.seed)
    records = list(with_progress(measured, args.instances, "bandits solved three ways"))
    controls = solve_negative_controls()
    result = document(records, controls)
    write_atomic(args.out / "verify.json", format_document(result).encode())
    write_atomic(args.out / "verify.png", png_bytes(figure(records, controls)))
    said = [sentence(claim) for claim in result["claims"]]
    said.append(f"written to {args.out}: verify.json, verify.png")
    tell(args, {"claims": result["claims"], "out": str(args.out)}, "\n".join(said) + "\n")
    return 0 if all(claim["holds"] for claim in result["claims"]) else 1


def document(
    records: Sequence[Agreement], controls: Sequence[NegativeControl]
) -> dict[str, list[dict[str, Any]]]:
    """Content of ``verify.json``.

    Args:
        records: what was measured on the random instances.
        controls: the solved negative controls.

    Returns:
        ``claims``, ``instances`` and ``negative_controls``; distances that are not finite are
        null.
    """
    misses = [abs(control.duality_gap - control.expected) for control in controls]
    claims = [
        _claim(
            "the exact solution is proven optimal: duality gap relative to max(1, |value|)",
            GAP_BAR,
            [record.relative_gap() for record in records],
        ),
        _claim(
            "Algorithm 1, solved independently, gives the same policy: total variation",
            DISTANCE_BAR,
            [record.policy_tv_maximin for record in records],
        ),
        _claim(
            "minimising the RPO loss gives the same policy: total variation",
            DISTANCE_BAR,
            [record.policy_tv_loss for record in records],
        ),
        _claim(
            "where its assumption is broken the theorem fails by the known gap: difference",
            CONTROL_BAR,
            misses,
        ),
    ]
    instances = [record._asdict() for record in records]
    for row in instances:
        del row["number"]
    return {
        "claims": claims,
        "instances": [_finite(row) for row in instances],
        "negative_controls": [_finite(control._asdict()) for control in controls],
    }


def figure(records: Sequence[Agreement], controls: Sequence[NegativeControl]) -> Figure:
    """The agreement on random instances beside the negative controls."""
    from matplotlib.figure import Figure

    from bandits.theorem_check.plots import plot_agreement, plot_negative_controls

    canvas = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1.25, 1.0))
    plot_agreement(records, BARS, left)
    plot_negative_controls(controls, right)
    return canvas


def sentence(claim: dict[str, Any]) -> str:
    """One line about a claim."""
    verdict = "holds" if claim["holds"] else "FAILS"
    measured = "not a number" if claim["measured"] is None else f"{claim['measured']:.1e}"
    return f"{verdict}: {claim['name']} at most {claim['bar']:.0e}, measured {measured}"


def _claim(name: str, bar: float, values: Sequence[float]) -> dict[str, Any]:
    import numpy as np

    largest = float(np.max(values))  # not a number if one of them is not: then nothing holds
    return _finite({"name": name, "bar": bar, "measured": largest, "holds": largest <= bar})


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A record for strict JSON: null where a number is infinite or not one."""
    infinite = (float("inf"), float("-inf"))
    return {
        name: None if isinstance(value, float) and (value != value or value in infinite) else value
        for name, value in row.items()
    }
