"""Lines with their names at the right ends or in a legend; lines that coincide are marked.

Coinciding lines are drawn as alternating dashes of their colors, and their markers take turns.
Names at the ends of coinciding lines stand under each other, joined by "=". Where the names would
take too much of the width of the axes, a legend below the axes has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .figures import CHARACTER_WIDTH, MARGIN, axes_inches, text_size, tidy_axes

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D

COINCIDENCE = 0.012
"""Largest distance between coinciding lines, as a share of the height of the axes."""
DASH = 3.0
"""Length of the dashes of coinciding lines, in widths of the line."""
ROW = 1.45
"""Height of a row of text, as a share of the size of the text."""
MAX_NAMES = 0.36
"""Largest share of the width of axes that names at the ends of lines may take."""
HANDLE = 3.4
"""Width of a handle of a legend with its spaces, in sizes of the text."""


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
    rows = [row for line in lines for row in f"{line.name}\n{line.note}".split("\n")]
    if text_inches(max(rows, key=len, default="")) <= MAX_NAMES * axes_inches(ax)[0]:
        _write_names(lines, groups, ax)
        return ax
    named = [index for index, line in enumerate(lines) if line.name]
    texts = [
        lines[i].name.replace("\n", " ") + (lines[i].note and f", {lines[i].note}") for i in named
    ]
    legend_below(ax, [drawn[index] for index in named], texts)
    return ax


def text_inches(text: str) -> float:
    """Return the approximate width of a row of text.

    Args:
        text: text without line breaks.

    Returns:
        Inches.
    """
    return len(text) * CHARACTER_WIDTH * text_size() / 72.0


def legend_below(ax: Axes, handles: Sequence[Artist], texts: Sequence[str]) -> Legend:
    """Write a legend below axes, in as many columns as fit.

    Args:
        ax: axes in a figure of its final size; the label of the horizontal axis has one row.
        handles: what each text stands beside.
        texts: the texts.

    Returns:
        The legend.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = ax.get_figure(root=True)
    size = text_size()
    cell = max(map(text_inches, texts)) + HANDLE * size / 72.0
    n_columns = max(1, min(len(texts), int((axes_inches(ax)[0] - MARGIN / 2) / cell)))
    below, drop = ax.transAxes, -(2.9 * size + 13.0) / 72.0
    if figure is not None:
        below = below + ScaledTranslation(-MARGIN / 2, drop, figure.dpi_scale_trans)
    return ax.legend(
        handles,
        texts,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=below,
        borderaxespad=0.0,
        ncols=n_columns,
        frameon=False,
        columnspacing=1.2,
        handlelength=2.2,
    )


def share_legend(figure: Figure) -> None:
    """Replace the legends below the panels of a figure by one, if one of them has all the names.

    Args:
        figure: a figure with constrained layout.
    """
    axes = [ax for ax in figure.axes if ax.get_legend()]
    legends = [legend for ax in axes if (legend := ax.get_legend())]
    names = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    if len(names) < 2:
        return
    most = max(names, key=len)
    if not all(set(panel) <= set(most) for panel in names):
        return
    handles = [handle for handle in legends[names.index(most)].legend_handles if handle]
    for ax, legend in zip(axes, legends, strict=True):
        legend.remove()
        ax.set_ylabel(ax.get_ylabel().replace("\n", " "))
        tidy_axes(ax)  # there is more height for the label
    inches = text_inches(max(most, key=len)) + HANDLE * text_size() / 72.0
    n_columns = max(1, min(len(most), int(figure.get_figwidth() / inches)))
    where = {"loc": "outside lower center", "ncols": n_columns}
    figure.legend(handles, most, frameon=False, columnspacing=1.2, handlelength=2.2, **where)


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
