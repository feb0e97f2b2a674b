"""Qwen 3 with experts in every layer."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import gemma, qwen2
from .moe import ROUTER, read_router, write_router
from .record import Family, Fields
from .windows import read_windows, write_window

_ABSENT = ("max_window_layers", "layer_types")
KEYS = {
    **{key: value for key, value in qwen2.KEYS.items() if key not in _ABSENT},
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "attention_bias": False,
    **ROUTER,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": False,
}
ALL_SPARSE = "all layers must have experts"


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias, the window and the router."""
    window = keys.optional("sliding_window") if keys.value("use_sliding_window", bool) else None
    local = (window is not None,) * keys.value("num_hidden_layers")
    return {
        **gemma.read(keys),
        **read_windows(keys, window, local),
        **read_router(keys),
        "intermediate_size": keys.positive("moe_intermediate_size"),
        "norm_topk_prob": keys.value("norm_topk_prob", bool),
    }


def write(a: Architecture) -> Fields:
    """Return the keys of the bias, the window and the router."""
    return {
        **gemma.write(a),
        "use_sliding_window": bool(a.local_layers),
        **write_window(a),
        **write_router(a, "num_experts"),
        "moe_intermediate_size": a.intermediate_size,
        "norm_topk_prob": a.norm_topk_prob,
    }


FAMILY = Family(
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    keys=KEYS,
    not_null=("num_key_value_heads",),
    refused={
        "mlp_only_layers": ((None, []), ALL_SPARSE),
        "decoder_sparse_step": ((None, 1), ALL_SPARSE),
    },
    fixed={"qk_norm": True},
    read=read,
    write=write,
)
