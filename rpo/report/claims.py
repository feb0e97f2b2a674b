"""The claims of ``rpo verify``: what is measured, the bars, the records and the figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from rpo.results import Claim
from rpo_io.strict_json import null_non_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bandits.theorem_check.agreement import Agreement
    from bandits.theorem_check.negative_controls import NegativeControl

GAP_BAR = 1e-10
"""Largest duality gap relative to max(1, abs(value)) of an exact solution."""
PROVEN_GAP_BAR = 1e-9
"""Largest bound on the duality gap in ball arithmetic, relative to max(1, abs(value))."""
DISTANCE_BAR = 1e-6
"""Largest total variation between the policies of two routes."""
CONTROL_BAR = 5e-4
"""Largest deviation of a negative control's gap from the known gap: three digits."""
POSITIVE_CONTROL_BAR = 1e-12
"""Largest gap of the positive control, whose reward class is convex-like but not convex."""
BARS = {"duality gap": GAP_BAR, "Algorithm 1": DISTANCE_BAR, "RPO loss": DISTANCE_BAR}
"""Bars by the names that :func:`bandits.theorem_check.plots.plot_agreement` uses."""


def check_claims(
    records: Sequence[Agreement], controls: Sequence[NegativeControl]
) -> tuple[Claim, ...]:
    """Compare the measurements of ``rpo verify`` with their bars.

    Args:
        records: measurements on the random instances.
        controls: the solved negative controls.

    Returns:
        Four claims, a fifth if there is a positive control, and one on the proven gaps if there are
        any. A claim does not hold if one of its measurements is not a number.
    """
    differences = [abs(control.duality_gap - control.expected) for control in controls]
    claims = (
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
            "minimizing the RPO loss gives the same policy: total variation",
            DISTANCE_BAR,
            [record.policy_tv_loss for record in records],
        ),
        _claim(
            "where its assumption is broken the theorem fails by the known gap: difference",
            CONTROL_BAR,
            differences,
        ),
    )
    positive = [control.duality_gap for control in controls if control.expected == 0.0]
    if positive:
        name = "on a class that is convex-like but not convex the theorem holds: difference"
        claims = (*claims, _claim(name, POSITIVE_CONTROL_BAR, np.abs(positive).tolist()))
    if all(record.proven_duality_gap is None for record in records):
        return claims
    proven = [record.relative_proven_gap() for record in records]
    return (
        *claims,
        _claim(
            "the gap is proven in ball arithmetic too: bound relative to max(1, |value|)",
            PROVEN_GAP_BAR,
            proven,
        ),
    )


def verification_document(
    claims: Sequence[Claim], records: Sequence[Agreement], controls: Sequence[NegativeControl]
) -> dict[str, list[dict[str, Any]]]:
    """Return the content of ``verify.json``.

    Args:
        claims: the checked claims.
        records: measurements on the random instances.
        controls: the solved negative controls.

    Returns:
        The lists ``claims``, ``instances`` and ``negative_controls``, one mapping per row; numbers
        that are not finite are None.
    """
    instances = [record._asdict() for record in records]
    for row in instances:
        del row["number"]
        if row["proven_duality_gap"] is None:
            del row["proven_duality_gap"]
    rows = {
        "claims": [asdict(claim) for claim in claims],
        "instances": instances,
        "negative_controls": [control._asdict() for control in controls],
    }
    return {name: [null_non_finite(row) for row in table] for name, table in rows.items()}


def verification_figure(
    records: Sequence[Agreement], controls: Sequence[NegativeControl]
) -> Figure:
    """Draw the agreement on random instances above the negative controls.

    Args:
        records: measurements on the random instances.
        controls: the solved negative controls.

    Returns:
        A new figure with two axes.
    """
    from matplotlib.figure import Figure

    from bandits.theorem_check.plots import plot_agreement, plot_negative_controls

    figure = Figure(figsize=(6.4, 7.4), layout="constrained")  # legible in a column of text
    upper, lower = figure.subplots(2, 1, height_ratios=(1.2, 1.0))
    plot_agreement(records, BARS, upper)
    plot_negative_controls(controls, lower)
    return figure


def summarize_claims(claims: Sequence[Claim], *lines: str) -> str:
    """Return the verdicts as text, a line per claim.

    Args:
        claims: the checked claims.
        *lines: further lines to add at the end.

    Returns:
        The lines, each with its line break.
    """
    return "".join(f"{line}\n" for line in (*(claim.sentence for claim in claims), *lines))


def _claim(name: str, bar: float, values: Sequence[float]) -> Claim:
    largest = float(np.max(values))  # NaN if one of the values is
    return Claim(name=name, bar=bar, measured=largest, holds=largest <= bar)
