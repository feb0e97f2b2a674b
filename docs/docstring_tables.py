"""Griffe extension of the site: simple tables of reStructuredText become Markdown tables."""

from __future__ import annotations

import re
from typing import Any

import griffe

TABLE = re.compile(
    r"^(?P<rule> *=+(?: +=+)+)\n(?P<head>.+)\n(?P=rule)\n(?P<body>(?:.*\n)*?)(?P=rule)$", re.M
)


class Tables(griffe.Extension):
    """Convert the tables of every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Convert the tables of one object's docstring.

        Args:
            obj: module, class, function or attribute.
        """
        if obj.docstring and "===" in obj.docstring.value:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Convert the simple tables of a text.

    Args:
        text: a docstring.

    Returns:
        The text with Markdown tables. A row whose first cell is empty continues the row above.
    """
    return TABLE.sub(lambda match: _table(match["rule"], match["head"], match["body"]), text)


def _table(rule: str, head: str, body: str) -> str:
    columns = [match.span() for match in re.finditer("=+", rule)]
    ends = [*(start for start, _ in columns[1:]), None]  # the last cell may be wider than its rule
    rows: list[list[str]] = []
    for line in [head, *body.splitlines()]:
        cells = [
            line[start:end].strip().replace("|", r"\|")
            for (start, _), end in zip(columns, ends, strict=True)
        ]
        if rows and not cells[0]:
            rows[-1] = [
                f"{above} {cell}".strip() for above, cell in zip(rows[-1], cells, strict=True)
            ]
        elif any(cells):
            rows.append(cells)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(["", *lines, ""])
