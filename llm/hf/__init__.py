"""Hugging Face models: configurations, weights, export, and models built from a configuration.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter_config import AdapterSettings, read_adapter_config, write_adapter_config
    from .adapters import export_adapter, read_adapter
    from .config import from_hf_config, to_hf_config
    from .factory import ResolvedModel, abstract_model, build_model, resolve_model
    from .families import Family, register_family
    from .io import export_model, load_model, read_architecture, read_parameters
    from .names import tensor_mappings
    from .safetensors import SafetensorsReader, write_safetensors
    from .tensor_mapping import TensorMapping

_EXPORTS = {
    "AdapterSettings": "adapter_config",
    "Family": "families",
    "ResolvedModel": "factory",
    "SafetensorsReader": "safetensors",
    "TensorMapping": "tensor_mapping",
    "abstract_model": "factory",
    "build_model": "factory",
    "export_adapter": "adapters",
    "export_model": "io",
    "from_hf_config": "config",
    "load_model": "io",
    "read_adapter": "adapters",
    "read_adapter_config": "adapter_config",
    "read_architecture": "io",
    "read_parameters": "io",
    "register_family": "families",
    "resolve_model": "factory",
    "tensor_mappings": "names",
    "to_hf_config": "config",
    "write_adapter_config": "adapter_config",
    "write_safetensors": "safetensors",
}

__all__ = [
    "AdapterSettings",
    "Family",
    "ResolvedModel",
    "SafetensorsReader",
    "TensorMapping",
    "abstract_model",
    "build_model",
    "export_adapter",
    "export_model",
    "from_hf_config",
    "load_model",
    "read_adapter",
    "read_adapter_config",
    "read_architecture",
    "read_parameters",
    "register_family",
    "resolve_model",
    "tensor_mappings",
    "to_hf_config",
    "write_adapter_config",
    "write_safetensors",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
