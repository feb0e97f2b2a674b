"""Decoders: architecture, layers, adapters, and log-probabilities of responses.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .architecture import Architecture
    from .base_weights import compress_base_weights
    from .custom_vjp import project, rms_norm
    from .decoder import Decoder
    from .experts import Experts, Router, RouterSums, Routing, router_loss
    from .layers import Layer, Norm
    from .logprobs import response_log_probs, sequence_log_probs, token_log_probs
    from .lora import (
        SavedParam,
        adapted_paths,
        add_lora,
        apply_lora,
        has_lora,
        lora_shapes,
        mark_saved,
        merge_lora,
        merged_kernel,
        trainable_filter,
    )
    from .projections import PROJECTIONS, Adapter, Projection
    from .protocol import Head, LanguageModel
    from .quantization import QuantizedKernel, dequantize, quantize
    from .rope import RopeAngles, apply_rope, rope_angles, rope_frequencies
    from .rope_scaling import RopeScaling
    from .token_statistics import ResponseStatistics, response_statistics, token_log_sum_squares
    from .unrolled import decode_with_pages, init_pages, read_prompts, unroll

_EXPORTS = {
    "Adapter": "projections",
    "Architecture": "architecture",
    "Decoder": "decoder",
    "Experts": "experts",
    "Head": "protocol",
    "LanguageModel": "protocol",
    "Layer": "layers",
    "Norm": "layers",
    "PROJECTIONS": "projections",
    "Projection": "projections",
    "QuantizedKernel": "quantization",
    "ResponseStatistics": "token_statistics",
    "RopeAngles": "rope",
    "RopeScaling": "rope_scaling",
    "Router": "experts",
    "RouterSums": "experts",
    "Routing": "experts",
    "SavedParam": "lora",
    "adapted_paths": "lora",
    "add_lora": "lora",
    "apply_lora": "lora",
    "apply_rope": "rope",
    "compress_base_weights": "base_weights",
    "decode_with_pages": "unrolled",
    "dequantize": "quantization",
    "has_lora": "lora",
    "init_pages": "unrolled",
    "lora_shapes": "lora",
    "mark_saved": "lora",
    "merge_lora": "lora",
    "merged_kernel": "lora",
    "project": "custom_vjp",
    "quantize": "quantization",
    "read_prompts": "unrolled",
    "response_log_probs": "logprobs",
    "response_statistics": "token_statistics",
    "rms_norm": "custom_vjp",
    "rope_angles": "rope",
    "rope_frequencies": "rope",
    "router_loss": "experts",
    "sequence_log_probs": "logprobs",
    "token_log_probs": "logprobs",
    "token_log_sum_squares": "token_statistics",
    "trainable_filter": "lora",
    "unroll": "unrolled",
}

__all__ = [
    "PROJECTIONS",
    "Adapter",
    "Architecture",
    "Decoder",
    "Experts",
    "Head",
    "LanguageModel",
    "Layer",
    "Norm",
    "Projection",
    "QuantizedKernel",
    "ResponseStatistics",
    "RopeAngles",
    "RopeScaling",
    "Router",
    "RouterSums",
    "Routing",
    "SavedParam",
    "adapted_paths",
    "add_lora",
    "apply_lora",
    "apply_rope",
    "compress_base_weights",
    "decode_with_pages",
    "dequantize",
    "has_lora",
    "init_pages",
    "lora_shapes",
    "mark_saved",
    "merge_lora",
    "merged_kernel",
    "project",
    "quantize",
    "read_prompts",
    "response_log_probs",
    "response_statistics",
    "rms_norm",
    "rope_angles",
    "rope_frequencies",
    "router_loss",
    "sequence_log_probs",
    "token_log_probs",
    "token_log_sum_squares",
    "trainable_filter",
    "unroll",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
