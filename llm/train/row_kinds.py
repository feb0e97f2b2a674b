"""Which rows an objective trains on: pairs or unpaired rows, with or without weights and labels."""

from __future__ import annotations

from llm.config import ObjectiveConfig
from llm.data.labels import PairLabel
from llm.data.preferences import PreferenceRow

UNPAIRED_METHOD = "kto"
"""The method that trains on unpaired rows."""


class RowKinds:
    """The rows that an objective trains on, which all must be of the kind of the first one.

    Args:
        objective: the objective.

    Attributes:
        is_unpaired: whether the rows are unpaired; None before the first one.
    """

    def __init__(self, objective: ObjectiveConfig) -> None:
        """Keep the objective; no row has been seen."""
        self.is_unpaired: bool | None = None
        self._method = objective.method
        self._whole = [repr(t.loss.name) for t in objective.terms if t.loss.scope == "batch"]

    def check(self, row: PreferenceRow) -> None:
        """Raise an error if the objective does not train on a row.

        Args:
            row: a row of training or evaluation.

        Raises:
            ValueError: if the row is unpaired and the method needs pairs, it is of another kind
                than the rows before it, or it has a weight or a soft label and a loss is one of the
                whole batch. The message names file and line.

        Examples:
            >>> row = PreferenceRow((), (), (), None, 0, "rows.jsonl:1")
            >>> RowKinds(ObjectiveConfig()).check(row)
        """
        unpaired = row.desirable is not None
        if unpaired and self._method != UNPAIRED_METHOD:
            raise ValueError(
                f"{row.where}: the row is unpaired (`completion` and `label`), which "
                f"`objective.method` {self._method!r} does not train on: set it to "
                f"{UNPAIRED_METHOD!r}, or join a good and a bad completion of each prompt"
            )
        if self.is_unpaired not in (None, unpaired):
            kinds = ("a pair", "unpaired") if unpaired else ("unpaired", "a pair")
            raise ValueError(
                f"{row.where}: the row is {kinds[1]}, but the first row is {kinds[0]}: all rows "
                "for training and evaluation must be of one kind"
            )
        self.is_unpaired = unpaired
        if self._whole and row.label != PairLabel():
            raise ValueError(
                f"{row.where}: the row must have no weight, soft label or votes for "
                f"{', '.join(self._whole)}, which is a loss of the whole batch: pass the columns "
                "over, as in `data.columns: {weight: ignore}`"
            )
