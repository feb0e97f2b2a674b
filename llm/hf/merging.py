"""What rounding takes away from a trained update when weights are exported in a narrower dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .names import HEAD_NAME, stored_names
from .safetensors import SafetensorsReader

BaseTensors = Callable[[str, tuple[int, ...]], np.ndarray | None]
"""A function that returns a tensor of the base model by name and shape; None if there is none."""


class RoundingReport(NamedTuple):
    """Part of the update of a run that rounding loses.

    Attributes:
        n_changed: number of weights that the run, or its adapters, change before rounding.
        n_unchanged: number of them that rounding puts back to the weight of the base model.
        lost_norm: norm of what rounding changes, as a fraction of the norm of the update; 0 for no
            update.
    """

    n_changed: int
    n_unchanged: int
    lost_norm: float

    @property
    def unchanged_share(self) -> float:
        """Share in [0, 1] of the changed weights that rounding puts back."""
        return self.n_unchanged / self.n_changed if self.n_changed else 0.0


class ExportReport(NamedTuple):
    """What an export has written.

    Attributes:
        dtype: name of the dtype of the tensors.
        n_bytes: size of all tensors together.
        rounding: what rounding has lost of the update: of the adapters, or of all weights if they
            are narrower than the parameters and the base weights are there; None otherwise.
    """

    dtype: str
    n_bytes: int
    rounding: RoundingReport | None


class MergeCounter:
    """Counts over the tensors of an export, see :class:`RoundingReport`."""

    def __init__(self) -> None:
        """Start at 0."""
        self._changed, self._unchanged, self._update, self._lost = 0, 0, 0.0, 0.0

    def add(self, base: np.ndarray, merged: np.ndarray, rounded: np.ndarray) -> None:
        """Add the weights of a tensor.

        Args:
            base: weights before the update.
            merged: weights after the update, not rounded.
            rounded: the exported weights.
        """
        wide: Any = merged.astype(np.float64)
        update = wide - base.astype(np.float64)
        changed = update != 0
        self._changed += int(changed.sum())
        self._unchanged += int((changed & (rounded == base.astype(rounded.dtype))).sum())
        self._update += float(np.square(update).sum())
        self._lost += float(np.square(wide - rounded.astype(np.float64)).sum())

    def report(self) -> RoundingReport:
        """Return the counts so far."""
        lost = math.sqrt(self._lost / self._update) if self._update else 0.0
        return RoundingReport(self._changed, self._unchanged, lost)


@contextmanager
def base_tensors(folder: Path | None) -> Iterator[BaseTensors | None]:
    """Open the weights of a base model.

    Args:
        folder: folder of the model; None for none.

    Yields:
        A function that reads a tensor; None without a folder.

    Raises:
        ValueError: if the weights cannot be read.

    Examples:
        >>> with base_tensors(None) as base:
        ...     base is None
        True
    """
    if folder is None:
        yield None
        return
    with SafetensorsReader(folder) as files:

        def read(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
            stored = stored_names(files.names(), [name, HEAD_NAME])[name]
            try:
                return files.read(stored, shape)
            except (KeyError, ValueError):  # another model has taken the place of the base
                return None

        yield read


def round_tensor(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round a tensor to the dtype of an export.

    Args:
        name: name of the tensor, for the error.
        values: the values.
        dtype: the dtype.

    Returns:
        The rounded values.

    Raises:
        ValueError: if a value is too large for the dtype.

    Examples:
        >>> round_tensor("norm", np.array([1.0]), np.dtype("float16")).dtype.name
        'float16'
    """
    with np.errstate(over="ignore"):  # an overflow is reported below, with the tensor's name
        rounded = values.astype(dtype)
    if not np.isfinite(rounded).all() and np.isfinite(values).all():
        raise ValueError(
            f"tensor {name} is too large for {dtype.name}: export it with `--dtype float32`"
        )
    return rounded
