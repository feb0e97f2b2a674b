"""Arrays of balls: numbers of python-flint's type ``arb``, a midpoint with a radius of error.

NumPy's arrays of objects add, multiply and sum them elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np

from rpo_theory.types import ArrayLike

Ball: TypeAlias = Any
"""An ``arb``."""
Balls: TypeAlias = np.ndarray
"""Array of objects of type ``arb``."""
EXTRA = "pip install 'rpo-theory[rigorous]'"
"""Command that installs python-flint."""


@contextmanager
def working_precision(bits: int) -> Iterator[None]:
    """Compute in balls whose midpoints have a number of bits, and restore the precision after.

    Args:
        bits: bits of the midpoints.

    Raises:
        ImportError: see :func:`check_installed`.

    Examples:
        >>> with working_precision(64):
        ...     third = exact_number(1.0) / 3
        >>> bool(1e-21 < float(third.rad()) < 1e-19)
        True
    """
    check_installed()
    from flint import ctx

    with ctx.workprec(bits):
        yield


def check_installed() -> None:
    """Raise unless python-flint is installed.

    Raises:
        ImportError: if it is not; the message names the extra that installs it.

    Examples:
        >>> check_installed()
    """
    try:
        import flint  # noqa: F401
    except ImportError as error:
        message = f"proofs in ball arithmetic need python-flint: {EXTRA}"
        raise ImportError(message) from error


def exact(values: ArrayLike | float) -> Balls:
    """Return float64 numbers as balls of radius zero.

    Args:
        values: finite numbers, of any shape.

    Examples:
        >>> float(exact(np.array([0.5, 1.0])).sum())
        1.5
    """
    from flint import arb

    table = np.asarray(values, np.float64)
    return np.asarray(np.frompyfunc(lambda value: arb(float(value)), 1, 1)(table), object)


def exact_number(value: ArrayLike | float) -> Ball:
    """Return one float64 number as a ball of radius zero.

    Args:
        value: a finite number.

    Examples:
        >>> exact_number(0.1) == 0.1
        True
    """
    return exact(value).item()


def normalized(distribution: ArrayLike) -> Balls:
    """Return probabilities divided by their exact sums along the last axis.

    Args:
        distribution: float64 numbers of which at least one is positive.

    Examples:
        >>> [float(share) for share in normalized(np.array([1.0, 3.0]))]
        [0.25, 0.75]
    """
    balls = exact(distribution)
    return balls / balls.sum(axis=-1, keepdims=True)


def upper(ball: Ball) -> float:
    """Return a float that is at least 0 and at least every number of a ball.

    Args:
        ball: any ball; infinity stands for one without a bound.

    Examples:
        >>> upper(exact_number(0.1)) > 0.1, upper(exact_number(-0.1))
        (True, 0.0)
    """
    end = ball.upper()
    if end <= 0:
        return 0.0
    number = float(end)
    return math.inf if math.isnan(number) else math.nextafter(number, math.inf)
