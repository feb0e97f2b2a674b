"""Text to tokens: tokenizers, chat templates and the tokenization of preference rows.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .chat_template import ChatTemplate
    from .hf_tokenizer import HuggingFaceTokenizer
    from .tokenize import OnError, TokenizedPairs, TruncationMode, tokenize_rows
    from .tokenizer import (
        ByteTokenizer,
        ResponseTokens,
        Tokenizer,
        TokenizerOptions,
        load_tokenizer,
    )

_EXPORTS = {
    "ByteTokenizer": "tokenizer",
    "ChatTemplate": "chat_template",
    "HuggingFaceTokenizer": "hf_tokenizer",
    "OnError": "tokenize",
    "ResponseTokens": "tokenizer",
    "TokenizedPairs": "tokenize",
    "Tokenizer": "tokenizer",
    "TokenizerOptions": "tokenizer",
    "TruncationMode": "tokenize",
    "load_tokenizer": "tokenizer",
    "tokenize_rows": "tokenize",
}

__all__ = [
    "ByteTokenizer",
    "ChatTemplate",
    "HuggingFaceTokenizer",
    "OnError",
    "ResponseTokens",
    "TokenizedPairs",
    "Tokenizer",
    "TokenizerOptions",
    "TruncationMode",
    "load_tokenizer",
    "tokenize_rows",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
