"""OLMoE: experts, and norms over whole projections to queries and keys."""

from __future__ import annotations

from llm.models.architecture import Architecture

from ..config_values import ConfigReader
from . import gemma, olmo2
from .moe import ROUTER, read_router, write_router
from .record import Family, Fields

KEYS = {
    **olmo2.KEYS,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    **ROUTER,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "router_aux_loss_coef": 0.01,
    "norm_topk_prob": False,
}


def read(keys: ConfigReader) -> Fields:
    """Return the fields of the bias and of the router."""
    heads, width = keys.value("num_attention_heads"), keys.value("hidden_size")
    size = keys.optional("head_dim")
    if size is not None and size * heads != width:
        raise ValueError(
            "`head_dim` times `num_attention_heads` must be `hidden_size`, the size of the norm of "
            f"queries, got {size} and {heads} for {width}"
        )
    router = read_router(keys) | {"norm_topk_prob": keys.value("norm_topk_prob", bool)}
    return gemma.read(keys) | router


def write(a: Architecture) -> Fields:
    """Return the keys of the bias and of the router."""
    router = write_router(a, "num_experts") | {"norm_topk_prob": a.norm_topk_prob}
    return gemma.write(a) | router


FAMILY = Family(
    model_type="olmoe",
    class_name="OlmoeForCausalLM",
    keys=KEYS,
    refused={"clip_qkv": ((None,), "queries, keys and values are not clipped")},
    fixed={"qk_proj_norm": True},
    read=read,
    write=write,
)
