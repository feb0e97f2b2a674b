"""The mesh of devices of the commands that load a model: its options, under the keys of a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .errors import whole_number

if TYPE_CHECKING:
    from llm.config import MeshConfig

AXES = {
    "data": "devices with the same parameters and different pairs or prompts (default 1)",
    "fsdp": "devices with different pairs or prompts and a shard of every parameter (default: all "
    "that are left)",
    "expert": "devices that share the experts of a mixture of experts (default 1)",
    "tensor": "devices that share heads, hidden units and vocabulary (default 1)",
}


def add_mesh_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sizes of the mesh, under the keys of ``rpo train`` and ``rpo plan``.

    Args:
        parser: receives the options.

    Examples:
        >>> parser = argparse.ArgumentParser()
        >>> add_mesh_arguments(parser)
        >>> mesh_option(parser.parse_args(["--mesh.tensor", "2"])).tensor
        2
    """
    group = parser.add_argument_group("mesh of devices, whose sizes multiply to their number")
    for name, text in AXES.items():
        group.add_argument(f"--mesh.{name}", type=whole_number(1), metavar="N", help=text)


def mesh_option(args: argparse.Namespace) -> MeshConfig | None:
    """Return the mesh of the options.

    Args:
        args: parsed options of :func:`add_mesh_arguments`.

    Returns:
        The mesh; None if no size is given.
    """
    given = {name: getattr(args, f"mesh.{name}") for name in AXES}
    sizes = {name: size for name, size in given.items() if size is not None}
    if not sizes:
        return None
    from llm.config import MeshConfig

    return MeshConfig(**sizes)
