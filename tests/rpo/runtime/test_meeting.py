"""Claims about processes that come together: one process alone, and several in threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rpo.runtime import meeting as module
from rpo.runtime.errors import UsageError
from rpo.runtime.meeting import Meeting, meet, report_failure
from rpo.runtime.processes import SINGLE_PROCESS, ProcessGroup, connected_group
from rpo.runtime.roll_call import call_roll

from .cluster_commands import free_port


def in_all(*works: Callable[[Meeting], object]) -> list[object]:
    """Return the result, or the message of the error, of the work of each process."""
    address = f"127.0.0.1:{free_port()}"

    def run(index: int) -> object:
        size = len(works)
        group = ProcessGroup(coordinator_address=address, num_processes=size, process_id=index)
        meeting = Meeting(group, call_roll(address, size, index, seconds=20.0))
        try:
            return works[index](meeting)
        except (ValueError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            meeting.close()

    with ThreadPoolExecutor(len(works)) as executor:
        return list(executor.map(run, range(len(works))))


def fail() -> str:
    raise FileNotFoundError(2, "No such file or directory", "rows.jsonl")


def test_limit_one_process_meets_nobody(tmp_path: Path) -> None:
    assert connected_group() is None
    for group in (None, SINGLE_PROCESS):
        with meet(group, folder=tmp_path) as meeting:
            assert meeting.is_first
            assert meeting.agree(lambda: 3, lambda _: {"seed": "0"}) == 3
            assert meeting.decide(lambda: [1, None]) == [1, None]
            meeting.check_shared(tmp_path / "missing")
            meeting.run_in_all(lambda: None)
            meeting.connect()
            with pytest.raises(FileNotFoundError):
                meeting.agree(fail, lambda _: {})
    report_failure(None, "an error")
    report_failure(SINGLE_PROCESS, "an error")


def test_closed_form_process_0_decides_and_every_process_reads() -> None:
    def work(meeting: Meeting) -> object:
        value = meeting.decide(lambda: {"date": "2024-07-26"})
        value_here = meeting.agree(lambda: meeting.group.process_id, lambda _: {"seed": "0"})
        return value["date"], value_here

    assert in_all(work, work, work) == [("2024-07-26", k) for k in range(3)]


def test_raises_what_differs_in_all_processes() -> None:
    def work(meeting: Meeting) -> object:
        odd = str(meeting.group.process_id == 1)
        return meeting.agree(lambda: 0, lambda _: {"`resume`": odd})

    (message,) = set(in_all(work, work, work))
    assert "process 1 (" in str(message)
    assert "differs from the other processes in `resume` (True, not False): start" in str(message)


def test_raises_the_error_of_one_process_in_all() -> None:
    def read(index: int) -> Callable[[Meeting], object]:
        return lambda meeting: meeting.agree(
            fail if meeting.group.process_id == index else str, lambda _: {}
        )

    for index in range(2):
        results = in_all(*[read(index)] * 2)
        failed, other = results[index], str(results[1 - index])
        assert str(failed).startswith("FileNotFoundError: [Errno 2] No such file")
        assert other.startswith(f"UsageError: process {index} (")
        assert other.endswith("): rows.jsonl: No such file or directory")
    for message in in_all(*[lambda meeting: meeting.decide(fail)] * 2):
        assert "No such file or directory" in str(message)


def test_raises_for_a_folder_that_a_host_does_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(meeting: Meeting) -> object:
        return meeting.check_shared(tmp_path / "out" / "run")

    assert in_all(work, work) == [None, None]
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(module, "SECONDS_TO_SEE", 0.0)
    monkeypatch.setattr(module, "_sees", lambda path: False)
    for message in in_all(work, work):
        assert "argument --out: " in str(message)
        assert "cannot see the files that process 0 (" in str(message)
    assert not list(tmp_path.iterdir())


def test_raises_in_bounded_time_if_jax_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_CONNECT", 0.2)
    monkeypatch.setattr("jax.distributed.initialize", lambda *_, **__: time.sleep(9))
    for message in in_all(*[lambda meeting: meeting.connect()] * 2):
        assert "JAX has not connected the 2 processes after 0.2 s" in str(message)


def test_raises_for_other_numbers_than_those_that_jax_has_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected = ProcessGroup(num_processes=4, process_id=1, is_connected=True)
    monkeypatch.setattr(module, "connected_group", lambda: connected)
    group = ProcessGroup(num_processes=4, process_id=2, coordinator_address="h:1")
    with (
        pytest.raises(UsageError, match="JAX has connected 4 processes already, and this is proc"),
        meet(group),
    ):
        pass
