"""Claims about the data of a run: what is held out, repeated, passed over, and digested."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llm.config import DataConfig, DataSource, ModelConfig, ObjectiveConfig, TrainConfig
from llm.hf.factory import ResolvedModel, resolve_model
from llm.train.dataset import TrainingData, load_training_data
from llm.train.row_locations import row_location
from llm.train.run_notes import describe_inputs

TINY = {"vocab_size": 261, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model() -> ResolvedModel:
    return resolve_model(ModelConfig(architecture={**TINY, "num_attention_heads": 2}))


def write(path: Path, *prompts: str, **more: Any) -> str:
    rows = [{"prompt": text, "chosen": "yes", "rejected": "no", **more} for text in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(model: ResolvedModel, train: Any, **options: Any) -> TrainingData:
    return load_training_data(DataConfig(train=train, max_length=32, **options), model)


def test_closed_form_prompts_for_evaluation_that_occur_in_training_are_counted(
    model: ResolvedModel, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", "a", "b", "c", "b", "a", "d")
    held_out = load(model, rows, eval_rows=3)
    assert held_out.report["eval_prompts_in_training"] == 2
    assert held_out.report["rows_repeated"] == 0
    assert any(note.startswith("2 of 3 rows for evaluation") for note in held_out.notes)
    other = write(tmp_path / "other.jsonl", "e", "c ")
    assert load(model, rows, eval=other).report["eval_prompts_in_training"] == 1
    assert load(model, rows, eval=other).report["rows_repeated"] == 2
    assert load(model, [rows], eval=write(tmp_path / "new.jsonl", "e")).notes == ()


def test_raises_for_rows_that_are_training_and_evaluation_data(
    model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write(tmp_path / "rows.jsonl", "a", "b")
    other = write(tmp_path / "other.jsonl", "c")
    (tmp_path / "link.jsonl").symlink_to(rows)
    shutil.copy(rows, tmp_path / "copy.jsonl")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.jsonl").symlink_to(rows)
    monkeypatch.chdir(tmp_path)
    for train, evaluation in (
        (rows, rows),
        (rows, "rows.jsonl"),
        ("./rows.jsonl", "link.jsonl"),
        ([other, rows], "rows.jsonl"),
        ("shards", ["rows.jsonl"]),
        (rows, "copy.jsonl"),
    ):
        with pytest.raises(
            ValueError, match=r"^`data\.eval` must be other rows than `data\.train`"
        ):
            load(model, train, eval=evaluation)


def test_property_the_digest_of_the_data_is_of_contents_and_not_of_names(
    model: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write(tmp_path / "rows.jsonl", "a", "b")
    other = write(tmp_path / "other.jsonl", "c")
    first = load(model, [rows, other])
    monkeypatch.chdir(tmp_path)
    assert load(model, ["rows.jsonl", "other.jsonl"]).provenance == first.provenance
    (tmp_path / "rows.jsonl").rename("renamed.jsonl")
    assert load(model, ["renamed.jsonl", "other.jsonl"]).provenance == first.provenance
    write(tmp_path / "other.jsonl", "d")  # the last file of a list counts too
    assert load(model, ["renamed.jsonl", "other.jsonl"]).provenance != first.provenance
    questions = [{"question": "a", "chosen": "yes", "rejected": "no", "text": "c"}]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    digests = [
        load(model, "questions.json", columns={"prompt": name, other: "ignore"}).provenance["data"]
        for name, other in (("question", "text"), ("text", "question"))
    ]
    assert digests[0] != digests[1]


def test_roundtrip_notes_and_locations_name_columns_and_lines(
    model: ResolvedModel, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", "a", "b", id=7, source="mine")
    more = tmp_path / "more.jsonl.gz"
    more.write_bytes(b"\n\n" + Path(write(tmp_path / "plain.jsonl", "c", "d")).read_bytes())
    more.write_bytes(gzip.compress(more.read_bytes()))
    config = DataConfig(train=[rows], eval=[str(more)], max_length=32)
    data = load_training_data(config, model)
    assert data.notes == ("columns passed over: id (2 rows), source (2 rows)",)
    assert data.evaluation.rows.tolist() == [2, 3]
    found = [row_location(config, row, n_train_rows=data.report["rows"]) for row in range(4)]
    assert found == [f"{rows}:1", f"{rows}:2", f"{more}:3", f"{more}:4"]
    assert row_location(config, 9, n_train_rows=2) == f"row 7 of {more}"


def test_property_columns_that_an_objective_does_not_use_are_named(
    model: ResolvedModel, tmp_path: Path
) -> None:
    given = {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0, "ref_baseline_logps": -1.5}
    rows = write(tmp_path / "rows.jsonl", "a", "b", baseline="perhaps", **given)
    data = load(model, rows)
    unused_by: dict[str, list[str]] = {
        "rpo": [],
        "sft": ["the reference log-probabilities of the rows have no effect"],
        "dpo": ["the baseline responses of the rows enter the metrics only"],
    }
    for method, unused in unused_by.items():
        config = TrainConfig(
            name="a",
            model=ModelConfig(path="m"),
            data=DataConfig(train=rows),
            objective=ObjectiveConfig(method=method),
        )
        found = [note for note in describe_inputs(config, data) if " of the rows " in note]
        assert [note.split(":")[0] for note in found] == unused


def test_closed_form_a_mixture_has_its_shares_of_every_epoch(
    model: ResolvedModel, tmp_path: Path
) -> None:
    first = write(tmp_path / "first.jsonl", *"abcdefgh")
    second = tmp_path / "second.jsonl"
    questions = [{"question": text, "chosen": "y", "rejected": "n"} for text in "ijkl"]
    second.write_text("".join(json.dumps(row) + "\n" for row in questions))
    parts = [
        DataSource(path=first, weight=0.75),
        DataSource(path=str(second), weight=0.25, columns={"prompt": "question"}),
    ]
    data = load(model, parts)
    assert data.mixture == ((0, 8, 8), (8, 12, 2))
    assert data.train.rows.tolist() == list(range(12))
    assert data.report["rows"] == 12
    assert f"{second}: 2 of 4 pairs in an epoch" in data.notes
    config = DataConfig(train=parts, max_length=32)
    assert row_location(config, 9, n_train_rows=12) == f"{second}:2"
    counted = load(model, [DataSource(path=first, rows=10), *parts[1:2]][:1])
    assert counted.mixture == ((0, 8, 10),)
    assert f"{first}: 10 of 8 pairs in an epoch, some of them repeated" in counted.notes
    digests = {
        load(model, [DataSource(path=first, rows=rows)]).provenance["data"] for rows in (8, 9)
    } | {load(model, first).provenance["data"]}
    assert len(digests) == 3


def test_closed_form_named_sets_are_counted_and_kept_apart(
    model: ResolvedModel, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", "a", "b")
    sets = {
        "new": write(tmp_path / "new.jsonl", "c", "d", "e"),
        "seen": [write(tmp_path / "seen.jsonl", "a"), write(tmp_path / "more.jsonl", "f")],
    }
    data = load(model, rows, eval=sets)
    assert {name: table.rows.tolist() for name, table in data.evaluation_sets.items()} == {
        "new": [2, 3, 4],
        "seen": [5, 6],
    }
    assert (data.report["eval_new_rows"], data.report["eval_seen_rows"]) == (3, 2)
    assert data.report["eval_prompts_in_training"] == 1
    config = DataConfig(train=rows, eval=sets, max_length=32)
    assert row_location(config, 6, n_train_rows=2) == f"{sets['seen'][1]}:1"
    plain = load(model, rows, eval=[sets["new"]])
    assert list(plain.evaluation_sets) == [""]
    assert plain.provenance["data"] != data.provenance["data"]


def test_raises_for_a_mixture_with_an_empty_or_repeated_part(
    model: ResolvedModel, tmp_path: Path
) -> None:
    rows = write(tmp_path / "rows.jsonl", "a", "b")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        load(model, [DataSource(path=rows), DataSource(path=str(empty))])
    with pytest.raises(ValueError, match=r"rows\.jsonl is the same file as"):
        load(model, [DataSource(path=rows, weight=1.0), DataSource(path=rows, weight=2.0)])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "", "chosen": "a", "rejected": "a"}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl: no row is left to train on: "):
        load(model, [DataSource(path=rows), DataSource(path=str(bad))], on_error="skip")
