"""Kinds of studies beside the comparison of methods: their files, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from bandits.rounds import online
from rpo import api
from rpo.cli import main
from rpo.jobs.study_kinds import KINDS, config_class
from rpo.results import StudyKindEstimate, StudyKindResult
from rpo.runtime.config_files import read_kind

FILES = {
    "minimax_regret": """
kind: minimax_regret
name: small
methods: [{method: behavior_cloning}]
comparisons: [2, 4]
margins: [0.5, 1.0]
reward_max: 2.0
""",
    "laws": """
kind: laws
name: small
methods: [best_of_n]
comparisons: [50]
seeds: 6
resamples: 99
design: {actions: 3}
""",
    "rounds": """
kind: rounds
name: small
methods: [behavior_cloning]
rounds: 3
seeds: 2
design: {actions: 2}
""",
}


def written(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.yaml"
    path.write_text(FILES[kind])
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_roundtrip_a_study_of_every_kind_runs_and_its_configuration_runs_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *args, **keys: None)  # slow; drawn elsewhere
    out = tmp_path / "out"
    arguments = ["study", str(written(tmp_path, kind)), "--out", str(out), "--json"]
    assert main([*arguments, "--table", "--format", "pdf", "--width", "jmlr"]) == 0
    document = json.loads(capsys.readouterr().out)
    figures = {name.removesuffix(".pdf") for name in document["written"] if name.endswith(".pdf")}
    captions = json.loads((out / "captions.json").read_text())
    assert set(captions) == figures | {"table"}
    assert "seeds" in captions["table"]
    assert captions["table"] in (out / "table.md").read_text()
    assert (document["study"], document["kind"]) == ("small", kind)
    assert all((out / name).is_file() for name in document["written"])
    monkeypatch.setattr("rpo.jobs.kind_estimates._seconds", lambda run: 2.0)
    estimate = api.estimate_study(written(tmp_path, kind))
    assert isinstance(estimate, StudyKindEstimate)
    names = {name.removesuffix(".pdf") for name in document["written"]}
    assert set(estimate.files) == names - {"table.tex", "table.csv", "table.md"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["config"]["kind"] == kind
    again = api.study(out / "config.yaml", out=tmp_path / "again")
    assert isinstance(again, StudyKindResult)
    assert set(again.figure_kinds) == figures
    assert not (again.folder / "table.tex").exists()  # a table is written if asked
    for figure_kind in again.figure_kinds:
        ax = Figure().subplots()
        assert again.plot(figure_kind, ax=ax) is ax
        assert ax.lines
    assert again.records.equals(pq.read_table(out / "records.parquet"))
    assert list(again.table_rows()) == summary["rows"]
    # In the same folder it runs again only if asked, and only the same study.
    for arguments, message in (
        ((), "results of a study are there already: run it again with --resume"),
        (("--resume", "--name", "other"), "holds results of another study"),
    ):
        assert main(["study", str(tmp_path / f"{kind}.yaml"), "--out", str(out), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["study", str(tmp_path / f"{kind}.yaml"), "--out", str(out), "--resume"]) == 0


def test_closed_form_a_dry_run_counts_fits_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rpo.jobs.kind_estimates._seconds", lambda run: 2.0)
    out = tmp_path / "out"
    for kind, overrides, shown in (
        # 3 and 5 outcomes of 2 and 4 comparisons of one pair.
        ("minimax_regret", {}, "8 fits: the duration is not estimated"),
        # Twice the trial's seeds and numbers of comparisons; a fit of best-of-n has all its n.
        ("laws", {"seeds": 100, "comparisons": [50, 60]}, "200 fits: about 8 s, without comp"),
        ("rounds", {"rounds": 30}, "60 fits: about 20 s, without compilation"),
    ):
        path = written(tmp_path, kind)
        changes = [f"--{name}={value}" for name, value in overrides.items()]
        assert main(["study", str(path), "--out", str(out), "--dry-run", *changes]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["kind"] == kind
        assert shown in captured.err
        assert f"would write to {out}: records.parquet, " in captured.err
        estimate = api.estimate_study(path, overrides)
        assert isinstance(estimate, StudyKindEstimate)
        assert estimate.fits == int(shown.split()[0])
    assert not out.exists()


def test_roundtrip_an_interrupted_study_continues_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *args, **keys: None)
    path, one, out = written(tmp_path, "rounds"), tmp_path / "one", tmp_path / "out"
    path.write_text(
        path.read_text().replace("[behavior_cloning]", "[behavior_cloning, greedy_mle]")
    )
    command = ["study", str(path), "--out"]
    assert main([*command, str(one)]) == 0
    play, played = online.play_rounds, []

    def interrupted(instance: Any, method: Any, config: Any, seeds: Any) -> Any:
        played.append(method.method)
        if played == ["behavior_cloning", "greedy_mle"]:
            raise KeyboardInterrupt
        return play(instance, method, config, seeds)

    monkeypatch.setattr("bandits.rounds.run.play_rounds", interrupted)
    assert main([*command, str(out)]) == 130
    assert (out / "steps" / "parts" / "000000.parquet").is_file()
    for arguments, message in (
        ((), "results of this study are there already: continue with --resume"),
        (("--resume", "--seeds", "3"), "results of another study (`seeds` was 2, is 3)"),
    ):
        assert main([*command, str(out), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, str(out), "--resume"]) == 0
    assert "continuing an interrupted study: 1 of its steps are there" in capsys.readouterr().err
    assert played == ["behavior_cloning", "greedy_mle", "greedy_mle"]
    for name in ("records.parquet", "summary.json"):
        assert (out / name).read_bytes() == (one / name).read_bytes()
    assert not (out / "steps").exists()


def test_closed_form_the_kind_selects_the_configuration(tmp_path: Path) -> None:
    names = {kind: config_class(kind).__name__ for kind in (None, *KINDS)}
    assert names[None] == "StudyConfig"
    assert names["rounds"] == "RoundsConfig"
    assert read_kind(written(tmp_path, "laws")) == "laws"


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("kind: turns\nname: a\n", (), "`kind` must be one of minimax_regret, laws, rounds, or be"),
        (FILES["rounds"], ("--rounds", "0"), "`rounds` must be"),
        (FILES["rounds"] + "seed: 3\n", (), "unknown key `seed`: did you mean `seeds`?"),
        (
            FILES["rounds"],
            (
                *("--num-processes", "2", "--process-id", "0", "--initialization-timeout", "1"),
                *("--coordinator-address", "127.0.0.1:1"),
            ),
            "a study of the kind rounds runs in one process",
        ),
    ],
)
def test_raises_in_one_line(
    text: str, arguments: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    assert main(["study", str(path), "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


MISTAKES = """
def raising(wins):
    raise RuntimeError("no license")
