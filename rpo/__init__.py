"""The application over ``rpo_theory``, ``bandits`` and ``llm``: the ``rpo`` command and its API.

Every command is a function of :mod:`rpo.api`, which is imported on first use. Results are described
in :mod:`rpo.results`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import api, results

__all__ = ["api", "results"]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
