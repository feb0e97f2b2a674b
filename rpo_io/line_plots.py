"""Lines with their names at the right ends; lines that coincide are marked.

Coinciding lines are drawn as alternating dashes of their colors, their markers take turns, and
their names stand under each other, joined by "=".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .figures import TEXT_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COINCIDENCE = 0.012
"""Largest distance between coinciding lines, as a share of the height of the axes."""
DASH = 3.0
"""Length of the dashes of coinciding lines, in widths of the line."""
ROW_INCHES = 1.45 * TEXT_SIZE / 72
"""Height of a row of text."""


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
    """Draw lines, mark those that coincide, and write each name at the right end.

    Args:
        lines: the lines, in the order in which they are drawn.
        ax: axes to draw into. Their scales must be set before, since they decide which lines
            coincide and where the names stand.

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
    _write_names(lines, groups, ax)
    return ax


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
    row_heights = _separate([height for height, _ in rows], ROW_INCHES / _height_in_inches(ax))
    for index, text in sorted(text for _, texts in blocks for text in texts):
        middle = np.mean([y for y, row in zip(row_heights, rows, strict=True) if row[1] == index])
        style = {"color": lines[index].color, "size": TEXT_SIZE, "va": "center"}
        ax.text(1.02, float(middle), text, transform=ax.transAxes, **style)


def _height_in_inches(ax: Axes) -> float:
    """Return the approximate height of axes; the layout is not known before a figure is drawn."""
    figure = ax.get_figure(root=True)
    cell = ax.get_subplotspec()
    share = 1.0
    if cell:
        heights = np.asarray(cell.get_gridspec().get_height_ratios(), np.float64)
        share = heights[list(cell.rowspan)].sum() / heights.sum()
    return 0.72 * share * (figure.get_size_inches()[1] if figure else 4.0)


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
