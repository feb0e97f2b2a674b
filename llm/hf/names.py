"""Names of tensors: a decoder's, and those that Hugging Face gives them."""

from __future__ import annotations

from typing import NamedTuple

from llm.models.architecture import Architecture
from llm.models.layers import PROJECTIONS

HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"


class TensorMapping(NamedTuple):
    """One parameter of a decoder.

    Attributes:
        path: in the decoder's state.
        name: of the Hugging Face tensor, with ``{layer}`` where there is one for each layer.
        transposed: whether theirs is ``[out, in]`` and ours ``[in, out]``.
    """

    path: tuple[str, ...]
    name: str
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter holds all layers.

        Examples:
            >>> names = "model.norm.weight", "model.layers.{layer}.mlp.up_proj.weight"
            >>> [TensorMapping(("norm", "weight"), name).stacked for name in names]
            [False, True]
        """
        return "{layer}" in self.name

    def names(self, num_hidden_layers: int) -> list[str]:
        """Names of the tensors that make up the parameter, in the order of layers."""
        if not self.stacked:
            return [self.name]
        return [self.name.format(layer=layer) for layer in range(num_hidden_layers)]


def tensor_mappings(architecture: Architecture) -> list[TensorMapping]:
    """All parameters of a decoder, without adapters.

    Args:
        architecture: says which there are.

    Returns:
        One entry each.

    Examples:
        >>> small = Architecture(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> tensor_mappings(small)[2].names(2)[1]
        'model.layers.1.self_attn.q_proj.weight'
    """
    table = [
        TensorMapping(("embedding",), EMBEDDING_NAME),
        TensorMapping(("norm", "weight"), "model.norm.weight"),
    ]
    for ours, theirs in PROJECTIONS.items():
        prefix = f"model.layers.{{layer}}.{theirs}"
        table.append(TensorMapping(("layers", ours, "kernel"), f"{prefix}.weight", transposed=True))
        if _has_bias(architecture, ours):
            table.append(TensorMapping(("layers", ours, "bias"), f"{prefix}.bias"))
    for ours, theirs in _norms(architecture).items():
        table.append(
            TensorMapping(("layers", ours, "weight"), f"model.layers.{{layer}}.{theirs}.weight")
        )
    if not architecture.tie_word_embeddings:
        table.append(TensorMapping(("output",), HEAD_NAME))
    return table


def _has_bias(architecture: Architecture, projection: str) -> bool:
    if projection in ("q_proj", "k_proj", "v_proj"):
        return architecture.qkv_bias
    return architecture.o_proj_bias if projection == "o_proj" else architecture.mlp_bias


def _norms(architecture: Architecture) -> dict[str, str]:
    norms = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if architecture.post_norms:
        norms["post_attention_norm"] = "post_attention_layernorm"
        norms["mlp_norm"] = "pre_feedforward_layernorm"
        norms["post_mlp_norm"] = "post_feedforward_layernorm"
    if architecture.qk_norm:
        norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return norms
