"""The one table of parameter paths of a decoder and tensor names of Hugging Face."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from llm.models.architecture import Architecture
from llm.models.layers import PROJECTIONS

PREFIX = "model."
HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"


class TensorMapping(NamedTuple):
    """A parameter of a decoder and the Hugging Face tensors that hold it.

    Attributes:
        path: path of the parameter in the decoder's state.
        name: name of the Hugging Face tensor, with ``{layer}`` if there is one per layer.
        transposed: whether the tensor is ``[out, in]`` and the parameter ``[in, out]``.
    """

    path: tuple[str, ...]
    name: str
    transposed: bool = False

    @property
    def stacked(self) -> bool:
        """Whether the parameter stacks the tensors of all layers along its first axis.

        Examples:
            >>> names = "model.norm.weight", "model.layers.{layer}.mlp.up_proj.weight"
            >>> [TensorMapping(("norm", "weight"), name).stacked for name in names]
            [False, True]
        """
        return "{layer}" in self.name

    def names(self, num_hidden_layers: int) -> list[str]:
        """Return the names of the tensors that make up the parameter, in the order of layers.

        Args:
            num_hidden_layers: number of layers of the decoder.

        Returns:
            One name per layer, or a single name if the parameter is not stacked.
        """
        if not self.stacked:
            return [self.name]
        return [self.name.format(layer=layer) for layer in range(num_hidden_layers)]


def tensor_mappings(architecture: Architecture) -> list[TensorMapping]:
    """Return the mappings of all parameters of a decoder, without adapters.

    Args:
        architecture: architecture of the decoder; it decides which parameters exist.

    Returns:
        One mapping per parameter.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=2)
        >>> small = Architecture(**sizes, num_attention_heads=2)
        >>> tensor_mappings(small)[2].names(2)[1]
        'model.layers.1.self_attn.q_proj.weight'
    """
    table = [
        TensorMapping(("embedding",), EMBEDDING_NAME),
        TensorMapping(("norm", "weight"), "model.norm.weight"),
    ]
    for name, hf_name in PROJECTIONS.items():
        prefix = f"model.layers.{{layer}}.{hf_name}"
        table.append(TensorMapping(("layers", name, "kernel"), f"{prefix}.weight", transposed=True))
        if _has_bias(architecture, name):
            table.append(TensorMapping(("layers", name, "bias"), f"{prefix}.bias"))
    for name, hf_name in _norms(architecture).items():
        tensor = f"model.layers.{{layer}}.{hf_name}.weight"
        table.append(TensorMapping(("layers", name, "weight"), tensor))
    if not architecture.tie_word_embeddings:
        table.append(TensorMapping(("output",), HEAD_NAME))
    return table


def _has_bias(architecture: Architecture, projection: str) -> bool:
    if projection in ("q_proj", "k_proj", "v_proj"):
        return architecture.qkv_bias
    return architecture.o_proj_bias if projection == "o_proj" else architecture.mlp_bias


def _norms(architecture: Architecture) -> dict[str, str]:
    """Return the names of a layer's norms, with those of Hugging Face."""
    norms = {"input_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    if architecture.post_norms:
        norms["post_attention_norm"] = "post_attention_layernorm"
        norms["mlp_norm"] = "pre_feedforward_layernorm"
        norms["post_mlp_norm"] = "post_feedforward_layernorm"
    if architecture.qk_norm:
        norms |= {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    return norms


def stored_names(names: Collection[str], expected: Collection[str]) -> dict[str, str]:
    """Return under which name a file stores every expected tensor.

    Weights of a base model, of a wrapped model or of the text part of a larger one have another
    prefix than ``model.``; the embedding shows which.

    Args:
        names: names of the tensors in the files.
        expected: names of :func:`tensor_mappings`.

    Returns:
        Stored names by expected name; they need not exist.

    Raises:
        ValueError: if two prefixes could be meant.

    Examples:
        >>> stored_names({"embed_tokens.weight", "norm.weight"}, ["model.norm.weight"])
        {'model.norm.weight': 'norm.weight'}
    """
    tail = EMBEDDING_NAME.removeprefix(PREFIX)
    prefixes = sorted(name.removesuffix(tail) for name in names if name.endswith(tail))
    prefixes = [prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    if len(prefixes) > 1 and PREFIX not in prefixes:
        raise ValueError(
            f"tensors {prefixes[0]}{tail} and {prefixes[1]}{tail} could both be the embedding"
        )
    prefix = PREFIX if PREFIX in prefixes or not prefixes else prefixes[0]
    heads = [
        head
        for head in dict.fromkeys(
            (HEAD_NAME, prefix.removesuffix(PREFIX) + HEAD_NAME, prefix + HEAD_NAME)
        )
        if head in names
    ]
    if len(heads) > 1:
        raise ValueError(f"tensors {heads[0]} and {heads[1]} could both be the output head")
    return {
        name: (heads or [name])[0] if name == HEAD_NAME else prefix + name.removeprefix(PREFIX)
        for name in expected
    }
