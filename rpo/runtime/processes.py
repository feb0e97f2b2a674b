"""Groups of processes, on one machine or several, that share the work of one command.

:class:`ProcessGroup` says which process this one is: by the options of the command, by the launcher
of a cluster, or as JAX has connected it already. :mod:`rpo.runtime.meeting` brings the processes
together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .clusters import detect_launch, local_device_ids
from .errors import number, whole_number
from .roll_call import SECONDS_TO_MEET

OPTIONS = (
    "distributed",
    "coordinator_address",
    "num_processes",
    "process_id",
    "initialization_timeout",
)
"""Names of the options of :func:`add_arguments`."""


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes that share one command's work, and which of them this one is.

    Attributes:
        coordinator_address: ``HOST:PORT`` of process 0, as in ``jax.distributed.initialize``; None
            for a single process, and for processes that JAX has connected already.
        num_processes: size of the group, at least 1.
        process_id: index of this process, from 0 to ``num_processes - 1``.
        local_device_ids: GPUs of this host that this process uses; None for all of them.
        initialization_timeout: time in seconds in which all processes must be there.
        is_connected: whether JAX has connected the processes already.

    Raises:
        ValueError: if there is no process of this index, or the address is missing for several
            processes or given for one.
    """

    coordinator_address: str | None = None
    num_processes: int = 1
    process_id: int = 0
    local_device_ids: tuple[int, ...] | None = None
    initialization_timeout: float = SECONDS_TO_MEET
    is_connected: bool = False

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        if self.process_id >= self.num_processes:
            raise ValueError(
                f"argument --process-id: must be less than --num-processes {self.num_processes}, "
                f"got {self.process_id}"
            )
        needs_address = self.num_processes > 1 and not self.is_connected
        if needs_address != (self.coordinator_address is not None):
            raise ValueError(
                "argument --coordinator-address: must be given if and only if --num-processes "
                "is 2 or more"
            )

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which owns the output folder and reports."""
        return self.process_id == 0


SINGLE_PROCESS = ProcessGroup()
"""A process that works alone."""


def connected_group() -> ProcessGroup | None:
    """Return the group of processes that JAX has connected already; None if it has not.

    Examples:
        >>> connected_group() is None
        True
    """
    jax: Any = sys.modules.get("jax")
    if jax is None or not jax.distributed.is_initialized():
        return None
    return ProcessGroup(
        num_processes=jax.process_count(), process_id=jax.process_index(), is_connected=True
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a process group, under the names of ``jax.distributed.initialize``.

    Args:
        parser: receives the options.
    """
    parser.add_argument(
        "--distributed",
        choices=("auto", "off"),
        default="auto",
        help="auto: share the work with the other processes that a cluster started with the same "
        "command; off: run alone (default auto)",
    )
    parser.add_argument(
        "--coordinator-address",
        metavar="HOST:PORT",
        help="address of process 0, for several processes that share the work (default as found "
        "in a cluster)",
    )
    parser.add_argument(
        "--num-processes",
        type=whole_number(1),
        metavar="N",
        help="number of processes (default: as Slurm, Open MPI, a TPU slice or a Kubernetes job "
        "started, else 1); 1 runs alone",
    )
    parser.add_argument(
        "--process-id",
        type=whole_number(0),
        metavar="K",
        help="index of this process, from 0 (default as found in a cluster, else 0)",
    )
    parser.add_argument(
        "--initialization-timeout",
        type=number(0.0, inclusive=False),
        default=SECONDS_TO_MEET,
        metavar="SECONDS",
        help=f"time in which all processes must be there (default {SECONDS_TO_MEET:g})",
    )


def group_from(args: argparse.Namespace, *, environment: Mapping[str, str]) -> ProcessGroup:
    """Return the process group of the options, and of the cluster for options that are not given.

    Args:
        args: parsed options of :func:`add_arguments`.
        environment: variables of the process, which tell how a cluster started it; empty to use
            the options alone.

    Returns:
        The group.

    Raises:
        ValueError: if the options do not fit together, or the cluster does not reveal enough.
    """
    given = (args.coordinator_address, args.num_processes, args.process_id)
    if args.distributed == "off":
        if given not in ((None, None, None), (None, 1, None), (None, 1, 0)):
            raise ValueError(
                "argument --distributed: off runs this process alone: leave out "
                "--coordinator-address, --num-processes and --process-id"
            )
        return SINGLE_PROCESS
    connected = connected_group()
    if connected is not None and given == (None, None, None):
        return connected
    launch = None
    if args.process_id is None:
        launch = detect_launch(environment, num_processes=args.num_processes)
    settings: dict[str, Any] = {
        "local_device_ids": local_device_ids(environment),
        "initialization_timeout": args.initialization_timeout,
    }
    if launch is None:
        if (args.num_processes or 1) == 1 and args.coordinator_address is None:
            settings: dict[str, Any] = {}
        return ProcessGroup(
            coordinator_address=args.coordinator_address,
            num_processes=args.num_processes or 1,
            process_id=args.process_id or 0,
            **settings,
        )
    address = args.coordinator_address or launch.coordinator_address
    if address is None:
        raise ValueError(
            f"argument --coordinator-address: {launch.launcher} started {launch.num_processes} "
            "processes, which need the HOST:PORT of the first one; or --distributed off"
        )
    return ProcessGroup(
        coordinator_address=address,
        num_processes=launch.num_processes,
        process_id=launch.process_id,
        **settings,
    )
