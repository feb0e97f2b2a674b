"""The base class of results, and what their tables and figures share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TABLE_ROWS = 50
"""Rows that a table in a notebook shows."""
MAX_CELL_CHARACTERS = 80
"""Characters that a cell of a table shows."""


@dataclass(frozen=True)
class Result:
    """Base class of the results."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document that the command prints with ``--json``, as plain values."""
        raise NotImplementedError

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if a claim fails, a problem is not solved or nothing fits."""
        return 0

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the table that a notebook shows."""
        return [{"what": name, "value": value} for name, value in self.to_dict().items()]

    def _repr_html_(self) -> str:
        return _html_table(self.table_rows())


def without_frame(ax: Axes) -> Axes:
    """Hide the right and the top edge of the axes, and return the axes."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return an HTML table of the first rows."""

    def cell(value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        limit = MAX_CELL_CHARACTERS
        return escape(text if len(text) <= limit else text[: limit - 1] + "…")

    shown = rows[:MAX_TABLE_ROWS]
    head = "".join(f"<th>{cell(name)}</th>" for name in rows[0])
    lines = ("".join(f"<td>{cell(value)}</td>" for value in row.values()) for row in shown)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    rest = f"<p>… {len(rows) - len(shown):,} more rows</p>" if len(rows) > len(shown) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
