"""Which rows an objective trains on: pairs, unpaired or ranked rows, with or without weights."""

from __future__ import annotations

from typing import Literal

from llm.config import ObjectiveConfig
from llm.config.preference_losses import RANKING_LOSS
from llm.data.labels import PairLabel
from llm.data.preferences import PreferenceRow

UNPAIRED_METHOD = "kto"
"""The method that trains on unpaired rows."""
Kind = Literal["a pair", "unpaired", "ranked"]
"""Kind of a row: two responses to a prompt, one with a label, or a list in order."""


class RowKinds:
    """The rows that an objective trains on, which all must be of the kind of the first one.

    Args:
        objective: the objective.

    Attributes:
        kind: kind of the rows; None before the first one.
    """

    def __init__(self, objective: ObjectiveConfig) -> None:
        """Keep the objective; no row has been seen."""
        self.kind: Kind | None = None
        self._objective = objective
        self._whole = [repr(t.loss.name) for t in objective.terms if t.loss.scope == "batch"]

    def check(self, row: PreferenceRow) -> None:
        """Raise an error if the objective does not train on a row.

        Args:
            row: a row of training or evaluation.

        Raises:
            ValueError: if the row is unpaired or ranked and the method needs pairs, it is of
                another kind than the rows before it, or it has a weight or a soft label and a loss
                is one of the whole batch. The message names file and line.

        Examples:
            >>> row = PreferenceRow((), (), (), None, 0, "rows.jsonl:1")
            >>> RowKinds(ObjectiveConfig()).check(row)
        """
        kind, method = _kind_of(row), self._objective.method
        if kind == "unpaired" and method != UNPAIRED_METHOD:
            raise ValueError(
                f"{row.where}: the row is unpaired (`completion` and `label`), which "
                f"`objective.method` {method!r} does not train on: set it to "
                f"{UNPAIRED_METHOD!r}, or join a good and a bad completion of each prompt"
            )
        if kind == "ranked" and not self._objective.trains_on_rankings:
            preferences = " and ".join(repr(term.loss.name) for term in self._objective.terms)
            of_rpo = f" with `objective.preference` {preferences}" if method == "rpo" else ""
            raise ValueError(
                f"{row.where}: the row is ranked (`responses`), which `objective.method` "
                f"{method!r}{of_rpo} does not train on: set the method, or the preference of RPO, "
                f"to {RANKING_LOSS!r}, or write rows with `prompt`, `chosen` and `rejected`"
            )
        if self.kind not in (None, kind):
            raise ValueError(
                f"{row.where}: the row is {kind}, but the first row is {self.kind}: all rows "
                "for training and evaluation must be of one kind"
            )
        self.kind = kind
        if self._whole and row.label != PairLabel():
            raise ValueError(
                f"{row.where}: the row must have no weight, soft label or votes for "
                f"{', '.join(self._whole)}, which is a loss of the whole batch: pass the columns "
                "over, as in `data.columns: {weight: ignore}`"
            )


def _kind_of(row: PreferenceRow) -> Kind:
    if row.ranking is not None:
        return "ranked"
    return "a pair" if row.desirable is None else "unpaired"
