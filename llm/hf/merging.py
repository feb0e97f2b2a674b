"""What rounding takes away when the adapters of a model are merged into its exported weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class MergeReport(NamedTuple):
    """Part of the adapters' update that rounding loses.

    Attributes:
        n_changed: number of weights that the adapters change before rounding.
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
        merge: what merging the adapters has lost; None without adapters.
    """

    dtype: str
    n_bytes: int
    merge: MergeReport | None


class MergeCounter:
    """Counts over the tensors of an export, see :class:`MergeReport`."""

    def __init__(self) -> None:
        """Start at 0."""
        self._changed, self._unchanged, self._update, self._lost = 0, 0, 0.0, 0.0

    def add(self, base: np.ndarray, merged: np.ndarray, rounded: np.ndarray) -> None:
        """Add the weights of a projection.

        Args:
            base: weights without adapters.
            merged: weights with adapters, not rounded.
            rounded: the exported weights.
        """
        wide: Any = merged.astype(np.float64)
        update = wide - base.astype(np.float64)
        changed = update != 0
        self._changed += int(changed.sum())
        self._unchanged += int((changed & (rounded == base.astype(rounded.dtype))).sum())
        self._update += float(np.square(update).sum())
        self._lost += float(np.square(wide - rounded.astype(np.float64)).sum())

    def report(self) -> MergeReport:
        """Return the counts so far."""
        lost = math.sqrt(self._lost / self._update) if self._update else 0.0
        return MergeReport(self._changed, self._unchanged, lost)
