"""Training data of a run: read, tokenized and split, with digests of what the tokens depend on."""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from llm.config import DataConfig
from llm.data.model_folder import resolve_tokenizer_folder
from llm.data.pair_table import PairTable
from llm.data.preferences import PreferenceRow, stream_preferences
from llm.data.rows import read_rows
from llm.data.sources import SourceFile, check_distinct, shown_source, source_files
from llm.hf.factory import ResolvedModel
from llm.text.tokenize import TokenizedPairs, tokenize_rows
from llm.text.tokenizer import (
    Tokenizer,
    TokenizerOptions,
    check_vocab_size,
    load_tokenizer,
)
from rpo_io.digests import sha256_hex, sha256_of_file


class TrainingData(NamedTuple):
    """Tokenized pairs for training and evaluation.

    Attributes:
        train: pairs to train on.
        evaluation: held-out pairs, possibly none; no row number is in both tables.
        provenance: digests of ``tokenizer``, ``template`` (the chat template) and ``data``.
        report: number of rows that were read, truncated and skipped, by name; of ``rows_repeated``,
            which are identical to an earlier row; and of ``eval_prompts_in_training``, rows for
            evaluation whose prompt is also that of a training row.
        end_ids: token ids that end a response.
        template_date: date that the chat template reads as today; None if it reads none.
        notes: sentences about columns and texts of the rows that are passed over or changed.
    """

    train: PairTable
    evaluation: PairTable
    provenance: dict[str, str]
    report: dict[str, int]
    end_ids: frozenset[int]
    template_date: str | None = None
    notes: tuple[str, ...] = ()


class _Contents:
    """Hashes of the prompts and of the whole rows that were read; 16 bytes a row."""

    def __init__(self) -> None:
        self.prompts, self.rows = array("q"), array("q")

    def record(self, rows: Iterable[PreferenceRow]) -> Iterator[PreferenceRow]:
        """Yield rows, and record their contents."""
        for row in rows:
            # A prompt with other spaces is the same question.
            texts = [(each.role, " ".join(each.content.split()), each.extra) for each in row.prompt]
            self.prompts.append(hash((*texts, row.tools)))
            contents = (row.prompt, row.tools, row.chosen, row.rejected, row.baseline)
            self.rows.append(hash(contents))
            yield row

    @property
    def repeated(self) -> int:
        """Number of rows that are identical to an earlier row."""
        return len(self.rows) - len(np.unique(np.asarray(self.rows)))

    def prompts_in(self, other: _Contents) -> int:
        """Return the number of rows whose prompt is that of one of the other rows."""
        return int(np.isin(np.asarray(self.prompts), np.asarray(other.prompts)).sum())


def load_training_data(config: DataConfig, model: ResolvedModel) -> TrainingData:
    """Read and tokenize the pairs that a configuration names.

    Args:
        config: the data and their tokenization.
        model: the resolved model; its tokenizer is used unless the data name another.

    Returns:
        The tokenized pairs.

    Raises:
        ValueError: if a row is invalid (the message names file, line and field), or the model has
            fewer tokens than the tokenizer or fewer positions than ``data.max_length``.
        OSError: if a file cannot be read.
    """
    train_files = source_files(config.train)
    eval_files = [] if config.eval is None else source_files(config.eval)
    check_distinct(train_files, eval_files)
    tokenizer, vocab_size = _tokenizer(config, model), model.architecture.vocab_size
    notes: list[str] = []
    eval_notes: list[str] = []
    contents, eval_contents = _Contents(), _Contents()
    rows, held_out = _split(config, train_files, notes)
    train = _tokens(contents.record(rows), tokenizer, config, vocab_size)
    if not train.pairs:
        where = shown_source(config.train)
        raise ValueError(f"{where}: no row is left to train on: {train.report}")
    if config.eval is not None:
        held_out = (
            row._replace(row=row.row + train.report["rows"])
            for row in _rows(eval_files, config, eval_notes)
        )
    evaluation = _tokens(eval_contents.record(held_out), tokenizer, config, vocab_size)
    notes += [f"`data.eval`: {note}" for note in eval_notes]
    in_training = eval_contents.prompts_in(contents)
    report = {
        **train.report,
        "rows_repeated": contents.repeated,
        **{f"eval_{name}": count for name, count in evaluation.report.items()},
        "eval_prompts_in_training": in_training,
    }
    if in_training:
        count = len(eval_contents.prompts)
        notes.append(
            f"{in_training:,} of {count:,} rows for evaluation have a prompt that also occurs in "
            "training rows: their metrics do not measure new prompts"
        )
    return TrainingData(
        train.pairs,
        evaluation.pairs,
        {
            "tokenizer": tokenizer.digest,
            "template": tokenizer.template_digest,
            "data": _digest_of(train_files, eval_files, config),
        },
        report,
        tokenizer.end_ids,
        template_date=tokenizer.template_date,
        notes=(*tokenizer.notes, *notes),
    )


