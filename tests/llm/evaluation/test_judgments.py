"""Win counts from the verdicts of a judge, against counts by hand; invalid files."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm.evaluation.judgments import (
    Verdict,
    WinCounts,
    count_wins,
    read_judgment_file,
    read_judgments,
)

MT_BENCH: dict[str, Any] = {
    "question_id": 81,
    "model_1": "a",
    "model_2": "b",
    "g1_winner": "model_1",
    "g2_winner": "model_1",
    "judge": ["gpt-4", "pair-v2"],
    "turn": 1,
}
ALPACA: dict[str, Any] = {
    "instruction": "Say hello.",
    "output_1": "no",
    "output_2": "Hello\n\nto you",
    "generator_1": "a",
    "generator_2": "b",
    "preference": 2.0,
}


def mt_bench(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(MT_BENCH | row) + "\n" for row in rows))
    return path


def alpaca(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps([ALPACA | row for row in rows], indent=2))
    return path


def test_closed_form_mt_bench_wins_need_both_orders(tmp_path: Path) -> None:
    winners: Sequence[tuple[str, str]] = [
        ("model_1", "model_1"),  # won
        ("model_2", "model_2"),  # lost
        ("model_1", "model_2"),  # each order favors the answer read first: tie
        ("tie", "model_1"),  # tie
        ("tie", "tie"),  # tie
        ("model_2", "model_2"),  # lost
        ("model_1", "error"),  # left out
    ]
    rows = [
        {"question_id": i, "g1_winner": g1, "g2_winner": g2} for i, (g1, g2) in enumerate(winners)
    ]
    verdicts = read_judgments(mt_bench(tmp_path, *rows))
    assert count_wins(verdicts, "a", "b") == WinCounts(
        1, 3, 2, disagreements=2, both_orders=6, errors=1
    )
    assert count_wins(verdicts, "b", "a") == WinCounts(
        2, 3, 1, disagreements=2, both_orders=6, errors=1
    )
    assert count_wins(verdicts, "a", "b").win_rate() == 2.5 / 6


def test_closed_form_mt_bench_counts_follow_up_questions_separately(tmp_path: Path) -> None:
    lost = {"turn": 2, "g1_winner": "model_2", "g2_winner": "model_2"}
    counts = count_wins(read_judgments(mt_bench(tmp_path, {}, lost)), "a", "b")
    assert counts[:3] == (1, 0, 1)


def test_closed_form_alpaca_eval_prefers_the_second_answer_above_one_and_a_half(
    tmp_path: Path,
) -> None:
    preferences = [1.0, 2, 1.5, 0, 1.499, 1.9, None, math.nan]
    rows = [{"instruction": str(i), "preference": p} for i, p in enumerate(preferences)]
    base = {name: value for name, value in ALPACA.items() if name != "preference"}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([*(ALPACA | row for row in rows), base]))
    counts = count_wins(read_judgments(path), "b", "a")
    assert counts == WinCounts(2, 2, 2, disagreements=0, both_orders=0, errors=3)


def test_closed_form_every_annotation_of_alpaca_eval_is_a_question(tmp_path: Path) -> None:
    swapped = {"generator_1": "b", "generator_2": "a"}
    rows = [
        {"instruction": "same", "preference": 2.0},
        {"instruction": "same", "preference": 1.0} | swapped,
        {"instruction": "same", "preference": 1.6},
        {"instruction": "place", "preference": 1.0},
        {"instruction": "place", "preference": 1.0} | swapped,
        {"instruction": "same", "generator_1": "c"},
    ]
    file = read_judgment_file(alpaca(tmp_path, *rows))
    counts = count_wins(file.verdicts, "b", "a")
    assert counts == WinCounts(4, 0, 1, disagreements=0, both_orders=0, errors=0)
    assert file.repeated == 3  # the last row compares other models


def test_closed_form_a_repeated_line_of_mt_bench_counts_again(tmp_path: Path) -> None:
    swapped = {"model_1": "b", "model_2": "a", "g1_winner": "model_2", "g2_winner": "model_2"}
    lost = {"g1_winner": "model_2", "g2_winner": "model_2"}
    file = read_judgment_file(mt_bench(tmp_path, {}, {}, swapped, lost, {"turn": 2}))
    assert count_wins(file.verdicts, "a", "b")[:3] == (4, 0, 1)
    assert file.repeated == 3


def test_property_fields_that_nothing_reads_are_listed_once(tmp_path: Path) -> None:
    rows = [{}, {"my_note": 1}, {"my_note": 2, "weight": 0.5}]
    assert read_judgment_file(mt_bench(tmp_path, *rows)).passed_over == ["my_note", "weight"]
    assert read_judgment_file(alpaca(tmp_path, *rows)).passed_over == ["my_note", "weight"]
    # AlpacaEval as JSON lines, MT-Bench as a list.
    (tmp_path / "a.jsonl").write_text(json.dumps(ALPACA | {"weight": 0.5}))
    (tmp_path / "m.json").write_text(json.dumps([MT_BENCH | {"my_note": 1}]))
    assert read_judgment_file(tmp_path / "a.jsonl")[3:] == (0, ["weight"])
    assert read_judgment_file(tmp_path / "m.json")[3:] == (0, ["my_note"])


def test_closed_form_repeated_verdicts_of_an_order_are_averaged() -> None:
    votes = [Verdict("q", "a", "b", share, "f:1") for share in (1.0, 0.8, 0.0)]
    assert count_wins(votes, "a", "b")[:3] == (1, 0, 0)


def test_limit_the_win_rate_is_nan_without_verdicts(tmp_path: Path) -> None:
    failed = {"g1_winner": "error", "g2_winner": "error"}
    assert math.isnan(count_wins(read_judgments(mt_bench(tmp_path, failed)), "a", "b").win_rate())


def test_roundtrip_verdicts_know_their_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(
        "\ufeff[\n" + json.dumps(ALPACA, indent=1) + "\n,\n" + json.dumps(ALPACA) + "]\n"
    )
    # An element takes one line per field and two for its braces.
    lines = [2, 2 + len(ALPACA) + 3]
    assert [verdict.where for verdict in read_judgments(path)] == [f"{path}:{k}" for k in lines]


BAD = [
    ("a.json", "", "a.json:1: must be one JSON list"),
    ("a.json", "{}", "a.json:1: must be one JSON list"),
    ("a.json", "[]", "a.json holds no judgments"),
    ("a.json", "[1]", "a.json:1: every element must be an object"),
    ("a.json", "[\n{]", "a.json:2: the element is not JSON"),
    ("a.json", "[" * 100_000, "a.json:1: the element is not JSON: nested too deeply"),
    ("a.json", json.dumps([ALPACA])[:-1], "a.json:1: must be one JSON list"),
    ("a.json", json.dumps([ALPACA]) + "]", "a.json:1: must be one JSON list"),
    ("a.json", "[" + json.dumps(ALPACA) + "[]", "a.json:1: must be one JSON list"),
    ("a.json", "[" + json.dumps(ALPACA) + ",\n]", "a.json:2: the element is not JSON"),
    ("a.json", json.dumps([{"instruction": "x"}]), "a.json:1: field `generator_1` is missing"),
    (
        "a.json",
        json.dumps([ALPACA | {"preference": 3}]),
        "`preference` must be 0, null or a number",
    ),
    ("a.json", json.dumps([ALPACA | {"preference": 0.5}]), "`preference` must be 0, null or"),
    ("a.json", json.dumps([ALPACA | {"preference": "2"}]), "`preference` must be 0, null or"),
    (
        "a.json",
        json.dumps([ALPACA | {"preference": True}]),
        "`preference` must be 0, null or",
    ),
    ("a.json", json.dumps([ALPACA | {"generator_1": "b"}]), "name the same model, 'b'"),
    ("a.json", json.dumps([ALPACA | {"instruction": ""}]), "field `instruction` must be text"),
    ("a.jsonl", "", "a.jsonl holds no judgments"),
    ("a.jsonl", "{\n", "a.jsonl:1: the line is not JSON"),
    ("a.jsonl", "\n" + json.dumps(MT_BENCH | {"g2_winner": "b"}), "a.jsonl:2: field `g2_winner` m"),
    ("a.jsonl", json.dumps(MT_BENCH | {"g1_winner": 1}), "a.jsonl:1: field `g1_winner` must be te"),
    ("a.jsonl", json.dumps(MT_BENCH | {"model_1": "b"}), "name the same model, 'b'"),
    ("a.jsonl", '{"model_1": "a", "model_2": "b"}', "a.jsonl:1: field `question_id` is missing"),
    ("a.jsonl", json.dumps(MT_BENCH | {"question_id": [1]}), "`question_id` must be a number or "),
    ("a.jsonl", json.dumps(MT_BENCH | {"turn": None}), "field `turn` must be a number or text"),
    (
        "a.jsonl",
        json.dumps(MT_BENCH) + "\n" + json.dumps(ALPACA),
        "a.jsonl:2: this row is of alpac",
    ),
    (
        "a.jsonl",
        '{"question_id": 1, "model": "a", "score": 7}',
        "give the pair judgments of MT-Benc",
    ),
    ("a.csv", "x", "a.csv must be AlpacaEval's .json or MT-Bench's .jsonl"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_raises_with_file_line_and_field(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_judgments(path)
    assert message in str(caught.value)


def test_raises_for_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"[\xff]")
    with pytest.raises(ValueError, match=r"a\.json: must be UTF-8"):
        read_judgments(path)


def test_raises_if_the_models_were_never_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compares `a` and `c`; the judged models are: a, b"):
        count_wins(read_judgments(mt_bench(tmp_path, {})), "a", "c")
