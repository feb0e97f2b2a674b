"""``report.html``: one self-contained page, figures inline, readable on a phone and in print."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Section(NamedTuple):
    """One finding of the report.

    Attributes:
        title: the finding in one line.
        text: what the figure shows, in two sentences.
        image: the figure as PNG.
        alt: the figure in words, for those who do not see it.
        command: the command that makes the figure.
    """

    title: str
    text: str
    image: bytes
    alt: str
    command: str


_STYLE = """
:root { color-scheme: light; }
body { font: 17px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; color: #1b1b1b;
       background: #fff; max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 .25rem; }
p { max-width: 44rem; margin: .5rem 0 1rem; }
img { width: 100%; min-width: 36rem; height: auto; }
.scroll { overflow-x: auto; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f4f5f7; border-radius: 6px; padding: .6rem .9rem; white-space: pre-wrap;
      overflow-wrap: anywhere; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem 1.1rem .35rem 0; border-bottom: 1px solid #ddd; }
td.number, th.number { text-align: right; white-space: nowrap; }
.holds { color: #00664b; font-weight: 600; } .fails { color: #b3261e; font-weight: 600; }
.equation { font-family: "STIX Two Math", "Cambria Math", serif; }
@media (max-width: 40rem) { th, td { font-size: .82rem; padding-right: .6rem; } }
@media print { body { font-size: 11pt; padding: 0; } img { min-width: 0; }
               section { break-inside: avoid; } }
"""


def render(
    introduction: str, claims: Sequence[tuple[str, float, float, bool]], sections: Sequence[Section]
) -> str:
    """Write the page.

    Args:
        introduction: a paragraph.
        claims: name, bar, measured value and verdict of each claim.
        sections: the findings in order.

    Returns:
        The whole document; all text is escaped, nothing is fetched.
    """
    rows = "".join(_claim_row(*claim) for claim in claims)
    body = "".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Regularized Preference Optimization: what was checked</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Regularized Preference Optimization: what was checked</h1>
<p>{escape(introduction)}</p>
<div class="scroll"><table>
<thead><tr><th>claim</th><th class="number">at most</th><th class="number">measured</th>
<th>verdict</th></tr></thead>
<tbody>{rows}</tbody></table></div>
{body}
</body>
</html>
"""


def _claim_row(name: str, bar: float, measured: float, holds: bool) -> str:
    verdict = '<td class="holds">holds</td>' if holds else '<td class="fails">fails</td>'
    numbers = "".join(f'<td class="number">{number:.1e}</td>' for number in (bar, measured))
    return f"<tr><td>{escape(name)}</td>{numbers}{verdict}</tr>\n"


def _section(section: Section) -> str:
    image = base64.b64encode(section.image).decode()
    return f"""<section>
<h2>{escape(section.title)}</h2>
<p>{escape(section.text)}</p>
<div class="scroll">
<img src="data:image/png;base64,{image}" alt="{escape(section.alt, quote=True)}"></div>
<pre><code>{escape(section.command)}</code></pre>
</section>
"""
