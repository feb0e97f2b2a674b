"""Elementary functions of the box kernel, written so that LLVM computes them on SIMD lanes.

The functions of ``math`` are calls into a library, which stay scalar. These are polynomials and a
reinterpretation of bits, without a branch: their relative errors are a few units in the last place.
Coefficients of the logarithm: FreeBSD's ``e_log.c``. The text of this module is the beginning of
every generated kernel; nothing else imports it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types  # noqa: F401

LOG2 = math.log(2.0)
LOG2_HIGH = 6.93147180369123816490e-01  # has trailing zeros: its small multiples are exact
LOG2_LOW = 1.90821492927058770002e-10
PER_LOG2 = 1.0 / LOG2
ROUNDER = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to an integer in the low bits
LOWEST = -708.0  # exp of anything smaller would not be a normal number
HIGHEST = 709.0
FRACTION = 0x000FFFFFFFFFFFFF
ONE = 0x3FF0000000000000
SQRT2 = math.sqrt(2.0)
TINY = 2.0**-1000


@njit(forceinline=True, error_model="numpy")
def expm1_and_exp(x):
    """Return exp(x) - 1 with small relative error also near 0, and exp(x); flushed below -708."""
    clipped = max(min(x, HIGHEST), LOWEST)
    shifted = clipped * PER_LOG2 + ROUNDER
    exponent = shifted - ROUNDER
    r = (clipped - exponent * LOG2_HIGH) - exponent * LOG2_LOW
    series = 1 / 39916800 + r * (1 / 479001600 + r * (1 / 6227020800))
    series = 1 / 40320 + r * (1 / 362880 + r * (1 / 3628800 + r * series))
    series = 1 / 120 + r * (1 / 720 + r * (1 / 5040 + r * series))
    minus_one = r + r * r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * series)))
    bits = (np.float64(shifted).view(np.int64) << 52) + ONE
    power = np.int64(bits).view(np.float64)
    below = x < LOWEST
    less_one = power * minus_one + (power - 1.0)
    return -1.0 if below else less_one, 0.0 if below else power * minus_one + power


@njit(forceinline=True, error_model="numpy")
def exp(x):
    """Return the exponential, 0 below -708; x is at most 709."""
    return expm1_and_exp(x)[1]


@njit(forceinline=True, error_model="numpy")
def log1p_reduced(f):
    """Return log(1 + f) for f between sqrt(1/2) - 1 and sqrt(2) - 1."""
    s = f / (2.0 + f)
    z = s * s
    series = 1.531383769920937332e-01 + z * 1.479819860511658591e-01
    series = 2.222219843214978396e-01 + z * (1.818357216161805012e-01 + z * series)
    series = 3.999999999940941908e-01 + z * (2.857142874366239149e-01 + z * series)
    series = z * (6.666666666666735130e-01 + z * series)
    half_square = 0.5 * f * f
    return f - (half_square - s * (half_square + series))


@njit(forceinline=True, error_model="numpy")
def log1p_unit(q):
    """Return log(1 + q) for q between -1/2 and 1, with small relative error also near 0."""
    large, small = q > SQRT2 - 1.0, q < SQRT2 / 2.0 - 1.0
    f = 0.5 * (q - 1.0) if large else (2.0 * q + 1.0 if small else q)
    shift = LOG2 if large else (-LOG2 if small else 0.0)
    return shift + log1p_reduced(f)


@njit(forceinline=True, error_model="numpy")
def log1p_of_ratio(smaller, larger):
    """Return log(1 + smaller / larger) of two positive numbers, with one division."""
    large = smaller > (SQRT2 - 1.0) * larger
    numerator = smaller - larger if large else smaller
    s = numerator / (smaller + 3.0 * larger if large else smaller + 2.0 * larger)
    z = s * s
    series = 1.531383769920937332e-01 + z * 1.479819860511658591e-01
    series = 2.222219843214978396e-01 + z * (1.818357216161805012e-01 + z * series)
    series = 3.999999999940941908e-01 + z * (2.857142874366239149e-01 + z * series)
    series = z * (6.666666666666735130e-01 + z * series)
    return (LOG2 if large else 0.0) + s * (2.0 + series)


@njit(forceinline=True, error_model="numpy")
def log(x):
    """Return the natural logarithm of a positive normal number."""
    bits = np.float64(max(x, TINY)).view(np.int64)
    exponent = np.float64((bits >> 52) - 1023)
    mantissa = np.int64((bits & FRACTION) | ONE).view(np.float64)
    large = mantissa > SQRT2
    f = 0.5 * mantissa - 1.0 if large else mantissa - 1.0
    exponent = exponent + 1.0 if large else exponent
    return exponent * LOG2_HIGH + (log1p_reduced(f) + exponent * LOG2_LOW)
