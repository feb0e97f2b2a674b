r"""Low-rank adapters of a decoder's projections (LoRA).

.. math:: y = xW + s\,(xA)B,\qquad s = \frac{\alpha}{r}\ \text{ or }\ \frac{\alpha}{\sqrt r}

:math:`B` starts at 0, so that a new adapter does not change the model. Adapters are variables of
type ``nnx.LoRAParam``: ``nnx.split(decoder, trainable_filter(decoder), ...)`` separates trained
parameters from frozen ones.

The adapters of all layers are stacked. A layer without an adapter, or with one of a smaller rank,
has zeros in both factors. Their gradients are 0, so that training keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Float, PRNGKeyArray

from llm.config import LoraConfig, LoraShape
from llm.config.lora import ALL_LINEAR
from llm.precision import accumulation_dtype

from .decoder import Decoder
from .projections import PROJECTIONS, Adapter, Projection, TableAdapter

TABLES = {"embedding": "model.embed_tokens", "output": "lm_head"}
"""Parameters whose rows are tokens, with the names of their modules in Hugging Face models."""


class SavedParam(nnx.Param[Array]):
    """Parameter that is trained whole beside adapters, and saved with them."""


def add_lora(
    decoder: Decoder,
    *,
    rank: int,
    alpha: float,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    rngs: nnx.Rngs,
) -> Decoder:
    """Add adapters of one rank and scale to projections of all layers, in place.

    Args:
        decoder: a decoder without adapters.
        rank: rank of the adapters.
        alpha: the adapters' product is multiplied by ``alpha / rank``.
        target_modules: names of projections, such as ``[q_proj]``, or ``all-linear`` for all.
        rngs: adapters are drawn from the stream ``params``.

    Returns:
        The same decoder.

    Raises:
        ValueError: if a value is out of range, a projection is unknown, or the decoder has adapters
            already.
    """
    names = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=names)
    return apply_lora(decoder, config, rngs=rngs)


def apply_lora(decoder: Decoder, config: LoraConfig, *, rngs: nnx.Rngs) -> Decoder:
    """Add the adapters of a configuration, in place.

    Modules to save are not marked, see :func:`mark_saved`.

    Args:
        decoder: a decoder without adapters.
        config: ranks, scales and modules.
        rngs: adapters are drawn from the stream ``params``.

    Returns:
        The same decoder, with ``config`` as its attribute ``lora``.

    Raises:
        ValueError: if the decoder has adapters already, or a name matches no projection.
    """
    if has_lora(decoder):
        raise ValueError("the model has adapters already: merge them with `merge_lora` first")
    # Experts have no adapters, as in PEFT.
    known = [name for name in PROJECTIONS if getattr(decoder.layers, name) is not None]
    shapes = lora_shapes(config, decoder.architecture.num_hidden_layers, known)
    for name, layers in shapes.items():
        projection: Projection = getattr(decoder.layers, name)
        *stack, n_in, n_out = projection.kernel[...].shape
        ranks = np.array([0 if shape is None else shape.rank for shape in layers])
        adapter = projection.adapter = Adapter(
            tuple(stack),
            n_in,
            n_out,
            int(ranks.max()),
            scale=np.array([0.0 if shape is None else shape.scale for shape in layers]),
            dropout=config.lora_dropout,
            rngs=rngs,
            param_dtype=projection.kernel[...].dtype,
        )
        is_used = np.arange(ranks.max()) < ranks[:, None]
        if not is_used.all():
            adapter.a[...] = jnp.where(is_used[:, None, :], adapter.a[...], 0)
    for name, shape in table_shapes(config).items():
        weight = getattr(decoder, name)[...]
        n_tokens, width = weight.shape
        options: dict[str, Any] = {"rngs": rngs, "param_dtype": weight.dtype}
        adapter = TableAdapter(n_tokens, width, shape.rank, scale=shape.scale, **options)
        setattr(decoder, f"{name}_adapter", adapter)
    decoder.lora = config
    return decoder


def lora_shapes(
    config: LoraConfig, num_hidden_layers: int, projections: Iterable[str] = PROJECTIONS
) -> dict[str, list[LoraShape | None]]:
    """Return rank and scale of the adapters of every projection.

    Args:
        config: ranks, scales and modules.
        num_hidden_layers: number of layers of the decoder.
        projections: projections that the decoder has.

    Returns:
        For each projection with an adapter, one entry per layer; None for a layer without.

    Raises:
        ValueError: if a name of ``target_modules``, or all of it, matches no projection.

    Examples:
        >>> config = LoraConfig(r=2, target_modules=("q_proj",), layers_to_transform=(1,))
        >>> lora_shapes(config, 2)
        {'q_proj': [None, LoraShape(rank=2, alpha=8.0, scale=4.0)]}
    """
    known = list(projections)
    modules = {
        name: [f"model.layers.{layer}.{path}" for layer in range(num_hidden_layers)]
        for name, path in PROJECTIONS.items()
        if name in known
    }
    shapes = {name: [config.shape_of(each) for each in names] for name, names in modules.items()}
    shapes = {name: layers for name, layers in shapes.items() if any(layers)}
    every = [each for names in modules.values() for each in names]
    unmatched = unmatched_targets(config, [*every, *TABLES.values()])
    if unmatched or not (shapes or table_shapes(config)):
        got = unmatched[0] if unmatched else config.target_modules
        raise ValueError(
            f"`target_modules` must be {ALL_LINEAR}, a regular expression of whole names such as "
            f"{every[0]}, or a list of {', '.join(modules)}, embed_tokens and lm_head, got "
            f"{got!r}, which matches no such module of this model"
        )
    _check_patterns(config, num_hidden_layers, every)
    return shapes


def _check_patterns(config: LoraConfig, num_hidden_layers: int, modules: Sequence[str]) -> None:
    """Refuse layers that the model does not have, and patterns that match no adapter."""
    for index in config.layers_to_transform or ():
        if index >= num_hidden_layers:
            raise ValueError(
                f"`layers_to_transform` must be less than {num_hidden_layers}, the number of "
                f"layers, got {index}"
            )
    adapted = [each for each in (*modules, *TABLES.values()) if config.shape_of(each)]
    adapted = [config.module_name(each) for each in adapted]
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, _ in getattr(config, name):
            if not any(re.match(rf"(.*\.)?({pattern})$", module) for module in adapted):
                raise ValueError(f"`{name}` {pattern!r} matches no module with an adapter")


def table_shapes(config: LoraConfig) -> dict[str, LoraShape]:
    """Return rank and scale of the adapters of the embedding and of the output head.

    Args:
        config: ranks, scales and modules.

    Returns:
        Shapes under ``embedding`` and ``output``; ``all-linear`` selects neither, as in PEFT.

    Examples:
        >>> table_shapes(LoraConfig(r=2, target_modules=("lm_head",)))
        {'output': LoraShape(rank=2, alpha=8.0, scale=4.0)}
    """
    if config.target_modules == ALL_LINEAR:
        return {}
    shapes = {name: config.shape_of(module) for name, module in TABLES.items()}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def unmatched_targets(config: LoraConfig, modules: Iterable[str]) -> list[str]:
    """Return the names in a list of ``target_modules`` that match no module.

    Args:
        config: ranks, scales and modules.
        modules: names of modules.

    Returns:
        The names; none if ``target_modules`` is a text.

    Examples:
        >>> unmatched_targets(LoraConfig(target_modules=("q_proj", "c_attn")), ["layer.q_proj"])
        ['c_attn']
    """
    if isinstance(config.target_modules, str):
        return []
    ends = [config.module_name(each) for each in modules]
    return [
        name
        for name in config.target_modules
        if not any(each == name or each.endswith(f".{name}") for each in ends)
    ]


def mark_saved(decoder: Decoder, paths: Iterable[tuple[str, ...]]) -> Decoder:
    """Mark parameters as trained whole beside the adapters, in place.

    Args:
        decoder: a decoder with adapters.
        paths: paths of the parameters, such as ``("layers", "mlp_norm", "weight")``.

    Returns:
        The same decoder; :func:`trainable_filter` selects these parameters too.
    """
    for *parents, name in paths:
        owner: Any = decoder
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, SavedParam(getattr(owner, name)[...]))
    return decoder


def merge_lora(decoder: Decoder) -> Decoder:
    """Add the adapters to the weights of their projections and remove them, in place.

    Args:
        decoder: a decoder with or without adapters.

    Returns:
        The same decoder.
    """
    for projection in _projections(decoder):
        if projection.adapter is not None:
            dtype = projection.kernel[...].dtype
            projection.kernel = nnx.Param(merged_kernel(projection).astype(dtype))
            projection.adapter = None
    for name in TABLES:
        if getattr(decoder, f"{name}_adapter") is not None:
            weight = getattr(decoder, name)
            weight[...] = decoder.table(name).astype(weight[...].dtype)
            setattr(decoder, f"{name}_adapter", None)
    decoder.lora = None
    return decoder


def adapted_paths(decoder: Decoder) -> list[tuple[str, ...]]:
    """Return the paths of the weights that have an adapter.

    Args:
        decoder: a decoder.

    Returns:
        Paths such as ``("layers", "q_proj", "kernel")`` and ``("embedding",)``.
    """
    projections = {name: getattr(decoder.layers, name) for name in PROJECTIONS}
    return [
        *(
            ("layers", name, "kernel")
            for name, each in projections.items()
            if each and each.adapter
        ),
        *((name,) for name in TABLES if getattr(decoder, f"{name}_adapter") is not None),
    ]


def has_lora(decoder: Decoder) -> bool:
    """Return whether a decoder has adapters.

    Args:
        decoder: a decoder.

    Returns:
        True if any projection, the embedding or the output head has an adapter.
    """
    tables = [getattr(decoder, f"{name}_adapter") for name in TABLES]
    return any(each is not None for each in [*(p.adapter for p in _projections(decoder)), *tables])


def trainable_filter(decoder: Decoder) -> Any:
    """Select the parameters to train: adapters and saved modules if there are any, otherwise all.

    Args:
        decoder: a decoder.

    Returns:
        A filter for ``nnx.split(decoder, filter, ...)``.
    """
    return (nnx.LoRAParam, SavedParam) if has_lora(decoder) else nnx.Param


def has_dropout(model: Any) -> bool:
    """Return whether a language model has adapters with dropout.

    Args:
        model: any language model.

    Returns:
        True if training draws dropout masks.
    """
    lora = getattr(model, "lora", None)
    return lora is not None and lora.lora_dropout > 0


def start_dropout(model: Any, key: PRNGKeyArray) -> None:
    """Set the key of the dropout of a model whose adapters have one, in place.

    Args:
        model: a language model; one without dropout stays as it is.
        key: key of a part of a step on one device.
    """
    if has_dropout(model):
        model.dropout_key = key


def merged_kernel(
    projection: Projection,
    layer: int | None = None,
    *,
    kernel: Float[ArrayLike, "... I O"] | None = None,
) -> Float[Array, "... I O"]:
    """Return the weight of a projection, with the product of its adapter added.

    Product and sum are computed in float32 at least, on every device, so that a caller rounds once.

    Args:
        projection: the projection of all layers.
        layer: index of a layer, which needs memory for that layer only; None for all layers.
        kernel: the weight without the product, such as that of a quantized projection before it
            was quantized; None for that of the projection.

    Returns:
        The weight, in float32 or float64 if there is an adapter and otherwise in the dtype of the
        parameters; with a leading axis of layers for None.
    """
    index = ... if layer is None else layer
    adapter = projection.adapter
    kernel = jnp.asarray(projection.kernel[index] if kernel is None else kernel)
    if adapter is None:
        return kernel
    return add_product(kernel, adapter.a[index], adapter.b[index], adapter.scale[index])


def add_product(
    kernel: Float[Array, "... I O"],
    a: Float[Array, "... I R"],
    b: Float[Array, "... R O"],
    scale: Float[Array, "..."],
) -> Float[Array, "... I O"]:
    """Return ``W + s A B``, computed in float32 at least.

    Args:
        kernel: the weight ``W``.
        a: first factor.
        b: second factor.
        scale: the factor ``s``, one per layer.

    Returns:
        The sum, in float32 or float64.

    Examples:
        >>> one = jnp.ones((1, 1))
        >>> add_product(one, one, one, jnp.array(2.0)).tolist()
        [[3.0]]
    """
    wide: DTypeLike = accumulation_dtype(kernel.dtype)
    product = jnp.matmul(a.astype(wide), b.astype(wide), precision="highest")
    return kernel.astype(wide) + product * scale.astype(wide)[..., None, None]


def _projections(decoder: Decoder) -> Iterator[Projection]:
    projections = (getattr(decoder.layers, name) for name in PROJECTIONS)
    return (projection for projection in projections if projection is not None)
