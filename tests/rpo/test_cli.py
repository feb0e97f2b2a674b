"""Claims about the command line: dispatch, exit codes, and one line for every error."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rpo import cli, program
from rpo.runtime.errors import number

HELP_CPU_SECONDS = 0.5
"""Bar for ``rpo --help``, in processor time: other processes do not lengthen it."""

UNIFORM = [[0.5, 0.5]]
PROBLEM: dict[str, Any] = {
    "context_weights": [1],
    "reference_policy": UNIFORM,
    "baseline_policy": "chosen",
    "comparisons": [[0, 0, 1, 3], [0, 1, 0, 1]],
    "beta": 0.5,
    "eta": 1,
    "reward_class": {"kind": "tabular", "max": 1},
}
VOTES = "context,winner,loser,count\nq,a,b,3\nq,b,a,1\n"


def json_with(**fields: Any) -> str:
    return json.dumps(PROBLEM | fields)


def json_without(key: str) -> str:
    return json.dumps({k: v for k, v in PROBLEM.items() if k != key})


# The text of in.json, of in.csv or None, the options, and a part of the expected message.
BAD_JSON = [
    ("", "in.json, line 1: must be a JSON object, got an empty file"),
    ("{\n\n", "in.json, line 3, column 1: not valid JSON"),
    ("[1]", "in.json, line 1: must be an object"),
    (json_without("eta"), "`eta` is missing"),
    (json_without("reward_class"), "`reward_class` is missing"),
    (json_with(temperature=1), "`temperature` is not a known key"),
    ('{\n"eta": 1,\n"eta": 2}', "line 3: `eta` occurs twice"),
    (json_with(beta=0), "`beta` must be greater than 0, got 0"),
    (json_with(beta=-0.5), "`beta` must be greater than 0, got -0.5"),
    (json_with(beta=float("nan")), "`beta` must be finite, got nan"),
    (json_with(beta="0.1"), "`beta` must be a number"),
    (json_with(beta=True), "`beta` must be a number, got true"),
    (json_with(eta=-1), "`eta` must be at least 0, got -1"),
    (json_with(eta=float("inf")), "`eta` must be finite, got inf"),
    (json_with(context_weights=[0.9]), "`context_weights` must sum to one, got a sum of 0.9"),
    (json_with(context_weights=[0.5, 0.5]), "`context_weights` must have shape (1,)"),
    (json_with(reference_policy=[[1.5, -0.5]]), "`reference_policy[0][1]` must be at least 0"),
    (json_with(reference_policy=[[0.5, 0.4]]), "`reference_policy[0]` must sum to one"),
    (json_with(reference_policy=[]), "`reference_policy` must not be empty"),
    (json_with(baseline_policy="best"), "`baseline_policy` must be"),
    (json_with(baseline_policy=[[1]]), "`baseline_policy` must have shape (1, 2)"),
    (json_with(comparisons=[[0, 0, 2, 1]]), "`comparisons[0][2]` must be the index of a loser"),
    (json_with(comparisons=[[1, 0, 1, 1]]), "`comparisons[0][0]` must be the index of a context"),
    (json_with(comparisons=[[0, 0, 1, -1]]), "`comparisons[0][3]` must be a count"),
    (json_with(comparisons=[[0, 0.5, 1, 1]]), "`comparisons[0][1]` must be the index"),
    (json_with(reward_class={"kind": "cube"}), "`reward_class.kind` must be"),
    (json_with(reward_class={"kind": "tabular", "max": -1}), "`reward_class.max` must be greater"),
    (json_with(true_reward=[[1]]), "`true_reward` must have shape (1, 2)"),
    (json_with(comparator=UNIFORM), "`comparator` needs `true_reward`"),
]
BAD_VOTES = [
    ("", "in.csv, line 1: the header must be `context,winner,loser,count`"),
    ("prompt,winner,loser,count\n", "in.csv, line 1: the header"),
    ("q,a,b,1\n", "in.csv, line 1: the header"),
    ("context,winner,loser,count\n", "in.csv, line 1: no votes"),
    (VOTES + "q,a,b,many\n", "in.csv, line 4: `count` must be a whole number"),
    (VOTES + "q,a,b,-1\n", "in.csv, line 4: `count` must be a whole number"),
    (VOTES + "q,a,b,nan\n", "in.csv, line 4: `count` must be a whole number"),
    (VOTES + "q,a,b\n", "in.csv, line 4: must have the 4 fields"),
    (VOTES + "q,,b,1\n", "in.csv, line 4: `winner` must not be empty"),
    (VOTES + 'q,"a,b,1\n', "in.csv, line 4: not valid CSV"),
    ("context,winner,loser\nq,a\udcff,b\n", "in.csv, line 2: must be UTF-8"),
]
BAD_OPTIONS = [
    ([], "a command must come first"),
    (["--", "solve"], "verify"),
    (["sovle"], "did you mean solve?"),
    (["help"], "): see rpo --help"),
    (["demo", "--quick"], "unrecognized arguments: --quick: see rpo demo --help"),
    (["solve"], "give either a problem file or --votes"),
    (["solve", "good.json", "--votes", "good.csv"], "give either a problem file or --votes"),
    (["solve", "absent.json"], "absent.json: No such file"),
    (["solve", "good.csv"], "good.csv: must be JSON; give a file of votes with --votes good.csv"),
    (["solve", "."], ".: Is a directory"),
    (["solve", "--votes", "absent.csv"], "absent.csv: No such file"),
    (["solve", "--votes", "."], ".: Is a directory"),
    (["solve", "two\nlines.json"], "two lines.json: No such file"),
    (["solve", "good.json", "more.json"], "unrecognized arguments: more.json"),
    (["solve", "good.json", "--bet", "1"], "unrecognized arguments: --bet: did you mean --beta?"),
    (["solve", "--voted", "good.csv"], "unrecognized arguments: --voted: did you mean --votes?"),
    (["score", "--data_", "rows"], "unrecognized arguments: --data_: did you mean --data?"),
    (["generate", "--max_new_tokens=3"], "--max_new_tokens=3: did you mean --max-new-tokens?"),
    (["train", "run.yaml", "--resum"], "unrecognized arguments: --resum: did you mean --resume?"),
    (["--verzion"], "unrecognized arguments: --verzion: did you mean --version?"),
    (["solve", "--beta", "1", "--beta=2"], "argument --beta: is given twice"),
    (["solve", "--json=1"], "argument --json: takes no value, got '1'"),
    (["verify", "--seed", "9" * 5000], "argument --seed: must be less than 2^31, got '999"),
    (["verify", "--instances", "1_0"], "must be a whole number of at least 1, got '1_0'"),
    (["solve", "--votes", "good.csv", "--beta", "1_0"], "must be a number greater than 0"),
    (["solve", "--votes", "good.csv", "--eta", "-1e5"], "must be a number at least 0, got '-1e5'"),
    (["solve", "good.json", "--beta", "0"], "argument --beta: must be a number greater"),
    (["solve", "good.json", "--context-weights", "uniform"], "argument --context-weights: goes"),
    (["solve", "good.json", "--formulation", "dual"], "argument --formulation: invalid choice"),
    (["solve", "--votes"], "argument --votes: expected one argument"),
    (["solve", "--votes", "good.csv", "--beta", "0"], "argument --beta: must be a number greater"),
    (["solve", "--votes", "good.csv", "--beta", "x"], "argument --beta: must be a number greater"),
    (["solve", "--votes", "good.csv", "--beta", "nan"], "argument --beta: must be a number"),
    (["solve", "--votes", "good.csv", "--eta", "-1"], "argument --eta: must be a number at least"),
    (["solve", "--votes", "good.csv", "--eta", "inf"], "argument --eta: must be a number at least"),
    (["solve", "--votes", "good.csv", "--reward-max", "0"], "argument --reward-max: must be"),
    (["solve", "--votes", "good.csv", "--baseline", "b"], "argument --baseline: invalid choice"),
    (["solve", "--votes", "good.csv", "--context-weights", "1"], "argument --context-weights: inv"),
]
CASES = [
    *((text, None, ["solve", "in.json"], message) for text, message in BAD_JSON),
    *((None, text, ["solve", "--votes", "in.csv"], message) for text, message in BAD_VOTES),
    *((None, None, argv, message) for argv, message in BAD_OPTIONS),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a valid file of each kind."""
    (tmp_path / "good.json").write_text(json.dumps(PROBLEM))
    (tmp_path / "good.csv").write_text(VOTES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("json_text", "csv_text", "argv", "message"), CASES)
