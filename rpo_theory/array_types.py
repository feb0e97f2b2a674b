"""Types of arrays."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jax import Array

ArrayLike: TypeAlias = Array | np.ndarray
"""JAX or NumPy array."""
