"""Calls in worker processes, from every kind of caller."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from operator import truediv
from pathlib import Path

import pytest

from rpo_io.processes import run_in_processes

UNGUARDED = """
import os, sys
from functools import partial
print("started")
from rpo_io.processes import run_in_processes

calls = [partial(pow, 2, n) for n in range(4)]
assert list(run_in_processes(calls, max_processes=2)) == [1, 2, 4, 8]
assert os.getpid() not in list(run_in_processes([os.getpid]))
"""


@pytest.mark.parametrize("caller", ["script", "command", "standard input", "thread"])
def test_property_a_caller_without_a_main_guard_runs_once(caller: str, tmp_path: Path) -> None:
    text = UNGUARDED
    if caller == "thread":
        text = f"import threading; threading.Thread(target=exec, args=({text!r}, {{}})).start()"
    # The first imports of a worker must not find a caller's files.
    (tmp_path / "pickle.py").write_text("raise ImportError('the wrong module')")
    script = tmp_path / "scripts" / "script.py"
    script.parent.mkdir()
    script.write_text(text)
    arguments = {"command": ["-P", "-c", text], "standard input": ["-P", "-"]}
    done = subprocess.run(
        [sys.executable, *arguments.get(caller, [str(script)])],
        cwd=tmp_path,
        input=text if caller == "standard input" else "",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "")


def test_property_a_thread_of_this_process_gets_the_results_in_order() -> None:
    found: list[int] = []
    calls = [partial(pow, 3, n) for n in range(5)]
    thread = threading.Thread(target=lambda: found.extend(run_in_processes(calls)))
    thread.start()
    thread.join()
    assert found == [1, 3, 9, 27, 81]


def test_property_workers_see_the_environment_and_may_print() -> None:
    calls = [partial(os.getenv, "RPO_TEST_VALUE"), partial(print, "to standard error")]
    environment = {"RPO_TEST_VALUE": "seen"}
    assert list(run_in_processes(calls, environment=environment)) == ["seen", None]
    assert list(run_in_processes([])) == []


def test_raises_the_error_of_a_call_and_the_end_of_a_process() -> None:
    with pytest.raises(ZeroDivisionError) as error:
        list(run_in_processes([partial(truediv, 1, 0), partial(pow, 2, 2)], max_processes=1))
    assert "in a worker process" in error.value.__notes__[0]
    with pytest.raises(RuntimeError, match="ended with exit code 3 during a call"):
        list(run_in_processes([partial(os._exit, 3)]))


def test_property_the_processes_end_with_the_iteration() -> None:
    results = run_in_processes([os.getpid, partial(pow, 2, 2)], max_processes=1)
    worker = next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_property_workers_do_not_outlive_a_caller_that_is_killed() -> None:
    program = """
import os, time
from functools import partial
from rpo_io.processes import run_in_processes
for result in run_in_processes([os.getpid, partial(time.sleep, 60)], max_processes=1):
    print(result, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as caller:
        assert caller.stdout
        worker = int(caller.stdout.readline())
        caller.kill()
    for _ in range(200):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        status = Path(f"/proc/{worker}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return  # nobody has waited for it
        time.sleep(0.05)
    raise AssertionError("the worker is still there")
