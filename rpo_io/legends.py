"""Legends below axes and figures, which leave the data free, and the height that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .figures import CHARACTER_WIDTH, MARGIN, axes_inches, text_size, tidy_axes, wrap_text

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

LEGEND_ROW = 1.5
"""Height of a row of a legend, as a share of the size of the text."""
HANDLE = 3.4
"""Width of a handle of a legend with its spaces, in sizes of the text."""


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
        ax: axes in a figure of its final width, with the label of the horizontal axis.
        handles: what each text stands beside; its label is the name in a shared legend.
        texts: the texts.

    Returns:
        The legend.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = ax.get_figure(root=True)
    size, inches = text_size(), axes_inches(ax)[0]
    texts = _wrapped(texts, inches - MARGIN / 2)
    n_columns = _n_columns(texts, inches - MARGIN / 2)
    label = wrap_text(ax.get_xlabel(), inches - MARGIN, float(ax.xaxis.label.get_fontsize()))
    label_rows = label.count("\n") + 1
    below, drop = ax.transAxes, -((1.6 + 1.3 * label_rows) * size + 13.0) / 72.0
    if figure is not None:
        below = below + ScaledTranslation(-MARGIN / 2, drop, figure.dpi_scale_trans)
    legend = ax.legend(
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
    for drawn, handle, text in zip(legend.legend_handles, handles, texts, strict=True):
        label = str(handle.get_label())
        if drawn:
            drawn.set_label(text if label.startswith("_") else label)
    return legend


def share_legend(figure: Figure) -> None:
    """Replace the legends below the panels of a figure by one, if one of them has all the names.

    The notes of the lines, which differ from panel to panel, are left out.

    Args:
        figure: a figure with constrained layout.
    """
    axes = [ax for ax in figure.axes if ax.get_legend()]
    legends = [legend for ax in axes if (legend := ax.get_legend())]
    handles = [[handle for handle in legend.legend_handles if handle] for legend in legends]
    names = [[str(handle.get_label()) for handle in panel] for panel in handles]
    shown, most = max(
        zip(handles, names, strict=True), key=lambda pair: len(pair[1]), default=([], [])
    )
    if not legends or not all(set(panel) <= set(most) for panel in names):
        return
    for ax, legend in zip(axes, legends, strict=True):
        legend.remove()
        _tidy_again(ax)  # there is more height for the label
    most = _wrapped(most, figure.get_figwidth())
    n_columns = _n_columns(most, figure.get_figwidth())
    where = {"loc": "outside lower center", "ncols": n_columns}
    figure.legend(shown, most, frameon=False, columnspacing=1.2, handlelength=2.2, **where)


def fit_height(figure: Figure, inches: float) -> None:
    """Set the height of a figure to that of its panels and of the legends below them.

    Args:
        figure: a figure with constrained layout on which everything is drawn.
        inches: height of the panels with their labels and titles, without legends.
    """
    rows: dict[int, int] = {}
    for ax in figure.axes:
        legend, cell = ax.get_legend(), ax.get_subplotspec()
        if legend and cell:
            row = cell.rowspan.start
            rows[row] = max(rows.get(row, 0), _n_rows(legend, axes_inches(ax)[0] - MARGIN / 2))
    shared = [_n_rows(legend, figure.get_figwidth()) for legend in figure.legends]
    heights = [LEGEND_ROW * n + 1.5 for n in (*rows.values(), *shared) if n]
    figure.set_figheight(inches + sum(heights) * text_size() / 72.0)
    for ax in figure.axes:
        if ax.get_legend():
            _tidy_again(ax)


def _wrapped(texts: Sequence[str], inches: float) -> list[str]:
    """Break texts that are too wide for a legend of a width."""
    size = text_size()
    return [wrap_text(text, inches - HANDLE * size / 72.0, size) for text in texts]


def _n_columns(texts: Sequence[str], inches: float) -> int:
    """Return the number of columns of a legend that fits into a width; columns are alike."""
    lines = [line for text in texts for line in text.split("\n")]
    column = max(map(text_inches, lines)) + HANDLE * text_size() / 72.0
    n_rows = -(-len(texts) // max(1, int(inches / column)))
    return -(-len(texts) // n_rows)


def _n_rows(legend: Legend, inches: float) -> int:
    """Return the number of rows of text of a legend of a width."""
    texts = [text.get_text() for text in legend.get_texts()]
    n_rows = -(-len(texts) // _n_columns(texts, inches))
    return n_rows + sum(text.count("\n") for text in texts)


def _tidy_again(ax: Axes) -> None:
    """Break the label of the vertical axis again, after the height of the axes has changed."""
    ax.set_ylabel(ax.get_ylabel().replace("\n", " "))
    tidy_axes(ax)
