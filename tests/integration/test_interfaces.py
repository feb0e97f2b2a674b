"""Claims about what all commands share: help, JSON, completion, start-up, progress."""

from __future__ import annotations

import importlib
import io
import json
import logging
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpo.cli import COMMANDS, SHELLS, Parser, declare, main
from rpo.runtime import progress
from rpo.runtime.output import messages_to_stderr, muted_messages
from rpo.runtime.progress import progress_bars, track_progress

RUN = """
name: tiny
model:
  architecture: {vocab_size: 264, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
                 num_attention_heads: 2}
data: {train: rows.jsonl}
"""
VOTES = "context,winner,loser\nx,a,b\nx,a,c\nx,b,c\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_property_help_shows_examples_that_the_command_takes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    examples = importlib.import_module(f"rpo.commands.{command}").EXAMPLES
    assert examples
    for example in examples:
        assert f"\n  {example}\n" in shown
        arguments = shlex.split(example.partition(" > ")[0].rpartition("| ")[2])
        assert arguments[:2] == ["rpo", command]
        parser = Parser(prog=command, allow_abbrev=False)
        declare(command, parser)
        _, overrides = parser.parse_known_args(arguments[2:])
        assert not overrides or command in ("train", "plan", "study")


@pytest.mark.parametrize("command", COMMANDS)
def test_property_help_begins_with_the_description_of_the_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    description = importlib.import_module(f"rpo.commands.{command}").__doc__
    assert description is not None
    assert " ".join(description.split()) in shown
    assert "print one JSON object to stdout; the human-readable summary goes to stderr" in shown


@pytest.mark.parametrize("shell", SHELLS)
def test_property_completion_knows_every_command_and_its_options(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "--context-weights" in script or "context-weights" in script


def test_property_help_loads_neither_jax_nor_numpy_nor_matplotlib() -> None:
    program = (
        "import sys; from rpo.cli import main; code = main(['--help']); "
        "heavy = {'jax', 'numpy', 'matplotlib', 'rich', 'flax', 'shtab'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_property_json_goes_to_stdout_and_the_summary_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "h100:8"]) == 0
    text = capsys.readouterr()
    assert main(["plan", str(tmp_path / "run.yaml"), "--topology", "h100:8", "--json"]) == 0
    with_json = capsys.readouterr()
    assert json.loads(with_json.out)["devices"] == 8
    assert with_json.err == text.out
    assert text.err == ""


def test_property_module_and_program_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "votes.csv").write_text(VOTES)
    command = ["solve", "--votes", "votes.csv"]
    shown = [
        subprocess.run([*start, *command], cwd=tmp_path, capture_output=True, check=True).stdout
        for start in ([sys.executable, "-m", "rpo"], [str(Path(sys.executable).with_name("rpo"))])
    ]
    assert shown[0] == shown[1]


def test_raises_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "dos"]) == 2
    assert capsys.readouterr().err.startswith("rpo: error: argument --print-completion: ")


class Clock:
    """A clock that advances by ten seconds with each reading, at the second by a given time."""

    def __init__(self, second: float = 10.0) -> None:
        self.now, self.steps = 0.0, iter([10.0, second])

    def monotonic(self) -> float:
        self.now += next(self.steps, 10.0)
        return self.now


def test_closed_form_without_a_terminal_progress_is_lines_with_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Clock())
    with messages_to_stderr(), progress_bars():
        assert list(track_progress(range(8), 8, "steps of tiny")) == [*range(8)]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "steps of tiny: 3 of 8, 0.1 per second, 50 s left",
        "steps of tiny: 6 of 8, 0.1 per second, 20 s left",
    ]


def test_closed_form_the_time_left_ignores_the_first_item(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "time", Clock(second=1000.0))
    with messages_to_stderr():
        assert list(track_progress(range(6), 6, "rows")) == [*range(6)]
    assert capsys.readouterr().err.splitlines() == [
        "rows: 1 of 6",
        "rows: 4 of 6, 0.1 per second, 20 s left",
    ]


def test_property_messages_of_muted_processes_are_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("llm.train")
    with messages_to_stderr():
        with muted_messages(True):
            logger.info("of another process")
        with muted_messages(False):
            logger.info("of the first process\x1b[2J")
    logger.info("of a library user")
    assert capsys.readouterr() == ("", "of the first process\\x1b[2J\n")


def terminal_as_stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return stream


def test_property_on_a_terminal_progress_is_a_bar_with_a_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_as_stderr(monkeypatch)
    with progress_bars():
        for _ in track_progress(range(5), 5, "bandits"):
            time.sleep(0.15)  # the bar is measured and drawn ten times a second
    shown = terminal.getvalue()
    assert "bandits" in shown
    assert "5/5" in shown
    assert re.search(r"[\d.]+(e\+\d+)?/s", shown)


def test_property_outside_the_command_line_no_bar_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = terminal_as_stderr(monkeypatch)
    assert list(track_progress(range(5), 5, "bandits")) == [*range(5)]
    assert terminal.getvalue() == ""
