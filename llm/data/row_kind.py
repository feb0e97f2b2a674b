"""A kind of rows besides pairs: the fields that all rows of a file must have, or must not have."""

from __future__ import annotations

from typing import NamedTuple

from .column_hints import printable
from .columns import RowRules
from .files import Row


class RowKind(NamedTuple):
    """A kind of rows, which a file has in all of its rows or in none.

    Attributes:
        name: name of the kind, as in ``unpaired``.
        marks: fields by which a row is known to be of the kind, for messages.
        fields: required fields, for messages.
        required: names of the required fields.
        refused: names of the columns of other kinds.
        remedy: how to write a row of another kind as rows of this one.
    """

    name: str
    marks: str
    fields: str
    required: tuple[str, ...]
    refused: tuple[str, ...]
    remedy: str

    def check(self, row: Row, rules: RowRules) -> None:
        """Raise an error if a row among rows of this kind is of another one, or lacks a field.

        Args:
            row: column values and their source.
            rules: rules for the columns of rows of this kind.

        Raises:
            ValueError: if it is; the message names file, line and field.
        """
        for name in self.refused:
            if row.fields.get(name) is not None:
                raise ValueError(
                    f"{row.where}: field `{name}` must not be given: the rows before this one are "
                    f"{self.name} ({self.marks}), and all rows must be: {self.remedy}"
                )
        for name in self.required:
            column = rules.column_of(name)
            if row.fields.get(column) is None:
                raise ValueError(
                    f"{row.where}: field `{printable(column)}` is missing: every {self.name} row "
                    f"has {self.fields}"
                )
