"""Where the rows of a run are in its files, for messages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from llm.config import DataConfig, DataSource
from llm.data.rows import read_rows
from llm.data.sources import shown_source


def row_location(config: DataConfig, row: int, *, n_train_rows: int) -> str:
    """Return the file and line of a row by its index; the rows are read again up to it.

    Args:
        config: the data of the run.
        row: index of the row, see :attr:`TrainingData.train`.
        n_train_rows: number of rows of ``data.train``, ``TrainingData.report["rows"]``.

    Returns:
        ``file:line``, or the index of the row if the files have changed.
    """
    sources, index = config.train_sources, row
    if config.eval is not None and row >= n_train_rows:
        sources = list(chain(*config.evaluation_sources.values()))
        index = row - n_train_rows
    rows = chain.from_iterable(read_rows(source.name) for source in sources)
    found = next(islice(rows, index, None), None)
    return f"row {index} of {shown_sources(sources)}" if found is None else found.where


def shown_sources(sources: Sequence[DataSource]) -> str:
    """Return the names of sources for messages.

    Args:
        sources: the sources.

    Examples:
        >>> shown_sources([DataSource(path="a.jsonl"), DataSource(path=["b.jsonl", "c.jsonl"])])
        'a.jsonl, b.jsonl, c.jsonl'
    """
    return ", ".join(shown_source(source.name) for source in sources)
