r"""Memory of a training step on a TPU slice or on GPUs that need not be present.

With the extra ``tpu``, the step of :mod:`llm.train.step` is compiled for the slice by the TPU
compiler, which reports the memory that it needs. For GPUs, and without the extra, parameters are
counted and activations estimated; :attr:`MemoryPlan.compiled` tells the two cases apart.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from llm.config import TrainConfig
from llm.hf.factory import ResolvedModel, resolve_model
from llm.parallel.mesh import BATCH_SPEC, Devices, make_mesh
from llm.precision import computing_in

from .planned_step import PlannedStep, estimate_peak_bytes
from .step import make_train_step

GIB = 2**30
TPU_MEMORY = {"v4": 31.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
"""GiB of a TPU chip that programs can use, by the count of the compiler."""
GPU_MEMORY = {"a100-40": 39.4, "a100": 79.2, "h100": 79.1, "h200": 139.8, "l40s": 44.4}
"""GiB of a GPU that programs can use."""
HOPELESS = 16
"""Estimated peak, in units of the limit, from which on a step is not compiled."""
TOPOLOGY = re.compile(r"(?P<kind>[a-z0-9-]+):(?P<shape>\d+(x\d+)*)")
COLLECTIVE = re.compile(
    r"= (?P<shapes>\(?[a-z0-9]+\[.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all)"
    r"(?:-start)?\("
)
SHAPE = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")


NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""Environment variables with which libtpu compiles without a TPU and a metadata server."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory and work of a training step on each device of a slice.

    Attributes:
        topology: name of the slice, such as ``v5e:4x4``.
        devices: number of chips or GPUs.
        fits: whether the peak is within the limit.
        pairs_per_device: pairs of a microbatch on each device.
        peak_bytes_per_device: peak memory; None if the compiler ran out of memory and gave none.
        limit_bytes_per_device: memory of a device that programs can use.
        parameter_bytes_per_device: memory of the parameters.
        optimizer_bytes_per_device: memory of the moments of the optimizer.
        reference_bytes_per_device: memory of a reference that moves; 0 for one that does not.
        activation_bytes_per_device: the rest of the peak: activations, gradients and buffers of
            collectives; None if the peak is None.
        collective_bytes_per_device: size of the results of all collectives of a step; None for an
            estimate, or if the compiled program cannot be printed.
        flops_per_step: model FLOPs: 6 per parameter and token, with the output head at completion
            tokens only. Attention and rematerialization are not counted.
        tokens_per_step: tokens of a step with the longest rows that the configuration allows.
        compiled: False if the numbers are an analytic estimate.
    """

    topology: str
    devices: int
    fits: bool
    pairs_per_device: int
    peak_bytes_per_device: int | None
    limit_bytes_per_device: int
    parameter_bytes_per_device: int
    optimizer_bytes_per_device: int
    reference_bytes_per_device: int
    activation_bytes_per_device: int | None
    collective_bytes_per_device: int | None
    flops_per_step: int
    tokens_per_step: int
    compiled: bool


def known_topologies() -> str:
    """Describe the slices that :func:`make_plan` knows, for messages.

    Returns:
        A pattern for each kind of TPU and GPU.

    Examples:
        >>> known_topologies().split("; ")
        ['v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB', 'a100-40:N, a100:N, h100:N, h200:N, l40s:N']
    """
    tpus = ", ".join(f"{kind}:AxB" + ("xC" if kind in ("v4", "v5p") else "") for kind in TPU_MEMORY)
    return f"{tpus}; " + ", ".join(f"{kind}:N" for kind in GPU_MEMORY)


def make_plan(config: TrainConfig, topology: str) -> MemoryPlan:
    """Compute the memory that the training step of a run needs on a slice.

    Rows are taken to be as long as ``max_length`` and ``max_prompt_length`` allow.

    Args:
        config: configuration of the run.
        topology: name of the slice, such as ``v5e:4x4`` or ``h100:8``.

    Returns:
        The plan.

    Raises:
        ValueError: if the slice is unknown, or the mesh does not divide its devices or the heads.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig, TrainConfig
        >>> sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
        >>> sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model, data = ModelConfig(architecture=sizes), DataConfig(train="rows.jsonl")
        >>> plan = make_plan(TrainConfig(name="tiny", model=model, data=data), "h100:8")
        >>> plan.fits, plan.devices, plan.compiled
        (True, 8, False)
    """
    return _resolved_plan(config, resolve_model(config.model), topology)


