"""Sizes and switches of a decoder, under the names of Hugging Face's ``config.json``.

Model families differ only in these values. :mod:`llm.hf.config` converts between an
:class:`Architecture` and ``config.json``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

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
)


RopeType = Literal["linear", "dynamic", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Scaling of rotary frequencies, for sequences longer than those of the pretraining.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``. ``llama3`` divides slow
            frequencies only, in revolutions per ``original_max_position_embeddings`` positions:
            fully at ``low_freq_factor`` or fewer, not at all at ``high_freq_factor`` or more, and
            interpolated between. ``yarn`` does the same between ``beta_slow`` and ``beta_fast``,
            interpolating over the planes, and multiplies cosines and sines by
            ``attention_factor``. ``dynamic`` changes nothing within ``max_position_embeddings``
            positions, which is the limit here.
        factor: divisor of the frequencies, at least 1.
        low_freq_factor: revolutions at or below which a frequency is divided by ``factor``.
        high_freq_factor: revolutions at or above which a frequency is unchanged.
        original_max_position_embeddings: length of the sequences of the pretraining, in tokens.
        attention_factor: factor of cosines and sines of ``yarn``; None for
            ``0.1 log(factor) + 1``.
        beta_fast: revolutions at or above which ``yarn`` leaves a frequency unchanged; None for 32.
        beta_slow: revolutions at or below which ``yarn`` divides by ``factor``; None for 1.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> RopeScaling(rope_type="linear", factor=4.0).factor
        4.0
    """

    rope_type: RopeType
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges of the values."""
        if self.rope_type not in get_args(RopeType):
            names = ", ".join(get_args(RopeType))
            raise ValueError(f"`rope_type` must be one of {names}, got {self.rope_type!r}")
        for name in (field.name for field in fields(self) if field.name != "rope_type"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and 0 < value < math.inf):
                raise ValueError(f"`{name}` must be a positive number, got {value!r}")
        if not self.factor >= 1:
            raise ValueError(f"`factor` must be 1 or more, got {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "`low_freq_factor` must be positive and below `high_freq_factor`, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if not (self.beta_slow or 1) < (self.beta_fast or 32):
            raise ValueError(
                f"`beta_slow` must be below `beta_fast`, got {self.beta_slow or 1} and "
                f"{self.beta_fast or 32}"
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
        post_norms: the outputs of attention and MLP are normalized (Gemma 2 and 3).
        attn_logit_softcapping: soft cap of attention logits; None for no cap.
        final_logit_softcapping: soft cap of output logits; None for no cap.
        query_pre_attn_scalar: attention logits are divided by its root; None for ``head_dim``.
        rope_theta: base of the rotary frequencies.
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
    post_norms: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    query_pre_attn_scalar: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_base_freq: float | None = None
    sliding_window: int | None = None
    local_layers: Sequence[bool] = ()
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        """Derive the sizes that are given as 0, and check all values."""
        for name in ("local_layers", "eos_token_id"):
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
        self._check_sizes()
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
        if self.local_layers and len(self.local_layers) != self.num_hidden_layers:
            raise ValueError(
                f"`local_layers` must have one flag for each of {self.num_hidden_layers} layers, "
                f"got {len(self.local_layers)}"
            )

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
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

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
