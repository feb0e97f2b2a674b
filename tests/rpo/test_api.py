"""Claims about ``rpo.api``: every command is a function that computes and returns a result."""

from __future__ import annotations

import inspect
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import Parameter
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rpo
from bandits.environments.votes import read_votes
from bandits.study.config import StudyConfig
from llm.config import TrainConfig
from llm.train.trainer import InterruptedRunError
from rpo import api, results
from rpo.cli import COMMANDS, Parser, declare, main
from rpo.results import Answer, Claim, Evaluation, Reply, Scores, Verification
from rpo.results.base import MAX_TABLE_ROWS
from rpo.runtime.config_files import read_config
from rpo.runtime.processes import OPTIONS

VOTES = "context,winner,loser,count\nx,a,b,6\nx,b,a,2\nx,b,c,1\ny,<b>,a,3\n"
STUDY = """
name: small
methods: [{method: rpo, options: {baseline: given}}, {method: dpo}]
comparisons: [100, 1000]
seeds: 500
design: {actions: 4, rare: 1, target_coverage: 1.5, reward_max: 1.0}
"""
RUN = """
name: tiny
model:
  architecture: {vocab_size: 261, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1,
                 num_attention_heads: 2}
data: {train: rows.jsonl, tokenizer: bytes, max_length: 64}
objective: {method: rpo, beta: 0.1, eta: 1.0}
trainer: {max_steps: 50, per_device_train_batch_size: 4}
"""
ROWS = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(4)]
FILES = {
    "votes.csv": VOTES,
    "study.yaml": STUDY,
    "run.yaml": RUN,
    "rows.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
}
OTHER: Any = "other"


@pytest.fixture(autouse=True)
def as_in_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in a folder with the files, with JAX's default configuration."""
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


Call = Callable[..., Any]


