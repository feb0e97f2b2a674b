"""Attention over packed rows and over caches, by the kernel that fits the platform.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blockwise import attend_in_blocks
    from .caches import SlotMajorCache, allocate_cache
    from .cudnn import SequenceIndices, attend_by_sequence, sequence_indices
    from .dispatch import attend, attend_cached, visible
    from .logits import AttentionSettings, apply_soft_cap
    from .pages import LayerPages, PagedCache, PageTable, allocate_pages, split_pages
    from .splash import attend_with_splash, supports_head_size

_EXPORTS = {
    "SlotMajorCache": "caches",
    "allocate_cache": "caches",
    "attend": "dispatch",
    "attend_cached": "dispatch",
    "visible": "dispatch",
    "attend_in_blocks": "blockwise",
    "SequenceIndices": "cudnn",
    "attend_by_sequence": "cudnn",
    "sequence_indices": "cudnn",
    "attend_with_splash": "splash",
    "supports_head_size": "splash",
    "AttentionSettings": "logits",
    "apply_soft_cap": "logits",
    "PagedCache": "pages",
    "PageTable": "pages",
    "LayerPages": "pages",
    "allocate_pages": "pages",
    "split_pages": "pages",
}

__all__ = [
    "AttentionSettings",
    "LayerPages",
    "PageTable",
    "PagedCache",
    "SequenceIndices",
    "SlotMajorCache",
    "allocate_cache",
    "allocate_pages",
    "apply_soft_cap",
    "attend",
    "attend_by_sequence",
    "attend_cached",
    "attend_in_blocks",
    "attend_with_splash",
    "sequence_indices",
    "split_pages",
    "supports_head_size",
    "visible",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
