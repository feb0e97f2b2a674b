"""The style that all figures share, and figures as reproducible bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = {"blue": "#0072B2", "orange": "#D55E00", "green": "#009E73", "gray": "#666666"}
"""Four colors of Okabe and Ito that color-blind readers can distinguish."""


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG; equal figures give equal bytes.

    Args:
        figure: a Matplotlib figure.

    Returns:
        The content of the file, at 144 dots per inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Render a figure as SVG; equal figures give equal bytes.

    Args:
        figure: a Matplotlib figure.

    Returns:
        The content of the file.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "rpo"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
