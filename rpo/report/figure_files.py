"""Files of figures for a paper: formats, widths of the columns of venues, and a style file.

A figure is given as a function that draws into an empty Matplotlib figure. The figure has its
final size, so that text of 8 points is 8 points in the paper.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "png", "svg")
"""Formats of figures."""
COLUMN_WIDTHS: Mapping[str, float] = {
    "aaai-column": 3.3,
    "aaai-full": 7.0,
    "acl-column": 3.03,
    "acl-full": 6.3,
    "aistats-column": 3.25,
    "aistats-full": 6.75,
    "iclr": 5.5,
    "icml-column": 3.25,
    "icml-full": 6.75,
    "jmlr": 6.0,
    "neurips": 5.5,
    "tmlr": 6.5,
}
"""Widths of the columns and of the text of venues, inches."""
WIDTH_RANGE = (2.0, 20.0)
"""Smallest and largest width of a figure, inches."""
SCREEN_STYLE: Mapping[str, Any] = {"font.size": 9.5}
PAPER_STYLE: Mapping[str, Any] = {
    "font.size": 8.0,
    "savefig.dpi": 300.0,
    "savefig.bbox": None,  # the width is exact
}
"""Settings with a width; the style of the user has precedence except for the width."""


@dataclass(frozen=True, kw_only=True)
class FigureFormat:
    """How the figures of a study are written.

    Attributes:
        formats: some of :data:`FORMATS`.
        width: a name in :data:`COLUMN_WIDTHS` or a number of inches; None for 6.4 inches, or the
            width that the style sets. With a width, text has 8 points and PNG 300 dots per inch.
        style: a Matplotlib style file, or the name of a style that Matplotlib has; None for the
            style of the project.

    Raises:
        ValueError: if a value is unknown, or the style file cannot be used.
        OSError: if the style file cannot be read.
    """

    formats: tuple[str, ...] = ("png", "svg")
    width: str | float | None = None
    style: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check the values; a trial figure is rendered with the style."""
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats or isinstance(self.formats, str):
            got = repr(unknown[0] if unknown else self.formats)
            raise ValueError(f"`format` must be one or more of {', '.join(FORMATS)}, got {got}")
        _inches(self.width)
        if self.style is not None:
            _try_style(self)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Have Matplotlib use the settings of this format during a block."""
        import matplotlib as mpl

        settings: dict[Any, Any] = dict(SCREEN_STYLE if self.width is None else PAPER_STYLE)
        if self.style is not None:
            settings |= _read_style(self.style)
        inches = _inches(self.width)
        if inches is not None:
            settings |= {"figure.figsize": (inches, max(2.6, 0.62 * inches)), "savefig.bbox": None}
        with mpl.rc_context(settings):
            yield


def parse_figure_format(
    formats: str | None, width: str | None, style: str | os.PathLike[str] | None
) -> FigureFormat:
    """Return the format that the options of a command describe.

    Args:
        formats: names separated by commas; None for the default.
        width: name of a venue or a number; None for the default.
        style: style file or name; None for the default.

    Raises:
        ValueError: if a value is invalid.
        OSError: if the style file cannot be read.

    Examples:
        >>> parse_figure_format("pdf,png", "icml-column", None).formats
        ('pdf', 'png')
    """
    names = FigureFormat.formats if formats is None else tuple(dict.fromkeys(formats.split(",")))
    return FigureFormat(formats=names, width=width, style=style)


def write_figure(
    draw: Callable[[Figure], object], folder: Path, name: str, figures: FigureFormat
) -> list[str]:
    """Draw a figure and write it in all formats; equal figures give equal bytes.

    Args:
        draw: draws into the empty figure that it is given. The figure has the final width, which
            must be kept; the height may be set.
        folder: folder of the files.
        name: name of the files without their suffix.
        figures: formats, width and style.

    Returns:
        Names of the written files.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from rpo_io.atomic import write_atomic
    from rpo_io.figures import pdf_bytes, png_bytes, svg_bytes

    written = []
    with figures.settings():
        figure = Figure()
        draw(figure)
        dpi = mpl.rcParams["savefig.dpi"]
        dpi = 144.0 if dpi == "figure" else float(dpi)
        for suffix in figures.formats:
            match suffix:
                case "pdf":
                    content = pdf_bytes(figure)
                case "svg":
                    content = svg_bytes(figure)
                case _:
                    content = png_bytes(figure, dpi=dpi)
            write_atomic(folder / f"{name}.{suffix}", content)
            written.append(f"{name}.{suffix}")
    return written


def _inches(width: str | float | None) -> float | None:
    """Return a width in inches; a ValueError if it is neither a name nor a number in range."""
    if width is None or isinstance(width, bool):
        inches = None if width is None else float("nan")
    elif isinstance(width, str) and width in COLUMN_WIDTHS:
        inches = COLUMN_WIDTHS[width]
    else:
        try:
            inches = float(width)
        except (TypeError, ValueError):
            inches = float("nan")
    low, high = WIDTH_RANGE
    if inches is not None and not low <= inches <= high:
        names = ", ".join(COLUMN_WIDTHS)
        rule = f"must be a number of inches from {low:g} to {high:g} or one of {names}"
        raise ValueError(f"`width` {rule}, got {width!r}")
    return inches


def _read_style(style: str | os.PathLike[str]) -> dict[Any, Any]:
    """Return the settings of a style; a ValueError if a line of the file is no setting."""
    import matplotlib as mpl
    from matplotlib import style as styles

    if isinstance(style, str) and style in styles.library:
        return dict(styles.library[style])
    path = Path(style)
    if not path.is_file():
        rule = "must be a Matplotlib style file or the name of a style that Matplotlib has"
        raise ValueError(f"`style` {rule}, got {str(style)!r}")
    with _collect_warnings() as messages:
        try:
            settings = mpl.rc_params_from_file(path, fail_on_error=True, use_default_template=False)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: a style file must be text in UTF-8") from error
        except ValueError as error:
            raise ValueError(f"{path}: {_first_row(error)}") from error
    if messages:
        raise ValueError(f"{path}: {messages[0]}: see the style sheets of Matplotlib")
    return dict(settings)


def _try_style(figures: FigureFormat) -> None:
    """Render a small figure, so that a style that cannot be drawn is refused before any work."""
    from matplotlib import style as styles
    from matplotlib.figure import Figure

    settings = _read_style(figures.style or "default")
    try:
        with warnings.catch_warnings(), figures.settings():
            warnings.simplefilter("error")
            with styles.context(settings):  # warns of settings that are not of style
                figure = Figure(figsize=(1.0, 1.0))
                figure.subplots().set_title("η")
                for suffix in figures.formats:
                    figure.savefig(io.BytesIO(), format=suffix)
    except Exception as error:
        raise ValueError(f"`style` {figures.style} cannot be used: {_first_row(error)}") from error


@contextmanager
def _collect_warnings() -> Iterator[list[str]]:
    """Collect what Matplotlib logs during a block, one row for each message."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(_first_row(record.getMessage()))

    logger, collector = logging.getLogger("matplotlib"), Collector(logging.WARNING)
    earlier = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.WARNING)  # commands show its errors only
    logger.addHandler(collector)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)
        logger.propagate, level = earlier
        logger.setLevel(level)


def _first_row(message: object) -> str:
    return next((row.strip() for row in str(message).splitlines() if row.strip()), "no message")


DEFAULT_FORMAT = FigureFormat()
"""PNG and SVG at 6.4 inches in the style of the project."""
