"""Figures of training runs; every function draws into given axes and returns them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from rpo_io.bucket_paths import AnyPath, as_path
from rpo_io.figures import PALETTE, tidy_axes
from rpo_io.line_logs import open_log
from rpo_io.line_plots import NamedLine, draw_lines

COLORS = tuple(PALETTE[name] for name in ("blue", "orange", "green", "gray"))
"""Colors of the runs, in order."""
PANEL_TITLES = (
    "Chosen and rejected (dashed) log-probability since step 0, nats",
    "Margin of implicit rewards",
    "Accuracy: share of positive margins",
    "Adversarial value $F$",
)


def read_metrics(path: str | AnyPath) -> list[dict[str, Any]]:
    """Read the metrics that a run logged.

    Args:
        path: path of ``metrics.jsonl``, local or in a bucket.

    Returns:
        One mapping per logged step; lines that report an event are left out.
    """
    source = as_path(path)
    if isinstance(source, Path):
        source.stat()  # a missing log is an error here
    lines = map(json.loads, open_log(source).read())
    return [line for line in lines if "event" not in line]


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    axes: Iterable[Axes],
    *,
    beta: float,
    span: int = 40,
) -> list[Axes]:
    r"""Draw the metrics of training pairs as lines and those of held-out pairs as dots.

    Args:
        runs: metrics of each run by its name, see :func:`read_metrics`. The objective of the runs
            must use a reference.
        axes: four axes, for log-probabilities, margins, accuracies and the adversarial value.
        beta: :math:`\beta` of the runs; the implicit reward is :math:`\beta\log(\pi/\pi_{ref})`.
        span: number of steps in the moving average of the lines.

    Returns:
        The same axes.
    """
    axes = list(axes)
    panels = (
        (("rewards/chosen", 1 / beta, "-"), ("rewards/rejected", 1 / beta, "--")),
        (("rewards/margins", 1.0, "-"),),
        (("rewards/accuracies", 1.0, "-"),),
        (("theory/adversarial_value", 1.0, "-"),),
    )
    for ax, title, quantities in zip(axes, PANEL_TITLES, panels, strict=True):
        for (label, lines), color in zip(runs.items(), COLORS, strict=False):
            for name, scale, style in quantities:
                steps, values = _series(lines, name)
                means = scale * _moving_mean(values, span)
                ax.plot(steps[-len(means) :], means, style, color=color, lw=1.8, label=label)
                steps, values = _series(lines, f"eval_{name}")
                face = color if style == "-" else "white"
                ax.plot(steps, scale * values, "o", color=color, mfc=face, ms=6, clip_on=False)
                label = None
        ax.set_title(title)
        ax.set_xlabel("step of training")
        ax.set_xlim(left=0)
        tidy_axes(ax)
    axes[0].axhline(0.0, color="0.7", lw=0.8, zorder=0)
    axes[0].legend(frameon=False)
    return axes


def plot_minimax_agreement(
    curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]], ax: Axes
) -> Axes:
    """Draw the distance of trained transformers from the exact minimax policy.

    Args:
        curves: for each size of the decoder, one pair of steps and total variations per seed.
        ax: axes to draw into.

    Returns:
        The same axes.
    """
    ax.set_yscale("log")
    lines = []
    for (name, seeds), color in zip(curves.items(), COLORS, strict=False):
        highest = max(range(len(seeds)), key=lambda index: seeds[index][1][-1])
        for index, (steps, variation) in enumerate(seeds):
            # The seeds of a size share its name.
            lines.append(NamedLine(name if index == highest else "", steps, variation, color))
    ax.set_xlabel("step of training")
    draw_lines(lines, ax)
    ax.set_ylabel("total variation from\nthe minimax policy")
    ax.set_title("Distance from the exact solution, one line per seed")
    return tidy_axes(ax)


def _series(
    lines: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the steps that logged a metric, and its values."""
    logged = [(line["step"], line[name]) for line in lines if name in line]
    steps, values = np.array(logged, float).reshape(-1, 2).T
    return steps, values


def _moving_mean(values: Float[np.ndarray, " k"], span: int) -> Float[np.ndarray, " m"]:
    """Return the means of ``span`` consecutive values, or of all if there are fewer."""
    span = min(span, len(values))
    return np.convolve(values, np.full(span, 1 / max(span, 1)), mode="valid")
