"""Figures as files: formats, widths, styles, and equal bytes."""

from __future__ import annotations

import struct
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from rpo.report.figure_files import (
    COLUMN_WIDTHS,
    FORMATS,
    FigureFormat,
    parse_figure_format,
    write_figure,
)


def draw(figure: Figure) -> None:
    figure.set_figheight(1.0)
    ax = figure.subplots()
    ax.plot([1, 2, 3])
    ax.set_xlabel("N")


def png_inches(path: Path, dpi: float) -> float:
    return struct.unpack(">I", path.read_bytes()[16:20])[0] / dpi


def test_property_every_format_is_written_and_equal_figures_are_equal_bytes(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    figures = FigureFormat(formats=FORMATS, width=2.5)
    for name in ("a", "b"):
        assert write_figure(draw, tmp_path, name, figures) == [f"{name}.{s}" for s in FORMATS]
    for suffix, start in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")):
        first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert first == second
        assert first.startswith(start)
        assert b"CreationDate" not in first
        assert b"/Type3" not in first
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("width", ["icml-column", "5.5", 4])
def test_closed_form_a_figure_has_the_width_of_the_column(
    tmp_path: Path, width: str | float
) -> None:
    figures = FigureFormat(formats=("png",), width=width)
    write_figure(draw, tmp_path, "a", figures)
    expected = COLUMN_WIDTHS["icml-column"] if width == "icml-column" else float(width)
    assert png_inches(tmp_path / "a.png", 300.0) == pytest.approx(expected, abs=1 / 300)


def test_property_a_style_file_sets_text_and_width(tmp_path: Path) -> None:
    style = tmp_path / "mine.mplstyle"
    style.write_text("font.size: 11  # large\nfigure.figsize: 3, 2\nsavefig.bbox: tight\n")
    sizes = []

    def look(figure: Figure) -> None:
        sizes.append(
            (mpl.rcParams["font.size"], figure.get_figwidth(), mpl.rcParams["savefig.bbox"])
        )

    write_figure(look, tmp_path, "a", FigureFormat(formats=("png",), style=style))
    write_figure(look, tmp_path, "a", FigureFormat(formats=("png",), style=style, width="neurips"))
    write_figure(look, tmp_path, "a", FigureFormat(formats=("png",), style="ggplot"))
    assert sizes == [(11.0, 3.0, "tight"), (11.0, 5.5, None), (10.0, 6.4, None)]


@pytest.mark.parametrize(
    ("formats", "width", "style", "message"),
    [
        ("png,jpeg", None, None, "`format` must be one or more of pdf, png, svg, got 'jpeg'"),
        ("", None, None, "got ''"),
        (None, "wide", None, "`width` must be a number of inches from 2 to 20 or one of aaai"),
        (None, "nan", None, "got 'nan'"),
        (None, "0", None, "got '0'"),
        (None, None, "none.mplstyle", "`style` must be a Matplotlib style file or the name of"),
    ],
)
def test_raises_for_options_that_cannot_be_used(
    formats: str | None, width: str | None, style: str | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse_figure_format(formats, width, style)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("font.sizes: 9\n", "font.sizes"),
        ("font.size 9\n", "Missing colon"),
        ("font.size: large\n", "font.size"),
        ("font.size: 9\nfont.size: 8\n", "Duplicate key"),
        ("backend: agg\n", "not related to style"),
    ],
)
def test_raises_for_a_style_file_with_a_line_that_has_no_effect(
    tmp_path: Path, text: str, message: str
) -> None:
    style = tmp_path / "bad.mplstyle"
    style.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        FigureFormat(style=style)
    assert "\n" not in str(caught.value)
