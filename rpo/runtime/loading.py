"""Models, tokenizers and data that commands are pointed at, checked against one another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.data.pair_table import PairTable
    from llm.inference.generate import GenerationConfig
    from llm.models.decoder import Decoder
    from llm.text.tokenizer import Tokenizer

LENGTH = 1024
"""Most tokens of a sequence where nothing else is said and the model reads as many."""


def prepare_file(path: Path) -> None:
    """Make sure that a file can be written, before any work is done.

    Args:
        path: of the file; its folder is created if it is missing.

    Raises:
        ValueError: it cannot.
    """
    from rpo_io.paths import prepare_folder

    if path.is_dir():
        raise ValueError(f"argument --out: {path} is a folder, a file is to be written")
    prepare_folder(path.parent)


def decoding_from(args: argparse.Namespace) -> GenerationConfig:
    """How replies are chosen, as the options say.

    Args:
        args: with ``max_new_tokens``, ``temperature``, ``top_p`` and ``seed``.

    Returns:
        The choice.

    Raises:
        ValueError: a value out of range.
    """
    from llm.inference.generate import GenerationConfig

    return GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )


def load(model: str, tokenizer: str | None, dtype: str) -> tuple[Decoder, Tokenizer]:
    """Load a model and its tokenizer.

    Args:
        model: a folder or a hub name.
        tokenizer: the same, or ``bytes``; None for the model's own.
        dtype: to compute in, and of the parameters.

    Returns:
        Both.

    Raises:
        ValueError: one is missing or damaged, or the tokenizer has tokens that the model lacks.
    """
    import jax.numpy as jnp

    from llm.data.model_folder import resolve_model_folder, resolve_tokenizer_folder
    from llm.hf.io import load_model
    from llm.text.tokenizer import load_tokenizer

    folder = resolve_model_folder(model)
    words = load_tokenizer(folder if tokenizer is None else resolve_tokenizer_folder(tokenizer))
    decoder = load_model(folder, dtype=jnp.dtype(dtype), param_dtype=jnp.dtype(dtype))
    room = decoder.architecture.vocab_size
    if words.vocab_size > room:
        raise ValueError(
            f"{tokenizer or model}: the tokenizer has {words.vocab_size} tokens, but {model} "
            f"embeds only {room}: take the model's own tokenizer"
        )
    return decoder, words


def read_pairs(args: argparse.Namespace, model: Decoder, tokenizer: Tokenizer) -> PairTable:
    """Read and tokenize preference data; what was cut or skipped is told on stderr.

    Args:
        args: with ``data``, ``max_length`` and ``skip_bad_rows``.
        model: that will read them.
        tokenizer: of the model.

    Returns:
        The pairs, at least one.

    Raises:
        ValueError: a row that cannot be used, by file, line and field, or too long a length.
        OSError: the file cannot be read.
    """
    from llm.data.preferences import stream_preferences
    from llm.text.tokenize import tokenize_rows

    limit = model.architecture.max_position_embeddings
    length = min(LENGTH, limit) if args.max_length is None else args.max_length
    if length > limit:
        raise ValueError(
            f"argument --max-length: the model reads at most {limit} tokens, got {length}"
        )
    rows = stream_preferences(args.data, check_content=False)
    on_error = "skip" if args.skip_bad_rows else "raise"
    data = tokenize_rows(rows, tokenizer, max_length=length, on_error=on_error)
    for name, count in data.report.items():
        if count and name != "rows":
            sys.stderr.write(f"{name}: {count:,}\n")
    if not data.pairs:
        raise ValueError(f"{args.data}: no row is left")
    return data.pairs
