"""Claims about ``rpo score`` and ``rpo evaluate``: their numbers, and one line for each error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llm.evaluation.prompts import Question, read_questions
from llm.hf.io import export_model
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from rpo.cli import main

SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
ROWS = [{"prompt": f"say {i}", "chosen": "yes" * i, "rejected": "no"} for i in range(1, 4)]
REWARD = """
def length(prompt, reply):
    assert prompt[0].role == "user"
    print("rated")  # not part of the JSON
    return len(reply)

def broken(prompt, reply):
    return None

def failing(prompt, reply):
    raise KeyError(reply)

def leaving(prompt, reply):
    raise SystemExit(0)

def huge(prompt, reply):
    return 10**400
"""
ROUNDING = 1e-9  # sums of a few log-probabilities, float64


SIZES: dict[str, Any] = {**SMALL, "vocab_size": 261, "max_position_embeddings": 256}


def write_model(folder: Path, seed: int, **sizes: Any) -> None:
    architecture = Architecture(**{**SIZES, **sizes})
    export_model(Decoder(architecture, rngs=nnx.Rngs(seed)), folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with jax.numpy_dtype_promotion("strict"):
        write_model(folder / "policy", 0)
        write_model(folder / "reference", 1)
        write_model(folder / "narrow", 1, vocab_size=200)
        large = Decoder(Architecture(**SIZES, tie_word_embeddings=False), rngs=nnx.Rngs(0))
        assert large.output is not None
        large.output[...] = jnp.full_like(large.output[...], 3e38)
        export_model(large, folder / "overflow")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("policy", "reference", "narrow", "overflow"):
        (tmp_path / name).symlink_to(models / name)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "bad.jsonl").write_text(text + '{"prompt": "x", "chosen": "", "rejected": "y"}\n')
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)")
    named = [{"question": "say 1", "preferred": "yes", "other": "no", "score": 3, "id": 7}]
    (tmp_path / "named.jsonl").write_text("".join(json.dumps(row) + "\n" for row in named))
    annotation = {"instruction": "Say.", "generator_1": "a", "generator_2": "b", "my_note": "x"}
    judged = [annotation | {"preference": value} for value in (1.6, 1.6, 1.0, None)]
    (tmp_path / "annotations.json").write_text(json.dumps(judged))
    winners = {"model_1": "a", "model_2": "b", "g1_winner": "model_1", "g2_winner": "model_1"}
    lines = [winners | {"question_id": i, "turn": 1} for i in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


BYTES = ["--tokenizer", "bytes", "--dtype", "float64", "--batch-size", "4"]
DATA = ["--data", "rows.jsonl", *BYTES]
FLOAT32 = ["--data", "rows.jsonl", "--tokenizer", "bytes"]


def test_roundtrip_the_metrics_are_those_of_the_scores(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores: dict[str, list[dict[str, Any]]] = {}
    for name in ("policy", "reference"):
        assert main(["score", "--model", name, *DATA, "--out", f"out/{name}.jsonl"]) == 0
        lines = (folder / "out" / f"{name}.jsonl").read_text().splitlines()
        scores[name] = [json.loads(line) for line in lines]
    assert [score["row"] for score in scores["policy"]] == [0, 1, 2]
    # One token per byte, and the end token.
    for row, score in zip(ROWS, scores["policy"], strict=True):
        assert score["chosen_tokens"] == len(row["chosen"]) + 1
        assert score["rejected_tokens"] == 3
        assert score["chosen_logp"] < 0
    capsys.readouterr()
    both = ["--model", "policy", "--reference", "reference", "--beta", "0.5"]
    assert main(["evaluate", *both, *DATA, "--out", "metrics.json"]) == 0
    out = capsys.readouterr().out
    assert out == (folder / "metrics.json").read_text()
    measured = json.loads(out)
    margins = [
        0.5
        * (
            (new["chosen_logp"] - old["chosen_logp"])
            - (new["rejected_logp"] - old["rejected_logp"])
        )
        for new, old in zip(scores["policy"], scores["reference"], strict=True)
    ]
    assert measured["rewards/margins"] == pytest.approx(sum(margins) / 3, rel=ROUNDING)
    assert measured["rewards/accuracies"] == pytest.approx(sum(m > 0 for m in margins) / 3)
    assert measured["pairs"] == 3


def test_property_notes_on_the_prompts_are_in_the_result(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(source: str, *, columns: Any, notes: list[str]) -> list[Question]:
        notes += ["columns passed over: chosen (3 rows)", "prompts with a note: 1"]
        return read_questions(source, columns=columns, notes=[])

    monkeypatch.setattr("rpo.jobs.evaluation.read_questions", reading)
    both = ["--model", "policy", "--reference", "policy", "--reward", "reward.py:length"]
    assert main(["evaluate", *both, *DATA, "--prompts", "1", "--max-new-tokens", "1"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes.count("prompts with a note: 1") == 1
    assert not any("chosen" in note for note in notes)  # the answers are read as pairs


def test_limit_a_model_against_itself_wins_half(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    both = ["--model", "policy", "--reference", "policy", "--reward", "reward.py:length"]
    assert main(["evaluate", *both, *DATA, "--prompts", "2", "--max-new-tokens", "4"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert (measured["wins"], measured["ties"], measured["losses"]) == (0, 2, 0)
    assert measured["win_rate"] == 0.5
    assert measured["reward/model"] == measured["reward/reference"] > 0
    assert measured["rewards/margins"] == 0.0
    assert measured["settings"]["model"] == measured["settings"]["reference"]
    # Without a reward, the win rate is that of the pairs: three ties.
    assert main(["evaluate", *both[:4], *DATA]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert [measured[name] for name in ("wins", "ties", "losses", "win_rate")] == [0, 3, 0, 0.5]
    assert 0.0 < measured["win_rate_lower"] < 0.5 < measured["win_rate_upper"] < 1.0
    assert measured["rewards/accuracies"] == 0.0
    assert measured["rewards/accuracies_upper"] == pytest.approx(1 - 0.025 ** (1 / 3))


def test_closed_form_win_rate_of_a_judge(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    named = ["--model", "b", "--reference", "a", "--judgments", "pairs.jsonl"]
    assert main(["evaluate", *named]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["losses"] == measured["both_orders"] == 4
    assert measured["win_rate"] == measured["win_rate_lower"] == 0.0
    assert measured["win_rate_upper"] == pytest.approx(1 - 0.025 ** (1 / 4))


def test_closed_form_win_rates_of_annotations_with_counts_and_notes(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    named = ["--model", "b", "--reference", "a", "--judgments", "annotations.json"]
    assert main(["evaluate", *named]) == 0
    out, err = capsys.readouterr()
    measured = json.loads(out)
    assert measured["win_rate"] == pytest.approx(0.4, abs=ROUNDING)
    assert measured["discrete_win_rate"] == pytest.approx(2 / 3, abs=ROUNDING)
    assert [measured[name] for name in ("n_total", "errors", "repeated")] == [3, 1, 3]
    assert measured["notes"] == [
        "questions that repeat an earlier one and count again: 3",
        "fields of annotations.json passed over: my_note",
    ]
    assert err.splitlines() == measured["notes"]


def test_roundtrip_columns_are_mapped_or_listed(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    columns = {"prompt": "question", "chosen": "preferred", "rejected": "other"}
    argv = [*SCORE, "policy", "--data", "named.jsonl", *BYTES, "--json"]
    assert main([*argv, "--columns", json.dumps(columns)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["report"] == dict.fromkeys(
        ("rows_skipped", "prompts_cut", "responses_cut"), 0
    ) | {"rows": 1}
    assert result["notes"] == [
        "named.jsonl: columns passed over: id (1 row), score (1 row)",
    ]
    assert json.loads((folder / "new.jsonl").read_text())["chosen_tokens"] == 4


BOTH = ["evaluate", "--model", "policy", "--reference", "reference"]
REWARDED = [*BOTH, *DATA, "--prompts", "1", "--max-new-tokens", "4", "--reward"]
SCORE = ["score", "--out", "new.jsonl", "--model"]
BAD = [
    (BOTH, "give either --data or --judgments"),
    ([*BOTH, *DATA, "--judgments", "pairs.jsonl"], "give either --data or --judgments"),
    ([*BOTH, "--judgments", "pairs.jsonl"], "no judgment compares `policy` and `reference`"),
    ([*BOTH, "--judgments", "pairs.jsonl", "--reward", "reward.py:length"], "goes with --data"),
    ([*BOTH, *DATA, "--beta", "0"], "argument --beta: must be a number greater"),
    ([*REWARDED, "reward.py"], "argument --reward: must be FILE.py:NAME or MODULE:NAME"),
    ([*REWARDED, "absent_module:f"], "--reward: absent_module: ModuleNotFoundError"),
    ([*REWARDED, "leaving.py:f"], "argument --reward: leaving.py: SystemExit"),
    ([*REWARDED, "reward.py:failing"], "rows.jsonl:1: reward function `failing` failed for prompt"),
    ([*REWARDED, "reward.py:leaving"], "`leaving` failed for prompt 0: SystemExit: 0"),
    ([*REWARDED, "reward.py:huge"], "`huge`: the reward of prompt 0 must be a finite number"),
    ([*BOTH, *DATA, "--beta", "1e-320"], "`objective.beta` must be in the range of float32"),
    ([*BOTH, *DATA, "--temperature", "1"], "argument --temperature: goes with --reward"),
    ([*BOTH, *DATA, "--gamed", "g.csv"], "argument --gamed: goes with --judgments"),
    ([*BOTH, "--judgments", "pairs.jsonl", "--max-length", "9"], "argument --max-length: goes w"),
    ([*BOTH, "--judgments", "pairs.jsonl", *BYTES[:2]], "argument --tokenizer: goes with --data"),
    (
        ["evaluate", "--model=b", "--reference=a", "--judgments=pairs.jsonl", "--gamed=x"],
        "argument --gamed: pairs.jsonl must be a file of AlpacaEval's annotations",
    ),
    (["evaluate", "--model", "overflow", *BOTH[3:], *FLOAT32], "overflow: rows.jsonl: row 0, co"),
    ([*SCORE, "overflow", *FLOAT32], "row 0, counted from 0: the log-probabilities"),
    ([*SCORE, "policy", *DATA, "--columns", "{"], "argument --columns: must be a JSON object"),
    ([*SCORE, "policy", *DATA, "--columns", "[1]"], "argument --columns: must be a JSON object"),
    ([*SCORE, "policy", "--data", "named.jsonl", *BYTES], "named.jsonl:1: field `chosen` is missi"),
    (
        [*SCORE, "policy", *DATA, "--chat-template", "chatml"],
        "`chat_template` must not be given",
    ),
    ([*REWARDED, "absent.py:length"], "absent.py: No such file"),
    ([*REWARDED, "reward.py:absent"], "reward.py has no function `absent`"),
    ([*REWARDED, "reward.py:broken"], "reward of prompt 0 must be a finite number, got None"),
    ([*SCORE, "absent", *DATA], "absent"),
    ([*SCORE, "policy", "--data", "rows.jsonl"], "tokenizer.json"),
    ([*SCORE, "narrow", *DATA], "the tokenizer has 261 tokens, but the model embeds only 200"),
    ([*SCORE, "policy", "--data", "bad.jsonl", *BYTES], "bad.jsonl:4"),
    ([*SCORE, "policy", "--data", "none.jsonl", *BYTES], "none.jsonl does not exist"),
    ([*SCORE, "policy", *DATA, "--max-length", "1024"], "the model reads at most 256 tokens"),
    (["score", "--out", "policy", "--model", "policy", *DATA], "policy is a folder"),
]


@pytest.mark.parametrize(("argv", "message"), BAD)
def test_raises_one_line_and_writes_nothing(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rpo: error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before


def test_property_bad_rows_are_skipped_and_counted_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SCORE, "policy", "--data", "bad.jsonl", *BYTES, "--skip-bad-rows"]
    assert main(argv) == 0
    assert "rows_skipped: 1" in capsys.readouterr().err
    assert len((folder / "new.jsonl").read_text().splitlines()) == 3


def test_extreme_float32_is_computed_in_float32(folder: Path) -> None:
    argv = [*SCORE, "policy", "--data", "rows.jsonl", "--tokenizer", "bytes"]
    assert main(argv) == 0
    value = json.loads((folder / "new.jsonl").read_text().splitlines()[0])["chosen_logp"]
    with jax.enable_x64(False):
        assert float(jnp.float32(value)) == value
