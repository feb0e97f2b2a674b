"""Claims about faults around a command: closed streams, full devices, wrong arguments, hangs.

The default tests try commands that end at once; the slow ones try every command.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rpo import cli

PROBLEM = {
    "context_weights": [1],
    "reference_policy": [[0.5, 0.5]],
    "baseline_policy": "chosen",
    "comparisons": [[0, 0, 1, 3], [0, 1, 0, 1]],
    "beta": 0.5,
    "eta": 1,
    "reward_class": {"kind": "tabular", "max": 1},
}
ROW = {"prompt": "q", "chosen": "yes", "rejected": "no"}
RUN = """
name: tiny
model: {architecture: {vocab_size: 261, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1,
  num_attention_heads: 2}}
data: {train: rows.jsonl, tokenizer: bytes, max_length: 16}
trainer: {max_steps: 2, per_device_train_batch_size: 2}
"""
STUDY = "name: small\nmethods: [{method: rpo}]\ncomparisons: [10]\nseeds: 1\n"
EXIT_CODES = {0, 1, 2, 130, 141, 143}
CHEAP = ("--help", "--version", "--print-completion bash", "solve absent.json", "train absent.yaml")
MODEL = "--model policy --tokenizer bytes --batch-size 2"
COMMANDS = (
    *CHEAP,
    *(f"{name} --help" for name in cli.COMMANDS),
    "solve problem.json",
    "solve -",
    "verify --instances 1 --out out",
    "study study.yaml --dry-run",
    "study study.yaml --out out",
    "train run.yaml --dry-run",
    "train run.yaml --out out --json",
    "plan run.yaml --topology h100:1",
    "export run --out out",
    f"score {MODEL} --data rows.jsonl --out out.jsonl",
    f"generate {MODEL} --prompt q --max-new-tokens 2",
    f"evaluate {MODEL} --reference policy --data rows.jsonl",
)
STREAMS = (">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", "| true")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("problem.json").write_text(json.dumps(PROBLEM))
    Path("rows.jsonl").write_text((json.dumps(ROW) + "\n") * 4)
    Path("run.yaml").write_text(RUN)
    Path("study.yaml").write_text(STUDY)
    return tmp_path


def run_in_shell(arguments: str, streams: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in bash; the exit code is that of the command, also before a pipe."""
    line = f"{shlex.quote(sys.executable)} -m rpo {arguments} {streams}"
    script = f'{line}; exit "${{PIPESTATUS[0]}}"'
    return subprocess.run(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def assert_orderly(done: subprocess.CompletedProcess[str], streams: str) -> None:
    assert done.returncode in EXIT_CODES, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) <= 1, done.stderr
    if errors:
        assert errors[0].startswith("rpo: error: ")
        assert done.returncode == 2
    if "/dev/full" in streams or ">&-" in streams:
        assert done.returncode in (0, 2)


@pytest.mark.parametrize("streams", STREAMS)
def test_extreme_closed_and_full_streams_give_one_line_or_none(streams: str) -> None:
    for arguments in ("--version", "train"):
        done = run_in_shell(arguments, streams)
        assert_orderly(done, streams)
        if arguments == "--version" and streams in (">&-", ">/dev/full"):
            assert done.returncode == 2
            assert done.stderr.startswith("rpo: error: standard output: ")
            assert len(done.stderr.splitlines()) == 1
        if arguments == "train":  # the configuration is missing
            assert done.returncode == 2


