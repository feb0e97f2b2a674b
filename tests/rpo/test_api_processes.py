"""Functions of ``rpo.api`` that start processes work in scripts without a main guard."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
print("started")
from rpo import api
checked = api.verify(instances=2, out="out/verify")
print(checked.holds, len(checked.instances))
"""
IN_A_THREAD = (
    f"import threading; thread = threading.Thread(target=exec, args=({SCRIPT!r}, {{}})); "
    "thread.start(); thread.join()"
)
SPAWNING = re.compile(r"\b(?:multiprocessing|ProcessPoolExecutor)\b")


def test_property_no_module_starts_processes_that_import_the_callers_script() -> None:
    """Workers of ``multiprocessing`` do; ``rpo_io.processes`` says what is used instead."""
    packages = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")
    paths = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert len(paths) > 100
    found = [path for path in paths if SPAWNING.search(path.read_text(encoding="utf-8"))]
    assert found == [ROOT / "rpo_io" / "processes.py"]  # its docstring gives the reason


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["script", "thread", "standard input", "command"])
def test_property_a_script_without_a_main_guard_may_verify(caller: str, tmp_path: Path) -> None:
    text = IN_A_THREAD if caller == "thread" else SCRIPT
    (tmp_path / "script.py").write_text(text)
    arguments = {"command": ["-c", text], "standard input": ["-"]}.get(caller, ["script.py"])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        input=text if caller == "standard input" else "",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "started\nTrue 2\n"), done.stderr
