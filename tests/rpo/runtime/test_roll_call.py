"""Claims about the roll call: all processes meet, or each of them reports who is missing."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rpo.runtime import processes, roll_call
from rpo.runtime.errors import UsageError
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.roll_call import wait_for_processes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(roll_call, "SECONDS_TO_MEET", 0.8)
    monkeypatch.setattr(roll_call, "SECONDS_BETWEEN_MESSAGES", 0.2)
    monkeypatch.setattr(roll_call, "_SECONDS_BETWEEN_TRIES", 0.02)
    return f"127.0.0.1:{free_port()}"


def outcomes(address: str, *reports: tuple[int, int]) -> list[str]:
    """Return the errors of processes, given as (size, index) pairs, that start in this order."""

    def outcome(report: tuple[int, int]) -> str:
        try:
            wait_for_processes(address, *report)
        except UsageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(reports)) as executor:
        pending = []
        for report in reports:
            pending.append(executor.submit(outcome, report))
            time.sleep(0.1)
        return [future.result() for future in pending]


def test_closed_form_all_processes_meet_in_any_order(address: str) -> None:
    assert outcomes(address, (3, 2), (3, 0), (3, 1)) == ["", "", ""]
    assert outcomes(address, (2, 0), (2, 1)) == ["", ""]  # the address is free again


def test_closed_form_every_process_reports_the_missing_ones(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="rpo"):
        first, second = outcomes(address, (4, 0), (4, 2))
    rule = "not all processes have connected after 0.8 s: 2 processes: 1, 3 of 4: start all of them"
    assert first.startswith(rule)
    assert second.startswith(rule)
    assert "waiting for 2 processes: 1, 3 of 4 (0 s)" in caplog.messages
    (message,) = outcomes(address, (2, 1))
    assert f"process 0 cannot be reached at {address}: start all of them within" in message


def test_raises_if_the_processes_do_not_fit_together(address: str) -> None:
    assert outcomes(address, (3, 0), (3, 1), (3, 1)) == 3 * [
        "two processes have the index 1: every one needs its own"
    ]
    assert outcomes(address, (3, 0), (2, 1)) == 2 * [
        "--num-processes must be the same in all, got 3 and 2"
    ]
    host, port = address.split(":")
    with socket.create_server((host, int(port))):
        (message,) = outcomes(address, (2, 0))
    assert f"port {port} of this host must be free" in message
    (message,) = outcomes("nowhere", (2, 0))
    assert message == "argument --coordinator-address: must be HOST:PORT, got 'nowhere'"


@pytest.mark.parametrize("comes_again", [False, True])
def test_limit_strangers_and_processes_that_ended_do_not_count(
    address: str, comes_again: bool
) -> None:
    host, port = address.split(":")
    with ThreadPoolExecutor(2) as executor:
        first = executor.submit(outcomes, address, (3, 0))
        time.sleep(0.1)
        for report in (b"GET / HTTP/1.1\r\n\r\n", b"", b"1 3\n"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(report)
        time.sleep(0.1)
        third = executor.submit(outcomes, address, (3, 2))
        if comes_again:
            wait_for_processes(address, 3, 1)
        for (message,) in (first.result(), third.result()):
            assert message == "" if comes_again else "s: process 1 of 3: start all" in message


def test_raises_in_bounded_time_if_jax_does_not_connect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "SECONDS_TO_CONNECT", 0.2)
    monkeypatch.setattr(processes, "wait_for_processes", lambda *_: None)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: time.sleep(9))
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    group = ProcessGroup(num_processes=2, process_id=1, coordinator_address="h:1")
    with (
        pytest.raises(UsageError, match=r"not connected the 2 processes .* \(the variable http_pr"),
        group.connected(tmp_path),
    ):
        pass
