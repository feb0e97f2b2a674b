"""The data of a run: read, tokenized, split, with digests of all that the tokens depend on."""

from __future__ import annotations

import hashlib
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
from llm.text.tokenizer import Tokenizer, load_tokenizer
from rpo_io.digests import sha256_hex


class TrainingData(NamedTuple):
    """What is trained on, and what is held out.

    Attributes:
        train: pairs of training.
        evaluation: held-out pairs, maybe none; no row number is in both.
        provenance: digests of tokenizer, template and data, for the reference cache.
        report: what was read, cut and skipped, by name.
        end_ids: tokens that end a response.
    """

    train: PairTable
    evaluation: PairTable
    provenance: dict[str, str]
    report: dict[str, int]
    end_ids: frozenset[int]


def load_training_data(config: DataConfig, model: ResolvedModel) -> TrainingData:
    """Read and tokenize the pairs that a configuration names.

    Args:
        config: the data.
        model: whose tokenizer is used where the data name none.

    Returns:
        The data.

    Raises:
        ValueError: a mistake in a row or a file; it names file, line and field. An architecture
            that cannot be, one with fewer tokens than the tokenizer, or one for shorter sequences.
        OSError: a file cannot be read.
    """
    tokenizer = _tokenizer(config, model)
    rows, held_out = _split(config)
    train = _tokens(rows, tokenizer, config)
    if not train.pairs:
        raise ValueError(f"{config.train}: no row is left to train on: {train.report}")
    if config.eval is not None:
        held_out = (
            row._replace(row=row.row + train.report["rows"]) for row in _rows(config.eval, config)
        )
    evaluation = _tokens(held_out, tokenizer, config)
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
    )


def _split(config: DataConfig) -> tuple[Iterator[PreferenceRow], Iterable[PreferenceRow]]:
    """Rows to train on, as they are read, and the last ones, which are there when those are."""
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
            f"`data.max_length` must be at most {architecture.max_position_embeddings}, which is how many "
            f"tokens the model reads, got {config.max_length}"
        )
    if config.tokenizer is None:
        source, folder = model.config.path or "bytes", model.folder
    else:
        source, folder = config.tokenizer, resolve_tokenizer_folder(config.tokenizer)
    tokenizer, room = load_tokenizer(folder), architecture.vocab_size
    if tokenizer.vocab_size > room:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, but the model embeds only "
            f"{room}: take the model's own tokenizer"
        )
    return tokenizer


def _tokens(
    rows: Iterable[PreferenceRow], tokenizer: Tokenizer, config: DataConfig
) -> TokenizedPairs:
    return tokenize_rows(
        rows,
        tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        truncation_mode=config.truncation_mode,
        on_error=config.on_error,
    )


def _digest_of(sources: Sequence[str]) -> str:
    """Of the contents of all files."""
    total = ""
    for source in sources:
        for path, _ in source_files(source):
            with path.open("rb") as file:
                total += hashlib.file_digest(file, "sha256").hexdigest()
    return sha256_hex(total)