def _resolved_plan(config: TrainConfig, model: ResolvedModel, topology: str) -> MemoryPlan:
    match = TOPOLOGY.fullmatch(topology)
    if not match or match["kind"] not in TPU_MEMORY | GPU_MEMORY:
        raise ValueError(f"argument --topology: must be one of {known_topologies()}")
    kind, count = match["kind"], int(np.prod([int(size) for size in match["shape"].split("x")]))
    limit = int(GIB * (TPU_MEMORY | GPU_MEMORY)[kind])
    with computing_in(config.model.dtype):
        step = PlannedStep(config, model, count)
        estimated = _estimated(step, topology, limit)
        peak = estimated.peak_bytes_per_device
        # The compiler takes minutes, or overflows, for shapes that are far too large.
        is_hopeless = peak is not None and peak > HOPELESS * limit
        if kind in TPU_MEMORY and importlib.util.find_spec("libtpu") and not is_hopeless:
            return _compiled(step, topology, limit)
        return estimated


def largest_fitting_plan(
    config: TrainConfig, topology: str, *, most: int = 64
) -> MemoryPlan | None:
    """Find the largest number of pairs per device that fits.

    Args:
        config: configuration of the run; its own number of pairs is ignored.
        topology: name of the slice.
        most: largest number of pairs per device to try.

    Returns:
        The plan with that number; None if not even one pair fits.
    """
    model = resolve_model(config.model)

    def plan_of(pairs: int) -> MemoryPlan:
        trainer = replace(config.trainer, per_device_train_batch_size=pairs)
        return _resolved_plan(replace(config, trainer=trainer), model, topology)

    # A plan that does not fit takes seconds, one that fits minutes: halve first, then bisect.
    best, high = None, most
    while high >= 1:
        best = plan_of(high)
        if best.fits:
            break
        high //= 2
    if best is None or not best.fits:
        return None
    low, high = best.pairs_per_device, min(2 * best.pairs_per_device, most)
    while high - low > 1:
        middle = (low + high) // 2
        plan = plan_of(middle)
        low, high = (middle, high) if plan.fits else (low, middle)
        best = plan if plan.fits else best
    return best


def _compiled(step: PlannedStep, topology: str, limit: int) -> MemoryPlan:
    from jax.experimental import topologies

    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    try:
        slice_ = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # libtpu raises errors of several types
        raise ValueError(
            f"argument --topology: the TPU compiler rejects {topology}: {_first_line(error)}"
        ) from error
    devices = Devices(make_mesh(step.sizes, slice_.devices), step.plan)

    def on_mesh(tree: Any) -> Any:
        return jax.tree.map(_with_sharding, tree, devices.shardings(tree))

    sharding = NamedSharding(devices.mesh, BATCH_SPEC)
    batch = jax.tree.map(lambda leaf: _with_sharding(leaf, sharding), step.batch())
    run = make_train_step(step.graphdef, step.config.objective, step.optimizer, devices=devices)
    lowered = run.lower(on_mesh(step.state), on_mesh(step.frozen), batch)
    numbers = step.numbers() | {"topology": topology, "limit_bytes_per_device": limit}
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)G of", str(error))
        peak = None if used is None else int(float(used[1]) * GIB)
        return _plan(numbers, peak=peak, fits=False, collective=None, compiled=True)
    memory: Any = program.memory_analysis()
    peak = int(memory.peak_memory_in_bytes)
    try:
        moved = sum(_collectives(program.as_text() or "", step.architecture.num_hidden_layers))
    except jax.errors.JaxRuntimeError:  # the compiler cannot print some programs
        moved = None
    return _plan(numbers, peak=peak, fits=peak <= limit, collective=moved, compiled=True)


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _estimated(step: PlannedStep, topology: str, limit: int) -> MemoryPlan:
    numbers = step.numbers() | {"topology": topology, "limit_bytes_per_device": limit}
    tokens, completions = step.row_tokens * step.pairs, step.completions * step.pairs
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.batch()))
    peak = estimate_peak_bytes(step, tokens, completions) + batch // step.plan.batch_shards
    return _plan(numbers, peak=peak, fits=peak <= limit, collective=None, compiled=False)


def _plan(
    numbers: dict[str, Any], *, peak: int | None, fits: bool, collective: int | None, compiled: bool
) -> MemoryPlan:
    kept = ("parameter", "optimizer", "reference")
    held = sum(numbers[f"{name}_bytes_per_device"] for name in kept)
    return MemoryPlan(
        **numbers,
        fits=fits,
        peak_bytes_per_device=peak,
        activation_bytes_per_device=None if peak is None else peak - held,
        collective_bytes_per_device=collective,
        compiled=compiled,
    )


def _collectives(program: str, num_hidden_layers: int) -> Iterator[int]:
    """Yield the bytes of the result of each collective, times the layers inside a loop."""
    in_loop = False
    for line in program.splitlines():
        if line.endswith("{"):
            in_loop = "body" in line or "while" in line
        match = COLLECTIVE.search(line)
        if match is None:
            continue
        for _, bits, sizes in SHAPE.findall(match["shapes"]):
            count = int(np.prod([int(size) for size in sizes.split(",") if size], dtype=np.int64))
            yield count * int(bits) // 8 * (num_hidden_layers if in_loop else 1)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
