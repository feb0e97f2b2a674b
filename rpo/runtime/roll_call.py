"""Roll call of the processes of a group, before JAX connects them.

While processes are missing, JAX says nothing and then ends the process without an exception. Here
process 0 first listens on the address that JAX uses afterwards, and the others report to it. All
know which processes are missing, for a limited time, and an interrupt ends the wait. The
connections then stay open until every process has read its inputs: a process that fails, or ends,
is named by all others, however long the slowest of them reads.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from select import POLLIN, poll
from typing import Any

from .errors import UsageError

SECONDS_TO_MEET = 45.0
"""Time in which all processes must be there, unless another one is given."""
SECONDS_BETWEEN_MESSAGES = 10
"""Time between two messages while processes are missing."""
MAX_MESSAGE_BYTES = 2**26
_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_TO_SEND = 20.0
_SECONDS_OF_GRACE = 2.0
"""Time by which process 0, which knows who is missing, gives up before the others."""
_ENDED = "it has ended: see its own messages, and start all processes again"
_LOGGER = logging.getLogger(__name__)


class RollCall:
    """The connections of process 0 with all others.

    Attributes:
        hosts: name of the host of each process.
    """

    hosts: list[str]

    def __init__(self, process_id: int, hosts: list[str], peers: dict[int, _Peer]) -> None:
        """Take over the connections.

        Args:
            process_id: index of this process.
            hosts: name of the host of each process.
            peers: connections by index: of process 0 to all others, of any other to process 0.
        """
        self.hosts = hosts
        self._process_id, self._peers = process_id, peers

    def gather(self, text: str, *, waiting_for: str) -> list[str]:
        """Send a text to all processes, and return the texts of all.

        Args:
            text: the text of this process.
            waiting_for: what the processes do before they call this method, for messages.

        Returns:
            The texts, in the order of the processes.

        Raises:
            UsageError: if a process has failed or has ended.
        """
        if self._process_id == 0:
            return self._collect(text, waiting_for)
        self._send(0, text=text)
        return self._receive(0, f"{self.name(0)} {waiting_for}")["texts"]

    def fail(self, message: str) -> None:
        """Let the next :meth:`gather` of all other processes raise an error with this message."""
        with suppress(UsageError, OSError):
            if self._process_id == 0:
                self._refuse(f"{self.name(0)}: {message}")
            else:
                self._send(0, failed=message)

    def name(self, process_id: int) -> str:
        """Return the name of a process for messages: its index and its host."""
        return f"process {process_id} ({self.hosts[process_id]})"

    def close(self) -> None:
        """Close the connections; the address is free again."""
        for peer in self._peers.values():
            peer.close()

    def _collect(self, text: str, waiting_for: str) -> list[str]:
        texts = {0: text}
        clock = _Clock(None)
        while missing := [k for k in self._peers if k not in texts]:
            for index in missing:
                try:
                    message = self._peers[index].receive()
                except EOFError:
                    message = {"failed": _ENDED}
                if message is not None and "failed" in message:
                    refusal = f"{self.name(index)}: {message['failed']}"
                    self._refuse(refusal, but=index)
                    raise UsageError(refusal)
                if message is not None:
                    texts[index] = message["text"]
            _wait_for(self._peers[k] for k in missing)
            names = ", ".join(map(self.name, missing[:8]))
            clock.tick(f"{names} {waiting_for}", lambda text: self._send_all(waiting=text))
        gathered = [texts[index] for index in sorted(texts)]
        self._send_all(texts=gathered)
        return gathered

    def _receive(self, index: int, text: str) -> dict[str, Any]:
        """Return the next message of a process that is neither a status nor a refusal."""
        clock = _Clock(None)
        while True:
            try:
                message = self._peers[index].receive()
            except EOFError:
                raise UsageError(f"{self.name(index)}: {_ENDED}") from None
            if message is None:
                _wait_for([self._peers[index]])
                clock.tick(text)
            elif "refused" in message:
                raise UsageError(message["refused"])
            elif "waiting" in message:
                text = message["waiting"]
            else:
                return message

    def _send(self, index: int, **message: Any) -> None:
        try:
            self._peers[index].send(**message)
        except OSError:
            # What the other side has said before it ended is still there to be read.
            self._receive(index, "")

    def _send_all(self, **message: Any) -> None:
        for peer in self._peers.values():
            with suppress(OSError):  # the next look at the connection finds it closed
                peer.send(**message)

    def _refuse(self, refusal: str, *, but: int | None = None) -> None:
        for index, peer in self._peers.items():
            if index != but:
                with suppress(OSError):
                    peer.send(refused=refusal)


def call_roll(
    address: str, num_processes: int, process_id: int, *, seconds: float = SECONDS_TO_MEET
) -> RollCall:
    """Wait until all processes of a group have reported to process 0.

    Args:
        address: ``HOST:PORT`` of process 0. The port is free again when the roll call is closed.
        num_processes: size of the group, at least 2.
        process_id: index of this process.
        seconds: time in which all processes must be there.

    Returns:
        The connections of the processes.

    Raises:
        UsageError: if a process does not report in time, or two have the same index.
    """
    host = socket.gethostname()
    if process_id == 0:
        return _call(address, num_processes, host, _Clock(seconds))
    return _report(address, num_processes, process_id, host, _Clock(seconds))


def _call(address: str, num_processes: int, host: str, clock: _Clock) -> RollCall:
    """Collect the reports of all other processes, and send them the names of all hosts."""
    present: dict[int, _Peer] = {}
    strangers: list[_Peer] = []
    hosts = {0: host}

    def tell(**message: Any) -> None:
        for peer in present.values():
            with suppress(OSError):
                peer.send(**message)

    with _listen(address) as server:
        try:
            while missing := [k for k in range(1, num_processes) if k not in present]:
                clock.tick(_missing_text(missing, num_processes), lambda text: tell(waiting=text))
                _wait_for([*present.values(), *strangers], server)
                if _has_input([server], 0.0):
                    strangers.append(_Peer(server.accept()[0]))
                for index in [k for k, peer in present.items() if peer.is_closed()]:
                    present.pop(index).close()
                for peer in list(strangers):
                    try:
                        report = peer.receive()
                    except EOFError:  # not a process of this program
                        strangers.remove(peer)
                        peer.close()
                        continue
                    if report is None:
                        continue
                    strangers.remove(peer)
                    refusal = _refusal(report, num_processes, present)
                    if refusal is not None:
                        with suppress(OSError):
                            peer.send(refused=refusal)
                        peer.close()
                        raise UsageError(refusal)
                    present[report["process"]] = peer
                    hosts[report["process"]] = str(report.get("host"))
        except BaseException as error:
            if isinstance(error, UsageError):
                tell(refused=str(error))
            for peer in present.values():
                peer.close()
            raise
        finally:
            for peer in strangers:
                peer.close()
        names = [hosts[index] for index in range(num_processes)]
        tell(hosts=names)
    return RollCall(0, names, present)


def _refusal(report: dict[str, Any], num_processes: int, present: dict[int, _Peer]) -> str | None:
    """Return why a process cannot be one of the group."""
    index, size = report.get("process"), report.get("of")
    if size != num_processes:
        return f"--num-processes must be the same in all, got {num_processes} and {size}"
    if index in present or index not in range(1, num_processes):
        return f"two processes have the index {index}: every one needs its own"
    return None


def _report(
    address: str, num_processes: int, process_id: int, host: str, clock: _Clock
) -> RollCall:
    """Report to process 0, and wait until it has all reports."""
    host_and_port = _split(address)
    unreachable = f"process 0 cannot be reached at {address}"
    while True:
        try:
            peer = _Peer(socket.create_connection(host_and_port, timeout=clock.seconds_left(5.0)))
        except OSError:
            clock.tick(unreachable)
            time.sleep(_SECONDS_BETWEEN_TRIES)
            continue
        text = unreachable
        clock.grace = _SECONDS_OF_GRACE
        try:
            peer.send(process=process_id, of=num_processes, host=host)
            while True:
                message = peer.receive()
                if message is None:
                    clock.tick(text)
                    _wait_for([peer])
                elif "hosts" in message:
                    return RollCall(process_id, message["hosts"], {0: peer})
                elif "refused" in message:
                    raise UsageError(message["refused"])
                else:
                    text = message.get("waiting", text)
        except (OSError, EOFError):
            clock.grace = 0.0
            peer.close()
        except BaseException:
            peer.close()
            raise
        clock.tick(text)
        time.sleep(_SECONDS_BETWEEN_TRIES)


class _Peer:
    """A connection that carries messages: JSON objects, each on a line."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SECONDS_TO_SEND)
        # A host that is switched off sends no end: it is found dead after half a minute.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.connection: socket.socket = connection
        self._buffer = bytearray()

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next message; None if it has not arrived yet.

        Raises:
            EOFError: if the connection is closed, or carries something else.
        """
        while b"\n" not in self._buffer:
            if not _has_input([self.connection], 0.0):
                return None
            try:
                received = self.connection.recv(2**16)
            except OSError as error:
                raise EOFError from error
            if not received or len(self._buffer) > MAX_MESSAGE_BYTES:
                raise EOFError
            self._buffer += received
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        try:
            message = json.loads(line)
        except ValueError as error:
            raise EOFError from error
        if not isinstance(message, dict):
            raise EOFError
        return message

    def is_closed(self) -> bool:
        """Return whether the other side, which sends nothing now, has closed the connection."""
        return _has_input([self.connection], 0.0)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class _Clock:
    """The time since the start of a wait, which reports and ends it."""

    def __init__(self, seconds: float | None) -> None:
        self.start: float = time.monotonic()
        self.limit: float | None = seconds
        self.grace: float = 0.0
        self.n_messages: int = 0

    def seconds_left(self, most: float) -> float:
        """Return the time that is left, of a most that is asked for, and at least a moment."""
        passed = time.monotonic() - self.start
        return most if self.limit is None else min(most, max(0.1, self.limit - passed))

    def tick(self, text: str, tell: Callable[[str], object] = lambda text: None) -> None:
        """Report who is missing once in a while; raise an error at the end of the time."""
        seconds = time.monotonic() - self.start
        if self.limit is not None and seconds >= self.limit + self.grace:
            raise UsageError(
                f"not all processes have connected after {self.limit:g} s: {text}: start all of "
                "them within this time, or give more with --initialization-timeout, or "
                "--distributed off to run alone"
            )
        if seconds >= (self.n_messages + 1) * SECONDS_BETWEEN_MESSAGES:
            self.n_messages += 1
            _LOGGER.info("waiting for %s (%.0f s)", text, seconds)
            tell(text)


def _wait_for(peers: Iterable[_Peer], *sockets: socket.socket) -> None:
    """Wait until a connection has something to read, for a short time."""
    _has_input([*(peer.connection for peer in peers), *sockets], _SECONDS_BETWEEN_TRIES)


def _has_input(sockets: Iterable[socket.socket], seconds: float) -> bool:
    """Return whether one of the sockets has something to read within a time, or is closed."""
    poller = poll()  # unlike select, for more than 1,024 open files
    for each in sockets:
        poller.register(each, POLLIN)
    return bool(poller.poll(1000 * seconds))


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
        return socket.create_server(
            ("" if host == "::" else host, port), family=family, backlog=512
        )
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
