"""The processes of a group come together: they meet, agree on their inputs, and connect.

Until all of them agree, they speak over the connections of the roll call, so that JAX starts only
where nothing can be refused any more, and an error of one process is an error of all.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from rpo_io.atomic import TEMPORARY_PREFIX, TEMPORARY_SUFFIX

from .clusters import direct_connection, proxy_variable
from .errors import UsageError, error_message
from .facts import describe_difference
from .output import muted_messages
from .processes import SINGLE_PROCESS, ProcessGroup, connected_group
from .roll_call import RollCall, call_roll
from .watcher import start_watcher

if TYPE_CHECKING:
    from rpo_io.bucket_paths import AnyPath

SECONDS_TO_CONNECT = 30.0
"""Time in which JAX must have connected the processes, once all of them are there."""
SECONDS_TO_SEE = 10.0
"""Time in which a file of one host must be visible on all others."""
_SECONDS_BETWEEN_TRIES = 0.1
_logger = logging.getLogger(__name__)
T = TypeVar("T")
_have_met: set[ProcessGroup] = set()


class Meeting:
    """The processes of a group that have met.

    Every method is called by all processes, in the same order. An error of one process is raised
    in all of them. In a group of one the methods only do the work of that process.

    Attributes:
        group: the processes, and which of them this one is.
    """

    group: ProcessGroup

    def __init__(
        self, group: ProcessGroup, roll_call: RollCall | None, folder: AnyPath | None = None
    ) -> None:
        """Take over the connections of a roll call.

        Args:
            group: the processes.
            roll_call: their connections; None if JAX has connected them, or for one process.
            folder: output folder of a command that can be resumed; None for another command.
        """
        self.group = group
        self._folder, self._sign_off = folder, None
        self._roll_call = roll_call
        self._hosts = [socket.gethostname()] if roll_call is None else roll_call.hosts
        if group.is_connected and group.num_processes > 1:
            self._sign_off = start_watcher(folder)
            self._hosts = _gather_with_jax(self._hosts[0])

    @property
    def is_first(self) -> bool:
        """Whether this is process 0, which owns the output folder and reports."""
        return self.group.is_first

    @property
    def may_start_jax(self) -> bool:
        """Whether JAX may be used: in a group of one, or once it has connected the processes."""
        return self._roll_call is None

    def name(self, process_id: int) -> str:
        """Return the name of a process for messages: its index and its host."""
        return f"process {process_id} ({self._hosts[process_id]})"

    def agree(self, read: Callable[[], T], describe: Callable[[T], Mapping[str, str]]) -> T:
        """Read the inputs of the work, and refuse inputs that are not the same in all processes.

        Args:
            read: reads the inputs.
            describe: returns the value or the digest of every input by its name for messages.

        Returns:
            The inputs.

        Raises:
            UsageError: if a value differs; the message names the process, its host and the value.
            Exception: the error of ``read``; in other processes a ``UsageError`` with its message.
        """
        inputs: list[T] = []

        def work() -> str:
            inputs.append(read())
            several = self.group.num_processes > 1
            return json.dumps(dict(describe(inputs[0])) if several else {})

        facts = map(json.loads, self._exchange(work, "to read its inputs"))
        difference = describe_difference(list(facts), self.name)
        if difference is not None:
            raise UsageError(difference)
        return inputs[0]

    def decide(self, decision: Callable[[], T]) -> T:
        """Let process 0 decide, and return its decision in all processes.

        Args:
            decision: returns a plain JSON value; called by process 0 alone.

        Returns:
            The value.

        Raises:
            Exception: the error of ``decision``; in other processes a ``UsageError`` with its
                message.
        """
        texts = self._exchange(lambda: json.dumps(decision() if self.is_first else None), "")
        return json.loads(texts[0])

    def run_in_all(self, work: Callable[[], object]) -> None:
        """Do this process's share of the work, and wait until all processes have done theirs.

        Args:
            work: does the share.

        Raises:
            Exception: the error of ``work``; in other processes a ``UsageError`` with its message.
        """

        def run() -> str:
            work()
            return ""

        self._exchange(run, "to do its share")

    def check_shared(self, folder: AnyPath) -> None:
        """Refuse a local folder in which not all hosts see what process 0 writes.

        Args:
            folder: an output folder; its nearest parent that exists is tried if it is missing.

        Raises:
            UsageError: if a host does not see a file that process 0 writes there.
        """
        if self.group.num_processes == 1 or not isinstance(folder, Path):
            return  # hosts share every bucket
        name = f"{TEMPORARY_PREFIX}{uuid4().hex}{TEMPORARY_SUFFIX}"

        def write() -> str:
            existing = next(path for path in (folder, *folder.parents) if path.exists())
            (existing / name).write_text(name, encoding="utf-8")
            return str(existing / name)

        written = Path(self.decide(write))
        try:
            seen = self._exchange(lambda: json.dumps(_sees(written)), "to look for a file")
        finally:
            if self.is_first:
                written.unlink(missing_ok=True)
        blind = [self.name(k) for k, text in enumerate(seen) if not json.loads(text)]
        if blind:
            raise UsageError(
                f"argument --out: {folder}: {', '.join(blind[:4])} cannot see the files that "
                f"{self.name(0)} writes there: name a folder that all hosts share"
            )

    def connect(self) -> None:
        """Let JAX connect the processes, and wait until it has.

        Raises:
            UsageError: if JAX does not connect them in time.
        """
        if self._roll_call is None:
            return
        import jax
        from jax.experimental import multihost_utils

        self._roll_call.close()
        self._roll_call = None
        self._sign_off = start_watcher(self._folder)
        group = self.group
        initialize = partial(
            jax.distributed.initialize,
            group.coordinator_address,
            group.num_processes,
            group.process_id,
            local_device_ids=group.local_device_ids,
            cluster_detection_method="deactivate",
            # JAX ends the process after this time, without an exception.
            initialization_timeout=int(2 * SECONDS_TO_CONNECT),
        )
        # In threads of their own, because nothing interrupts the waits within JAX.
        if not _Call(initialize).finish(SECONDS_TO_CONNECT):
            raise UsageError(
                f"JAX has not connected the {group.num_processes} processes after "
                f"{SECONDS_TO_CONNECT:g} s, though all of them are there: start all of them again, "
                "or one alone with --distributed off"
            )
        # The CPU backend lets processes wait for one another in the first collective for 30 s only.
        _Call(partial(multihost_utils.sync_global_devices, "connected")).finish(None)

    def close(self, error: BaseException | None = None) -> None:
        """Close the connections, and let the watcher know unless another process was lost.

        Args:
            error: error that ends the work; None if it is done.
        """
        if self._roll_call is not None:
            self._roll_call.close()
        # JAX raises a RuntimeError when another process is lost.
        if self._sign_off is not None and not isinstance(error, RuntimeError):
            self._sign_off()

    def _exchange(self, work: Callable[[], str], waiting_for: str) -> list[str]:
        """Return the texts that the work of all processes results in."""
        try:
            text = work()
        except Exception as error:
            self._fail(error_message(error) or type(error).__name__)
            raise
        if self.group.num_processes == 1:
            return [text]
        if self._roll_call is not None:
            return self._roll_call.gather(text, waiting_for=waiting_for)
        texts = _gather_with_jax(json.dumps({"text": text}))
        answers = [json.loads(each) for each in texts]
        for index, answer in enumerate(answers):
            if "failed" in answer:
                raise UsageError(f"{self.name(index)}: {answer['failed']}")
        return [answer["text"] for answer in answers]

    def _fail(self, message: str) -> None:
        if self._roll_call is not None:
            self._roll_call.fail(message)
        elif self.group.num_processes > 1:
            _gather_with_jax(json.dumps({"failed": message}))


@contextmanager
def meet(processes: ProcessGroup | None, *, folder: AnyPath | None = None) -> Iterator[Meeting]:
    """Bring the processes of a group together for a block of work.

    Messages of all processes but the first are muted in the block.

    Args:
        processes: the group; None for the processes that JAX has connected, or else this one alone.
        folder: output folder of a command that can be resumed, for the message about a lost
            process; None for another command.

    Yields:
        The processes that have met; JAX is not connected yet.

    Raises:
        UsageError: if some process does not come.
    """
    connected = connected_group()
    group = processes or connected or SINGLE_PROCESS
    if connected is not None and group.num_processes > 1:
        if (group.num_processes, group.process_id) != (
            connected.num_processes,
            connected.process_id,
        ):
            raise UsageError(
                "argument --num-processes, --process-id: JAX has connected "
                f"{connected.num_processes} processes already, and this is process "
                f"{connected.process_id}: leave the options out"
            )
        group = connected
    if group.num_processes == 1:
        yield Meeting(group, None)
        return
    _have_met.add(group)
    meeting = Meeting(group, None if group.is_connected else _call_roll(group), folder)
    try:
        with muted_messages(not group.is_first):
            yield meeting
    except BaseException as error:
        meeting.close(error)
        raise
    meeting.close()


def report_failure(processes: ProcessGroup | None, message: str) -> None:
    """Meet the other processes, if that has not happened, to let them know why this one ends.

    Args:
        processes: the group; None or a group of one has nobody to inform.
        message: the error of this process.
    """
    if processes is None or processes.coordinator_address is None or processes in _have_met:
        return
    with suppress(UsageError, KeyboardInterrupt):
        roll_call = _call_roll(processes)
        roll_call.fail(message)
        roll_call.close()


def _call_roll(group: ProcessGroup) -> RollCall:
    """Wait for the other processes; let JAX reach process 0 without a proxy."""
    assert group.coordinator_address is not None  # checked on construction
    host = group.coordinator_address.rpartition(":")[0].strip("[]")
    variable = proxy_variable(os.environ, host)
    if variable is not None:
        os.environ.update(direct_connection(os.environ, host))
        _logger.warning("%s is set: processes connect to %s without that proxy", variable, host)
    return call_roll(
        group.coordinator_address,
        group.num_processes,
        group.process_id,
        seconds=group.initialization_timeout,
    )


def _gather_with_jax(text: str) -> list[str]:
    """Return the texts of all processes that JAX has connected."""
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    values = np.frombuffer(text.encode(), np.uint8)
    sizes = np.ravel(process_allgather(np.array([values.size], np.int32)))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: values.size] = values
    rows = np.asarray(process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def _sees(path: Path) -> bool:
    """Return whether this host sees a file that holds its own name, for a limited time."""
    end = time.monotonic() + SECONDS_TO_SEE
    while True:
        with suppress(OSError):
            os.listdir(path.parent)  # a network file system looks again
            if path.read_text(encoding="utf-8") == path.name:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(_SECONDS_BETWEEN_TRIES)


class _Call(Thread):
    """A call in a thread that does not keep the process alive, and its error."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.function: Callable[[], Any] = function
        self.error: Exception | None = None

    def run(self) -> None:
        """Make the call."""
        try:
            self.function()
        except Exception as error:
            self.error = error

    def finish(self, seconds: float | None) -> bool:
        """Start the call, wait for it, and return whether it has ended in time; raise its error."""
        self.start()
        self.join(seconds)
        if self.error is not None:
            raise self.error
        return not self.is_alive()
