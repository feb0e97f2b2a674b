"""The policy of a training run, read back from the folder of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
from flax import nnx

from llm.config import LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from llm.data.model_folder import resolve_model_folder
from llm.hashing import weights_digest
from llm.hf.factory import (
    ResolvedModel,
    abstract_model,
    base_path,
    build_model,
    resolve_model,
)
from llm.models.architecture import Architecture, RopeScaling
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.layout import SINGLE_DEVICE
from llm.parallel.mesh import make_devices
from llm.precision import computing_in
from rpo_io.bucket_paths import AnyPath

from .checkpoint import CheckpointRecord, Checkpoints, kept_steps
from .moving_reference import policy_as_reference
from .optimizer import make_optimizer
from .step import TrainState, init_train_state


class Policy(NamedTuple):
    """A trained model.

    Attributes:
        decoder: the model; LoRA adapters are not merged.
        step: number of updates made.
        config: configuration of the model.
    """

    decoder: Decoder
    step: int
    config: ModelConfig


def load_policy(
    run_folder: AnyPath,
    step: int | None = None,
    *,
    base_model: str | None = None,
    mesh: MeshConfig | None = None,
) -> Policy:
    """Load the policy of a training run from its checkpoint.

    The folder of the run is enough: neither the training data nor the tokenizer is read. Parameters
    that were not trained are in no checkpoint, so a run with LoRA needs the base weights too.

    Args:
        run_folder: folder that ``rpo train`` wrote, local or in a bucket.
        step: number of updates of the checkpoint; None for the last.
        base_model: folder or hub name of the base weights; None for the one that the run used.
            Only runs with LoRA read it.
        mesh: how to shard the parameters over all devices; None for FSDP.

    Returns:
        The policy. Use it inside :func:`llm.precision.computing_in` of ``config.dtype``.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, or the base weights are not those
            that the run was trained with.
    """
    checkpoints, record = _find_checkpoint(run_folder, step)
    config = ModelConfig(**record.fingerprint["configuration"]["model"])
    if base_model is not None and config.architecture is None:
        config = replace(config, path=base_model)
    with computing_in(config.dtype):
        recorded = recorded_model(config, record)
        if recorded.lora is None:
            model = abstract_model(recorded)
        else:
            model = build_model(_with_base_weights(recorded), mesh or MeshConfig())
        graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
        if weights_digest(frozen) != record.fingerprint["model"]["frozen_weights"]:
            raise ValueError(
                f"{config.path or run_folder}: not the base weights that the run was trained with"
            )
        _, state = checkpoints.restore(_template(model, trainable, mesh, record), record.step)
        model = nnx.merge(graphdef, state.trainable, frozen)
        model.sharding_plan = SINGLE_DEVICE
    return Policy(model, record.step, config)


def resolve_policy(run_folder: AnyPath, step: int | None = None) -> ResolvedModel:
    """Resolve the policy of a training run by its checkpoint; no parameter is read.

    Args:
        run_folder: folder that ``rpo train`` wrote.
        step: number of updates of the checkpoint; None for the last.

    Returns:
        The recorded configuration and architecture, without a folder.

    Raises:
        ValueError: if there is no such checkpoint, or it is damaged.
    """
    _, record = _find_checkpoint(run_folder, step)
    return recorded_model(ModelConfig(**record.fingerprint["configuration"]["model"]), record)


def _find_checkpoint(run_folder: AnyPath, step: int | None) -> tuple[Checkpoints, CheckpointRecord]:
    checkpoints = Checkpoints(run_folder / "checkpoints")
    if checkpoints.latest() is None:
        raise ValueError(f"{run_folder}: the run has saved no checkpoint")
    if step is not None and step not in kept_steps(checkpoints.folder):
        raise ValueError(f"{checkpoints.folder}: no checkpoint of step {step} is kept")
    return checkpoints, checkpoints.find(step)


def recorded_model(config: ModelConfig, record: CheckpointRecord) -> ResolvedModel:
    """Resolve a model by the architecture in a checkpoint; no folder of weights is needed.

    Args:
        config: configuration of the model.
        record: record of the checkpoint.

    Returns:
        The configuration with the recorded architecture and without a folder.
    """
    fields: dict[str, Any] = dict(record.fingerprint["model"]["architecture"])
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    lora = record.fingerprint["model"].get("lora")
    return ResolvedModel(
        config=config,
        folder=None,
        architecture=Architecture(**fields),
        lora=None if lora is None else recorded_lora(lora),
    )


def recorded_lora(fields: Mapping[str, Any]) -> LoraConfig:
    """Return the adapters that a checkpoint records; JSON has lists for tuples.

    Args:
        fields: the fields of :class:`llm.config.LoraConfig`.

    Returns:
        The adapters.

    Examples:
        >>> recorded_lora({"r": 4, "rank_pattern": [["q_proj", 2]]}).rank_pattern
        (('q_proj', 2),)
    """
    return LoraConfig(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _with_base_weights(model: ResolvedModel) -> ResolvedModel:
    """Find the weights that adapters were trained on; the adapters are in the checkpoint."""
    config = model.config
    if config.merge_adapter:
        return resolve_model(config)
    path = base_path(config)
    folder = None if path is None else resolve_model_folder(path)
    return replace(model, folder=folder)


def _template(
    model: Decoder, trainable: Any, mesh: MeshConfig | None, record: CheckpointRecord
) -> TrainState:
    """Return the shapes, dtypes and shardings of the state of a run."""
    fields = record.fingerprint["configuration"]["optimizer"]
    # Parameter groups have no state.
    optimizer, _ = make_optimizer(OptimizerConfig(**fields | {"groups": []}), 1)
    state = jax.eval_shape(lambda leaves: init_train_state(leaves, optimizer), trainable)
    config = record.fingerprint["configuration"]["model"]
    if config.get("reference_refresh_steps") is not None:
        graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
        convert = partial(policy_as_reference, graphdef, decay=config["reference_decay"])
        state = state._replace(reference=jax.eval_shape(convert, trainable, frozen))
    shardings = make_devices(mesh or MeshConfig(), model).shardings(state)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
