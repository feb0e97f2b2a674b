"""OLMo 2: norms after attention and MLP only, and over whole projections to queries and keys."""

from __future__ import annotations

from . import gemma
from .key_tables import ROPE, SIZES
from .record import Family

KEYS = {
    **SIZES,
    "vocab_size": 50304,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": 50279,
    "pad_token_id": 1,
    "hidden_act": "silu",
    **ROPE,
    "attention_bias": False,
}
FIXED = {"pre_norms": False, "post_norms": True, "qk_proj_norm": True}

FAMILY = Family(
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    keys=KEYS,
    fixed=FIXED,
    read=gemma.read,
    write=gemma.write,
)