@pytest.fixture
def silent(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a function and check that it writes neither to stdout nor to stderr."""

    def call(function: Call, *args: Any, **options: Any) -> Any:
        capsys.readouterr()
        result = function(*args, **options)
        assert capsys.readouterr() == ("", "")
        return result

    return call


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[Any, int]]:
    """Run a command with ``--json``; return the document that it prints, and its exit code."""

    def run(*arguments: str) -> tuple[Any, int]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        return json.loads(capsys.readouterr().out), code

    return run


def axes() -> Axes:
    return Figure(figsize=(6, 4)).subplots()


def check_table_and_figure(result: Any) -> str:
    """Check that the figure is drawn into the given axes and can be rendered; return the table."""
    ax = axes()
    assert result.plot(ax=ax) is ax
    assert ax.has_data()
    assert ax.figure is not None
    Figure.savefig(ax.figure.get_figure(root=True), "figure.png")
    table = result._repr_html_()
    assert table.startswith("<table>")
    return table


def test_property_every_command_is_a_function_with_explicit_arguments() -> None:
    for command in COMMANDS:
        function = getattr(api, command)
        assert function.__module__.startswith("rpo.api.")
        parameters = inspect.signature(function).parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        assert kinds <= {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}
        assert all(parameter.annotation is not Parameter.empty for parameter in parameters)


def test_property_every_option_of_a_command_is_an_argument_of_its_function() -> None:
    of_the_process = set(OPTIONS)
    for command in COMMANDS:
        parser = Parser(prog=command)
        declare(command, parser)
        options = {action.dest: action for action in parser._actions}
        if command == "study":  # three options, one argument
            formats = [options.pop(name) for name in ("format", "width", "style")]
            options["figures"] = formats[0]
        if command == "plan":  # it chooses between two functions
            options.pop("workload")
        axes = [name for name in options if name.startswith("mesh")]
        if axes:  # four options, one argument
            options["mesh"] = options[axes[0]]
            options = {name: action for name, action in options.items() if name not in axes}
        arguments = inspect.signature(getattr(api, command)).parameters
        extra = {"help", "json", "dry_run"} | (
            of_the_process if "processes" in arguments else set()
        )
        assert set(options) - extra == set(arguments) - {"overrides", "processes"}
        for name in set(options) & set(arguments):
            default, required = arguments[name].default, options[name].required
            assert (default is Parameter.empty) == required or name == "out", (
                command,
                name,
            )
            if default is not Parameter.empty and options[name].default is not None:
                same = (default, str(default))
                assert str(options[name].default) in map(str, same), (command, name)


def test_property_the_api_is_imported_without_jax_and_matplotlib() -> None:
    program = "import sys, rpo; rpo.api; sys.exit(str({'jax', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.stderr == b"set()\n"


def test_property_dir_of_the_packages_shows_public_names_only() -> None:
    assert dir(rpo) == ["api", "results"]
    assert set(COMMANDS) < set(dir(api))
    assert all(not name.startswith("_") for package in (rpo, api, results) for name in dir(package))


def test_property_an_answer_is_the_document_that_the_command_prints(
    silent: Call, printed: Callable[..., tuple[Any, int]]
) -> None:
    answer = silent(api.solve, votes=Path("votes.csv"), eta=0.05, context_weights="uniform")
    options = ["--votes", "votes.csv", "--eta", "0.05", "--context-weights", "uniform"]
    assert printed("solve", *options) == (answer.to_dict(), 0)
    assert answer.exit_code == 0
    assert answer.policy.shape == answer.reward.shape == (2, 4)
    assert np.allclose(answer.policy.sum(1), 1.0)
    assert 0 <= answer.duality_gap < 1e-9
    assert answer.ranking is not None
    assert list(answer.to_dict())[:3] == ["policy", "reward", "value"]
    table = check_table_and_figure(answer)
    assert "<td>&lt;b&gt;</td>" in table
    assert "<b>" not in table


def test_property_a_study_takes_files_and_objects_and_overrides_of_any_kind(
    silent: Call, printed: Callable[..., tuple[Any, int]]
) -> None:
    overrides = {"seeds": np.int64(3), "comparisons": [100, 400], "beta": np.array([0.1])}
    study = silent(api.study, "study.yaml", overrides, out="out/file")
    assert study.folder == Path("out/file")
    records = study.records
    assert records.num_rows == 12
    assert set(records["comparisons"].to_pylist()) == {100, 400}
    assert set(records["beta"].to_pylist()) == {0.1}
    assert "<th>design.target_coverage</th>" in check_table_and_figure(study)
    assert "gap_against_comparisons" in study.figure_kinds
    ax = axes()
    assert study.plot("gap_against_comparisons", ax=ax, label="rpo") is ax
    assert len(ax.lines) == 1
    with pytest.raises(ValueError, match="`label` must be one of rpo, dpo, got 'ipo'"):
        study.plot(label="ipo")
    with pytest.raises(ValueError, match="must be one that the study's axes allow, gap_against"):
        study.plot("phase_eta", ax=axes())

    config = read_config(Path("study.yaml"), StudyConfig)
    from_object = silent(api.study, config, overrides, out="out/object")
    assert from_object.records.equals(records)
    options = ["--seeds", "3", "--comparisons", "[100, 400]", "--beta", "[0.1]"]
    document, code = printed("study", "study.yaml", *options, "--out", "out/command")
    assert code == 0
    assert document == {**study.to_dict(), "out": "out/command"}
    with pytest.raises(ValueError, match="continue with --resume"):
        api.study("study.yaml", overrides, out="out/file")


def test_closed_form_an_estimate_counts_the_fits_and_writes_nothing(silent: Call) -> None:
    estimate = silent(api.estimate_study, "study.yaml", {"seeds": 4})
    assert (estimate.fits, estimate.parts) == (2 * 2 * 4, 1)
    assert estimate.seconds > 0
    assert estimate.to_dict()["seeds"] == 4
    assert not Path("out").exists()


@pytest.mark.slow
def test_property_a_run_is_trained_exported_scored_evaluated_and_answers(
    silent: Call, printed: Callable[..., tuple[Any, int]]
) -> None:
    config = read_config(Path("run.yaml"), TrainConfig)
    run = silent(api.train, config, {"trainer.max_steps": 2}, out=Path("out/run"))
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2]
    assert run.step == 2
    assert "<td>logps/chosen</td>" in check_table_and_figure(run)
    steps = ["--trainer.max_steps", "2"]
    document, _ = printed("train", "run.yaml", *steps, "--out", "out/command")
    assert document == {**run.to_dict(), "out": "out/command"}

    exported = silent(api.export, run.folder, out="policy")
    assert (exported.folder, exported.step) == (Path("policy"), 2)
    assert printed("export", "out/run", "--out", "same")[0] == {"out": "same", "step": 2}

    model: dict[str, Any] = {"model": "policy", "tokenizer": "bytes"}
    options = ["--model", "policy", "--tokenizer", "bytes"]
    scores = silent(api.score, **model, data="rows.jsonl", out="scores.jsonl")
    assert scores.records.column_names[:2] == ["row", "chosen_logp"]
    assert scores.n_rows == scores.records.num_rows == 4
    check_table_and_figure(scores)
    document, _ = printed("score", *options, "--data", "rows.jsonl", "--out", "scores.jsonl")
    assert document == scores.to_dict()

    measured = silent(
        api.evaluate,
        **model,
        reference="policy",
        data="rows.jsonl",
        reward=lambda prompt, reply: float(len(reply)),
        prompts=2,
        max_new_tokens=3,
    )
    assert measured.metrics["rewards/margins"] == 0.0
    assert measured.metrics["win_rate"] == 0.5
    check_table_and_figure(measured)
    Path("reward.py").write_text("def length(prompt, reply):\n    return float(len(reply))\n")
    options_of_reward = ["--reward", "reward.py:length", "--prompts", "2", "--max-new-tokens", "3"]
    arguments = [*options, "--reference", "policy", "--data", "rows.jsonl", *options_of_reward]
    assert printed("evaluate", *arguments)[0] == measured.to_dict()

    reply = silent(api.generate, **model, prompt="-- say", max_new_tokens=2)
    assert isinstance(reply.text, str)
    limit = ["--max-new-tokens", "2"]
    assert printed("generate", *options, "--prompt=-- say", *limit)[0] == reply.to_dict()
    replies = silent(api.generate, **model, data="rows.jsonl", out="replies", max_new_tokens=2)
    document, _ = printed("generate", *options, "--data", "rows.jsonl", "--out", "replies", *limit)
    assert document == replies.to_dict()


def test_closed_form_a_run_is_estimated_and_nothing_is_written(silent: Call) -> None:
    estimate = silent(api.estimate_train, "run.yaml", {"trainer.max_steps": 7})
    assert (estimate.pairs, estimate.pairs_per_step, estimate.steps) == (4, 4, 7)
    assert estimate.peak_bytes_per_device > 0
    assert not Path("out").exists()


def test_property_a_plan_is_that_of_the_library(
    silent: Call, printed: Callable[..., tuple[Any, int]]
) -> None:
    overrides = {"trainer.per_device_train_batch_size": 2}
    result = silent(api.plan, "run.yaml", "h100:8", overrides)
    assert (result.plan.devices, result.plan.pairs_per_device, result.plan.fits) == (8, 2, True)
    check_table_and_figure(result)
    options = ["--topology", "h100:8", "--trainer.per_device_train_batch_size", "2"]
    document, code = printed("plan", "run.yaml", *options)
    command = document.pop("command")
    assert command == "rpo train run.yaml --trainer.per_device_train_batch_size 2"
    assert (document, code) == (result.to_dict(), 0)


@pytest.mark.slow
def test_property_the_theorem_is_checked_and_the_records_are_in_the_folder(
    silent: Call, printed: Callable[..., tuple[Any, int]]
) -> None:
    checked = silent(api.verify, instances=2, out="out/verify")
    assert checked.holds
    assert len(checked.instances) == 2
    written = json.loads((checked.folder / "verify.json").read_text())
    assert written["claims"] == checked.to_dict()["claims"]
    assert check_table_and_figure(checked).count("<tr>") == 5
    assert printed("verify", "--instances", "2", "--out", "out/verify") == (checked.to_dict(), 0)


def test_property_a_failed_claim_is_reported_even_if_its_value_is_not_finite() -> None:
    claims = (Claim("a: b", 1e-6, math.nan, False), Claim("c", 1e-6, 1e-9, True))
    checked = Verification(claims, (), (), folder=Path("out"))
    assert not checked.holds
    assert checked.exit_code == 1
    assert checked.to_dict()["claims"][0]["measured"] is None
    assert "measured not a number" in claims[0].sentence
    ax = axes()
    checked.plot(ax)
    bars = [patch.get_width() for patch in ax.patches]  # pyright: ignore[reportAttributeAccessIssue]
    assert np.isnan(bars[0])
    assert bars[1] == pytest.approx(1e-3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "c"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: api.solve(votes="votes.csv", eta=-1), "`eta` must be a number at least 0, got -1"),
        (lambda: api.solve(votes="votes.csv", beta=0), "`beta` must be a number greater than 0"),
        (lambda: api.solve(votes="votes.csv", baseline=OTHER), "`baseline` must be one of"),
        (lambda: api.solve("p.json", formulation=OTHER), "`formulation` must be one of"),
        (lambda: api.solve("p.json", context_weights="uniform"), "argument --context-weights: go"),
        (lambda: api.solve(), "give either a problem file or --votes"),
        (lambda: api.solve(votes="none.csv"), "none.csv: No such file or directory"),
        (lambda: api.verify(instances=0), "`instances` must be a whole number of at least 1"),
        (lambda: api.verify(seed=-1), "`seed` must be a whole number of at least 0"),
        (lambda: api.train("run.yaml", {"objective.etas": 1}), "unknown key"),
        (lambda: api.study("study.yaml", {"etas": 1}), "unknown key"),
        (lambda: api.study("none.yaml"), "none.yaml: No such file or directory"),
        (lambda: api.plan("run.yaml", "h100:8", {"trainer.max_steps": "x"}), "max_steps"),
        (lambda: api.score(model="m", data="d", out="o", batch_size=0), "`batch_size` must be"),
        (lambda: api.score(model="m", data="d", out="o", dtype=OTHER), "`dtype` must be one of"),
        (lambda: api.evaluate(model="m", reference="r", data="d", beta=0), "`beta` must be"),
        (lambda: api.evaluate(model="m", reference="r"), "give either --data or --judgments"),
        (lambda: api.export("none", out="x"), "none: no training run is there"),
        (lambda: api.ProcessGroup(process_id=1), "argument --process-id: must be less than"),
    ],
)
def test_raises_value_error_with_the_message_of_the_command(call: Call, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
    assert not Path("out").exists()


def test_property_an_object_with_a_wrong_override_names_its_class() -> None:
    config = read_config(Path("study.yaml"), StudyConfig)
    with pytest.raises(ValueError, match=r"StudyConfig: .*seeds"):
        api.study(config, {"seeds": "many"})


def test_property_a_problem_without_a_solution_has_an_exit_code_and_a_status() -> None:
    problem = {
        "context_weights": [1.0],
        "reference_policy": [[0.5, 0.5]],
        "baseline_policy": "reference",
        "comparisons": [[0, 0, 1, 1]],
        "beta": 0.1,
        "eta": 0,
        "reward_class": {"kind": "unbounded"},
    }
    Path("problem.json").write_text(json.dumps(problem))
    answer = api.solve("problem.json")
    assert answer.exit_code == main(["solve", "problem.json"])
    assert answer.stationarity_residual is not None
    assert answer.duality_gap == math.inf
    assert answer._repr_html_().startswith("<table>")


def test_property_messages_go_to_the_log_and_the_command_shows_them(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO):
        api.study("study.yaml", {"seeds": 2}, out="out/api")
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("rpo")]
    assert any("mean gap (95 % interval)" in message for message in messages)
    assert messages[-1].startswith("written to out/api: records.parquet")
    capsys.readouterr()
    assert main(["study", "study.yaml", "--seeds", "2", "--out", "out/api", "--resume"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == messages[-1]


def test_property_a_run_that_was_stopped_leaves_with_143_and_its_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any, **options: Any) -> None:
        raise InterruptedRunError("stopped after step 3: continue with --resume")

    monkeypatch.setattr("rpo.jobs.training.run_training", stopped)
    with pytest.raises(InterruptedRunError, match="stopped after step 3"):
        api.train("run.yaml")
    assert main(["train", "run.yaml"]) == 143
    assert capsys.readouterr() == ("", "stopped after step 3: continue with --resume\n")


def test_property_a_plot_without_axes_makes_new_ones() -> None:
    with mpl.rc_context({"backend": "agg"}):
        from matplotlib import pyplot

        counted = Evaluation({"wins": 3, "ties": 1, "losses": 2, "win_rate": 0.58})
        ax = counted.plot()
        assert [patch.get_height() for patch in ax.patches] == [3, 1, 2]  # pyright: ignore[reportAttributeAccessIssue]
        pyplot.close("all")


def test_property_tables_show_the_first_rows_and_short_cells(tmp_path: Path) -> None:
    lines = [{"row": i, "chosen_logp": -1.0, "rejected_logp": -2.0} for i in range(120)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Scores(tmp_path / "s.jsonl", 120)._repr_html_()
    assert table.count("<tr>") == 1 + MAX_TABLE_ROWS
    assert table.endswith("<p>… 70 more rows</p>")
    long = Reply("&" * 200, True, 200)._repr_html_()
    assert "&amp;" * 79 + "…" in long


def test_closed_form_numbers_that_are_not_finite_are_null_in_the_document() -> None:
    answer = Answer(
        policy=np.array([[0.5, 0.5]]),
        reward=np.array([[0.0, -np.inf]]),
        value=math.nan,
        duality_gap=math.inf,
        kkt_residual=0.0,
        policy_kl_bound=math.inf,
        policy_tv_bound=1.0,
        stationarity_residual=0.0,
        status="not_attained",
        message="",
        formulation="minimax",
        beta=1.0,
        eta=1.0,
        comparisons=1.0,
        observations=1.0,
        gap=0.0,
        coverage=math.inf,
    )
    document = answer.to_dict()
    assert document["reward"] == [[0.0, None]]
    assert document["value"] is document["duality_gap"] is document["coverage"] is None
    json.dumps(document, allow_nan=False)
    ax = axes()
    assert answer.plot(ax) is ax


def test_raises_for_problems_and_votes_of_another_kind() -> None:
    votes = read_votes("votes.csv")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"votes": votes}, "`votes` must be the path of a file, got Votes"),
        ({"problem": votes}, "`problem` must be a path, a mapping, a Problem or an array of win c"),
        ({"problem": b"p.json"}, "`problem` must be a path, a mapping, a Problem or an array of"),
        ({"problem": [[[0, 1], [1]]]}, "`wins` must hold rows of equal lengths"),
        ({"problem": votes.wins, "baseline": votes.wins[0]}, "`baseline` must be one of 'chosen'"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError) as caught:
            inspect.unwrap(api.solve)(**arguments)
        assert str(caught.value).startswith(message)
