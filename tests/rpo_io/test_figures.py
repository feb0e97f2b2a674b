"""Claims about figures: equal figures are equal bytes, and all have one style."""

from __future__ import annotations

from matplotlib import pyplot
from matplotlib.figure import Figure

from rpo_io.figures import axes_or_new, pdf_bytes, png_bytes, svg_bytes, tidy_axes, wrap_text


def figure() -> Figure:
    drawn = Figure(figsize=(2, 1))
    drawn.subplots().plot([1, 2, 3])
    return drawn


def test_property_equal_figures_are_equal_bytes() -> None:
    assert png_bytes(figure()) == png_bytes(figure())
    assert svg_bytes(figure()) == svg_bytes(figure())
    assert pdf_bytes(figure()) == pdf_bytes(figure())
    assert pdf_bytes(figure()).startswith(b"%PDF")
    assert b"Date" not in pdf_bytes(figure())
    assert png_bytes(figure()).startswith(b"\x89PNG")
    assert b"</svg>" in svg_bytes(figure())


def test_closed_form_tidy_axes_have_two_spines_and_the_title_on_the_left() -> None:
    ax = Figure().subplots()
    ax.plot([1, 2], label="line")
    ax.set_title("a finding")
    ax.legend()
    assert tidy_axes(ax) is ax
    seen = [name for name, spine in ax.spines.items() if spine.get_visible()]
    assert sorted(seen) == ["bottom", "left"]
    assert (ax.get_title("left"), ax.get_title("center")) == ("a finding", "")
    legend = ax.get_legend()
    assert legend
    assert not legend.get_frame_on()


def test_closed_form_a_text_is_broken_before_its_unit() -> None:
    label = "gap to the best policy (units of reward)"
    assert wrap_text(label, 9.0, 8.0) == label
    assert wrap_text(label, 2.0, 8.0) == "gap to the best policy\n(units of reward)"


def test_limit_axes_are_made_only_if_there_are_none() -> None:
    given = Figure().subplots()
    assert axes_or_new(given) is given
    new = axes_or_new(None)
    assert new is not given
    pyplot.close(new.get_figure(root=True))