def row_location(config: DataConfig, row: int, *, n_train_rows: int) -> str:
    """Return the file and line of a row by its index; the rows are read again up to it.

    Args:
        config: the data of the run.
        row: index of the row, see :attr:`TrainingData.train`.
        n_train_rows: number of rows of ``data.train``, ``TrainingData.report["rows"]``.

    Returns:
        ``file:line``, or the index of the row if the files have changed.
    """
    source, index = config.train, row
    if config.eval is not None and row >= n_train_rows:
        source, index = config.eval, row - n_train_rows
    found = next(islice(read_rows(source), index, None), None)
    return f"row {index} of {shown_source(source)}" if found is None else found.where


def _split(
    config: DataConfig, files: Sequence[SourceFile], notes: list[str]
) -> tuple[Iterator[PreferenceRow], Iterable[PreferenceRow]]:
    """Return an iterator over the training rows, and the held-out rows, complete at its end."""
    held_out: deque[PreferenceRow] = deque()
    n_held_out = 0 if config.eval is not None else config.eval_rows

    def rows() -> Iterator[PreferenceRow]:
        read = 0
        for row in _rows(files, config, notes):
            read += 1
            held_out.append(row)
            if len(held_out) > n_held_out:
                yield held_out.popleft()
        if read <= n_held_out:
            raise ValueError(
                f"`data.eval_rows` must leave rows to train on, got {n_held_out} of {read}"
            )

    return rows(), held_out


def _rows(
    files: Sequence[SourceFile], config: DataConfig, notes: list[str]
) -> Iterator[PreferenceRow]:
    return stream_preferences(
        files,
        check_content=config.on_error == "raise",  # rows to skip are counted by `tokenize_rows`
        columns=config.columns,
        raw_text=config.format == "text",
        notes=notes,
    )


def _tokenizer(config: DataConfig, model: ResolvedModel) -> Tokenizer:
    architecture = model.architecture
    if config.max_length > architecture.max_position_embeddings:
        raise ValueError(
            f"`data.max_length` must be at most {architecture.max_position_embeddings}, the number "
            f"of positions of the model, got {config.max_length}"
        )
    if config.tokenizer is None:
        source, folder = model.config.path or "bytes", model.folder
    else:
        source, folder = config.tokenizer, resolve_tokenizer_folder(config.tokenizer)
    tokenizer = load_tokenizer(folder, TokenizerOptions.from_config(config))
    check_vocab_size(tokenizer, architecture.vocab_size, source)
    return tokenizer


def _tokens(
    rows: Iterable[PreferenceRow], tokenizer: Tokenizer, config: DataConfig, vocab_size: int
) -> TokenizedPairs:
    return tokenize_rows(
        rows,
        tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        truncation_mode=config.truncation_mode,
        on_overlong=config.on_overlong,
        on_error=config.on_error,
        vocab_size=vocab_size,
    )


def _digest_of(
    train: Sequence[SourceFile], evaluation: Sequence[SourceFile], config: DataConfig
) -> str:
    """Return one digest of the contents of all files, not of their names."""
    digests = [sha256_of_file(path) for path, _ in train]
    eval_digests = [sha256_of_file(path) for path, _ in evaluation]
    for digest, (_, shown) in zip(eval_digests, evaluation, strict=True):
        if digest in digests:
            raise ValueError(
                f"`data.eval` must be other rows than `data.train`, got {shown}, a copy of "
                f"{train[digests.index(digest)].shown}"
            )
    columns = json.dumps(config.columns, sort_keys=True) if config.columns else ""
    return sha256_hex("".join(digests + eval_digests) + columns)
