"""Inference: generation of replies, and log-probabilities of the responses of preference data.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .continuous import ContinuousDecoder
    from .decoding_records import DecodedRows, DecodingNumbers, DecodingOptions, PromptRows
    from .generate import (
        Conversation,
        GeneratedTokens,
        Progress,
        Reply,
        generate_replies,
        generate_tokens,
    )
    from .sampling import GenerationConfig, most_likely_tokens, sample_tokens
    from .score import PairScore, score_pairs

_EXPORTS = {
    "ContinuousDecoder": "continuous",
    "DecodedRows": "decoding_records",
    "DecodingNumbers": "decoding_records",
    "DecodingOptions": "decoding_records",
    "PromptRows": "decoding_records",
    "most_likely_tokens": "sampling",
    "Conversation": "generate",
    "GeneratedTokens": "generate",
    "GenerationConfig": "sampling",
    "PairScore": "score",
    "Progress": "generate",
    "Reply": "generate",
    "generate_replies": "generate",
    "generate_tokens": "generate",
    "sample_tokens": "sampling",
    "score_pairs": "score",
}

__all__ = [
    "ContinuousDecoder",
    "Conversation",
    "DecodedRows",
    "DecodingNumbers",
    "DecodingOptions",
    "GeneratedTokens",
    "GenerationConfig",
    "PairScore",
    "Progress",
    "PromptRows",
    "Reply",
    "generate_replies",
    "generate_tokens",
    "most_likely_tokens",
    "sample_tokens",
    "score_pairs",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
