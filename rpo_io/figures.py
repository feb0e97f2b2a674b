"""The style that all figures share, and figures as reproducible bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "gray": "#666666"}
"""Four colors of Okabe and Ito that color-blind readers can distinguish."""
TEXT_SIZE = 9.5
"""Size of all text in figures, points. Titles are one point larger."""


def tidy_axes(ax: Axes) -> Axes:
    """Give axes the style of all figures: two spines, one text size, the title on the left.

    Args:
        ax: axes on which everything is drawn.

    Returns:
        The same axes.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=TEXT_SIZE)
    ax.xaxis.label.set_fontsize(TEXT_SIZE)
    ax.yaxis.label.set_fontsize(TEXT_SIZE)
    if title := ax.get_title("center"):
        ax.set_title("", loc="center")
        ax.set_title(title, loc="left")
    ax.set_title(ax.get_title("left"), loc="left", size=TEXT_SIZE + 1)
    if legend := ax.get_legend():
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_fontsize(TEXT_SIZE)
    return ax


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes.

    Args:
        figure: a Matplotlib figure.

    Returns:
        The content of the file, at 144 dots per inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Render a figure as SVG; equal figures give equal bytes.

    Args:
        figure: a Matplotlib figure.

    Returns:
        The content of the file.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rpo"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
