"""Meshes of devices, sharding plans of models, and the collectives that layers call.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layout import (
        SINGLE_DEVICE,
        ShardingPlan,
        has_partial_gradient,
        make_sharding_plan,
        partition_rule,
    )
    from .mesh import (
        Devices,
        is_first_process,
        make_devices,
        make_mesh,
        mesh_sizes,
        on_host,
        plan_model,
        put_on_mesh,
        single_device,
    )
    from .vocab import VocabParallel

_EXPORTS = {
    "SINGLE_DEVICE": "layout",
    "ShardingPlan": "layout",
    "has_partial_gradient": "layout",
    "make_sharding_plan": "layout",
    "mesh_sizes": "mesh",
    "partition_rule": "layout",
    "Devices": "mesh",
    "is_first_process": "mesh",
    "make_devices": "mesh",
    "make_mesh": "mesh",
    "on_host": "mesh",
    "plan_model": "mesh",
    "put_on_mesh": "mesh",
    "single_device": "mesh",
    "VocabParallel": "vocab",
}

__all__ = [
    "SINGLE_DEVICE",
    "Devices",
    "ShardingPlan",
    "VocabParallel",
    "has_partial_gradient",
    "is_first_process",
    "make_devices",
    "make_mesh",
    "make_sharding_plan",
    "mesh_sizes",
    "on_host",
    "partition_rule",
    "plan_model",
    "put_on_mesh",
    "single_device",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
