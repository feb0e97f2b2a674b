"""Pieces of parts: how a study that has fewer parts than jobs is shared by all of them.

A part is cut into runs of consecutive draws, and the records of its pieces are joined to those of
the part. Methods fit in groups of a fixed size whatever the batch, so that a fit has the same bits
in a piece as in its part. A group costs the same however few of its rows are used: there are
therefore only as many pieces as the jobs need.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from .parts import PartPlan, StudyPart


class PiecePlan(Sequence[StudyPart]):
    """The pieces of a study for some number of jobs, or some of them, in order."""

    def __init__(self, parts: PartPlan, n_jobs: int, numbers: range | None = None) -> None:
        """Describe pieces without building them.

        Args:
            parts: all parts of the study.
            n_jobs: number of jobs.
            numbers: numbers of the pieces that the plan holds; all pieces if None.
        """
        self.parts: PartPlan = parts
        self.n_jobs: int = n_jobs
        self.per_part: int = pieces_per_part(parts, n_jobs)
        n_pieces = len(parts) * self.per_part
        self.numbers: range = range(n_pieces) if numbers is None else numbers

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> StudyPart: ...

    @overload
    def __getitem__(self, index: slice) -> PiecePlan: ...

    def __getitem__(self, index: int | slice) -> StudyPart | PiecePlan:
        """Return a piece, as a part with the number of the piece, or the plan of several."""
        if isinstance(index, slice):
            return PiecePlan(self.parts, self.n_jobs, self.numbers[index])
        number = self.numbers[index]
        part_number, order = divmod(number, self.per_part)
        part = self.parts[part_number]
        start, stop = (k * part.n_draws // self.per_part for k in (order, order + 1))
        # The pieces of parts of one size have one size, so that methods are compiled once.
        size = -(-len(part.seeds) // self.per_part)
        rows = np.minimum(np.arange(start, start + size), stop - 1)
        return part._replace(
            number=number,
            scenario_index=part.scenario_index[rows],
            seeds=part.seeds[rows],
            n_draws=stop - start,
        )

    def pieces_of(self, part_number: int) -> range:
        """Return the numbers of the pieces of a part.

        Args:
            part_number: number of the part.
        """
        return range(part_number * self.per_part, (part_number + 1) * self.per_part)


def pieces_per_part(parts: PartPlan, n_jobs: int) -> int:
    """Return into how many pieces each part is cut; 1 if there are enough parts for the jobs.

    Args:
        parts: all parts of the study.
        n_jobs: number of jobs.

    Returns:
        The number for which the job with the most draws has the fewest; no piece is empty.

    Examples:
        >>> from bandits.study.config import StudyConfig
        >>> from bandits.study.parts import plan_parts
        >>> study = StudyConfig(name="a", methods=["rpo"], comparisons=[9, 99], seeds=3)
        >>> pieces_per_part(plan_parts(study), 4)
        4
    """
    n_parts = len(parts)
    least = -(-n_jobs // n_parts)
    if least == 1:
        return 1
    # Groups are cut into parts as equal as possible, and the last one is the smallest.
    last_parts = (group.n_draws - (group.n_parts() - 1) * group.size for group in parts.groups)
    most = min(2 * least, *last_parts)

    def largest_share(pieces: int) -> float:
        return -(-n_parts * pieces // n_jobs) / pieces

    return min(range(min(least, most), most + 1), key=largest_share)


def join_pieces(tables: Sequence[pa.Table], n_fits: int) -> pa.Table:
    """Return the records of a part from those of its pieces.

    Args:
        tables: records of the pieces, in order.
        n_fits: number of fits of a draw, one for each method and pair of weights.

    Returns:
        The records, in which a fit has all its draws one after the other, as in each table.
    """
    draws = [table.num_rows // n_fits for table in tables]
    rows = [
        table.slice(fit * n_draws, n_draws)
        for fit in range(n_fits)
        for table, n_draws in zip(tables, draws, strict=True)
    ]
    return pa.concat_tables(rows).combine_chunks()


def join_timings(tables: Sequence[pa.Table], part_number: int) -> pa.Table:
    """Return the timings of a part, the sums of those of its pieces.

    Args:
        tables: timings of the pieces.
        part_number: number of the part.
    """
    first = tables[0]
    columns = {
        name: np.sum([table[name].to_numpy() for table in tables], axis=0)
        for name in ("fits", "seconds")
    }
    return pa.table(
        {"part": [part_number] * first.num_rows, "what": first["what"], **columns}
    ).cast(first.schema)
