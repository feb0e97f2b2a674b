"""The style that all figures share, and figures as reproducible bytes.

Text has the sizes of the Matplotlib style in force (``font.size`` and what follows it), so that a
style file changes it; titles of the default size are one point larger than text.
"""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "gray": "#666666"}
"""Four colors of Okabe and Ito that color-blind readers can distinguish."""
LINE_COLORS = (*PALETTE.values(), "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Colors of lines: those of the palette first, then others of Okabe and Ito."""
CHARACTER_WIDTH = 0.57
"""Approximate width of a character, as a share of the size of the text."""
MARGIN = 0.7
"""Approximate width of the tick labels and the label left of axes, inches."""


def text_size() -> float:
    """Return the size of text in figures under the Matplotlib style in force, points."""
    import matplotlib as mpl

    return float(mpl.rcParams["font.size"])


def title_size() -> float | str:
    """Return the size of titles: that of the style in force, by default one point above text."""
    import matplotlib as mpl

    size = mpl.rcParams["axes.titlesize"]
    return text_size() + 1.0 if size == mpl.rcParamsDefault["axes.titlesize"] else size


def line_colors() -> tuple[str, ...]:
    """Return the colors of lines: those of the style in force, by default Okabe and Ito's."""
    import matplotlib as mpl

    cycle = mpl.rcParams["axes.prop_cycle"]
    if cycle == mpl.rcParamsDefault["axes.prop_cycle"] or "color" not in cycle.keys:
        return LINE_COLORS
    return tuple(cycle.by_key()["color"])


def axes_inches(ax: Axes) -> tuple[float, float]:
    """Return the approximate width and height of the cell of axes in their figure.

    The exact extent of axes is not known before their figure is drawn.

    Args:
        ax: axes of a figure.

    Returns:
        Width and height of the part of the figure that the axes and their labels have, inches.
    """
    figure = ax.get_figure(root=True)
    cell = ax.get_subplotspec()
    width, height = map(float, figure.get_size_inches()) if figure else (6.4, 4.0)
    if cell is None:
        return width, height
    grid = cell.get_gridspec()
    heights, widths = (
        np.asarray(ratios, np.float64)
        for ratios in (grid.get_height_ratios(), grid.get_width_ratios())
    )
    width *= widths[list(cell.colspan)].sum() / widths.sum()
    return float(width), float(height * heights[list(cell.rowspan)].sum() / heights.sum())


def axes_or_new(ax: Axes | None) -> Axes:
    """Return the given axes, or new ones.

    Args:
        ax: axes; None for new ones in a figure of pyplot.
    """
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def wrap_text(text: str, inches: float, size: float) -> str:
    r"""Break the lines of a text that are wider than a length.

    Args:
        text: a text, possibly with line breaks, which are kept.
        inches: the length.
        size: size of the text, points.

    Returns:
        The text with further line breaks.

    Examples:
        >>> wrap_text("one two three", 0.6, 9.0)
        'one two\nthree'
    """
    width = max(8, math.floor(72.0 * inches / (CHARACTER_WIDTH * size)))
    if len(text) > width:
        text = text.replace(" (", "\n(")  # a unit stays whole
    return "\n".join(
        row
        for line in text.split("\n")
        for row in (
            textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
        )
    )


def tidy_axes(ax: Axes) -> Axes:
    """Give axes the style of all figures: two spines, the title on the left, texts that fit.

    Args:
        ax: axes on which everything is drawn.

    Returns:
        The same axes.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.ticker import FixedLocator

    ax.spines[["top", "right"]].set_visible(False)
    if title := ax.get_title("center"):
        ax.set_title("", loc="center")
        ax.set_title(title, loc="left")
    width, height = axes_inches(ax)
    is_named = isinstance(ax.yaxis.get_major_locator(), FixedLocator)
    names = [label.get_text() for label in ax.get_yticklabels()] if is_named else []
    longest = max(map(len, names), default=0)
    width -= max(
        MARGIN if ax.get_ylabel() else 0.45, longest * CHARACTER_WIDTH * text_size() / 72.0 + 0.2
    )
    if legend := ax.get_legend():
        legend.set_frame_on(False)
        height -= 1.4 * text_size() / 72.0 * len(legend.get_texts())
    points = FontProperties(size=title_size()).get_size_in_points()
    ax.set_title(wrap_text(ax.get_title("left"), width, points), loc="left", size=points)
    ax.set_xlabel(wrap_text(ax.get_xlabel(), width, float(ax.xaxis.label.get_fontsize())))
    ax.set_ylabel(wrap_text(ax.get_ylabel(), height - MARGIN, float(ax.yaxis.label.get_fontsize())))
    return ax


def png_bytes(figure: Figure, *, dpi: float = 144.0) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes.

    Args:
        figure: a Matplotlib figure.
        dpi: dots per inch.

    Returns:
        The content of the file.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
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


def pdf_bytes(figure: Figure) -> bytes:
    """Render a figure as PDF with TrueType fonts; equal figures give equal bytes.

    Args:
        figure: a Matplotlib figure.

    Returns:
        The content of the file, without a date.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"pdf.fonttype": 42}):  # venues refuse the default, Type 3
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()
