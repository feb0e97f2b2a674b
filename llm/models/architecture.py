"""What a decoder is made of: sizes and switches, no arrays. Families differ only in these.

:mod:`llm.hf.config` reads an :class:`Architecture` from a Hugging Face ``config.json`` and writes
it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
POSITIVE = (
    "vocab_size",
    "width",
    "hidden_units",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_size",
    "max_positions",
    "norm_epsilon",
    "rope_base",
)


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are slowed down, to read sequences longer than those trained on.

    Attributes:
        kind: ``linear`` divides every frequency by ``factor``; ``llama3`` only those that turn
            less than ``high_freq_factor`` times within ``original_max_positions``, wholly below
            ``low_freq_factor`` turns and gradually between.
        factor: the divisor, at least 1.
        low_freq_factor: turns at and below which the division is whole.
        high_freq_factor: turns at and above which there is none.
        original_max_positions: length of the sequences trained on.

    Raises:
        ValueError: a value out of range.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        """Check the values."""
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"`kind` must be linear or llama3, got {self.kind!r}")
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
        family: the Hugging Face ``model_type`` it is exported as.
        vocab_size: tokens, ``V``.
        width: size of the hidden states, ``D``.
        hidden_units: of the feed-forward part, ``F``.
        n_layers: ``L``.
        n_heads: query heads, ``H``.
        n_kv_heads: key and value heads, each shared by ``n_heads / n_kv_heads`` query heads.
        head_size: ``K``, even.
        max_positions: longest sequence the model is meant for.
        norm_epsilon: added to the mean square in norms.
        norm_plus_one: norms multiply by one plus their weight (Gemma).
        activation: of the gate in the feed-forward part.
        scaled_embeddings: embeddings are multiplied by the root of the width (Gemma).
        tied_embeddings: the output head is the embedding.
        qkv_bias: queries, keys and values have a bias (Qwen 2).
        output_bias: so does the attention's output projection.
        mlp_bias: so do the feed-forward projections.
        query_key_norm: queries and keys are normed head by head (Qwen 3, Gemma 3).
        post_norms: what attention and feed-forward parts add is normed too (Gemma 2 and 3).
        attention_soft_cap: bound on attention logits, or None.
        logit_soft_cap: bound on output logits, or None.
        query_scalar: attention logits are divided by its root; None for the head size.
        rope_base: rotary angles turn by ``rope_base ** (-2 i / head_size)`` a position.
        rope_scaling: how they are slowed down, or None.
        local_rope_base: base in local layers, unscaled; None for the same as elsewhere.
        window: positions that a local layer sees, its own among them; None without such layers.
        local_layers: which layers are local, one flag a layer; empty for none. Kept as a tuple.
        bos_token_id: begins a sequence, or None.
        eos_token_id: ends it; several for some models, kept as a tuple.
        pad_token_id: fills up.

    Raises:
        ValueError: a value out of range, or two that contradict each other.

    Examples:
        >>> Architecture(vocab_size=8, width=4, hidden_units=8, n_layers=1, n_heads=2).head_size
        2
    """

    family: str = "llama"
    vocab_size: int
    width: int
    hidden_units: int
    n_layers: int
    n_heads: int
    n_kv_heads: int = 0
    head_size: int = 0
    max_positions: int = 2048
    norm_epsilon: float = 1e-6
    norm_plus_one: bool = False
    activation: Activation = "silu"
    scaled_embeddings: bool = False
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False
    post_norms: bool = False
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    query_scalar: int | None = None
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    local_rope_base: float | None = None
    window: int | None = None
    local_layers: Sequence[bool] = ()
    bos_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        """Fill in the sizes that follow from others (given as 0), and check all."""
        for name in ("local_layers", "eos_token_id"):
            if isinstance(getattr(self, name), list):  # as configuration files have it
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.n_kv_heads:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        if not self.head_size and self.n_heads > 0:
            object.__setattr__(self, "head_size", self.width // self.n_heads)
        if not any(self.local_layers):
            # One way to say that no layer is local, so that equal models compare equal.
            for name, value in (("local_layers", ()), ("window", None), ("local_rope_base", None)):
                object.__setattr__(self, name, value)
        self._check_sizes()
        self._check_options()

    def _check_sizes(self) -> None:
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"`n_heads` must be a multiple of `n_kv_heads`, got {self.n_heads} and "
                f"{self.n_kv_heads}"
            )
        if self.head_size % 2:
            raise ValueError(f"`head_size` must be even, got {self.head_size}")
        if self.local_layers and len(self.local_layers) != self.n_layers:
            raise ValueError(
                f"`local_layers` must have one flag for each of {self.n_layers} layers, got "
                f"{len(self.local_layers)}"
            )

    def _check_options(self) -> None:
        if self.activation not in ("silu", "gelu", "gelu_tanh"):
            raise ValueError(
                f"`activation` must be silu, gelu or gelu_tanh, got {self.activation!r}"
            )
        if self.local_layers and not (self.window and self.window > 0):
            raise ValueError(f"`window` must be positive for local layers, got {self.window}")
        for name in ("attention_soft_cap", "logit_soft_cap", "query_scalar", "local_rope_base"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` must be positive or absent, got {value}")

    @property
    def attention_scale(self) -> float:
        """Factor of attention logits.

        Examples:
            >>> sizes = {"vocab_size": 8, "width": 32, "hidden_units": 8, "n_layers": 1}
            >>> Architecture(**sizes, n_heads=2).attention_scale  # heads of size 16
            0.25
            >>> Architecture(**sizes, n_heads=2, query_scalar=4).attention_scale
            0.5
        """
        return (self.query_scalar or self.head_size) ** -0.5

    @property
    def mixes_local_layers(self) -> bool:
        """Whether some layers are local and some are not.

        Examples:
            >>> sizes = {"vocab_size": 8, "width": 32, "hidden_units": 8, "n_layers": 2}
            >>> flags = [(True, False), (True, True)]
            >>> local = [Architecture(**sizes, n_heads=2, window=4, local_layers=f) for f in flags]
            >>> [architecture.mixes_local_layers for architecture in local]
            [True, False]
        """
        return any(self.local_layers) and not all(self.local_layers)
