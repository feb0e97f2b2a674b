"""Mixtral: Mistral with experts, whose weights are divided by their sum."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import mistral
from .moe import ROUTER, read_router, write_router
from .record import Family, Fields

KEYS = {
    **{key: value for key, value in mistral.KEYS.items() if key != "layer_types"},
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    **ROUTER,
    "num_local_experts": 8,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the window and of the router."""
    return mistral.read(keys) | read_router(keys)


def write(a: Architecture) -> Fields:
    """Return the keys of the window and of the router."""
    return mistral.write(a) | write_router(a, "num_local_experts")


FAMILY = Family(
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    keys=KEYS,
    not_null=("num_key_value_heads",),
    refused={"router_jitter_noise": ((None, 0), "training has no noise")},
    fixed={"norm_topk_prob": True},
    read=read,
    write=write,
    names={
        "router": "block_sparse_moe.gate",
        "experts.gate_proj": "block_sparse_moe.experts.{expert}.w1",
        "experts.up_proj": "block_sparse_moe.experts.{expert}.w3",
        "experts.down_proj": "block_sparse_moe.experts.{expert}.w2",
    },
)
