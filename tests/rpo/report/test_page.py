"""Claims about the report as a browser shows it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from rpo.report.page import Section, render_page
from rpo.results import Claim

from .browser import find_browser, inspect_page

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium, to look at the page")
CLAIM = Claim(
    "the exact solution is proven optimal: duality gap relative to the value", 1e-10, 1e-13, True
)


def picture() -> bytes:
    figure, buffer = Figure(figsize=(8, 4.6)), io.BytesIO()
    figure.subplots().plot([1, 2, 3])
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


def page(**changed: Any) -> str:
    fields = {
        "title": "Three routes, one policy",
        "text": "Each dot is a random bandit. " * 8,
        "image": picture(),
        "alt": "a line",
        "command": "rpo verify --instances 1000 --out a/rather/long/folder/name/for/a/phone",
    }
    return render_page("An introduction. " * 20, [CLAIM] * 4, [Section(**{**fields, **changed})])


@pytest.mark.parametrize("width", [1280, 390])
def test_property_no_image_is_broken_no_script_fails_and_nothing_overflows(
    width: int, tmp_path: Path
) -> None:
    found = inspect_page(str(BROWSER), page(), width, tmp_path)
    assert found == {"images": 1, "broken": 0, "overflow": 0, "wide": [], "errors": []}


def test_raises_what_is_broken_or_too_wide_is_seen(tmp_path: Path) -> None:
    wide = '<p style="width:900px">wide</p><script>throw new Error("failed")</script>'
    spoilt = page(image=b"no picture").replace("</body>", wide + "</body>")
    found = inspect_page(str(BROWSER), spoilt, 390, tmp_path)
    assert found["broken"] == 1
    assert found["overflow"] > 0
    assert "P" in found["wide"]
    assert len(found["errors"]) == 1