@pytest.mark.slow
def test_extreme_a_closed_standard_input_is_named() -> None:
    done = run_in_shell("solve -", "<&-")
    assert (done.returncode, done.stderr) == (
        2,
        "rpo: error: standard input: Bad file descriptor\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("arguments", COMMANDS)
def test_extreme_every_command_survives_closed_and_full_streams(arguments: str) -> None:
    assert run_in_shell("train run.yaml --out run").returncode == 0
    assert run_in_shell("export run --out policy").returncode == 0
    for streams in STREAMS:
        subprocess.run(["rm", "-rf", "out", "out.jsonl"], check=True)
        done = run_in_shell(arguments, streams)
        assert_orderly(done, streams)
        for kept in ("--out out", "--out out.jsonl"):
            if arguments.endswith(kept):
                assert Path(kept.split()[1]).exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_property_every_encoding_of_the_terminal_can_be_written(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    for argument in ("ü😀", os.fsdecode(b"\xff\xe9")):
        done = subprocess.run(
            [sys.executable, "-m", "rpo", argument],
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stderr.startswith(b"rpo: error: argument COMMAND: invalid choice: ")
        assert len(done.stderr.splitlines()) == 1


HANGS = """
import sys, threading, time
from rpo import program
threading.Thread(target=time.sleep, args=(600,)).start()
program.SECONDS_TO_EXIT = 0.2
sys.argv = ["rpo", "train"]
sys.exit(program.run_program())
"""


def test_property_a_thread_that_hangs_does_not_keep_a_failed_command() -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HANGS],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert time.monotonic() - start < 20
    assert done.returncode == 2
    assert done.stderr == "rpo: error: the following arguments are required: CONFIG.yaml\n"


NAMES = [name for name in cli.COMMANDS if name not in ("demo", "verify")]
ARGUMENTS = st.sampled_from(
    [
        *("run.yaml", "study.yaml", "problem.json", "rows.jsonl", "absent", ".", "/dev/null", ""),
        *("--out", "--out=", "--out=rows.jsonl", "--out=/proc/x", "--out=~/x", "--resume"),
        *("--json", "--json=1", "--dry-run", "--quick", "--help", "--version", "--", "-", "-x"),
        *("--seed", "--seed=-1", f"--seeds={10**400}", "--beta=1e400", "--beta", "-1e5", "nan"),
        *("--eta=1_000", "--eta=\u0661", "--max_new_tokens=3", "--temperature=-0", "--top-p=2"),
        *("--model=absent", "--model=absent/model", "--data=rows.jsonl", "--prompt=\udcff"),
        *("--trainer.max-steps=3", "--trainer.max_steps", "014", "--=", "--a.b.c={", "--name=\n"),
        *("--step=99999999999999999999", "--batch-size=0", "--dtype=int8", "--instances=0"),
        *("--topology=x", "--reference=absent", "--judgments=absent", "--votes=problem.json"),
    ]
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.sampled_from(NAMES), arguments=st.lists(ARGUMENTS, max_size=5))
def test_property_wrong_arguments_are_one_line(
    name: str, arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # What would run is left to the tests of the commands.
    if name in ("train", "study") and arguments[:1] in (["run.yaml"], ["study.yaml"]):
        arguments = [*arguments, "--stray"]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = cli.main([name, *arguments])
    out, err = capsys.readouterr()
    assert code in EXIT_CODES
    if code == 2:
        assert err.startswith("rpo: error: ")
        assert len(err.splitlines()) == 1
        assert out == ""
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


COUNT = """
import os, sys
from jax import monitoring
misses = []
monitoring.register_event_listener(
    lambda event, **_: misses.append(event) if event.endswith("/cache_misses") else None)
from rpo import cli
code = cli.main(sys.argv[1:])
sys.stderr.write(f"\\n{len(misses)} misses\\n")
sys.exit(code)
"""


@pytest.mark.slow
def test_compiles_once_a_second_command_of_the_same_shapes_compiles_nothing(folder: Path) -> None:
    ignored = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    environment = {name: value for name, value in os.environ.items() if name not in ignored}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")

    def misses(arguments: str) -> int:
        command = [sys.executable, "-c", COUNT, *arguments.split()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return int(done.stderr.split()[-2])

    assert misses("train run.yaml --out run") > 0
    assert misses("train run.yaml --out run2") == 0
    assert misses("export run --out policy") > 0
    assert misses("export run --out policy2") == 0
    for arguments in (
        f"score {MODEL} --data rows.jsonl --out out.jsonl",
        f"generate {MODEL} --prompt q --max-new-tokens 2 --temperature 0.5",
        f"evaluate {MODEL} --reference policy2 --data rows.jsonl --out out.json",
        "solve problem.json",
        "verify --instances 2 --out verified",
    ):
        misses(arguments)
        assert misses(arguments) == 0, arguments
