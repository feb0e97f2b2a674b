"""The page ``report.html``: self-contained, with inline figures, for screens, phones and print."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jinja2

from rpo.results import Claim


class Section(NamedTuple):
    """One finding of the report.

    Attributes:
        title: the finding in one line.
        text: what the figure shows, in a few sentences.
        image: the figure as PNG.
        alt: description of the figure for readers who do not see it.
        command: the command that makes the figure.
        reduced: how much smaller than the command's own the run of this page was; "" if it is the
            same.
    """

    title: str
    text: str
    image: bytes
    alt: str
    command: str
    reduced: str = ""


def render_page(introduction: str, claims: Sequence[Claim], sections: Sequence[Section]) -> str:
    """Render the report.

    Args:
        introduction: text of the first paragraph.
        claims: the checked claims, one row of the table each.
        sections: the findings in order.

    Returns:
        The HTML document. All text is escaped, and the page loads nothing.
    """
    return _template().render(introduction=introduction, claims=claims, sections=sections)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("rpo.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    return environment.get_template("page.html.jinja")
