"""The TPU compiler of the extra ``tpu``, which compiles for slices that are not present."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

import jax

from .topology import Topology

GIB = 2**30
NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
"""Environment variables with which libtpu compiles without a TPU and a metadata server."""


class CompiledProgram(NamedTuple):
    """A program that was compiled for a slice.

    Attributes:
        program: the program; None if it does not fit by far.
        peak_bytes: peak memory of a device; None if the compiler gave none.
    """

    program: Any
    peak_bytes: int | None


def tpu_devices(topology: Topology) -> Any:
    """Return the devices of TPU slices that are not present.

    Args:
        topology: the slices.

    Returns:
        The devices, in order.

    Raises:
        ValueError: if the compiler does not know the slice.

    Examples:
        >>> len(tpu_devices(parse_topology("v5e:4x4")))  # doctest: +SKIP
        16
    """
    from jax.experimental import topologies

    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    try:
        several = {} if topology.slices == 1 else {"num_slices": topology.slices}
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **several
        ).devices
    except Exception as error:  # libtpu raises errors of several types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"argument --topology: the TPU compiler rejects {topology.name}: {reason}"
        ) from error


def compile_program(lowered: Any) -> CompiledProgram:
    """Compile a lowered program, which may be too large for the memory of a device.

    Args:
        lowered: result of ``jax.jit(...).lower``.

    Returns:
        The program and its peak.

    Examples:
        >>> compile_program(jax.jit(abs).lower(1.0)).program is not None
        True
    """
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used ([\d.]+)G of", str(error))
        return CompiledProgram(None, None if used is None else int(float(used[1]) * GIB))
    return CompiledProgram(program, int(program.memory_analysis().peak_memory_in_bytes))
