"""Models, tokenizers and preference data of the commands, checked against one another."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rpo_io.outputs import prepare_file as prepare_file

from .errors import UsageError

if TYPE_CHECKING:
    from llm.data.pair_table import PairTable
    from llm.models.decoder import Decoder
    from llm.text.tokenizer import Tokenizer

DEFAULT_MAX_LENGTH = 1024
"""Default limit of prompt and response together, in tokens."""
DTYPES = ("float32", "bfloat16", "float64")
"""Dtypes of parameters and computation."""
_logger = logging.getLogger(__name__)


def check_dtype(dtype: str | None) -> None:
    """Refuse a dtype that models do not support.

    Args:
        dtype: name of the dtype; None is accepted.

    Raises:
        UsageError: if the dtype is unknown.
    """
    if dtype is not None and dtype not in DTYPES:
        names = ", ".join(repr(name) for name in DTYPES)
        raise UsageError(f"`dtype` must be one of {names}, got {dtype!r}")


def load_model_and_tokenizer(
    model: str, tokenizer: str | None, dtype: str
) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer.

    Args:
        model: Hugging Face folder, or a name on the hub.
        tokenizer: folder or name on the hub, or ``"bytes"``; None takes that of the model.
        dtype: dtype of the parameters and of the computation.

    Returns:
        Model and tokenizer.

    Raises:
        ValueError: if one of them is missing or damaged, or the tokenizer has more tokens than the
            model embeds.
    """
    import jax.numpy as jnp

    from llm.data.model_folder import resolve_model_folder, resolve_tokenizer_folder
    from llm.hf.io import load_model, model_notes
    from llm.text.tokenizer import check_vocab_size, load_tokenizer

    folder = resolve_model_folder(model)
    for note in model_notes(folder):
        _logger.info("%s", note)
    loaded = load_tokenizer(folder if tokenizer is None else resolve_tokenizer_folder(tokenizer))
    decoder = load_model(folder, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    check_vocab_size(loaded, decoder.architecture.vocab_size, tokenizer or model)
    return decoder, loaded


def read_pairs(
    data: str,
    model: Decoder,
    tokenizer: Tokenizer,
    *,
    max_length: int | None,
    skip_bad_rows: bool,
) -> PairTable:
    """Read and tokenize preference data; log the numbers of truncated and skipped rows.

    Args:
        data: file of preference rows, or a data set on the hub.
        model: the model that will read them.
        tokenizer: tokenizer of the model.
        max_length: limit of prompt and response together, in tokens; by default 1024 or the
            model's limit, whichever is smaller.
        skip_bad_rows: skip and count unusable rows instead of refusing them.

    Returns:
        The pairs, at least one.

    Raises:
        ValueError: if a row is unusable (the message names file, line and field), no row remains,
            or ``max_length`` exceeds the model's limit.
        OSError: if the file cannot be read.
    """
    from llm.data.preferences import stream_preferences
    from llm.text.tokenize import tokenize_rows

    limit = model.architecture.max_position_embeddings
    length = min(DEFAULT_MAX_LENGTH, limit) if max_length is None else max_length
    if length > limit:
        raise ValueError(
            f"argument --max-length: the model reads at most {limit} tokens, got {length}"
        )
    rows = stream_preferences(data, check_content=False)
    on_error = "skip" if skip_bad_rows else "raise"
    tokenized = tokenize_rows(
        rows,
        tokenizer,
        max_length=length,
        on_error=on_error,
        vocab_size=model.architecture.vocab_size,
    )
    for name, count in tokenized.report.items():
        if count and name != "rows":
            _logger.info("%s: %s", name, f"{count:,}")
    if not tokenized.pairs:
        raise ValueError(f"{data}: must have at least one usable row, got none")
    return tokenized.pairs
