"""AlpacaEval's metrics against numbers computed by hand and by the package; unusable files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.evaluation.alpaca_eval import alpaca_eval_metrics, read_gamed_annotations
from llm.evaluation.judgments import JudgmentFile, read_judgment_file

ROUNDING = 1e-12  # float64
N = 40  # instructions


def judged(folder: Path, *rows: dict[str, Any]) -> JudgmentFile:
    base = {"instruction": "Say.", "generator_1": "base", "generator_2": "mine", "preference": 1.5}
    path = folder / "annotations.json"
    path.write_text(json.dumps([base | row for row in rows]))
    return read_judgment_file(path)


def gamed_file(folder: Path, *changed: tuple[str, str]) -> Path:
    """Write annotations of two gamed models, by formulas without random numbers."""
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, sign in (("verbose", 1.0), ("concise", -1.0)):
        for i in range(N):
            length, difficulty = sign * (0.5 + i / N), math.sin(i)
            logit = -1.5 * math.tanh(length) + 0.8 * difficulty + 0.2
            preference = 1 / (1 + math.exp(-logit))
            lines.append(f"{model},{i},{preference!r},{length!r},{difficulty!r},False")
    text = "\n".join(lines) + "\n"
    for old, new in changed:
        assert old in text
        text = text.replace(old, new)
    path = folder / "df_gamed.csv"
    path.write_text(text)
    return path


def annotated_rows() -> list[dict[str, Any]]:
    """Return annotations of longer answers, which the judge prefers where they are longer."""
    rows: list[dict[str, Any]] = []
    for i in range(N):
        lengths = (40 + 3 * i, 160 + (17 * i) % 90)
        preference = 1 + 1 / (1 + math.exp(-(lengths[1] - lengths[0]) / 40 - 2 * math.sin(i)))
        outputs = {"output_1": "a" * lengths[0], "output_2": "é" * lengths[1]}
        rows.append(outputs | {"preference": preference, "instruction": f"q{i % 3}"})
    rows[3]["preference"] = None
    rows[4]["preference"] = 0
    return rows


def test_closed_form_the_win_rate_is_the_mean_preference(tmp_path: Path) -> None:
    rows = [{"preference": 1.6}, {"preference": 1.6}, {"preference": 1.0}]  # one instruction
    metrics = alpaca_eval_metrics(judged(tmp_path, *rows), "mine", "base")
    assert metrics["win_rate"] == pytest.approx(0.4, abs=ROUNDING)
    assert metrics["discrete_win_rate"] == pytest.approx(2 / 3, abs=ROUNDING)
    assert metrics["standard_error"] == pytest.approx(math.sqrt(0.12 / 3), abs=ROUNDING)
    assert metrics["n_total"] == 3


def test_closed_form_draws_missing_verdicts_and_swapped_models(tmp_path: Path) -> None:
    preferences = [0, 1.5, 2, 1.0, None, math.nan, 1.51, 1.49]
    rows: list[dict[str, Any]] = [{"preference": value} for value in preferences]
    swapped = {"generator_1": "mine", "generator_2": "base"}
    rows += [swapped | {"preference": value} for value in (2.0, 1.2, 0, None)]
    rows += [{"generator_1": "third", "preference": 2.0}]
    metrics = alpaca_eval_metrics(judged(tmp_path, *rows), "mine", "base")
    values = np.array([0.5, 0.5, 1.0, 0.0, 0.51, 0.49, 0.0, 0.8, 0.5])
    assert metrics["win_rate"] == pytest.approx(values.mean(), abs=ROUNDING)
    assert metrics["standard_error"] == pytest.approx(values.std(ddof=1) / 3, abs=ROUNDING)
    assert metrics["discrete_win_rate"] == pytest.approx(4.5 / 9, abs=ROUNDING)
    counts = [metrics[f"n_{name}"] for name in ("total", "wins", "wins_base", "draws")]
    assert counts == [9, 3, 3, 3]
    assert metrics["errors"] == 3
    mirrored = alpaca_eval_metrics(judged(tmp_path, *rows), "base", "mine")
    assert mirrored["win_rate"] == pytest.approx(1 - metrics["win_rate"], abs=ROUNDING)


def test_limit_one_annotation_has_no_standard_error(tmp_path: Path) -> None:
    metrics = alpaca_eval_metrics(judged(tmp_path, {"preference": 1.0}), "mine", "base")
    assert metrics["standard_error"] is None
    assert (metrics["win_rate_lower"], metrics["win_rate_upper"]) == pytest.approx((0.0, 0.975))


def test_golden_the_length_controlled_win_rate_is_that_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra `alpaca`")
    file = judged(tmp_path, *annotated_rows())
    gamed = read_gamed_annotations(gamed_file(tmp_path))
    metrics = alpaca_eval_metrics(file, "mine", "base", gamed=gamed)
    assert metrics["win_rate"] == pytest.approx(GOLDEN["win_rate"], abs=1e-9)
    for name in ("length_controlled_winrate", "lc_standard_error"):
        assert metrics[name] == pytest.approx(GOLDEN[name], abs=1e-3), name


GOLDEN = {
    "win_rate": 0.8461453488174854,
    "length_controlled_winrate": 0.5594670968494155,
    "lc_standard_error": 0.03762140098285125,
}
"""Percentages of alpaca-eval 0.6.6 for these files, divided by 100."""


GAMED = [
    (("model,index,", "model,number,"), "must have the columns index, preference"),
    (("verbose,0,", "verbose,1,"), "df_gamed.csv:4: column `index`: the file must begin with o"),
    (("verbose,3,", "verbose,x,"), "df_gamed.csv:5: column `index` must be the position"),
    (("concise,39,", "concise,40,"), "df_gamed.csv:81: column `index`: the file must begin w"),
    (("concise,9,", "concise,9,7,"), "df_gamed.csv:51: the row must have as many values"),
    (("concise,9,", "concise,9,1.7"), "df_gamed.csv:51: column `preference` must be a number"),
    ((",False\n", ",no\n"), "df_gamed.csv:2: column `not_gamed_baseline` must be True or False"),
    ((f",{math.sin(9)!r},", ",nan,"), "df_gamed.csv:11: column `instruction_difficulty` must be"),
]


@pytest.mark.parametrize(("change", "message"), GAMED)
def test_raises_for_gamed_annotations_by_line_and_column(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as caught:
        read_gamed_annotations(gamed_file(tmp_path, change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (2, {"output_1": None}, "field `output_1` must be text, for its length"),
        (9, {"index": N}, "the annotation of instruction 40, counted from 0, but the file of gam"),
        (1, {"index": "first"}, "field `index` must be a whole number, got 'first'"),
    ],
)
def test_raises_for_annotations_without_length_or_difficulty(
    index: int, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    rows = annotated_rows()
    rows[index] |= change
    gamed = read_gamed_annotations(gamed_file(tmp_path))
    with pytest.raises(ValueError, match=r"annotations\.json:1: ") as caught:
        alpaca_eval_metrics(judged(tmp_path, *rows), "mine", "base", gamed=gamed)
    assert message in str(caught.value)


def test_raises_if_all_answers_differ_equally_or_too_few_are_judged(tmp_path: Path) -> None:
    gamed = read_gamed_annotations(gamed_file(tmp_path))
    same = [row | {"output_1": "aa", "output_2": "b"} for row in annotated_rows()]
    with pytest.raises(ValueError, match="differ in length by different numbers of characters"):
        alpaca_eval_metrics(judged(tmp_path, *same), "mine", "base", gamed=gamed)
    failed = [row | {"preference": None} for row in annotated_rows()]
    with pytest.raises(ValueError, match="the judge failed on every annotation"):
        alpaca_eval_metrics(judged(tmp_path, *failed), "mine", "base", gamed=gamed)
