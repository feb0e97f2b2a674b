"""Claims about ``rpo generate``: replies on stdout, and in the files that judges read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llm.data.preferences import Message
from llm.evaluation.prompts import read_questions
from llm.hf.io import export_model
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from rpo.cli import main
from rpo.runtime.output import escape_control_characters

INSTRUCTIONS = [{"instruction": "Say yes.", "dataset": "own"}, {"instruction": "Say\nno."}]
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Say yes.", "And no?"]},
    {"question_id": 82, "category": "writing", "turns": ["Say no."]},
]
ROWS: list[dict[str, Any]] = [
    {"prompt": "a"},
    {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]},
    {"prompt": "c", "chosen": "same", "rejected": "same"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    small = Architecture(
        vocab_size=261,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    folder = tmp_path_factory.mktemp("models") / "mine"
    with jax.numpy_dtype_promotion("strict"):
        export_model(Decoder(small, rngs=nnx.Rngs(0)), folder)
        large = Decoder(replace(small, tie_word_embeddings=False), rngs=nnx.Rngs(0))
        assert large.output is not None
        large.output[...] = jnp.full_like(large.output[...], 3e38)
        export_model(large, folder.with_name("overflow"))
    shutil.copytree(folder, folder.with_name("sampled"))
    settings = {"do_sample": True, "temperature": 1.5, "top_k": 3, "num_beams": 4}
    settings |= {"max_new_tokens": 5, "eos_token_id": [257, 300], "pad_token_id": 0}
    (folder.with_name("sampled") / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("mine", "overflow", "sampled"):
        (tmp_path / name).symlink_to(model.with_name(name))
    for name, rows in (("alpaca", INSTRUCTIONS), ("mt_bench", QUESTIONS), ("rows", ROWS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "alpaca.json").write_text(json.dumps(INSTRUCTIONS, indent=2))
    (tmp_path / "mixed.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(QUESTIONS[0]))
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "long" * 40}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


MODEL = ["generate", "--model", "mine", "--tokenizer", "bytes", "--max-new-tokens", "5"]
DRAWN = [*MODEL, "--batch-size", "2", "--temperature", "1", "--seed", "3"]


def test_roundtrip_alpaca_eval_answers(folder: Path) -> None:
    for source in ("alpaca.json", "alpaca.jsonl"):
        assert main([*DRAWN, "--data", source, "--out", f"{source}.out"]) == 0
    text = (folder / "alpaca.json.out").read_bytes()
    assert text == (folder / "alpaca.jsonl.out").read_bytes()
    answers = json.loads(text)
    assert [answer["instruction"] for answer in answers] == ["Say yes.", "Say\nno."]
    assert [answer["generator"] for answer in answers] == ["mine", "mine"]
    assert answers[0]["dataset"] == "own"
    assert all(isinstance(answer["output"], str) for answer in answers)


def test_roundtrip_multi_turn_answers_of_mt_bench_hold_every_reply(folder: Path) -> None:
    argv = [*DRAWN, "--data", "mt_bench.jsonl", "--out", "answers.jsonl", "--name", "tuned"]
    assert main(argv) == 0
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [answer["question_id"] for answer in answers] == [81, 82]
    assert {answer["model_id"] for answer in answers} == {"tuned"}
    assert [len(answer["choices"][0]["turns"]) for answer in answers] == [2, 1]
    assert len({answer["answer_id"] for answer in answers}) == 2


def test_roundtrip_rows_are_answered_in_order_and_deterministically(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert main([*DRAWN, "--data", "rows.jsonl", "--out", name]) == 0
    assert "3 answers as rows" in capsys.readouterr().out
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    answers = [json.loads(line) for line in (folder / "one").read_text().splitlines()]
    assert [answer["prompt"][-1]["content"] for answer in answers] == ["a", "b", "c"]
    assert all(answer["finished"] or answer["tokens"] == 5 for answer in answers)


def test_property_the_reply_to_a_prompt_is_printed_to_stdout(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*DRAWN, "--prompt", "a"]) == 0
    shown = capsys.readouterr().out
    assert main([*DRAWN, "--data", "rows.jsonl", "--out", "out"]) == 0
    reply = json.loads((folder / "out").read_text().splitlines()[0])["reply"]
    assert (
        shown == escape_control_characters(reply) + "\n"
    )  # a random model generates control characters


def test_property_settings_of_the_model_are_used_listed_and_recorded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["generate", "--model", "sampled", "--tokenizer", "bytes", "--prompt", "a", "--json"]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    stored = {"temperature": 1.5, "top_k": 3, "max_new_tokens": 5}
    assert result["settings"] == {**NEUTRAL, **stored}
    ignored, used, ends = result["notes"]
    assert ignored == "sampled: generation_config.json: keys without effect: num_beams"
    assert used.endswith("max_new_tokens 5, temperature 1.5, top_k 3, top_p 1, min_p 0")
    assert "its end tokens 300 are of its own tokenizer" in ends
    assert main([*argv, "--temperature", "0", "--repetition-penalty", "1.5"]) == 0
    result = json.loads(capsys.readouterr().out)
    given = {"temperature": 0.0, "repetition_penalty": 1.5, "max_new_tokens": 5}
    assert result["settings"] == {**NEUTRAL, **given}


NEUTRAL = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}


def test_roundtrip_a_prompt_may_be_the_common_start_of_two_conversations(folder: Path) -> None:
    both = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "x"}]
    row = {"chosen": both, "rejected": [both[0], {"role": "assistant", "content": "y"}]}
    (folder / "implicit.jsonl").write_text(json.dumps(row))
    assert read_questions("implicit.jsonl")[0].prompts == ((Message("user", "u"),),)


BAD = [
    (["--prompt", "a", "--out", "x"], "argument --out: goes with --data"),
    (["--data", "rows.jsonl"], "argument --out: goes with --data"),
    ([], "one of the arguments --prompt --data is required"),
    (["--prompt", "a", "--top-p", "1.5"], "`top_p` must be above 0 and at most 1, got 1.5"),
    (["--prompt", "a", "--temperature", "-1"], "argument --temperature: must be a number"),
    (["--prompt", "long" * 40], "argument --prompt: the prompt has 163 tokens"),
    (["--data", "long.jsonl", "--out", "x"], "long.jsonl:1: the prompt has 163 tokens"),
    (["--data", "mixed.jsonl", "--out", "x"], "mixed.jsonl:2: this row is of kind mt_bench"),
    (["--data", "absent.jsonl", "--out", "x"], "absent.jsonl does not exist"),
    (["--prompt", "a", "--model", "overflow"], "argument --prompt: the logits of token 1 of the"),
    (
        ["--data", "rows.jsonl", "--out", "x", "--model", "overflow", "--temperature", "1"],
        "rows.jsonl:1: the logits of token 1 of the reply are not finite",
    ),
    (["--prompt", " "], "argument --prompt: must be text, not empty"),
    (["--prompt", "a", "--tokenizer", "mine"], "give the folder of the model's tokenizer with --"),
    (["--prompt", "a", "--max-new-tokens", "128"], "`max_new_tokens` must be less than 128"),
    (["--prompt", "a", "--top-k", "-1"], "argument --top-k: must be a whole number"),
    (["--prompt", "a", "--min-p", "1.5"], "`min_p` must be from 0 to 1, got 1.5"),
    (["--prompt", "a", "--columns", '{"prompt": "q"}'], "argument --columns: goes with --data"),
]
BAD_ROWS = [
    ("", "holds no questions"),
    ('{"text": "a"}', "in.jsonl:1: field `prompt`, `instruction` or `turns` is missing"),
    ('{"prompt": ""}', "in.jsonl:1"),
    ('{"prompt": 3}', "in.jsonl:1"),
    ('{"instruction": " "}', "in.jsonl:1: field `instruction` must be text"),
    ('{"turns": [], "question_id": 1}', "in.jsonl:1: field `turns` must be a list"),
    ('{"turns": ["a", 2], "question_id": 1}', "in.jsonl:1: field `turns[1]` must be text"),
    ('{"turns": ["a"]}', "in.jsonl:1: field `question_id` must be"),
]


@pytest.mark.parametrize(
    ("argv", "text", "message"),
    [
        *((argv, None, message) for argv, message in BAD),
        *((["--data", "in.jsonl", "--out", "x"], text, message) for text, message in BAD_ROWS),
    ],
)
def test_raises_one_line_and_writes_nothing(
    argv: list[str],
    text: str | None,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        (folder / "in.jsonl").write_text(text)
    before = sorted(folder.iterdir())
    options = [MODEL[i : i + 2] for i in (1, 3, 5)]  # an option may be given once
    model = [word for option in options if option[0] not in argv for word in option]
    assert main([MODEL[0], *model, *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rpo: error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert sorted(folder.iterdir()) == before
