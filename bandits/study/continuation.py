"""Continuation of a study for more seeds: only the missing seeds are run.

The records of the earlier run are kept in a folder of their own, one for each block of seeds, and
the new seeds are run as a study of their own. At the end the rows of all blocks are put in the
order that a study of all seeds has from the start: by array shape, part, method, weights and draw,
where the draws of a shape are ordered by scenario and then by seed. A fit has the same bits in any
part, so the table has the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from .config import StudyConfig, expand_weights
from .parts import PartPlan, plan_parts

_BLOCK_FOLDER = re.compile(r"parts_of_seeds_(\d+)_(\d+)")


class SeedBlock(NamedTuple):
    """Seeds that are run together, counted from the first seed of the study.

    Attributes:
        start: the first one.
        stop: the one after the last.
    """

    start: int
    stop: int

    def folder(self) -> str:
        """Return the name of the folder of its parts."""
        return f"parts_of_seeds_{self.start}_{self.stop}"

    def study(self, study: StudyConfig) -> StudyConfig:
        """Return the study of these seeds.

        Args:
            study: the study of all seeds.
        """
        return replace(
            study, first_seed=study.first_seed + self.start, seeds=self.stop - self.start
        )


def find_blocks(folder: Path, seeds: int) -> list[SeedBlock]:
    """Return the blocks of a continued study, the last of them for the seeds that are missing.

    Args:
        folder: folder of the study.
        seeds: number of seeds of the study.

    Returns:
        Blocks that together hold all seeds once; none if the study was not continued.

    Raises:
        ValueError: if a block is missing.
    """
    matches = [_BLOCK_FOLDER.fullmatch(path.name) for path in folder.glob("parts_of_seeds_*")]
    blocks = sorted(SeedBlock(int(match[1]), int(match[2])) for match in matches if match)
    if not blocks:
        return []
    stop = 0
    for block in blocks:
        if block.start != stop:
            expected = folder / SeedBlock(stop, block.start).folder()
            raise ValueError(f"{expected} is missing: choose another --out")
        stop = block.stop
    return [*blocks, *([SeedBlock(stop, seeds)] if stop < seeds else [])]


def split_records(study: StudyConfig, tables: Iterator[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Cut the records of a finished study into its parts again.

    Args:
        study: configuration of the study.
        tables: its records, in order.

    Yields:
        Number and records of every part.

    Raises:
        ValueError: if the number of records is not that of the study.
    """
    fits = fits_per_draw(study)
    pending, plan = pa.table({}), plan_parts(study)
    for part in plan:
        n_rows = part.n_draws * fits
        while pending.num_rows < n_rows:
            following = next(tables, None)
            if following is None:
                raise ValueError("the records are fewer than the study has: choose another --out")
            pending = pa.concat_tables([pending, following]) if pending.num_rows else following
        yield part.number, pending.slice(0, n_rows).combine_chunks()
        pending = pending.slice(n_rows)


def join_blocks(
    study: StudyConfig,
    blocks: Sequence[SeedBlock],
    read_part: Callable[[SeedBlock, int], pa.Table],
) -> Iterator[pa.Table]:
    """Put the records of blocks of seeds in the order of the study of all seeds.

    Args:
        study: configuration of the study of all seeds.
        blocks: blocks that together hold all seeds once.
        read_part: returns the records of a block's part by its number.

    Yields:
        The records of every part of the study.
    """
    fits = np.arange(fits_per_draw(study))[:, None]
    plans = [plan_parts(block.study(study)) for block in blocks]
    read = lru_cache(maxsize=2 * len(blocks))(read_part)
    plan = plan_parts(study)
    for part in plan:
        shape = plan.groups.index(plan.group_of(part.number))
        scenario = part.scenario_index[: part.n_draws]
        seed = part.seeds[: part.n_draws] - study.first_seed
        rows = np.empty((len(fits), part.n_draws), np.int64)
        pieces: list[pa.Table] = []
        n_rows = 0
        for block, block_plan in zip(blocks, plans, strict=True):
            chosen = np.flatnonzero((seed >= block.start) & (seed < block.stop))
            draw = scenario[chosen] * (block.stop - block.start) + seed[chosen] - block.start
            for number, draws, position in _locate(block_plan, shape, draw):
                table = read(block, number)
                # A part holds one run of its draws for every method and pair of weights.
                per_fit = table.num_rows // len(fits)
                rows[:, chosen[draws]] = n_rows + fits * per_fit + position
                pieces.append(table)
                n_rows += table.num_rows
        yield pa.concat_tables(pieces).combine_chunks().take(pa.array(rows.ravel()))


def _locate(
    plan: PartPlan, shape: int, draw: np.ndarray
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the parts that hold some draws, which of the draws, and their places in the part."""
    group = plan.groups[shape]
    index, position = np.divmod(draw, group.size)
    for part in np.unique(index):
        draws = np.flatnonzero(index == part)
        yield group.first_part + int(part), draws, position[draws]


def fits_per_draw(study: StudyConfig) -> int:
    """Return the number of fits of a draw, one for each method and pair of weights.

    Args:
        study: configuration of the study.
    """
    return len(study.methods) * len(expand_weights(study))
