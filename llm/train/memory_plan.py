r"""Memory of a training step on a TPU slice or on GPUs that need not be present.

With the extra ``tpu``, the step of :mod:`llm.train.step` is compiled for the slice by the TPU
compiler, which reports the memory that it needs. For GPUs, and without the extra, parameters are
counted and activations estimated; :attr:`MemoryPlan.compiled` tells the two cases apart.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import NamedSharding

from llm.config import TrainConfig
from llm.hf.factory import ResolvedModel, resolve_model
from llm.parallel.mesh import BATCH_SPEC, Devices, make_mesh
from llm.precision import computing_in

from .planned_step import PlannedStep, estimate_peak_bytes
from .step import make_train_step
from .topology import Topology, parse_topology
from .tpu_compiler import compile_program, tpu_devices

HOPELESS = 16
"""Estimated peak, in units of the limit, from which on a step is not compiled."""
LENGTH_UNIT = 128
"""Smallest difference of lengths that :func:`largest_fitting_plan` tells apart."""
COLLECTIVE = re.compile(
    r"= (?P<shapes>\(?[a-z0-9]+\[.*?) (?:all-gather|all-reduce|reduce-scatter|all-to-all)"
    r"(?:-start)?\("
)
SHAPE = re.compile(r"([a-z]+)(\d+)\[([\d,]*)\]")


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Memory and work of a training step on each device of a slice.

    Attributes:
        topology: name of a slice, such as ``v5e:4x4``.
        accelerator_type: Google Cloud's name of the slice, such as ``v5litepod-16``; None if it has
            none.
        slices: number of slices.
        hosts: number of hosts of all slices.
        devices: number of chips or GPUs of all slices.
        fits: whether the peak is within the limit.
        pairs_per_device: pairs of a microbatch on each device.
        pairs_per_step: pairs of a step over all devices and microbatches.
        max_length: tokens of the longest prompt and response.
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
    accelerator_type: str | None
    slices: int
    hosts: int
    devices: int
    fits: bool
    pairs_per_device: int
    pairs_per_step: int
    max_length: int
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


def make_plan(config: TrainConfig, topology: str, *, slices: int = 1) -> MemoryPlan:
    """Compute the memory that the training step of a run needs on one or more slices.

    Rows are taken to be as long as ``max_length`` and ``max_prompt_length`` allow.

    Args:
        config: configuration of the run.
        topology: name of a slice, such as ``v5e:4x4``, ``v5litepod-16`` or ``h100:8``.
        slices: number of slices. The axis ``mesh.data`` goes across them, and is their number if
            the configuration does not set it.

    Returns:
        The plan.

    Raises:
        ValueError: if the slice is unknown, or the mesh does not divide its devices or the heads,
            or ``mesh.data`` is no multiple of the number of slices.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig, TrainConfig
        >>> sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32}
        >>> sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model, data = ModelConfig(architecture=sizes), DataConfig(train="rows.jsonl")
        >>> plan = make_plan(TrainConfig(name="tiny", model=model, data=data), "h100:8")
        >>> plan.fits, plan.devices, plan.compiled
        (True, 8, False)
    """
    parsed = parse_topology(topology, slices)
    return _resolved_plan(config, resolve_model(config.model), parsed)


def _resolved_plan(config: TrainConfig, model: ResolvedModel, topology: Topology) -> MemoryPlan:
    config = _across_slices(config, topology.slices)
    with computing_in(config.model.dtype):
        step = PlannedStep(config, model, topology.devices)
        estimated = _estimated(step, topology)
        peak = estimated.peak_bytes_per_device
        # The compiler takes minutes, or overflows, for shapes that are far too large.
        is_hopeless = peak is not None and peak > HOPELESS * topology.limit_bytes
        if topology.is_tpu and importlib.util.find_spec("libtpu") and not is_hopeless:
            return _compiled(step, topology)
        return estimated


def _across_slices(config: TrainConfig, slices: int) -> TrainConfig:
    """Return the configuration whose axis ``mesh.data`` goes across the slices."""
    data = config.mesh.data
    if data is None and slices > 1:
        return replace(config, mesh=replace(config.mesh, data=slices))
    if data is not None and data % slices:
        raise ValueError(
            f"`mesh.data` must be a multiple of the {slices} slices, which only the data axis "
            f"crosses, got {data}"
        )
    return config


def largest_fitting_plan(
    config: TrainConfig,
    topology: str,
    *,
    slices: int = 1,
    quantity: Literal["pairs", "max_length"] = "pairs",
    most: int | None = None,
) -> MemoryPlan | None:
    """Find the largest number of pairs per device, or the largest length, that fits.

    Args:
        config: configuration of the run; its own value of the quantity is ignored.
        topology: see :func:`make_plan`.
        slices: see :func:`make_plan`.
        quantity: ``pairs`` for ``trainer.per_device_train_batch_size``, or ``max_length`` for
            ``data.max_length``, whose largest value is found to within a sixteenth.
        most: largest value to try; None for 64 pairs, or for the number of positions of the model.

    Returns:
        The plan with that value; None if not even the smallest fits: one pair, or 128 tokens.
    """
    model, parsed = resolve_model(config.model), parse_topology(topology, slices)

    def plan_of(value: int) -> MemoryPlan:
        if quantity == "pairs":
            trainer = replace(config.trainer, per_device_train_batch_size=value)
            return _resolved_plan(replace(config, trainer=trainer), model, parsed)
        data = replace(config.data, max_length=value)
        return _resolved_plan(replace(config, data=data), model, parsed)

    positions = model.architecture.max_position_embeddings
    least = 1
    if quantity == "max_length":
        least = LENGTH_UNIT + (config.data.max_prompt_length or 0)
    high = most or (64 if quantity == "pairs" else positions)
    # A plan that does not fit takes seconds, one that fits minutes: halve first, then bisect.
    best, limit = None, high
    while high >= least:
        best = plan_of(high)
        if best.fits:
            break
        high //= 2
    if best is None or not best.fits:
        return None
    low, high = high, min(2 * high, limit)
    unit = 1 if quantity == "pairs" else max(LENGTH_UNIT, low // 16)
    while high - low > unit:
        middle = (low + high) // 2
        plan = plan_of(middle)
        low, high = (middle, high) if plan.fits else (low, middle)
        best = plan if plan.fits else best
    return best


def _compiled(step: PlannedStep, topology: Topology) -> MemoryPlan:
    devices = Devices(make_mesh(step.sizes, tpu_devices(topology)), step.plan)

    def on_mesh(tree: Any) -> Any:
        return jax.tree.map(_with_sharding, tree, devices.shardings(tree))

    sharding = NamedSharding(devices.mesh, BATCH_SPEC)
    batch = jax.tree.map(lambda leaf: _with_sharding(leaf, sharding), step.batch())
    run = make_train_step(step.graphdef, step.config.objective, step.optimizer, devices=devices)
    lowered = run.lower(on_mesh(step.state), on_mesh(step.frozen), batch)
    numbers = step.numbers() | _described(topology)
    program, peak = compile_program(lowered)
    if program is None:
        return _plan(numbers, peak=peak, fits=False, collective=None, compiled=True)
    assert peak is not None
    try:
        moved = sum(_collectives(program.as_text() or "", step.architecture.num_hidden_layers))
    except jax.errors.JaxRuntimeError:  # the compiler cannot print some programs
        moved = None
    return _plan(
        numbers, peak=peak, fits=peak <= topology.limit_bytes, collective=moved, compiled=True
    )


def _with_sharding(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _estimated(step: PlannedStep, topology: Topology) -> MemoryPlan:
    numbers = step.numbers() | _described(topology)
    tokens, completions = step.row_tokens * step.pairs, step.completions * step.pairs
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.batch()))
    peak = estimate_peak_bytes(step, tokens, completions) + batch // step.plan.batch_shards
    fits = peak <= topology.limit_bytes
    return _plan(numbers, peak=peak, fits=fits, collective=None, compiled=False)


def _described(topology: Topology) -> dict[str, Any]:
    """Return the fields of a plan that describe the devices."""
    return {
        "topology": topology.name,
        "accelerator_type": topology.accelerator_type,
        "slices": topology.slices,
        "hosts": topology.hosts,
        "limit_bytes_per_device": topology.limit_bytes,
    }


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
