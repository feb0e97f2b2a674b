"""Optimizers of optax with the conventions of Transformers: clipping, decay and parameter groups.

The kernels of all layers are stacked along their first axis. Rules that Transformers applies to one
tensor (factored moments, clipping by its root mean square, orthogonalization) apply to one layer.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from llm.config import OptimizerConfig, ParameterGroup

from .adam_8bit import scale_by_adam_8bit
from .fingerprint import parameter_path
from .schedules import learning_rate_schedule

WITHOUT_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|/)norm(?:$|/)|_norm(?:$|/)")
"""Parameters that do not decay: the rule of ``Trainer.get_decay_parameter_names``."""
MUON_RMS = 0.2
"""Root mean square of Muon's updates at a learning rate of 1, about that of AdamW's."""


def make_optimizer(
    config: OptimizerConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Create the optimizer of a run.

    Args:
        config: the optimizer and its constants.
        num_steps: number of steps of the run.

    Returns:
        Clipping by the global norm, the optimizer, and the factors of the parameter groups; and the
        learning rate schedule. Biases and the weights of norms do not decay, as in Transformers.
        Its ``init`` raises a ``ValueError`` if a group has no parameter.

    References:
        `loshchilov:19` for AdamW, `dettmers:22` for moments in 8 bits, `shazeer:18` for Adafactor,
        `chen:23` for Lion, `jordan:24` and `liuj:25` for Muon and the scale of its updates.

    Examples:
        >>> optimizer, schedule = make_optimizer(OptimizerConfig(warmup_ratio=0.0), 10)
        >>> round(1e7 * float(schedule(0)), 3)
        5.0
    """
    schedule = learning_rate_schedule(config, num_steps)
    optimizer = {
        "adamw": _adamw,
        "adamw_8bit": _adamw_8bit,
        "adafactor": _adafactor,
        "lion": _lion,
        "muon": _muon,
    }[config.optim](config, schedule)
    parts = [clip_by_global_norm(config.max_grad_norm), optimizer]
    if config.groups:
        parts.append(scale_groups(config.groups))
    return optax.chain(*parts), schedule


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def _adamw_8bit(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    constants = {"b1": config.adam_beta1, "b2": config.adam_beta2, "eps": config.adam_epsilon}
    return optax.chain(
        scale_by_adam_8bit(**constants),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _lion(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.lion(
        schedule,
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def _adafactor(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adafactor as Transformers' Trainer makes it: without first moment, absolute rate."""

    def normalized() -> optax.GradientTransformation:
        factored = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
        return optax.chain(factored, optax.clip_by_block_rms(1.0))

    by_layer: dict[Hashable, optax.GradientTransformation]
    by_layer = {"stacked": per_layer(normalized()), "single": normalized()}
    return optax.chain(
        optax.partition(by_layer, _stacked_labels),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon for the matrices of the layers, and AdamW for all other parameters."""
    muon = contrib.muon(
        schedule,
        beta=config.muon_momentum,
        weight_decay=config.weight_decay,
        consistent_rms=MUON_RMS,
        muon_weight_dimension_numbers=lambda parameters: jax.tree.map(
            lambda _: contrib.MuonDimensionNumbers(-2, -1), parameters
        ),
    )
    return optax.partition({"muon": muon, "adamw": _adamw(config, schedule)}, _muon_labels)


def _stacked_labels(parameters: Any) -> Any:
    return _by_name(parameters, lambda name, _: "stacked" if _is_stacked(name) else "single")


def _muon_labels(parameters: Any) -> Any:
    """Label the matrices of the layers, adapters included; a stack of them has three axes."""

    def label(name: str, leaf: Any) -> str:
        return "muon" if _is_stacked(name) and leaf.ndim >= 3 else "adamw"

    return _by_name(parameters, label)


def _is_stacked(name: str) -> bool:
    return name.startswith("layers/")


def per_layer(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply a transformation to every slice of stacked parameters by itself.

    Args:
        transformation: a transformation of the parameters of one layer.

    Returns:
        A transformation of parameters that are stacked along their first axis; so is its state.

    Examples:
        >>> clip = per_layer(optax.clip_by_block_rms(1.0))
        >>> stacked = jnp.array([[3.0, 3.0], [0.5, 0.5]])
        >>> clip.update(stacked, clip.init(stacked), stacked)[0].tolist()
        [[1.0, 1.0], [0.5, 0.5]]
    """

    def init(params: optax.Params) -> optax.OptState:
        return jax.vmap(transformation.init)(params) if jax.tree.leaves(params) else ()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if not jax.tree.leaves(updates):
            return updates, state
        return jax.vmap(transformation.update)(updates, state, params)

    return optax.GradientTransformation(init, update)


def scale_groups(groups: Sequence[ParameterGroup]) -> optax.GradientTransformation:
    """Multiply the updates of groups of parameters, and so their learning rates.

    Args:
        groups: the groups; the first one that a parameter belongs to counts.

    Returns:
        A gradient transformation without state. Its ``init`` raises a ``ValueError`` if a group has
        no parameter, or a layer that the model does not have.

    Examples:
        >>> scale = scale_groups([ParameterGroup(parameters="adapter/b", lr_multiplier=16.0)])
        >>> adapter = {"layers": {"q_proj": {"adapter": {"a": jnp.ones(1), "b": jnp.ones(1)}}}}
        >>> updates, _ = scale.update(adapter, scale.init(adapter))
        >>> updates["layers"]["q_proj"]["adapter"]["b"].tolist()
        [16.0]
    """

    def init(params: optax.Params) -> optax.OptState:
        shapes = dict(_named_leaves(params))
        for index, group in enumerate(groups):
            members = [name for name in shapes if re.search(group.parameters, name)]
            if group.layers is not None:
                members = [name for name in members if _is_stacked(name)]
            if not members:
                raise ValueError(
                    f"`optimizer.groups[{index}]` has no trained parameter: none of "
                    f"{len(shapes)} matches `parameters` {group.parameters!r}, such as "
                    f"{next(iter(shapes), 'none')}"
                )
            last = max(group.layers or [0])
            n_layers = min(shapes[name].shape[0] for name in members) if group.layers else 1
            if last >= n_layers:
                raise ValueError(
                    f"`optimizer.groups[{index}].layers` must be below {n_layers}, the number of "
                    f"layers, got {last}"
                )
        return optax.EmptyState()

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params

        def scale(name: str, leaf: Any) -> Any:
            factor = _group_factor(groups, name, leaf.shape)
            return leaf if factor is None else leaf * jnp.asarray(factor, leaf.dtype)

        return _by_name(updates, scale), state

    return optax.GradientTransformation(init, update)


def _group_factor(
    groups: Sequence[ParameterGroup], name: str, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return the factors of a parameter, to broadcast over it; None if it is in no group."""
    matching = [group for group in groups if re.search(group.parameters, name)]
    if not matching:
        return None
    if not _is_stacked(name):
        whole = [group.lr_multiplier for group in matching if group.layers is None]
        return np.array(whole[0]) if whole else None
    factors = np.ones(shape[0])
    for group in reversed(matching):
        factors[slice(None) if group.layers is None else group.layers] = group.lr_multiplier
    return factors.reshape(-1, *[1] * (len(shape) - 1))


def decay_mask(parameters: Any) -> Any:
    """Select the parameters that decay, by Transformers' rule for their names.

    Args:
        parameters: a tree of parameters.

    Returns:
        The tree with True for each parameter that decays. The weights of norms and biases do not;
        embeddings, projections and adapters do.

    Examples:
        >>> layer = {"q_norm": {"weight": jnp.ones(2)}, "q_proj": {"kernel": jnp.ones((2, 2))}}
        >>> decay_mask(layer)
        {'q_norm': {'weight': False}, 'q_proj': {'kernel': True}}
    """
    return _by_name(parameters, lambda name, _: WITHOUT_DECAY.search(name.lower()) is None)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [("/".join(parameter_path(path)) if path else "", leaf) for path, leaf in leaves]


def _by_name(tree: Any, function: Any) -> Any:
    """Return the tree of ``function(name, leaf)`` for names such as ``layers/q_proj/kernel``."""
    values = [function(name, leaf) for name, leaf in _named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), values)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    r"""Scale gradients down to a maximal global norm: :math:`g\,\min(1, c/\|g\|)`.

    Unlike ``optax.clip_by_global_norm`` it computes one factor and reads the gradients once. Optax
    divides by the norm and then multiplies by :math:`c`, a second pass over all parameters.
    PyTorch's ``clip_grad_norm_`` divides by :math:`\|g\| + 10^{-6}`; the factors differ by less
    than :math:`10^{-6}/c`, relatively.

    Args:
        max_norm: largest norm :math:`c`.

    Returns:
        A gradient transformation without state.

    Examples:
        >>> clip = clip_by_global_norm(1.0)
        >>> clip.update(jnp.array([3.0, 4.0]), clip.init(None))[0].round(3).tolist()
        [0.6, 0.8]
    """

    def clip(gradient: optax.Updates, _: optax.Params | None) -> optax.Updates:
        factor = jnp.minimum(1.0, max_norm / optax.tree.norm(gradient))
        return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient)

    return optax.stateless(clip)
