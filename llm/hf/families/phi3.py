"""Phi-3 and Phi-4: fused projections, ``longrope``, and heads that are rotated in part."""

from __future__ import annotations

from . import mistral
from .key_tables import ROPE, SIZES
from .record import Family

KEYS = {
    **SIZES,
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
    "hidden_act": "silu",
    **ROPE,
    "original_max_position_embeddings": 4096,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}

FAMILY = Family(
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    keys=KEYS,
    not_null=("original_max_position_embeddings",),
    read=mistral.read,
    write=mistral.write,
    rope_types={
        "default": "default",
        "longrope": "longrope",
        "su": "longrope",  # names of the first configurations
        "yarn": "longrope",
    },
    fused={
        "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    },
)
