"""Training data of a run: read, tokenized and split, with digests of what the tokens depend on."""

from __future__ import annotations

import json
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from llm.config import DataConfig, DataSource, ObjectiveConfig
from llm.data.mixtures import MixturePart, mix_by_count, mix_by_weight
from llm.data.model_folder import resolve_tokenizer_folder
from llm.data.pair_table import PairTable
from llm.data.preferences import PreferenceRow, stream_preferences
from llm.data.sources import SourceFile, check_distinct, check_once, shown_source, source_files
from llm.hf.factory import ResolvedModel
from llm.text.tokenize import TokenizedPairs, tokenize_rows
from llm.text.tokenizer import (
    Tokenizer,
    TokenizerOptions,
    check_vocab_size,
    load_tokenizer,
)
from rpo_io.digests import sha256_hex, sha256_of_file

from .row_kinds import RowKinds


class SampledRows(NamedTuple):
    """Rows for evaluation whose prompts the policy answers.

    Attributes:
        rows: the first rows of each set of :attr:`TrainingData.evaluation_sets`, by its name.
        tokenizer: the tokenizer of the rows.
    """

    rows: dict[str, tuple[PreferenceRow, ...]]
    tokenizer: Tokenizer


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
        notes: sentences about the mixture, and about columns and texts of the rows that are passed
            over or changed.
        mixture: parts of the sources in an epoch; empty for every pair once.
        set_sizes: number of pairs of each named set of ``evaluation``, in its order; None for one
            set without a name.
        samples: rows whose prompts the policy answers at evaluations; None for none.
    """

    train: PairTable
    evaluation: PairTable
    provenance: dict[str, str]
    report: dict[str, int]
    end_ids: frozenset[int]
    template_date: str | None = None
    notes: tuple[str, ...] = ()
    mixture: tuple[MixturePart, ...] = ()
    set_sizes: dict[str, int] | None = None
    samples: SampledRows | None = None

    @property
    def evaluation_sets(self) -> dict[str, PairTable]:
        """The pairs of ``evaluation`` by the name of their set; the name is "" for a single set."""
        if self.set_sizes is None:
            return {"": self.evaluation}
        stops = np.cumsum([0, *self.set_sizes.values()]).tolist()
        return {
            name: self.evaluation[start:stop]
            for name, start, stop in zip(self.set_sizes, stops[:-1], stops[1:], strict=True)
        }


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
            contents = (
                row.prompt,
                row.tools,
                row.chosen,
                row.rejected,
                row.baseline,
                row.desirable,
                row.others,
            )
            self.rows.append(hash(contents))
            yield row

    @property
    def repeated(self) -> int:
        """Number of rows that are identical to an earlier row."""
        return len(self.rows) - len(np.unique(np.asarray(self.rows)))

    def prompts_in(self, other: _Contents) -> int:
        """Return the number of rows whose prompt is that of one of the other rows."""
        return int(np.isin(np.asarray(self.prompts), np.asarray(other.prompts)).sum())


def load_training_data(
    config: DataConfig,
    model: ResolvedModel,
    objective: ObjectiveConfig | None = None,
    *,
    n_samples: int = 0,
) -> TrainingData:
    """Read and tokenize the pairs that a configuration names.

    Args:
        config: the data and their tokenization.
        model: the resolved model; its tokenizer is used unless the data name another.
        objective: objective that is trained on the rows; None for the default one.
        n_samples: number of rows of each evaluation set that are kept as ``samples``; skipped rows
            are counted but not kept.

    Returns:
        The tokenized pairs.

    Raises:
        ValueError: if a row is invalid (the message names file, line and field) or of a kind that
            the objective does not train on, a source has no row that is left, or the model has
            fewer tokens than the tokenizer or fewer positions than ``data.max_length``.
        OSError: if a file cannot be read.
    """
    sources = [_open(source, config) for source in config.train_sources]
    eval_sources = {
        name: [_open(source, config) for source in each]
        for name, each in config.evaluation_sources.items()
    }
    train_files = [file for source in sources for file in source.files]
    eval_files = [
        file for each in eval_sources.values() for source in each for file in source.files
    ]
    check_once(train_files)
    check_distinct(train_files, eval_files)
    rules = RowKinds(ObjectiveConfig() if objective is None else objective)
    reader = _Reader(config, _tokenizer(config, model), model.architecture.vocab_size, rules)
    held_out: deque[PreferenceRow] = deque()
    tables = []
    for source in sources:
        rows = reader.rows(source)
        if config.eval_rows:
            rows = _hold_out(rows, held_out, config.eval_rows)
        read = reader.tokens(reader.contents.record(rows))
        if not read.pairs:
            raise ValueError(f"{source.shown}: no row is left to train on: {read.report}")
        tables.append(read)
    unread: dict[str, list[Iterable[PreferenceRow]]] = {"": [held_out]}
    if eval_sources:
        unread = {
            name: [reader.rows(source, "`data.eval`: ") for source in each]
            for name, each in eval_sources.items()
        }
    evaluation, sampled = {}, {}
    for name, each in unread.items():
        first: list[PreferenceRow] = []
        evaluation[name] = [
            reader.tokens(_keep_first(reader.eval_contents.record(rows), first, n_samples))
            for rows in each
        ]
        used = set(chain.from_iterable(part.pairs.rows.tolist() for part in evaluation[name]))
        sampled[name] = tuple(row for row in first if row.row in used)
    sizes = {name: sum(len(part.pairs) for part in each) for name, each in evaluation.items()}
    mixture, part_notes = _mixture(config, sources, [len(each.pairs) for each in tables])
    if mixture and rules.kind == "unpaired":
        raise ValueError(
            "`data.train` must have neither `weight` nor `rows` for unpaired rows, whose steps are "
            "the same in every epoch: name the files only"
        )
    if rules.kind == "unpaired" and 1 in sizes.values():
        raise ValueError("a set of unpaired rows for evaluation must have two rows or more, got 1")
    in_training = reader.eval_contents.prompts_in(reader.contents)
    report = {
        **_sum_reports(tables),
        "rows_repeated": reader.contents.repeated,
        **{
            f"eval_{name}_{key}" if name else f"eval_{key}": count
            for name, each in evaluation.items()
            for key, count in _sum_reports(each).items()
        },
        "eval_prompts_in_training": in_training,
    }
    notes = [*part_notes, *reader.notes]
    if in_training:
        count = len(reader.eval_contents.prompts)
        notes.append(
            f"{in_training:,} of {count:,} rows for evaluation have a prompt that also occurs in "
            "training rows: their metrics do not measure new prompts"
        )
    tokenizer = reader.tokenizer
    return TrainingData(
        PairTable.concatenate([each.pairs for each in tables]),
        PairTable.concatenate([part.pairs for part in chain(*evaluation.values())]),
        {
            "tokenizer": tokenizer.digest,
            "template": tokenizer.template_digest,
            "data": _digest_of(train_files, eval_files, config),
        },
        report,
        tokenizer.end_ids,
        template_date=tokenizer.template_date,
        notes=(*tokenizer.notes, *notes),
        mixture=mixture,
        set_sizes=None if "" in sizes else sizes,
        samples=SampledRows(sampled, tokenizer) if n_samples else None,
    )


class _OpenSource(NamedTuple):
    """A source with its files."""

    files: list[SourceFile]
    shown: str
    columns: dict[str, str]


def _open(source: DataSource, config: DataConfig) -> _OpenSource:
    columns = config.columns if source.columns is None else source.columns
    return _OpenSource(source_files(source.name), shown_source(source.name), columns)


class _Reader:
    """Reads and tokenizes sources one after another; rows are numbered over all of them."""

    def __init__(
        self, config: DataConfig, tokenizer: Tokenizer, vocab_size: int, kinds: RowKinds
    ) -> None:
        self.config, self.tokenizer, self.vocab_size = config, tokenizer, vocab_size
        self.kinds = kinds
        self.contents, self.eval_contents = _Contents(), _Contents()
        self.notes: list[str] = []
        self.n_rows = 0

    def rows(self, source: _OpenSource, prefix: str = "") -> Iterator[PreferenceRow]:
        """Yield the rows of a source; notes about them get a prefix."""
        notes: list[str] = []
        rows = stream_preferences(
            source.files,
            # Rows to skip are counted by `tokenize_rows`.
            check_content=self.config.on_error == "raise",
            columns=source.columns,
            raw_text=self.config.format == "text",
            notes=notes,
            all_kinds=True,
        )
        first = self.n_rows
        for row in rows:
            self.kinds.check(row)
            self.n_rows += 1
            yield row._replace(row=first + row.row)
        self.notes += [f"{prefix}{note}" for note in notes if f"{prefix}{note}" not in self.notes]

    def tokens(self, rows: Iterable[PreferenceRow]) -> TokenizedPairs:
        """Tokenize rows."""
        return tokenize_rows(
            rows,
            self.tokenizer,
            max_length=self.config.max_length,
            max_prompt_length=self.config.max_prompt_length,
            truncation_mode=self.config.truncation_mode,
            on_overlong=self.config.on_overlong,
            on_error=self.config.on_error,
            vocab_size=self.vocab_size,
        )


def _hold_out(
    rows: Iterable[PreferenceRow], held_out: deque[PreferenceRow], count: int
) -> Iterator[PreferenceRow]:
    """Yield all rows but the last ones, which are in ``held_out`` at the end."""
    read = 0
    for row in rows:
        read += 1
        held_out.append(row)
        if len(held_out) > count:
            yield held_out.popleft()
    if read <= count:
        raise ValueError(f"`data.eval_rows` must leave rows to train on, got {count} of {read}")


def _keep_first(
    rows: Iterable[PreferenceRow], kept: list[PreferenceRow], count: int
) -> Iterator[PreferenceRow]:
    """Yield rows, and append them to a list until it has a number of them."""
    for row in rows:
        if len(kept) < count:
            kept.append(row)
        yield row


def _mixture(
    config: DataConfig, sources: Sequence[_OpenSource], sizes: Sequence[int]
) -> tuple[tuple[MixturePart, ...], list[str]]:
    """Return the parts of the sources in an epoch, empty for all pairs once; and notes."""
    parts = config.train_sources
    if all(part.weight is None and part.rows is None for part in parts):
        return (), []
    weights = [part.weight for part in parts if part.weight is not None]
    if weights:
        mixture = mix_by_weight(sizes, weights)
    else:
        counts = [part.rows or size for part, size in zip(parts, sizes, strict=True)]
        mixture = mix_by_count(sizes, counts)
    return mixture, [
        f"{source.shown}: {part.pairs:,} of {size:,} pairs in an epoch"
        + (", some of them repeated" if part.pairs > size else "")
        for source, part, size in zip(sources, mixture, sizes, strict=True)
    ]


def _sum_reports(tables: Sequence[TokenizedPairs]) -> dict[str, int]:
    names = dict.fromkeys(name for each in tables for name in each.report)
    return {name: sum(each.report.get(name, 0) for each in tables) for name in names}


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


def _digest_of(
    train: Sequence[SourceFile], evaluation: Sequence[SourceFile], config: DataConfig
) -> str:
    """Return one digest of the contents of all files, not of their names, and of their mixture."""
    digests = [sha256_of_file(path) for path, _ in train]
    eval_digests = [sha256_of_file(path) for path, _ in evaluation]
    for digest, (_, shown) in zip(eval_digests, evaluation, strict=True):
        if digest in digests:
            raise ValueError(
                f"`data.eval` must be other rows than `data.train`, got {shown}, a copy of "
                f"{train[digests.index(digest)].shown}"
            )
    columns = json.dumps(config.columns, sort_keys=True) if config.columns else ""
    return sha256_hex("".join(digests + eval_digests) + columns + _described_parts(config))


def _described_parts(config: DataConfig) -> str:
    """Return what the tokens depend on besides files and columns; empty for one plain source."""
    sets = {name: sources for name, sources in config.evaluation_sources.items() if name}
    parts = {"": config.train_sources} | sets
    described = {
        name: [(source.columns, source.weight, source.rows) for source in sources]
        for name, sources in parts.items()
    }
    if described == {"": [(None, None, None)]}:
        return ""
    return json.dumps(described, sort_keys=True)
