"""Seed-OSS: Llama with a switch for each bias of attention, and heads of a size of their own."""

from llm.hf.families import ROPE, SIZES, Family

KEYS = {
    **SIZES,
    "vocab_size": 155136,
    "intermediate_size": 27648,
    "num_hidden_layers": 64,
    "num_attention_heads": 80,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 524288,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "hidden_act": "silu",
    **ROPE,
    "attention_bias": True,
    "attention_out_bias": False,
    "mlp_bias": False,
}


def read(keys):
    """Return the fields of the architecture that follow from the family's own keys."""
    return {
        "qkv_bias": keys.value("attention_bias", bool),
        "o_proj_bias": keys.value("attention_out_bias", bool),
        "mlp_bias": keys.value("mlp_bias", bool),
    }


def write(a):
    """Return the family's own keys for an architecture."""
    return {
        "attention_bias": a.qkv_bias,
        "attention_out_bias": a.o_proj_bias,
        "mlp_bias": a.mlp_bias,
    }


FAMILY = Family(
    model_type="seed_oss",
    class_name="SeedOssForCausalLM",
    keys=KEYS,
    read=read,
    write=write,
)
