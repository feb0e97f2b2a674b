"""Figures of training runs: every function draws into the axes it is given and returns them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.transforms import blended_transform_factory

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#666666")
"""Colours that colour-blind readers can tell apart (Okabe and Ito)."""
PANELS = (
    "chosen and rejected (dashed) log-probability since step 0, nats",
    "margin of implicit rewards",
    "accuracy: share of positive margins",
    "adversarial value $F$",
)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read a run's ``metrics.jsonl``.

    Args:
        path: of the file.

    Returns:
        A mapping a line; the lines that tell of events are left out.
    """
    lines = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "event" not in line]


def plot_runs(
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    axes: Iterable[Axes],
    *,
    beta: float,
    span: int = 40,
) -> list[Axes]:
    r"""Draw what training did to pairs: lines for training, dots for held-out pairs.

    Args:
        runs: for each name the metrics of :func:`read_metrics`, of an objective with a reference.
        axes: four, for log-probabilities, margins, accuracies and the adversarial value.
        beta: :math:`\beta`; a reward is :math:`\beta\log(\pi/\pi_{ref})`.
        span: steps of the moving average.

    Returns:
        The same axes.
    """
    axes = list(axes)
    quantities = (
        (("rewards/chosen", 1 / beta, "-"), ("rewards/rejected", 1 / beta, "--")),
        (("rewards/margins", 1.0, "-"),),
        (("rewards/accuracies", 1.0, "-"),),
        (("theory/adversarial_value", 1.0, "-"),),
    )
    for ax, title, panel in zip(axes, PANELS, quantities, strict=True):
        for (label, lines), colour in zip(runs.items(), COLOURS, strict=False):
            for name, scale, style in panel:
                steps, values = _series(lines, name)
                means = scale * _moving_mean(values, span)
                ax.plot(steps[-len(means) :], means, style, color=colour, lw=1.8, label=label)
                held_out, found = _series(lines, f"eval_{name}")
                face = colour if style == "-" else "white"
                ax.plot(held_out, scale * found, "o", color=colour, mfc=face, ms=6, clip_on=False)
                label = None
        ax.set_title(title[0].upper() + title[1:], loc="left", size="medium")
        ax.set_xlabel("step of training")
        ax.set_xlim(left=0)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(0.0, color="0.7", lw=0.8, zorder=0)
    axes[0].legend(frameon=False)
    return axes


def _series(
    lines: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    found = [(line["step"], line[name]) for line in lines if name in line]
    steps, values = np.array(found, float).reshape(-1, 2).T
    return steps, values


def _moving_mean(values: Float[np.ndarray, " k"], span: int) -> Float[np.ndarray, " m"]:
    """Means of so many values one after another, or of all where there are fewer."""
    span = min(span, len(values))
    return np.convolve(values, np.full(span, 1 / max(span, 1)), mode="valid")


def plot_minimax_agreement(
    curves: Mapping[str, Sequence[tuple[Sequence[int], Sequence[float]]]], ax: Axes
) -> Axes:
    """Draw how trained transformers approach the exact minimax policy.

    Args:
        curves: for each size of the decoder, steps and total variation, one pair for each seed.
        ax: where to draw.

    Returns:
        The same axes.
    """
    for (name, seeds), colour in zip(curves.items(), COLOURS, strict=False):
        for steps, variation in seeds:
            ax.plot(steps, variation, color=colour, lw=1.8)
        last = max(variation[-1] for _, variation in seeds)
        beside = blended_transform_factory(ax.transAxes, ax.transData)
        ax.text(1.02, last, name, color=colour, va="center", transform=beside)
    ax.set_yscale("log")
    ax.set_xlabel("step of training")
    ax.set_ylabel("total variation from the minimax policy")
    ax.set_title("A line a seed: trained on tokens, compared with the exact solution")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