def test_raises_one_line_exit_code_2_and_nothing_written(
    json_text: str | None,
    csv_text: str | None,
    argv: list[str],
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if json_text is not None:
        (folder / "in.json").write_text(json_text)
    if csv_text is not None:
        (folder / "in.csv").write_text(csv_text, "utf-8", "surrogateescape")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rpo: error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert message in err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_extreme_more_than_forty_errors_are_tried() -> None:
    assert len(CASES) >= 40


def command(monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], int]) -> None:
    """Replace ``rpo solve`` by a function of the test."""
    module: Any = types.ModuleType("rpo.commands.solve", "One line.")
    module.add_arguments, module.EXAMPLES = lambda parser: None, ()
    module.run = run
    monkeypatch.setitem(sys.modules, "rpo.commands.solve", module)


def test_property_exit_code_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, lambda args: 1)
    assert cli.main(["solve"]) == 1


@pytest.mark.parametrize(
    ("command", "handler"),
    [
        ("train", signal.SIG_DFL),
        ("study", signal.SIG_DFL),
        ("solve", signal.default_int_handler),
    ],
)
def test_property_libraries_cannot_swallow_the_interrupt_of_a_resumable_command(
    command: str, handler: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "_exit_soon", lambda code: None)
    monkeypatch.setattr(sys, "argv", ["rpo", command, "nothing.yaml"])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert program.run_program() == 2
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_raises_130_silently_when_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: Any) -> int:
        raise KeyboardInterrupt

    command(monkeypatch, interrupted)
    assert cli.main(["solve"]) == 130
    assert capsys.readouterr() == ("", "")


