"""The one table of parameter paths of a decoder and tensor names of Hugging Face."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping

from llm.models.architecture import Architecture
from llm.models.projections import PROJECTIONS

from .families import FAMILIES
from .tensor_mapping import TensorMapping, TensorPart

PREFIX = "model."
HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"
LAYER_NAMES = {
    **PROJECTIONS,
    "input_norm": "input_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "q_proj_norm": "self_attn.q_norm",
    "k_proj_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "post_mlp_norm": "post_feedforward_layernorm",
    "router": "mlp.gate",
    "experts.gate_proj": "mlp.experts.{expert}.gate_proj",
    "experts.up_proj": "mlp.experts.{expert}.up_proj",
    "experts.down_proj": "mlp.experts.{expert}.down_proj",
}
"""Names of a layer's modules in most families; a family's ``names`` replace them."""


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
    family = FAMILIES.get(architecture.model_type)
    names = _layer_names(architecture) | dict(family.names if family else {})
    fused = dict(_fused_parts(architecture, family.fused if family else {}))
    table = [
        TensorMapping(("embedding",), EMBEDDING_NAME),
        TensorMapping(("norm", "weight"), "model.norm.weight"),
    ]
    for module in _projections(architecture):
        tensor, part = fused.get(module, (names[module], None))
        prefix = f"model.layers.{{layer}}.{tensor}"
        path = ("layers", module, "kernel")
        table.append(TensorMapping(path, f"{prefix}.weight", transposed=True, part=part))
        if _has_bias(architecture, module):
            table.append(TensorMapping(("layers", module, "bias"), f"{prefix}.bias"))
    if architecture.attention_sinks:
        table.append(TensorMapping(("layers", "sinks"), "model.layers.{layer}.self_attn.sinks"))
    for module in _norms(architecture):
        tensor = f"model.layers.{{layer}}.{names[module]}.weight"
        table.append(TensorMapping(("layers", module, "weight"), tensor))
    if architecture.num_experts:
        mappings = family.experts if family and family.experts else _expert_mappings
        table += mappings(architecture, names)
    if not architecture.tie_word_embeddings:
        table.append(TensorMapping(("output",), HEAD_NAME))
    return table


def folder_mappings(architecture: Architecture, names: Collection[str]) -> list[TensorMapping]:
    """Return the mappings that fit the tensors of a folder.

    Folders of ``transformers`` have a tensor for each expert. Other programs store the tensors of
    its classes, where one tensor holds the projections of all experts of a layer.

    Args:
        architecture: architecture of the decoder.
        names: names of the tensors in the folder.

    Returns:
        One mapping per parameter.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=2)
        >>> experts = dict(model_type="mixtral", num_experts=4, num_experts_per_tok=1)
        >>> mixtral = Architecture(**sizes, **experts, num_attention_heads=2)
        >>> names = ["model.layers.0.mlp.experts.gate_up_proj"]
        >>> folder_mappings(mixtral, names)[-2].name
        'model.layers.{layer}.mlp.experts.down_proj'
    """
    table = tensor_mappings(architecture)
    joined = any(name.endswith(".mlp.experts.gate_up_proj") for name in names)
    if not joined or not any(each.experts for each in table):
        return table
    prefix, units = "model.layers.{layer}.mlp.", architecture.intermediate_size
    parts = {"gate_proj": TensorPart(0, 2 * units), "up_proj": TensorPart(units, 2 * units)}

    def join(mapping: TensorMapping) -> TensorMapping:
        if mapping.path[:2] == ("layers", "router"):
            return mapping._replace(name=f"{prefix}gate.weight")
        if not mapping.experts:
            return mapping
        part = parts.get(mapping.path[2])
        name = f"{prefix}experts.{'down_proj' if part is None else 'gate_up_proj'}"
        return mapping._replace(name=name, part=part, experts=0)

    return [join(mapping) for mapping in table]


def _expert_mappings(a: Architecture, names: Mapping[str, str]) -> list[TensorMapping]:
    """Return the mappings of a router, and of experts with a tensor for each."""
    prefix, n_experts = "model.layers.{layer}.", a.num_experts
    router = TensorMapping(
        ("layers", "router", "kernel"), f"{prefix}{names['router']}.weight", transposed=True
    )
    return [router] + [
        TensorMapping(
            ("layers", "experts", module, "kernel"),
            f"{prefix}{names[f'experts.{module}']}.weight",
            transposed=True,
            experts=n_experts,
        )
        for module in ("gate_proj", "up_proj", "down_proj")
    ]


def _projections(a: Architecture) -> list[str]:
    """Return the names of a layer's projections without experts."""
    is_mlp = ("gate_proj", "up_proj", "down_proj")
    return [name for name in PROJECTIONS if not a.num_experts or name not in is_mlp]


def _fused_parts(
    architecture: Architecture, fused: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, tuple[str, TensorPart]]]:
    """Yield the tensor and the part of each projection that shares a tensor with others."""
    sizes = architecture.projection_outputs
    for tensor, modules in fused.items():
        outputs = [sizes[module] for module in modules]
        for module, first in zip(modules, itertools.accumulate([0, *outputs]), strict=False):
            yield module, (tensor, TensorPart(first, sum(outputs)))


def _has_bias(architecture: Architecture, projection: str) -> bool:
    if projection in ("q_proj", "k_proj", "v_proj"):
        return architecture.qkv_bias
    return architecture.o_proj_bias if projection == "o_proj" else architecture.mlp_bias


def _norms(a: Architecture) -> list[str]:
    """Return the names of a layer's norms."""
    norms = {
        "input_norm": a.pre_norms,
        "mlp_norm": a.pre_norms,
        "post_attention_norm": a.post_norms,
        "post_mlp_norm": a.post_norms,
        "q_norm": a.qk_norm,
        "k_norm": a.qk_norm,
        "q_proj_norm": a.qk_proj_norm,
        "k_proj_norm": a.qk_proj_norm,
    }
    return [name for name, exists in norms.items() if exists]


def _layer_names(architecture: Architecture) -> dict[str, str]:
    """Return the names of modules; with norms after the MLP, that before it has another name."""
    if not architecture.post_norms:
        return LAYER_NAMES
    return {**LAYER_NAMES, "mlp_norm": "pre_feedforward_layernorm"}


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
