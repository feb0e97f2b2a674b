"""The data of a run: read, tokenized, split, with digests of all that the tokens depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .config import DataConfig, ModelConfig
from .model_source import architecture_of
from .preference_data import PairTokens, PreferenceRow, read_preferences
from .reference_cache import digest
from .row_files import source_files
from .tokenization import tokenize
from .tokenizer import Tokenizer, load_tokenizer


class TrainingData(NamedTuple):
    """What is trained on, and what is held out.

    Attributes:
        train: pairs of training.
        evaluation: held-out pairs, maybe none; no row number is in both.
        provenance: digests of tokenizer, template and data, for the reference cache.
        report: what was read, cut and skipped, by name.
        end_ids: tokens that end a response.
    """

    train: list[PairTokens]
    evaluation: list[PairTokens]
    provenance: dict[str, str]
    report: dict[str, int]
    end_ids: frozenset[int]


def load_data(config: DataConfig, model: ModelConfig) -> TrainingData:
    """Read and tokenize the pairs that a configuration names.

    Args:
        config: the data.
        model: whose tokenizer is used where the data name none.

    Returns:
        The data.

    Raises:
        ValueError: a mistake in a row or a file; it names file, line and field. An architecture
            that cannot be, or one with fewer tokens than the tokenizer.
        OSError: a file cannot be read.
    """
    tokenizer = _tokenizer(config, model)
    # Rows to skip are left to `tokenize`, which counts them.
    check = config.on_error == "raise"
    rows = read_preferences(config.train, check_content=check)
    if config.eval is not None:
        held_out = [
            row._replace(row=row.row + len(rows))
            for row in read_preferences(config.eval, check_content=check)
        ]
    elif config.eval_rows >= len(rows):
        raise ValueError(
            f"`data.eval_rows` must leave rows to train on, got {config.eval_rows} of {len(rows)}"
        )
    else:
        held_out = rows[len(rows) - config.eval_rows :]
        rows = rows[: len(rows) - config.eval_rows]
    train = _tokens(rows, tokenizer, config)
    if not train.pairs:
        raise ValueError(f"{config.train}: no row is left to train on: {train.report}")
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


def _tokenizer(config: DataConfig, model: ModelConfig) -> Tokenizer:
    source = config.tokenizer or model.path or "bytes"
    tokenizer, room = load_tokenizer(source), architecture_of(model).vocab_size
    if tokenizer.vocab_size > room:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, but the model embeds only "
            f"{room}: take the model's own tokenizer"
        )
    return tokenizer


def _tokens(rows: Sequence[PreferenceRow], tokenizer: Tokenizer, config: DataConfig) -> Any:
    return tokenize(
        rows,
        tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        truncation_mode=config.truncation_mode,
        on_error=config.on_error,
    )


def _digest_of(sources: Sequence[str]) -> str:
    """Of the contents of all files."""
    files = [path for source in sources for path, _ in source_files(source)]
    return digest("".join(digest(path.read_bytes()) for path in files))
