"""Sizes of the device mesh."""

from __future__ import annotations

from dataclasses import dataclass

from .checks import at_least


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the device mesh. Their product is the number of devices.

    Attributes:
        data: devices with the same parameters and different pairs; None for 1.
        fsdp: devices with different pairs and a shard of every parameter; None for all that are
            left.
        tensor: devices with the same pairs that share heads, hidden units and vocabulary.

    Raises:
        ValueError: if a size is below 1.
    """

    data: int | None = None
    fsdp: int | None = None
    tensor: int = 1

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value is not None:
                at_least(f"mesh.{name}", value, 1)
