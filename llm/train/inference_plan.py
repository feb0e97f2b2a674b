"""Memory of scoring and of generation on a TPU slice that need not be present.

The program of a batch is compiled for the slice, as :mod:`llm.train.memory_plan` does it for a step
of training: the batch of pairs that ``rpo score`` reads, or the whole generation of a batch of
prompts, with the cache of keys and values.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from llm.config import MeshConfig
from llm.hf.factory import ResolvedModel, abstract_model
from llm.inference.decoding import decode_on_mesh
from llm.inference.decoding_records import DecodingNumbers, DecodingOptions, PromptRows
from llm.inference.score import log_probs_on_mesh
from llm.models.decoder import Decoder
from llm.parallel.mesh import ROW_SPEC, Devices, make_mesh, mesh_sizes, plan_model
from llm.precision import computing_in
from llm.types import Batch, Bounds, Completions, Rows

from .topology import TPU_MEMORY, parse_topology
from .tpu_compiler import compile_program, tpu_devices

Workload = Literal["score", "generate"]


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """Memory of a batch on each device of a slice.

    Attributes:
        workload: ``score`` or ``generate``.
        topology: name of the slice, such as ``v5p:4x4x4``.
        devices: number of chips.
        fits: whether the peak is within the limit.
        rows_per_device: pairs or prompts of a batch on each device.
        tokens_per_row: largest number of tokens of a pair, or of a prompt with its reply.
        peak_bytes_per_device: peak memory; None if the compiler ran out of memory and gave none.
        limit_bytes_per_device: memory of a device that programs can use.
        parameter_bytes_per_device: memory of the parameters.
        cache_bytes_per_device: memory of the cache of keys and values; 0 for scoring.
    """

    workload: Workload
    topology: str
    devices: int
    fits: bool
    rows_per_device: int
    tokens_per_row: int
    peak_bytes_per_device: int | None
    limit_bytes_per_device: int
    parameter_bytes_per_device: int
    cache_bytes_per_device: int


def plan_inference(
    model: ResolvedModel,
    mesh: MeshConfig,
    topology: str,
    workload: Workload,
    *,
    rows_per_device: int,
    prompt_tokens: int,
    response_tokens: int,
) -> InferencePlan:
    """Compile the scoring of a batch, or the generation of its replies, for a TPU slice.

    Args:
        model: the model; its dtypes apply.
        mesh: how it is sharded over the slice.
        topology: name of the slice.
        workload: what is compiled.
        rows_per_device: pairs or prompts on each device.
        prompt_tokens: largest number of tokens of a prompt.
        response_tokens: largest number of tokens of a response.

    Returns:
        The plan.

    Raises:
        ValueError: if the slice is unknown or no TPU slice, the compiler of the extra ``tpu`` is
            missing, or the mesh does not divide the devices or the heads.
    """
    parsed = parse_topology(topology)
    if not parsed.is_tpu or not importlib.util.find_spec("libtpu"):
        raise ValueError(
            "argument --workload: scoring and generation are compiled, which needs the extra tpu "
            f"and a slice of {', '.join(TPU_MEMORY)}, got {topology}"
        )
    count, limit = parsed.devices, parsed.limit_bytes
    with computing_in(model.config.dtype):
        sizes = mesh_sizes(
            data=mesh.data, fsdp=mesh.fsdp, tensor=mesh.tensor, expert=mesh.expert, devices=count
        )
        decoder = abstract_model(model)
        devices = Devices(make_mesh(sizes, tpu_devices(parsed)), plan_model(sizes, decoder))
        decoder.sharding_plan = devices.plan
        graphdef, state = nnx.split(decoder)
        parameters = jax.tree.map(_sharded, state, devices.shardings(state))
        rows = rows_per_device * devices.plan.batch_shards
        if workload == "score":
            n_tokens, cache = prompt_tokens + 2 * response_tokens, 0
            batch = _pairs(devices, rows_per_device, prompt_tokens, response_tokens)
            lowered = log_probs_on_mesh.lower(graphdef, parameters, batch, devices=devices)
        else:
            n_tokens = prompt_tokens + response_tokens
            cache = _cache_bytes(decoder, rows_per_device, n_tokens)
            lowered = decode_on_mesh.lower(
                graphdef,
                parameters,
                _numbers(devices),
                _prompts(devices, rows, prompt_tokens),
                devices=devices,
                options=DecodingOptions(response_tokens, greedy=False, penalized=False),
            )
        program, peak = compile_program(lowered)
    held = [
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(parameters)
    ]
    return InferencePlan(
        workload=workload,
        topology=parsed.name,
        devices=count,
        fits=program is not None and peak is not None and peak <= limit,
        rows_per_device=rows_per_device,
        tokens_per_row=n_tokens,
        peak_bytes_per_device=peak,
        limit_bytes_per_device=limit,
        parameter_bytes_per_device=int(sum(held)),
        cache_bytes_per_device=cache,
    )


def _sharded(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _pairs(devices: Devices, n_pairs: int, prompt: int, response: int) -> Batch:
    """Return the shapes of a batch of pairs, one packed row on each device."""
    sharding = NamedSharding(devices.mesh, ROW_SPEC)

    def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
        whole = (devices.plan.batch_shards, *sizes)
        return jax.ShapeDtypeStruct(whole, dtype, sharding=sharding)

    row = shape(1, n_pairs * (prompt + 2 * response))
    return Batch(
        rows=Rows(row, row, row, row, Bounds(roles=2)),
        completions=Completions(*[shape(n_pairs * 2 * response)] * 3),
        lengths=shape(n_pairs, 2),
        present=shape(n_pairs, dtype=jnp.bool_),
        row_ids=shape(n_pairs),
    )


def _prompts(devices: Devices, n_rows: int, n_tokens: int) -> PromptRows:
    sharding = NamedSharding(devices.mesh, ROW_SPEC)
    shapes = ((n_rows, n_tokens), jnp.int32), ((n_rows,), jnp.int32), ((n_rows,), jnp.uint32)
    return PromptRows(
        *(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes)
    )


def _numbers(devices: Devices) -> DecodingNumbers:
    sharding = NamedSharding(devices.mesh, PartitionSpec())
    values = np.zeros(2, np.int32), np.uint32(0), *[np.float32(1)] * 2, np.int32(0)
    return DecodingNumbers(
        *(
            jax.ShapeDtypeStruct(np.shape(value), value.dtype, sharding=sharding)
            for value in (*values, np.float32(0), np.float32(1))
        )
    )


def _cache_bytes(decoder: Decoder, n_rows: int, n_slots: int) -> int:
    """Return the bytes of the cache of one device."""
    cache = jax.eval_shape(lambda: decoder.init_cache(n_rows, n_slots))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