"""


@pytest.mark.parametrize("kind", ["minimax_regret", "rounds"])
def test_raises_in_one_line_if_a_method_gives_no_policy(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mistakes_of_kinds.py").write_text(MISTAKES)
    path = written(tmp_path, kind)
    path.write_text(path.read_text().replace("behavior_cloning", "'mistakes_of_kinds:raising'"))
    assert main(["study", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rpo: error: the method raising gave no policy in ")
    assert error.endswith(" fits: RuntimeError: no license\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "lines", "notes"),
    [
        (
            "laws",
            "baseline: reference\neta: [0.2]",
            ["`eta` has no effect", "`baseline` has no ef"],
        ),
        (
            "rounds",
            "environment: named:four_arms\neta: 0.2",
            ["`eta` has no effect", "`design.actions` has no effect: the environment"],
        ),
    ],
)
def test_property_keys_without_effect_are_noted_and_no_table_is_written_unasked(
    kind: str,
    lines: str,
    notes: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *args, **keys: None)
    path = written(tmp_path, kind)
    path.write_text(path.read_text() + lines + "\n")
    with caplog.at_level("INFO"):
        result = api.study(path, out=tmp_path / "out", quick=True)
    found = [text.removeprefix("note: ") for text in caplog.messages if text.startswith("note: ")]
    assert len(found) == len(notes)
    assert all(text.startswith(note) for text, note in zip(found, notes, strict=True))
    assert "small: --quick has no effect: the study has no key `quick`" in caplog.messages
    assert not [name for name in result.files if name.startswith("table.")]
