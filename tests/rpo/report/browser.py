"""A page in a real browser, without a driver: what is broken, what overflows, what failed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROBE = """
<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<pre id="found"></pre>
<script>
const frame = document.getElementById("page"), errors = [];
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const images = [...page.images];
  const wide = [...page.body.querySelectorAll("*")].filter(
    (one) => one.getBoundingClientRect().right > root.clientWidth + 1);
  document.getElementById("found").textContent = JSON.stringify({{
    images: images.length, broken: images.filter((one) => !one.naturalWidth).length,
    overflow: root.scrollWidth - root.clientWidth, wide: wide.map((one) => one.tagName),
    errors: frame.contentWindow.failed || []}});
}};
</script>
"""
LISTENER = "<script>window.failed=[];window.onerror=(text)=>{window.failed.push(text)};</script>"


def find_browser() -> str | None:
    """The browser of this machine."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def inspect_page(browser: str, html: str, width: int, folder: Path) -> dict[str, Any]:
    """Load a page in a frame of a width, and say what a person would see to be wrong.

    Args:
        browser: of :func:`find_browser`.
        html: the page; it may not need other files.
        width: of the window, pixels.
        folder: for the probe.

    Returns:
        ``images`` and how many are ``broken``, pixels of horizontal ``overflow``, elements that
        are too ``wide``, and ``errors`` of scripts.
    """
    page = html.replace("<head>", "<head>" + LISTENER, 1)
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(width=width, page=escape(page)), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr
    assert found[1], done.stderr
    return json.loads(unescape(found[1]))
