"""Sizes and switches of a decoder, under the names of Hugging Face's ``config.json``.

Model families differ only in these values. :mod:`llm.hf.config` converts between an
:class:`Architecture` and ``config.json``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .rope_scaling import RopeScaling

Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
_POSITIVE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "embedding_multiplier",
    "residual_multiplier",
    "logits_scaling",
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Hyper-parameters of a decoder; the defaults are Llama's.

    Attributes:
        model_type: Hugging Face model type that the model is exported as.
        vocab_size: number of tokens, ``V``.
        hidden_size: size of the hidden states, ``D``.
        intermediate_size: number of hidden units of the MLP, ``F``.
        num_hidden_layers: number of layers, ``L``.
        num_attention_heads: number of query heads, ``H``.
        num_key_value_heads: number of key and value heads, ``G``; each serves ``H / G`` query
            heads. 0 for as many as query heads.
        head_dim: size of a head, ``K``, even. 0 for ``hidden_size // num_attention_heads``.
        max_position_embeddings: length of the longest sequence, in tokens.
        rms_norm_eps: constant added to the mean square in norms.
        norm_plus_one: norms multiply by one plus their weight (Gemma).
        hidden_act: activation of the gate in the MLP.
        scaled_embeddings: embeddings are multiplied by the root of ``hidden_size`` (Gemma).
        tie_word_embeddings: the output head is the embedding.
        qkv_bias: projections to queries, keys and values have a bias (Qwen 2).
        o_proj_bias: the output projection of attention has a bias.
        mlp_bias: the projections of the MLP have a bias.
        qk_norm: queries and keys are normalized head by head (Qwen 3, Gemma 3).
        qk_proj_norm: queries and keys are normalized over all heads together (OLMo).
        pre_norms: the inputs of attention and MLP are normalized (all families but OLMo 2 and 3).
        post_norms: the outputs of attention and MLP are normalized (Gemma 2 and 3, OLMo 2 and 3).
        embedding_multiplier: factor of the embeddings (Granite).
        residual_multiplier: factor of the outputs of attention and MLP (Granite).
        attention_multiplier: factor of attention logits; None for the scale of the heads.
        logits_scaling: divisor of the output logits (Granite).
        num_experts: number of experts that replace the MLP, each with ``intermediate_size`` hidden
            units; 0 for an MLP.
        num_experts_per_tok: number of experts that serve a token.
        norm_topk_prob: the weights of a token's experts are divided by their sum.
        expert_bias: router and experts have biases (gpt-oss).
        swiglu_limit: bound of the gate and up projections of the experts, whose hidden units are
            then ``(up + 1) gate sigmoid(swiglu_alpha gate)`` (gpt-oss); None for ``hidden_act``.
        swiglu_alpha: see ``swiglu_limit``.
        router_aux_loss_coef: weight of the auxiliary loss of the router, per unit of the loss.
        output_router_logits: whether the auxiliary loss is added in training.
        attention_sinks: each head has a logit that takes a share of the attention and mixes in
            no value (gpt-oss).
        attn_logit_softcapping: soft cap of attention logits; None for no cap.
        final_logit_softcapping: soft cap of output logits; None for no cap.
        query_pre_attn_scalar: attention logits are divided by its root; None for ``head_dim``.
        rope_theta: base of the rotary frequencies.
        partial_rotary_factor: share of a head that is rotated, from its start (Phi).
        rope_layers: one flag per layer, True if queries and keys are rotated; empty if they are in
            all layers (SmolLM 3). A list is stored as a tuple.
        rope_scaling: scaling of the rotary frequencies; None for none.
        rope_local_base_freq: base of the unscaled frequencies of local layers; None for the
            frequencies of the other layers.
        sliding_window: number of positions that a token of a local layer attends to, its own
            included; None if no layer is local.
        local_layers: one flag per layer, True if its attention is local; empty if none is. A list
            is stored as a tuple.
        bos_token_id: id of the token that begins a sequence, or None.
        eos_token_id: id of the token that ends a sequence, several ids, or None. A list is stored
            as a tuple.
        pad_token_id: id of the padding token, or None.

    Raises:
        ValueError: if a value is out of range, or two values contradict each other.

    Examples:
        >>> sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
        >>> Architecture(**sizes, num_hidden_layers=1, num_attention_heads=2).head_dim
        2
    """

    model_type: str = "llama"
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    head_dim: int = 0
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    norm_plus_one: bool = False
    hidden_act: Activation = "silu"
    scaled_embeddings: bool = False
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_proj_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_proj_norm: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_scaling: float = 1.0
    num_experts: int = 0
    num_experts_per_tok: int = 0
    norm_topk_prob: bool = False
    expert_bias: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    router_aux_loss_coef: float = 0.0
    output_router_logits: bool = False
    attention_sinks: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    query_pre_attn_scalar: int | None = None
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    rope_layers: Sequence[bool] = ()
    rope_scaling: RopeScaling | None = None
    rope_local_base_freq: float | None = None
    sliding_window: int | None = None
    local_layers: Sequence[bool] = ()
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        """Derive the sizes that are given as 0, and check all values."""
        for name in ("local_layers", "rope_layers", "eos_token_id"):
            if isinstance(getattr(self, name), list):  # lists come from configuration files
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if not self.head_dim and self.num_attention_heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if not any(self.local_layers):
            # Without local layers these values have no effect: equal models compare equal.
            no_local = {"local_layers": (), "sliding_window": None, "rope_local_base_freq": None}
            for name, value in no_local.items():
                object.__setattr__(self, name, value)
        if all(self.rope_layers):
            object.__setattr__(self, "rope_layers", ())
        self._check_sizes()
        self._check_rope()
        self._check_experts()
        self._check_options()

    def _check_sizes(self) -> None:
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                "`num_attention_heads` must be a multiple of `num_key_value_heads`, got "
                f"{self.num_attention_heads} and {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even, got {self.head_dim}")
        for name in ("local_layers", "rope_layers"):
            flags = getattr(self, name)
            if flags and len(flags) != self.num_hidden_layers:
                raise ValueError(
                    f"`{name}` must have one flag for each of {self.num_hidden_layers} layers, "
                    f"got {len(flags)}"
                )

    def _check_rope(self) -> None:
        if not 0 < self.partial_rotary_factor <= 1 or self.rotary_dim % 2 or not self.rotary_dim:
            raise ValueError(
                "`partial_rotary_factor` must be in (0, 1] and give an even number of rotated "
                f"features, got {self.partial_rotary_factor} for heads of size {self.head_dim}"
            )
        scaling, planes = self.rope_scaling, self.rotary_dim // 2
        if scaling is not None and scaling.rope_type == "longrope":
            for name in ("short_factor", "long_factor"):
                if len(getattr(scaling, name)) != planes:
                    raise ValueError(
                        f"`{name}` must have one number for each of {planes} rotated planes, got "
                        f"{len(getattr(scaling, name))}"
                    )

    def _check_experts(self) -> None:
        if self.num_experts < 0 or not 0 <= self.router_aux_loss_coef < math.inf:
            raise ValueError(
                "`num_experts` and `router_aux_loss_coef` must be 0 or positive, got "
                f"{self.num_experts} and {self.router_aux_loss_coef}"
            )
        least = 1 if self.num_experts else 0
        if not least <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"`num_experts_per_tok` must be from {least} to `num_experts` {self.num_experts}, "
                f"got {self.num_experts_per_tok}"
            )
        if self.num_experts and self.mlp_bias:
            raise ValueError("`mlp_bias` has no effect with experts: give `expert_bias`")

    def _check_options(self) -> None:
        if self.hidden_act not in ("silu", "gelu", "gelu_pytorch_tanh"):
            raise ValueError(
                f"`hidden_act` must be silu, gelu or gelu_pytorch_tanh, got {self.hidden_act!r}"
            )
        if self.local_layers and not (self.sliding_window and self.sliding_window > 0):
            raise ValueError(
                "`sliding_window` must be positive if there are local layers, got "
                f"{self.sliding_window}"
            )
        for name in (
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "attention_multiplier",
            "swiglu_limit",
            "rope_local_base_freq",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive or absent, got {value}")

    @property
    def attention_scale(self) -> float:
        """Factor that queries times keys are multiplied by.

        Examples:
            >>> sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8}
            >>> sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
            >>> Architecture(**sizes).attention_scale  # heads of size 16
            0.25
            >>> Architecture(**sizes, query_pre_attn_scalar=4).attention_scale
            0.5
        """
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def rotary_dim(self) -> int:
        """Number of features of a head that are rotated.

        Examples:
            >>> sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8}
            >>> sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
            >>> Architecture(**sizes, partial_rotary_factor=0.75).rotary_dim
            12
        """
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def projection_outputs(self) -> dict[str, int]:
        """Number of outputs of each projection of a layer.

        Examples:
            >>> sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8}
            >>> sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4}
            >>> Architecture(**sizes, num_key_value_heads=2).projection_outputs["k_proj"]
            16
        """
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": self.num_attention_heads * self.head_dim,
            "k_proj": keys,
            "v_proj": keys,
            "o_proj": self.hidden_size,
            "gate_proj": self.intermediate_size,
            "up_proj": self.intermediate_size,
            "down_proj": self.hidden_size,
        }

    @property
    def mixes_local_layers(self) -> bool:
        """True if some layers are local and others are not.

        Examples:
            >>> sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8}
            >>> sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "sliding_window": 4}
            >>> Architecture(**sizes, local_layers=(True, False)).mixes_local_layers
            True
            >>> Architecture(**sizes, local_layers=(True, True)).mixes_local_layers
            False
        """
        return any(self.local_layers) and not all(self.local_layers)
