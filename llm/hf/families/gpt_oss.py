"""gpt-oss: experts with biases, attention sinks, and a window in every other layer."""

from __future__ import annotations

from collections.abc import Mapping

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from ..tensor_mapping import TensorMapping, TensorPart
from . import gemma
from .key_tables import ROPE, SIZES
from .moe import ROUTER, read_router, write_router
from .record import Family, Fields
from .windows import all_but_every, read_windows, write_layer_types, write_window

KEYS = {
    **SIZES,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "hidden_act": "silu",
    **ROPE,
    "rope_theta": 150000.0,
    "attention_bias": True,
    "sliding_window": 128,
    "layer_types": None,
    **ROUTER,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias, the windows, the router and the experts' activation."""
    local = all_but_every(2, keys.value("num_hidden_layers"))
    return {
        **gemma.read(keys),
        **read_windows(keys, keys.value("sliding_window"), local),
        **read_router(keys),
        "swiglu_alpha": keys.value("swiglu_alpha", float),
        "swiglu_limit": keys.value("swiglu_limit", float),
    }


def write(a: Architecture) -> Fields:
    """Return the keys of the bias, the windows, the router and the experts' activation."""
    return {
        **gemma.write(a),
        **write_window(a),
        **write_layer_types(a),
        **write_router(a, "num_local_experts"),
        "swiglu_alpha": a.swiglu_alpha,
        "swiglu_limit": a.swiglu_limit,
    }


def experts(a: Architecture, names: Mapping[str, str]) -> list[TensorMapping]:
    """Return the mappings of router and experts; gate and up projections alternate."""
    prefix, units = "model.layers.{layer}.mlp.", a.intermediate_size
    router = f"{prefix}{names['router']}"
    table = [
        TensorMapping(("layers", "router", "kernel"), f"{router}.weight", transposed=True),
        TensorMapping(("layers", "router", "bias"), f"{router}.bias"),
    ]
    for leaf, suffix in (("kernel", ""), ("bias", "_bias")):
        for first, module in enumerate(("gate_proj", "up_proj")):
            name, part = f"{prefix}experts.gate_up_proj{suffix}", TensorPart(first, 2 * units, 2)
            path = ("layers", "experts", module, leaf)
            table.append(TensorMapping(path, name, part=part))
        name = f"{prefix}experts.down_proj{suffix}"
        table.append(TensorMapping(("layers", "experts", "down_proj", leaf), name))
    return table


FAMILY = Family(
    model_type="gpt_oss",
    class_name="GptOssForCausalLM",
    keys=KEYS,
    fixed={"attention_sinks": True, "expert_bias": True, "norm_topk_prob": True},
    read=read,
    write=write,
    default_rope={
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
    names={"router": "router"},
    experts=experts,
)
