"""Roll call of the processes of a group, before JAX connects them.

While processes are missing, JAX says nothing and then ends the process without an exception. Here
process 0 first listens on the address that JAX uses afterwards, and the others report to it. All
know which processes are missing, for a limited time, and an interrupt ends the wait.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from select import select

from .errors import UsageError

SECONDS_TO_MEET = 240
"""Time in which all processes must have connected."""
SECONDS_BETWEEN_MESSAGES = 10
"""Time between two messages while processes are missing."""
_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_TO_REPORT = 5.0
_GO = "go"
_REFUSED = "refused: "
_LOGGER = logging.getLogger(__name__)


def wait_for_processes(address: str, num_processes: int, process_id: int) -> None:
    """Wait until all processes of a group have reported to process 0.

    Args:
        address: ``HOST:PORT`` of process 0, which is free again afterwards.
        num_processes: size of the group, at least 2.
        process_id: index of this process.

    Raises:
        UsageError: if a process does not report in time, or two have the same index.
    """
    if process_id == 0:
        _call(address, num_processes)
    else:
        _report(address, num_processes, process_id)


def _call(address: str, num_processes: int) -> None:
    """Collect the reports of all other processes, and let them go on."""
    present: dict[int, socket.socket] = {}
    clock = _Clock()
    with ExitStack() as stack:
        server = stack.enter_context(_listen(address))
        while True:
            for index in [k for k, connection in present.items() if _is_closed(connection)]:
                present.pop(index).close()
            missing = [k for k in range(1, num_processes) if k not in present]
            if not missing:
                break
            try:
                clock.tick(_missing_text(missing, num_processes), partial(_tell, present))
            except UsageError as error:
                _tell(present, f"{_REFUSED}{error}")
                raise
            if not select([server], [], [], _SECONDS_BETWEEN_TRIES)[0]:
                continue
            connection = stack.enter_context(closing(server.accept()[0]))
            report = _read_line(connection).split()
            if len(report) != 2 or not all(text.isdigit() for text in report):
                connection.close()  # not a process of this program
                continue
            index, size = int(report[0]), int(report[1])
            refusal = None
            if size != num_processes:
                refusal = f"--num-processes must be the same in all, got {num_processes} and {size}"
            elif not 0 < index < num_processes or index in present:
                refusal = f"two processes have the index {index}: every one needs its own"
            if refusal is not None:
                _tell({**present, -1: connection}, f"{_REFUSED}{refusal}")
                raise UsageError(refusal)
            present[index] = connection
        _tell(present, _GO)


def _report(address: str, num_processes: int, process_id: int) -> None:
    """Report to process 0, and wait until it has all reports."""
    host, port = _split(address)
    clock = _Clock()
    unreachable = f"process 0 cannot be reached at {address}"
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=_SECONDS_TO_REPORT)
        except OSError:
            clock.tick(unreachable)
            time.sleep(_SECONDS_BETWEEN_TRIES)
            continue
        text = unreachable
        with closing(connection):
            try:
                connection.sendall(f"{process_id} {num_processes}\n".encode())
                while select([connection], [], [], clock.seconds_left())[0]:
                    line = _read_line(connection)
                    if line == _GO:
                        return
                    if line.startswith(_REFUSED):
                        raise UsageError(line.removeprefix(_REFUSED))
                    if not line:
                        break
                    text = line
                    clock.tick(text)
            except OSError:
                pass
        clock.tick(text)
        time.sleep(_SECONDS_BETWEEN_TRIES)


class _Clock:
    """The time since the start of the wait, which reports and ends it."""

    def __init__(self) -> None:
        self.start: float = time.monotonic()
        self.n_messages: int = 0

    def seconds_left(self) -> float:
        """Return the time that is left, at least zero."""
        return max(0.0, SECONDS_TO_MEET - (time.monotonic() - self.start))

    def tick(self, text: str, tell: Callable[[str], object] = lambda text: None) -> None:
        """Report who is missing once in a while; raise an error at the end of the time."""
        seconds = time.monotonic() - self.start
        if seconds >= SECONDS_TO_MEET:
            raise UsageError(
                f"not all processes have connected after {SECONDS_TO_MEET} s: {text}: start all of "
                "them within this time, or give --num-processes 1 to run alone"
            )
        if seconds >= (self.n_messages + 1) * SECONDS_BETWEEN_MESSAGES:
            self.n_messages += 1
            _LOGGER.info("waiting for %s (%.0f s)", text, seconds)
            tell(text)


def _missing_text(missing: list[int], num_processes: int) -> str:
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    noun = "process" if len(missing) == 1 else f"{len(missing)} processes:"
    return f"{noun} {shown} of {num_processes}"


def _listen(address: str) -> socket.socket:
    """Return a socket that listens where JAX listens afterwards."""
    _, port = _split(address)
    host, port = _split(os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", f"[::]:{port}"))
    try:
        if host == "::" and socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512
            )
        family = socket.AF_INET6 if ":" in host and host != "::" else socket.AF_INET
        return socket.create_server(("" if host == "::" else host, port), family=family)
    except OSError as error:
        raise UsageError(
            f"port {port} of this host must be free, got {error.strerror}: choose another one with "
            "--coordinator-address or JAX_COORDINATOR_PORT"
        ) from error


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(f"argument --coordinator-address: must be HOST:PORT, got {address!r}")
    return host.strip("[]"), int(port)


def _read_line(connection: socket.socket) -> str:
    """Return the next line of a connection; empty if it is closed or sends something else."""
    connection.settimeout(_SECONDS_TO_REPORT)
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < 1000:
            byte = connection.recv(1)
            if not byte:
                return ""
            line += byte
    except OSError:
        return ""
    return line.decode("utf-8", "replace").rstrip("\n")


def _tell(connections: dict[int, socket.socket], text: str) -> None:
    for connection in connections.values():
        try:
            connection.sendall(f"{text}\n".encode())
        except OSError:
            continue  # it is missing at the next look


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other side, which sends no second line, has closed a connection."""
    return bool(select([connection], [], [], 0)[0])
