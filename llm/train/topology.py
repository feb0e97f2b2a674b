"""Names of TPU slices and GPUs: the compiler's, such as ``v5e:4x4``, and Google Cloud's."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from llm.config.checks import at_least

TPU_MEMORY = {"v4": 31.75, "v5e": 15.75, "v5p": 95.74, "v6e": 31.25}
"""GiB of a TPU chip that programs can use, by the count of the compiler."""
GPU_MEMORY = {"a100-40": 39.4, "a100": 79.2, "h100": 79.1, "h200": 139.8, "l40s": 44.4}
"""GiB of a GPU that programs can use."""
GPUS_PER_HOST = 8
CHIPS_PER_HOST = 4
"""TPU chips of a host of a slice with several hosts; one host of v5e and v6e may have 8."""
SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
"""Shapes of the slices of v5e and v6e, by the number of chips."""
CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}
"""Shapes of the slices of v4 and v5p, by the number of chips."""
CLOUD_NAMES = {"v4": "v4", "v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}
"""Kinds of TPUs in Google Cloud's names of slices, its accelerator types."""
CORES_PER_CHIP = {"v4": 2, "v5p": 2}
"""TensorCores of a chip, where Google Cloud's names count them instead of chips."""
_SHAPE = re.compile(r"(?P<kind>[a-z0-9-]+):(?P<shape>[1-9]\d*(x[1-9]\d*)*)")


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Devices that a step is planned for.

    Attributes:
        name: name of one slice as the compiler knows it, such as ``v5e:4x4``.
        kind: kind of the devices.
        shape: number of chips along each axis of a slice.
        slices: number of slices, which are connected by the network of the data center.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether the devices are TPUs."""
        return self.kind in TPU_MEMORY

    @property
    def devices(self) -> int:
        """Number of chips or GPUs of all slices."""
        return self.slices * math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """Number of hosts of all slices.

        Examples:
            >>> [parse_topology(name).hosts for name in ("v5e:2x4", "v5e:4x4", "v5p-128")]
            [1, 4, 16]
        """
        chips = math.prod(self.shape)
        one_host = {"v5e": 8, "v6e": 8}.get(self.kind, CHIPS_PER_HOST)
        if not self.is_tpu:
            return math.ceil(chips / GPUS_PER_HOST)
        return self.slices * (1 if chips <= one_host else math.ceil(chips / CHIPS_PER_HOST))

    @property
    def limit_bytes(self) -> int:
        """Memory of a device that programs can use."""
        return int(2**30 * (TPU_MEMORY | GPU_MEMORY)[self.kind])

    @property
    def accelerator_type(self) -> str | None:
        """Google Cloud's name of a slice; None for GPUs and for shapes without such a name.

        Examples:
            >>> parse_topology("v5p:4x4x4").accelerator_type
            'v5p-128'
        """
        chips = math.prod(self.shape)
        shapes = CUBES if self.kind in CORES_PER_CHIP else SQUARES
        if not self.is_tpu or self.name != f"{self.kind}:{shapes.get(chips)}":
            return None
        return f"{CLOUD_NAMES[self.kind]}-{chips * CORES_PER_CHIP.get(self.kind, 1)}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Return the devices that a name stands for.

    Args:
        text: the compiler's name, such as ``v5e:4x4`` or ``h100:8``, or Google Cloud's, such as
            ``v5litepod-16``. ``v4-N`` and ``v5p-N`` count TensorCores, two of a chip.
        slices: number of slices of that name.

    Returns:
        The devices.

    Raises:
        ValueError: if the name is unknown, or several slices of GPUs are asked for.

    Examples:
        >>> parse_topology("v5p-128").name
        'v5p:4x4x4'
    """
    at_least("slices", slices, 1)
    kind, shape = _shape_of(text)
    if slices > 1 and kind not in TPU_MEMORY:
        raise ValueError(f"`slices` must be 1 for GPUs, got {slices}: name all of them, {kind}:N")
    sizes = tuple(int(size) for size in shape.split("x"))
    return Topology(name=f"{kind}:{shape}", kind=kind, shape=sizes, slices=slices)


def _shape_of(text: str) -> tuple[str, str]:
    match = _SHAPE.fullmatch(text)
    if match:
        kind, n_axes = match["kind"], match["shape"].count("x") + 1
        expected = 1 if kind in GPU_MEMORY else 3 if kind in CORES_PER_CHIP else 2
        if kind in TPU_MEMORY | GPU_MEMORY and n_axes == expected:
            return kind, match["shape"]
    prefix, _, number = text.rpartition("-")
    for kind, name in CLOUD_NAMES.items():
        cores, shapes = CORES_PER_CHIP.get(kind, 1), CUBES if kind in CORES_PER_CHIP else SQUARES
        if prefix == name and number.isdecimal() and int(number) % cores == 0:
            shape = shapes.get(int(number) // cores)
            if shape is not None:
                return kind, shape
    raise ValueError(f"argument --topology: must be one of {known_topologies()}, got {text!r}")


def known_topologies() -> str:
    """Describe the names that :func:`parse_topology` knows, for messages.

    Returns:
        A pattern for each kind of TPU and GPU, and Google Cloud's names.

    Examples:
        >>> known_topologies().split("; ")[:2]
        ['v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB', 'a100-40:N, a100:N, h100:N, h200:N, l40s:N']
    """
    tpus = ", ".join(f"{kind}:AxB" + "xC" * (kind in CORES_PER_CHIP) for kind in TPU_MEMORY)
    gpus = ", ".join(f"{kind}:N" for kind in GPU_MEMORY)
    cloud = []
    for kind, name in CLOUD_NAMES.items():
        shapes = CUBES if kind in CORES_PER_CHIP else SQUARES
        numbers = "|".join(str(chips * CORES_PER_CHIP.get(kind, 1)) for chips in shapes)
        cloud.append(f"{name}-{numbers}")
    return f"{tpus}; {gpus}; {', '.join(cloud)}"
