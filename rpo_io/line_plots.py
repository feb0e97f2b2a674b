"""Lines with their names at the right ends or in a legend; lines that coincide are marked.

Coinciding lines are drawn as alternating dashes of their colors, and their markers take turns.
Names at the ends of coinciding lines stand under each other, joined by "=". Where the names would
take too much of the width of the axes, or a line ends far from the right, a legend below the axes
has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .figures import axes_inches, text_size
from .legends import legend_below, text_inches

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COINCIDENCE = 0.012
"""Largest distance between coinciding lines, as a share of the height of the axes."""
DASH = 3.0
"""Length of the dashes of coinciding lines, in widths of the line."""
ROW = 1.45
"""Height of a row of text, as a share of the size of the text."""
MAX_NAMES = 0.33
"""Largest share of the width of axes that names at the ends of lines may take."""
MIN_END = 0.8
"""Smallest horizontal position of the end of a line, in axes, for a name at the right."""


class NamedLine(NamedTuple):
    """One line of a plot.

    Attributes:
        name: what is written at its right end, in one or more rows; "" for no name.
        x: horizontal coordinates, ascending.
        y: vertical coordinates.
        color: color of the line and of its name.
        marker: Matplotlib's name of the marker of each point; "" for none.
        note: rows under the name; for coinciding lines only that of the first is written.
        dashed: whether the line is dashed.
    """

    name: str
    x: Sequence[float] | np.ndarray
    y: Sequence[float] | np.ndarray
    color: str
    marker: str = ""
    note: str = ""
    dashed: bool = False


def draw_lines(lines: Sequence[NamedLine], ax: Axes) -> Axes:
    """Draw lines, mark those that coincide, and write each name at the right end or in a legend.

    Args:
        lines: the lines, in the order in which they are drawn.
        ax: axes to draw into. Their scales must be set before, since they decide which lines
            coincide and where the names stand. They must be in a figure of its final size.

    Returns:
        The same axes.
    """
    drawn = [
        ax.plot(
            line.x,
            line.y,
            "--" if line.dashed else "-",
            marker=line.marker or None,
            ms=4.5,
            lw=1.8,
            color=line.color,
        )[0]
        for line in lines
    ]
    ax.autoscale_view()
    groups = _coinciding(lines, ax)
    for group in groups:
        if len(group) > 1:
            _alternate([drawn[index] for index in group], lines[group[0]].dashed)
    if _fit_at_ends(lines, ax):
        _write_names(lines, groups, ax)
        return ax
    named = [line for line in lines if line.name]
    texts = [line.name.replace("\n", " ") + (line.note and f", {line.note}") for line in named]
    legend_below(ax, [_handle(line) for line in named], texts)
    return ax


def _fit_at_ends(lines: Sequence[NamedLine], ax: Axes) -> bool:
    """Return whether the names of lines fit at their ends, and all lines end at the right."""
    rows = [row for line in lines for row in f"{line.name}\n{line.note}".split("\n")]
    if text_inches(max(rows, key=len, default="")) > MAX_NAMES * axes_inches(ax)[0]:
        return False
    to_axes = ax.transData + ax.transAxes.inverted()
    ends = [to_axes.transform((line.x[-1], line.y[-1]))[0] for line in lines if len(line.x) > 1]
    return min(ends, default=1.0) >= MIN_END


def _handle(line: NamedLine) -> Line2D:
    """Return what stands beside the name of a line in a legend."""
    from matplotlib.lines import Line2D

    style, name = "--" if line.dashed else "-", line.name.replace("\n", " ")
    marker = line.marker or None
    return Line2D([], [], color=line.color, marker=marker, ls=style, ms=4.5, lw=1.8, label=name)


def _coinciding(lines: Sequence[NamedLine], ax: Axes) -> list[list[int]]:
    """Return the indices of the lines in groups; the lines of a group look the same."""
    to_axes = ax.transData + ax.transAxes.inverted()
    shapes = [to_axes.transform(np.column_stack([line.x, line.y]).astype(float)) for line in lines]
    groups: list[list[int]] = []
    for index, shape in enumerate(shapes):
        for group in groups:
            first = shapes[group[0]]
            is_alike = lines[group[0]].dashed == lines[index].dashed and len(shape) == len(first)
            if is_alike and np.abs(first - shape).max() <= COINCIDENCE:
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _alternate(group: Sequence[Line2D], dashed: bool) -> None:
    """Draw the lines of a group as dashes that leave room for each other."""
    period = DASH * len(group) * (2 if dashed else 1)
    for index, line in enumerate(group):
        # A negative offset would not be drawn alike by all backends.
        line.set_linestyle((period - index * DASH, (DASH, period - DASH)))
        line.set_dash_capstyle("butt")
        line.set_markevery((index, len(group)))


def _write_names(lines: Sequence[NamedLine], groups: Sequence[Sequence[int]], ax: Axes) -> None:
    """Write the names to the right of the axes, each near its line and without overlaps."""
    to_axes = ax.transData + ax.transAxes.inverted()
    blocks: list[tuple[float, list[tuple[int, str]]]] = []  # height, and the texts from the top
    for group in groups:
        named = [index for index in group if lines[index].name]
        ends = [(lines[index].x[-1], lines[index].y[-1]) for index in named]
        texts = [(index, f"= {lines[index].name}") for index in named]
        if named:
            first = lines[named[0]]
            texts[0] = named[0], "\n".join(filter(None, (first.name, first.note)))
            blocks.append((float(np.mean(to_axes.transform(ends)[:, 1])), texts))
    blocks.sort(key=lambda block: block[0])
    rows = [
        (height, index)
        for height, texts in blocks
        for index, text in reversed(texts)
        for _ in text.split("\n")
    ]
    row_inches = ROW * text_size() / 72.0
    row_heights = _separate(
        [height for height, _ in rows], row_inches / (0.72 * axes_inches(ax)[1])
    )
    for index, text in sorted(text for _, texts in blocks for text in texts):
        middle = np.mean([y for y, row in zip(row_heights, rows, strict=True) if row[1] == index])
        style = {"color": lines[index].color, "size": text_size(), "va": "center"}
        ax.text(1.02, float(middle), text, transform=ax.transAxes, **style)


def _separate(wanted: Sequence[float], distance: float) -> np.ndarray:
    """Move ascending heights to at least ``distance`` from each other, and into the axes.

    Neighbors that are too close form a block, centered on the mean of the wanted heights.
    """
    # Of every member of a block: the height of the block's lowest name that would fit it exactly.
    blocks: list[list[float]] = []
    for height in wanted:
        blocks.append([height])
        while len(blocks) > 1 and np.mean(blocks[-1]) < np.mean(blocks[-2]) + distance * len(
            blocks[-2]
        ):
            upper = blocks.pop()
            blocks[-1] += [start - distance * len(blocks[-1]) for start in upper]
    heights = np.array([np.mean(b) + distance * i for b in blocks for i in range(len(b))])
    steps = distance * (np.arange(len(heights)) + 0.5)
    base = min(0.0, (1.0 - distance * len(heights)) / 2)  # below 0 if there are too many rows
    return np.clip(heights, base + steps, 1.0 - base - steps[::-1])
