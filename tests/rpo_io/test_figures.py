"""Claims about figures: equal figures are equal bytes."""

from __future__ import annotations

from matplotlib.figure import Figure

from rpo_io.figures import png_bytes, svg_bytes


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 2, 3])
    return drawn


def test_property_equal_figures_are_equal_bytes() -> None:
    assert png_bytes(figure()) == png_bytes(figure())
    assert svg_bytes(figure()) == svg_bytes(figure())
    assert png_bytes(figure()).startswith(b"\x89PNG")
    assert b"</svg>" in svg_bytes(figure())
