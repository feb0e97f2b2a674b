"""Claims about `rpo.api`: each command as one call, its result typed, shown and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rpo import api, results
from rpo.cli import COMMANDS, main
from rpo.results import Answer, Evaluation, Result, Scores, Verification

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


def write(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).write_text(content)


@pytest.fixture(autouse=True)
def as_in_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder with the files, with JAX as a caller has it."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        yield


def axes() -> Axes:
    return Figure(figsize=(6, 4)).subplots()


def check_shown_and_drawn(result: Any) -> str:
    """The table; the figure is drawn where it is asked to be, and can be rendered."""
    ax = axes()
    assert result.plot(ax) is ax
    assert ax.has_data()
    assert ax.figure is not None
    Figure.savefig(ax.figure.get_figure(root=True), "drawn.png")
    table = result._repr_html_()
    assert table.startswith("<table>")
    return table


def test_property_every_command_is_a_call() -> None:
    assert all(callable(getattr(api, command)) for command in COMMANDS)


def test_property_a_call_answers_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = api.solve(votes=Path("votes.csv"), eta=0.05, context_weights="uniform")
    assert capsys.readouterr().out == ""
    words = ["--votes", "votes.csv", "--eta", "0.05", "--context-weights", "uniform"]
    assert main(["solve", *words]) == 0
    assert answer.document == json.loads(capsys.readouterr().out)
    assert answer.code == 0
    assert answer.policy.shape == answer.reward.shape == (2, 4)
    assert np.allclose(answer.policy.sum(1), 1.0)
    assert 0 <= answer.duality_gap < 1e-9
    table = check_shown_and_drawn(answer)
    assert "<td>&lt;b&gt;</td>" in table
    assert "<b>" not in table


def test_property_a_study_is_records_and_a_figure_with_overrides_of_any_kind() -> None:
    overrides = {"seeds": np.int64(3), "comparisons": [100, 400], "beta": np.array([0.1])}
    study = api.study("study.yaml", overrides, out="out/mine")
    assert study.folder == Path("out/mine")
    records = study.records
    assert records.num_rows == 12
    assert set(records["comparisons"].to_pylist()) == {100, 400}
    assert set(records["beta"].to_pylist()) == {0.1}
    assert "<th>design.target_coverage</th>" in check_shown_and_drawn(study)
    with pytest.raises(ValueError, match="results of this study are there already"):
        api.study("study.yaml", overrides, out="out/mine")


@pytest.mark.slow
def test_property_a_run_is_trained_scored_evaluated_answered_and_exported() -> None:
    run = api.train("run.yaml", {"trainer.max_steps": 2}, out=Path("out/run"))
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2]
    assert run.document["event"] == "finished"
    assert "<td>logps/chosen</td>" in check_shown_and_drawn(run)
    exported = api.export(run.folder, out="policy")
    assert exported.document == {"out": "policy", "step": 2}
    assert exported._repr_html_().startswith("<table>")
    model: dict[str, Any] = {"model": "policy", "tokenizer": "bytes"}
    scores = api.score(**model, data="rows.jsonl", out="scores.jsonl")
    assert scores.records.column_names[:2] == ["row", "chosen_logp"]
    assert scores.records.num_rows == 4
    check_shown_and_drawn(scores)
    measured = api.evaluate(**model, reference="policy", data="rows.jsonl")
    assert measured.document["rewards/margins"] == 0.0
    check_shown_and_drawn(measured)
    answer = api.generate(**model, prompt="-- say", max_new_tokens=2)
    assert isinstance(answer.document["text"], str)


def test_property_a_plan_is_the_plan_of_the_library() -> None:
    found = api.plan("run.yaml", "h100:8", {"trainer.per_device_train_batch_size": 2})
    assert (found.plan.devices, found.plan.pairs_per_device, found.plan.fits) == (8, 2, True)
    check_shown_and_drawn(found)


@pytest.mark.slow
def test_property_the_theorem_is_checked_and_the_records_are_in_the_folder() -> None:
    checked = api.verify(instances=2, out="out/verify")
    assert checked.holds
    assert (checked.folder / "verify.json").is_file()
    assert check_shown_and_drawn(checked).count("<tr>") == 5


def test_property_a_claim_that_fails_is_seen_also_where_nothing_finite_was_measured() -> None:
    claims: list[dict[str, Any]] = [
        {"name": "a: b", "bar": 1e-6, "measured": None, "holds": False},
        {"name": "c", "bar": 1e-6, "measured": 1e-9, "holds": True},
    ]
    failed = Verification({"claims": claims, "out": "."}, 1)
    assert not failed.holds
    check_shown_and_drawn(failed)


@pytest.mark.slow
def test_property_the_demo_is_a_call_and_its_report_is_in_the_folder() -> None:
    shown = api.demo(out="out/demo")
    assert shown.holds
    assert (shown.folder / "report.html").is_file()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: api.solve(votes="votes.csv", etas=1), "unrecognized arguments: --etas=1"),
        (lambda: api.solve(votes="votes.csv", eta=-1), "argument --eta: must be a number"),
        (lambda: api.solve(votes="none.csv"), "none.csv: No such file or directory"),
        (lambda: api.train("run.yaml", {"objective.etas": 1}), "unknown key"),
        (lambda: api.study("study.yaml", etas=1), "unknown key"),
        (lambda: api.study("study.yaml", dry_run=True), "`dry_run` is for `rpo study` in a shell"),
        (lambda: api.plan("run.yaml", "h100:8", {"trainer.max_steps": "x"}), "max_steps"),
    ],
)
def test_raises_a_mistake_as_the_command_tells_it(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)


def test_property_a_problem_without_an_answer_is_told_by_its_code() -> None:
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
    assert answer.code == main(["solve", "problem.json"])
    assert answer._repr_html_().startswith("<table>")


def test_property_a_run_that_was_stopped_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "run_command", lambda words: 143)
    with pytest.raises(KeyboardInterrupt, match="rpo train was stopped"):
        api.train("run.yaml")


def test_property_a_plot_without_axes_makes_its_own() -> None:
    with mpl.rc_context({"backend": "agg"}):
        from matplotlib import pyplot

        counted = Evaluation({"wins": 3, "ties": 1, "losses": 2, "win_rate": 0.58}, 0)
        ax = counted.plot()
        assert [patch.get_height() for patch in ax.patches] == [3, 1, 2]  # pyright: ignore[reportAttributeAccessIssue]
        pyplot.close("all")


def test_property_tables_show_the_first_of_many_rows_and_short_cells(tmp_path: Path) -> None:
    lines = [{"row": i, "chosen_logp": -1.0, "rejected_logp": -2.0} for i in range(120)]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = Scores({"out": str(tmp_path / "s.jsonl")}, 0)._repr_html_()
    assert table.count("<tr>") == 1 + results.MOST_ROWS
    assert table.endswith("<p>… 70 more rows</p>")
    long = Result({"text": "&" * 200}, 0)._repr_html_()
    assert "&amp;" * 79 + "…" in long


def test_closed_form_what_is_not_proven_has_an_infinite_gap_and_what_is_not_finite_is_nan() -> None:
    document = {"policy": [[0.5, 0.5]], "reward": [[0.0, None]], "duality_gap": None}
    answer = Answer(document, 0)
    assert answer.duality_gap == np.inf
    assert np.isnan(answer.reward[0, 1])
    ax = axes()
    assert answer.plot(ax) is ax
