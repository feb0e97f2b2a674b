"""Preference data: readers, tokenized pairs, packing into rows, and batches by step number.

:func:`stream_preferences` reads rows, ``llm.text.tokenize_rows`` turns them into a
:class:`PairTable`, and :class:`BatchSampler` packs the pairs of every step into a batch. Names are
imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loader import BatchSampler, iterate_batches
    from .model_folder import resolve_model_folder, resolve_tokenizer_folder
    from .packing import (
        BatchShape,
        PackingMode,
        count_roles,
        pack,
        packed_token_counts,
        required_shape,
        round_up_shape,
    )
    from .pair_table import PairTable
    from .preferences import (
        Message,
        Messages,
        PairTokens,
        PreferenceRow,
        RowError,
        check_row,
        parse_row,
        read_preferences,
        stream_preferences,
    )
    from .rows import Row, read_json_list, read_rows

_EXPORTS = {
    "BatchSampler": "loader",
    "BatchShape": "packing",
    "Message": "preferences",
    "Messages": "preferences",
    "PackingMode": "packing",
    "PairTable": "pair_table",
    "PairTokens": "preferences",
    "PreferenceRow": "preferences",
    "Row": "rows",
    "RowError": "preferences",
    "check_row": "preferences",
    "count_roles": "packing",
    "iterate_batches": "loader",
    "pack": "packing",
    "packed_token_counts": "packing",
    "parse_row": "preferences",
    "read_json_list": "rows",
    "read_preferences": "preferences",
    "read_rows": "rows",
    "required_shape": "packing",
    "resolve_model_folder": "model_folder",
    "resolve_tokenizer_folder": "model_folder",
    "round_up_shape": "packing",
    "stream_preferences": "preferences",
}

__all__ = [
    "BatchSampler",
    "BatchShape",
    "Message",
    "Messages",
    "PackingMode",
    "PairTable",
    "PairTokens",
    "PreferenceRow",
    "Row",
    "RowError",
    "check_row",
    "count_roles",
    "iterate_batches",
    "pack",
    "packed_token_counts",
    "parse_row",
    "read_json_list",
    "read_preferences",
    "read_rows",
    "required_shape",
    "resolve_model_folder",
    "resolve_tokenizer_folder",
    "round_up_shape",
    "stream_preferences",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
