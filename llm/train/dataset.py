"""Training data of a run: read, tokenized and split, with digests of what the tokens depend on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from llm.config import DataConfig
from llm.data.model_folder import resolve_tokenizer_folder
from llm.data.pair_table import PairTable
from llm.data.preferences import PreferenceRow, stream_preferences
from llm.data.rows import source_files
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
        report: number of rows that were read, truncated and skipped, by name.
        end_ids: token ids that end a response.
        template_date: date that the chat template reads as today; None if it reads none.
    """

    train: PairTable
    evaluation: PairTable
    provenance: dict[str, str]
    report: dict[str, int]
    end_ids: frozenset[int]
    template_date: str | None = None


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
    tokenizer, vocab_size = _tokenizer(config, model), model.architecture.vocab_size
    rows, held_out = _split(config)
    train = _tokens(rows, tokenizer, config, vocab_size)
    if not train.pairs:
        raise ValueError(f"{config.train}: no row is left to train on: {train.report}")
    if config.eval is not None:
        held_out = (
            row._replace(row=row.row + train.report["rows"]) for row in _rows(config.eval, config)
        )
    evaluation = _tokens(held_out, tokenizer, config, vocab_size)
    return TrainingData(
        train.pairs,
        evaluation.pairs,
        {
            "tokenizer": tokenizer.digest,
            "template": tokenizer.template_digest,
            "data": _digest_of([config.train] + ([config.eval] if config.eval else [])),
        },
        {**train.report, **{f"eval_{name}": count for name, count in evaluation.report.items()}},
        tokenizer.end_ids,
        template_date=tokenizer.template_date,
    )


def _split(config: DataConfig) -> tuple[Iterator[PreferenceRow], Iterable[PreferenceRow]]:
    """Return an iterator over the training rows, and the held-out rows, complete at its end."""
    held_out: deque[PreferenceRow] = deque()
    n_held_out = 0 if config.eval is not None else config.eval_rows

    def rows() -> Iterator[PreferenceRow]:
        read = 0
        for row in _rows(config.train, config):
            read += 1
            held_out.append(row)
            if len(held_out) > n_held_out:
                yield held_out.popleft()
        if read <= n_held_out:
            raise ValueError(
                f"`data.eval_rows` must leave rows to train on, got {n_held_out} of {read}"
            )

    return rows(), held_out


def _rows(source: str, config: DataConfig) -> Iterator[PreferenceRow]:
    # Rows to skip are left to `tokenize`, which counts them.
    return stream_preferences(source, check_content=config.on_error == "raise")


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


def _digest_of(sources: Sequence[str]) -> str:
    """Return one digest of the contents of all files."""
    digests = [sha256_of_file(path) for source in sources for path, _ in source_files(source)]
    return sha256_hex("".join(digests))
