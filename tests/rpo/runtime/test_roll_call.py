"""Claims about the roll call: all processes meet, or each of them reports who is missing."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from rpo.runtime import roll_call
from rpo.runtime.errors import UsageError
from rpo.runtime.roll_call import RollCall, call_roll


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(roll_call, "SECONDS_BETWEEN_MESSAGES", 0.2)
    monkeypatch.setattr(roll_call, "_SECONDS_BETWEEN_TRIES", 0.02)
    return f"127.0.0.1:{free_port()}"


def outcomes(address: str, *reports: tuple[int, int]) -> list[str]:
    """Return the errors of processes, given as (size, index) pairs, that start in this order."""

    def outcome(report: tuple[int, int]) -> str:
        try:
            call_roll(address, *report, seconds=0.8).close()
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
        for report in (b"GET / HTTP/1.1\r\n\r\n", b"", b'{"process": 1, "of": 3}\n', b"[]\n"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(report)
        time.sleep(0.1)
        third = executor.submit(outcomes, address, (3, 2))
        if comes_again:
            call_roll(address, 3, 1, seconds=0.8).close()
        for (message,) in (first.result(), third.result()):
            assert message == "" if comes_again else "s: process 1 of 3: start all" in message


def in_all(address: str, *works: Callable[[RollCall], object]) -> list[object]:
    """Return the result, or the message of the error, of the work of each process."""

    def run(index: int) -> object:
        call = call_roll(address, len(works), index, seconds=5.0)
        try:
            return works[index](call)
        except UsageError as error:
            return str(error)
        finally:
            call.close()

    with ThreadPoolExecutor(len(works)) as executor:
        return list(executor.map(run, range(len(works))))


def gather(text: str, seconds: float = 0.0) -> Callable[[RollCall], object]:
    def work(call: RollCall) -> object:
        time.sleep(seconds)
        first = call.gather(text, waiting_for="to read")
        return call.gather(",".join(first) + text, waiting_for="to read")

    return work


def test_closed_form_all_processes_get_the_texts_of_all(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    long = "x" * 200_000
    with caplog.at_level("INFO", logger="rpo"):
        results = in_all(address, gather("a"), gather("b", 0.5), gather(long))
    assert results == 3 * [[f"a,b,{long}{text}" for text in ("a", "b", long)]]
    host = socket.gethostname()
    assert f"waiting for process 1 ({host}) to read (0 s)" in caplog.messages


@pytest.mark.parametrize("failing", [0, 1])
def test_raises_the_error_of_one_process_in_all_others(address: str, failing: int) -> None:
    works = [gather("a"), gather("b", 0.2), gather("c", 0.4)]
    works[failing] = lambda call: call.fail("no such file")
    results = in_all(address, *works)
    assert results.pop(failing) is None
    assert results == 2 * [f"process {failing} ({socket.gethostname()}): no such file"]


@pytest.mark.parametrize("ending", [0, 1])
def test_raises_if_a_process_has_ended(address: str, ending: int) -> None:
    works = [gather("a"), gather("b"), gather("c")]
    works[ending] = lambda call: None
    results = in_all(address, *works)
    assert results.pop(ending) is None
    for message in results:
        assert f"process {ending} ({socket.gethostname()}): it has ended" in str(message)
