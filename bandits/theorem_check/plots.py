"""Figures of the theorem; every function draws into the given axes and returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from rpo_io.figures import PALETTE, text_size, tidy_axes
from rpo_io.line_plots import NamedLine, draw_lines

from .agreement import Agreement
from .negative_controls import NegativeControl

FLOOR = 1e-18
"""Height at which zeros are drawn on a logarithmic axis."""
COLORS = tuple(PALETTE[name] for name in ("orange", "blue", "green", "gray"))
MARKERS = "osD^"
FAMILY_COLORS = {
    "tabular": PALETTE["blue"],
    "linear": PALETTE["orange"],
    "kernel": PALETTE["green"],
    "lipschitz": PALETTE["gray"],
    "polytope": "#CC79A7",
}
"""Color of each family of instances; a class of the user's own is black."""


def plot_agreement(records: Sequence[Agreement], bars: Mapping[str, float], ax: Axes) -> Axes:
    """Draw the measurements of every instance, and the largest allowed value of each quantity.

    Args:
        records: one record for each instance.
        bars: largest allowed values, for "duality gap", "Algorithm 1" and "RPO loss".
        ax: axes to draw into.

    Returns:
        The same axes.
    """
    columns = {
        "duality gap": [record.relative_gap() for record in records],
        "Algorithm 1": [record.policy_tv_maximin for record in records],
        "RPO loss": [record.policy_tv_loss for record in records],
    }
    labels = {
        "duality gap": "exact solution:\nduality gap",
        "Algorithm 1": "Algorithm 1:\ntotal variation",
        "RPO loss": "RPO loss:\ntotal variation",
    }
    jitter = np.random.default_rng(0).uniform(-0.28, 0.28, len(records))
    families = dict.fromkeys(record.family for record in records)
    colors = {family: FAMILY_COLORS.get(family, "black") for family in families}
    for x, (name, values) in enumerate(columns.items()):
        for family, color in colors.items():
            rows = [i for i, record in enumerate(records) if record.family == family]
            heights = np.maximum(np.asarray(values)[rows], FLOOR)
            label = family if x == 0 else None
            ax.plot(x + jitter[rows], heights, ".", ms=5, alpha=0.6, color=color, label=label)
        ax.hlines(bars[name], x - 0.36, x + 0.36, color="black", lw=1.5)
        ax.text(
            x, bars[name] * 2.0, f"bar {bars[name]:.0e}", ha="center", va="bottom", size=text_size()
        )
    ax.set_yscale("log")
    ax.set_ylim(FLOOR / 3, 1e-2)
    ax.set_xticks(range(3), [labels[name] for name in columns])
    ax.set_ylabel("distance from exact agreement")
    ax.set_title(f"One answer, three routes: {len(records)} random bandits")
    ax.legend(loc="upper left", ncols=2, markerscale=2, handletextpad=0.2, borderaxespad=0.0)
    return tidy_axes(ax)


def plot_negative_controls(controls: Sequence[NegativeControl], ax: Axes) -> Axes:
    """Draw the gap between the two formulations for problems that break an assumption.

    Args:
        controls: the solved controls.
        ax: axes to draw into.

    Returns:
        The same axes.
    """
    heights = np.arange(len(controls))[::-1]
    gaps = [control.duality_gap for control in controls]
    ax.barh(heights, gaps, height=0.6, color=PALETTE["blue"], label="solved")
    expected = [control.expected for control in controls]
    ax.plot(expected, heights, "|", ms=16, mew=2.5, color=PALETTE["orange"], label="expected")
    for height, gap in zip(heights, gaps, strict=True):
        ax.text(gap + 0.012, height, f"{max(gap, 0.0):.3f}", va="center", size=text_size())
    ax.set_yticks(heights, [control.name for control in controls])
    ax.set_xlim(0, 1.2 * max(*gaps, *expected))
    ax.set_xlabel(r"$\min_r\max_\pi\phi-\max_\pi\min_r\phi$, per unit $\eta$")
    ax.set_title("Without its assumption the theorem fails")
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], names[::-1], loc="upper right")
    return tidy_axes(ax)


def plot_gap_against_comparisons(
    comparisons: Sequence[int], gaps: Mapping[str, Sequence[float]], ax: Axes
) -> Axes:
    r"""Draw the gap of several methods against the number of comparisons.

    Args:
        comparisons: numbers of comparisons :math:`N`.
        gaps: for each method, :math:`\max r^\star - E_{\hat\pi} r^\star` at each :math:`N`.
        ax: axes to draw into.

    Returns:
        The same axes.
    """
    ax.set_xscale("log")
    ax.set_yscale("log")
    lines = [
        NamedLine(name.replace(", ", ",\n"), comparisons, values, color, marker)
        for (name, values), color, marker in zip(gaps.items(), COLORS, MARKERS, strict=False)
    ]
    ax.set_xlabel("comparisons N")
    draw_lines(lines, ax)
    ax.set_ylabel("gap to the best response, reward")
    ax.set_title("One wrong label on a rarely seen response")
    return tidy_axes(ax)


def plot_training(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float], Sequence[float]]],
    axes: Sequence[Axes],
) -> Sequence[Axes]:
    """Draw the log-probability of the chosen responses and the true reward during training.

    Args:
        curves: for each method the steps, the mean log-probability of the chosen responses (nats)
            and the expected true reward.
        axes: two axes, for the two quantities.

    Returns:
        The same axes.
    """
    axes[1].set_ylim(0.0, 1.0)
    names = ("log-probability of the chosen responses, nats", "expected true reward")
    for index, (ax, quantity) in enumerate(zip(axes, names, strict=True)):
        lines = [
            NamedLine(name, curve[0], curve[1 + index], color)
            for (name, curve), color in zip(curves.items(), COLORS, strict=False)
        ]
        ax.set_xlabel("step of training")
        draw_lines(lines, ax)
        ax.set_title(quantity[0].upper() + quantity[1:])
        tidy_axes(ax)
    return axes
