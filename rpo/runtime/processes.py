"""Groups of processes, on one machine or several, that share the work of one command.

When one process of a group dies, collective operations fail in the others, or JAX aborts them
from a thread of its own, before they can report anything. Each process therefore starts a small
watcher process, which reports the loss if its pipe closes without a sign-off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

from .clusters import detect_launch, is_in_pod, proxy_hint
from .errors import UsageError, whole_number
from .roll_call import wait_for_processes

SECONDS_TO_CONNECT = 60
"""Time in which JAX must have connected the processes, once all of them are there."""
CLEAN_EXIT = b"done"
"""Bytes that a process sends to its watcher before it ends in good order."""


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes that share one command's work, and which of them this one is.

    Attributes:
        coordinator_address: ``HOST:PORT`` of process 0, as in ``jax.distributed.initialize``; None
            for a single process.
        num_processes: size of the group, at least 1.
        process_id: index of this process, from 0 to ``num_processes - 1``.
        detection: ``cluster_detection_method`` of ``jax.distributed.initialize``. With "slurm" or
            "ompi" each process uses one GPU of its host, with "deactivate" all its devices; None
            lets JAX detect the launcher.

    Raises:
        ValueError: if there is no process of this index, or the address is missing for several
            processes or given for one.
    """

    coordinator_address: str | None = None
    num_processes: int = 1
    process_id: int = 0
    detection: str | None = None

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        if self.process_id >= self.num_processes:
            raise ValueError(
                f"argument --process-id: must be less than --num-processes {self.num_processes}, "
                f"got {self.process_id}"
            )
        if (self.num_processes > 1) != (self.coordinator_address is not None):
            raise ValueError(
                "argument --coordinator-address: must be given if and only if --num-processes "
                "is 2 or more"
            )

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which owns the output folder and reports."""
        return self.process_id == 0

    @contextmanager
    def connected(self, folder: Path) -> Iterator[None]:
        """Connect to the other processes for a block of work; do nothing in a group of one.

        Args:
            folder: output folder that the processes share; the watcher's message names it.
        """
        if self.num_processes == 1:
            yield
            return
        sign_off = _start_watcher(folder)
        try:
            self._meet()
            yield
        except (UsageError, KeyboardInterrupt):
            sign_off()
            raise
        sign_off()

    def _meet(self) -> None:
        """Wait until all processes have connected, for a limited time and with messages.

        Raises:
            UsageError: if some process does not come.
        """
        import jax

        assert self.coordinator_address is not None  # checked on construction
        wait_for_processes(self.coordinator_address, self.num_processes, self.process_id)
        initialize = partial(
            jax.distributed.initialize,
            self.coordinator_address,
            self.num_processes,
            self.process_id,
            cluster_detection_method=self.detection,
            # JAX ends the process after this time, without an exception.
            initialization_timeout=2 * SECONDS_TO_CONNECT,
        )
        # In a thread of its own, because nothing interrupts the wait within JAX.
        meeting = _Call(initialize)
        meeting.start()
        meeting.join(SECONDS_TO_CONNECT)
        if meeting.is_alive():
            raise UsageError(
                f"JAX has not connected the {self.num_processes} processes after "
                f"{SECONDS_TO_CONNECT} s, though all of them are there{proxy_hint(os.environ)}: "
                "start all of them again, or one alone with --num-processes 1"
            )
        if meeting.error is not None:
            raise meeting.error

    def wait_for_all(self, name: str) -> None:
        """Wait until every process of the group has arrived here; return at once in a group of one.

        Args:
            name: name of the barrier, the same in all processes.
        """
        if self.num_processes > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(name)


class _Call(Thread):
    """A call in a thread that does not keep the process alive, and its error."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.function: Callable[[], object] = function
        self.error: Exception | None = None

    def run(self) -> None:
        """Make the call."""
        try:
            self.function()
        except Exception as error:
            self.error = error


SINGLE_PROCESS = ProcessGroup()
"""A process that works alone."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of a process group, under the names of ``jax.distributed.initialize``.

    Args:
        parser: receives the options.
    """
    parser.add_argument(
        "--coordinator-address",
        metavar="HOST:PORT",
        help="address of process 0, for several processes that share the output folder (default "
        "as found in a cluster)",
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
    launch = None
    if args.process_id is None:
        launch = detect_launch(environment, num_processes=args.num_processes)
    if launch is None:
        return ProcessGroup(
            coordinator_address=args.coordinator_address,
            num_processes=args.num_processes or 1,
            process_id=args.process_id or 0,
            # In a pod, JAX's own detection needs a package and rights that are not needed here.
            detection="deactivate" if is_in_pod(environment) else None,
        )
    address = args.coordinator_address or launch.coordinator_address
    if address is None:
        raise ValueError(
            f"argument --coordinator-address: {launch.launcher} started {launch.num_processes} "
            "processes, which need the HOST:PORT of the first one; or --num-processes 1"
        )
    return ProcessGroup(
        coordinator_address=address,
        num_processes=launch.num_processes,
        process_id=launch.process_id,
        detection=launch.detection,
    )


def lost_process_message(folder: Path) -> str:
    """Return the line that is printed when a process of a group was killed.

    Args:
        folder: output folder of the run.

    Returns:
        One line that says from where the run can be resumed.
    """
    steps = [int(p.name) for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    if steps:
        remedy = f"again with --resume: they continue from the checkpoint of step {max(steps)}"
    else:
        remedy = f"again, with --resume if {folder} already holds results"
    return (
        "rpo: error: a process of this run ended unexpectedly, and the others cannot continue "
        f"without it: when all have ended, start all of them {remedy}\n"
    )


def _start_watcher(folder: Path) -> Callable[[], object]:
    """Start the watcher of the present process; return the function that signs off."""
    command = [sys.executable, "-m", "rpo.runtime.processes", str(folder)]
    # In a session of its own, an interrupt from the keyboard does not reach the watcher.
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    return partial(watcher.communicate, CLEAN_EXIT)


if __name__ == "__main__":
    if sys.stdin.buffer.read() != CLEAN_EXIT:
        sys.stderr.write(lost_process_message(Path(sys.argv[1])))