def test_raises_one_line_if_a_command_cannot_write(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def writes(args: Any) -> int:
        (tmp_path / "absent" / "out.json").write_text("")
        return 0

    command(monkeypatch, writes)
    assert cli.main(["solve"]) == 2
    err = capsys.readouterr().err
    assert err == f"rpo: error: {tmp_path / 'absent' / 'out.json'}: No such file or directory\n"


def test_raises_the_traceback_of_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(args: Any) -> int:
        raise ValueError("shapes do not match")

    command(monkeypatch, bug)
    with pytest.raises(ValueError, match="shapes"):
        cli.main(["solve"])


def python(code: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False
    )


def test_extreme_help_is_fast_and_loads_no_library() -> None:
    code = (
        "import sys, time; from rpo.cli import main; code = main(['--help'])\n"
        "heavy = {'jax', 'numpy', 'scipy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{code} {heavy or None} {time.process_time()}')"
    )
    done = python(code)
    exit_code, heavy, seconds = done.stderr.split()
    assert (exit_code, heavy) == ("0", "None")
    assert float(seconds) < HELP_CPU_SECONDS
    for name in cli.COMMANDS:
        assert name in done.stdout


def test_roundtrip_python_dash_m_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rpo", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("rpo ")
    assert done.stderr == ""


def test_extreme_a_closed_stdout_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "rpo", "--version"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # long before the interpreter has started
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_property_all_packages_lie_beside_the_command() -> None:
    cli.check_packages()


def test_raises_for_a_package_of_another_distribution(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def find_in_site_packages(name: str) -> importlib.machinery.ModuleSpec | None:
        if name != "bandits":
            return find(name)
        return importlib.machinery.ModuleSpec(name, None, origin="/site/bandits/__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", find_in_site_packages)
    assert cli.main(["--version"]) == 2
    assert "another distribution provides `bandits`" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(cli.UsageError, match="`rpo_theory` is missing"):
        cli.check_packages()


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e999", "", "one", "1,5"])
def test_raises_for_option_values_out_of_range(text: str) -> None:
    with pytest.raises(Exception, match="must be a number greater than 0"):
        number(0.0, inclusive=False)(text)


def test_limit_an_inclusive_bound_includes_itself() -> None:
    assert number(0.0, inclusive=True)("0") == 0.0
