"""Ministral 3: Mistral with YaRN, and queries that are scaled by their position."""

from __future__ import annotations

from . import mistral
from .record import Family

KEYS = {
    **{key: value for key, value in mistral.KEYS.items() if key != "layer_types"},
    "vocab_size": 131072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 11,
    "sliding_window": None,
}

FAMILY = Family(
    model_type="ministral3",
    class_name="Ministral3ForCausalLM",
    keys=KEYS,
    not_null=("num_key_value_heads",),
    read=mistral.read,
    write=mistral.write,
    default_rope={
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    # The class scales queries in any case, by the length of the pretraining.
    rope_types={"yarn": "yarn", "llama3": "llama3", "longrope": "longrope"},
    rope_keys=("llama_4_scaling_beta",),
)
