"""What a decoder is made of: sizes and switches, no arrays. Families differ only in these.

:mod:`llm.hf.config` reads an :class:`Architecture` from a Hugging Face ``config.json`` and writes
it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
POSITIVE = (
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


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are slowed down, to read sequences longer than those trained on.

    Attributes:
        rope_type: ``linear`` divides every frequency by ``factor``; ``llama3`` only those that turn
            less than ``high_freq_factor`` times within ``original_max_position_embeddings``, wholly below
            ``low_freq_factor`` turns and gradually between.
        factor: the divisor, at least 1.
        low_freq_factor: turns at and below which the division is whole.
        high_freq_factor: turns at and above which there is none.
        original_max_position_embeddings: length of the sequences trained on.

    Raises:
        ValueError: a value out of range.
    """

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rope_type not in ("linear", "llama3"):
            raise ValueError(f"`rope_type` must be linear or llama3, got {self.rope_type!r}")
        if not self.factor >= 1:
            raise ValueError(f"`factor` must be 1 or more, got {self.factor}")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "`low_freq_factor` must be positive and below `high_freq_factor`, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Hyper-parameters of a decoder; the defaults are Llama's.

    Attributes:
        model_type: the Hugging Face ``model_type`` it is exported as.
        vocab_size: tokens, ``V``.
        hidden_size: size of the hidden states, ``D``.
        intermediate_size: of the feed-forward part, ``F``.
        num_hidden_layers: ``L``.
        num_attention_heads: query heads, ``H``.
        num_key_value_heads: key and value heads, each shared by ``num_attention_heads / num_key_value_heads`` query heads.
        head_dim: ``K``, even.
        max_position_embeddings: longest sequence the model is meant for.
        rms_norm_eps: added to the mean square in norms.
        norm_plus_one: norms multiply by one plus their weight (Gemma).
        hidden_act: of the gate in the feed-forward part.
        scaled_embeddings: embeddings are multiplied by the root of the width (Gemma).
        tie_word_embeddings: the output head is the embedding.
        qkv_bias: queries, keys and values have a bias (Qwen 2).
        o_proj_bias: so does the attention's output projection.
        mlp_bias: so do the feed-forward projections.
        qk_norm: queries and keys are normed head by head (Qwen 3, Gemma 3).
        post_norms: what attention and feed-forward parts add is normed too (Gemma 2 and 3).
        attn_logit_softcapping: bound on attention logits, or None.
        final_logit_softcapping: bound on output logits, or None.
        query_pre_attn_scalar: attention logits are divided by its root; None for the head size.
        rope_theta: rotary angles turn by ``rope_theta ** (-2 i / head_dim)`` a position.
        rope_scaling: how they are slowed down, or None.
        rope_local_base_freq: base in local layers, unscaled; None for the same as elsewhere.
        sliding_window: positions that a local layer sees, its own among them; None without such layers.
        local_layers: which layers are local, one flag a layer; empty for none. Kept as a tuple.
        bos_token_id: begins a sequence, or None.
        eos_token_id: ends it; several for some models, kept as a tuple.
        pad_token_id: fills up.

    Raises:
        ValueError: a value out of range, or two that contradict each other.

    Examples:
        >>> Architecture(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2).head_dim
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
        """Fill in the sizes that follow from others (given as 0), and check all."""
        for name in ("local_layers", "eos_token_id"):
            if isinstance(getattr(self, name), list):  # as configuration files have it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if not self.head_dim and self.num_attention_heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if not any(self.local_layers):
            # One way to say that no layer is local, so that equal models compare equal.
            for name, value in (
                ("local_layers", ()),
                ("sliding_window", None),
                ("rope_local_base_freq", None),
            ):
                object.__setattr__(self, name, value)
        self._check_sizes()
        self._check_options()

    def _check_sizes(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"`num_attention_heads` must be a multiple of `num_key_value_heads`, got {self.num_attention_heads} and "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"`head_dim` must be even, got {self.head_dim}")
        if self.local_layers and len(self.local_layers) != self.num_hidden_layers:
            raise ValueError(
                f"`local_layers` must have one flag for each of {self.num_hidden_layers} layers, got "
                f"{len(self.local_layers)}"
            )

    def _check_options(self) -> None:
        if self.hidden_act not in ("silu", "gelu", "gelu_pytorch_tanh"):
            raise ValueError(
                f"`hidden_act` must be silu, gelu or gelu_pytorch_tanh, got {self.hidden_act!r}"
            )
        if self.local_layers and not (self.sliding_window and self.sliding_window > 0):
            raise ValueError(
                f"`sliding_window` must be positive for local layers, got {self.sliding_window}"
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
        """Factor of attention logits.

        Examples:
            >>> sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1}
            >>> Architecture(**sizes, num_attention_heads=2).attention_scale  # heads of size 16
            0.25
            >>> Architecture(**sizes, num_attention_heads=2, query_pre_attn_scalar=4).attention_scale
            0.5
        """
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def mixes_local_layers(self) -> bool:
        """Whether some layers are local and some are not.

        Examples:
            >>> sizes = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 2}
            >>> flags = [(True, False), (True, True)]
            >>> local = [Architecture(**sizes, num_attention_heads=2, sliding_window=4, local_layers=f) for f in flags]
            >>> [architecture.mixes_local_layers for architecture in local]
            [True, False]
        """
        return any(self.local_layers) and not all(self.local_layers)
