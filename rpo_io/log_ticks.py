"""Labels of logarithmic axes that span a decade or less, where powers of ten are too few."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from .figures import text_size
from .legends import LEGEND_ROW, text_inches

if TYPE_CHECKING:
    from matplotlib.axis import Axis

DIGITS = (
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
)
"""First digits of labels within a decade, from the coarsest choice to the finest."""
LINEAR_STEPS = (5, 4, 6, 3, 8, 2, 1)
"""Numbers of equal steps, tried in this order, if a range has too few round numbers."""


def label_log_axis(axis: Axis, inches: float) -> None:
    """Label a logarithmic axis with at least two numbers that do not touch.

    An axis with two powers of ten keeps Matplotlib's labels.

    Args:
        axis: axis whose limits are final.
        inches: its length.
    """
    from matplotlib.axis import XAxis
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    axis.set_minor_formatter(NullFormatter())  # its labels would overlap
    low, high = sorted(map(float, axis.get_view_interval()))
    values = log_tick_values(low, high, inches, is_horizontal=isinstance(axis, XAxis))
    if values:
        axis.set_major_locator(FixedLocator(values))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))


def label_values(axis: Axis, values: Sequence[float], inches: float) -> None:
    """Mark values on a logarithmic axis, and label those whose labels do not touch.

    Args:
        axis: axis whose limits are final.
        values: the values, ascending.
        inches: length of the axis.
    """
    from matplotlib.axis import XAxis

    low, high = sorted(map(float, axis.get_view_interval()))
    labeled: list[float] = []
    for value in reversed(values):
        pair = [value, *labeled[-1:]]
        if _do_fit(pair, math.log(high / low), inches, is_horizontal=isinstance(axis, XAxis)):
            labeled.append(value)
    axis.set_ticks(values, [f"{value:,}" if value in labeled else "" for value in values])


def log_tick_values(
    low: float, high: float, inches: float, *, is_horizontal: bool = True
) -> list[float]:
    """Return round numbers for a logarithmic axis with fewer than two powers of ten.

    Args:
        low: lower end of the axis, greater than 0.
        high: upper end.
        inches: length of the axis.
        is_horizontal: whether labels are beside each other, not above each other.

    Returns:
        The numbers, which do not touch where they are written; three or more if they fit. The list
        is empty if there are two powers of ten in the range, or no room for two numbers.

    Examples:
        >>> log_tick_values(0.08, 0.6, 3.0), log_tick_values(0.3, 0.5, 3.0)
        ([0.1, 0.2, 0.5], [0.3, 0.35, 0.4, 0.45, 0.5])
        >>> log_tick_values(0.01, 0.6, 3.0)
        []
    """
    if not 0.0 < low < high or len(_with_digits((1.0,), low, high)) > 1:
        return []
    fitting = [
        values
        for values in _candidates(low, high)
        if _do_fit(values, math.log(high / low), inches, is_horizontal=is_horizontal)
    ]
    for smallest in (3, 2):
        for values in fitting:
            if len(values) >= smallest:
                return values
    return []


def _candidates(low: float, high: float) -> Iterator[list[float]]:
    """Yield lists of round numbers in a range."""
    from matplotlib.ticker import MaxNLocator

    for digits in DIGITS:
        yield _with_digits(digits, low, high)
    for steps in LINEAR_STEPS:
        values = MaxNLocator(steps, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        inside = [float(f"{value:.12g}") for value in values if low <= value <= high]
        yield inside
        yield [inside[0], inside[-1]] if len(inside) > 2 else []


def _with_digits(digits: tuple[float, ...], low: float, high: float) -> list[float]:
    """Return the numbers of a range with some first digits."""
    margin = 1e-9
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [float(f"{digit:g}e{exponent}") for exponent in exponents for digit in digits]
    return [value for value in values if low * (1 - margin) <= value <= high * (1 + margin)]


def _do_fit(values: list[float], log_range: float, inches: float, *, is_horizontal: bool) -> bool:
    """Return whether no two neighboring labels touch."""
    size = text_size() / 72.0

    def half(value: float) -> float:
        row = text_inches(f"{value:,g}") + size if is_horizontal else LEGEND_ROW * size
        return row / 2.0

    return all(
        inches * math.log(right / left) / log_range >= half(left) + half(right)
        for left, right in pairwise(values)
    )
