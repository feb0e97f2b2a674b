"""Claims about questions: every column is a part of the prompt, listed, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm.evaluation.prompts import Question, format_answers, read_questions
from llm.inference.generate import Reply

QUESTION = {"question_id": 81, "category": "writing", "turns": ["Hi", "Again"]}


def read(folder: Path, *rows: Any, **options: Any) -> tuple[list[Question], list[str]]:
    path, notes = folder / "rows.jsonl", []
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(str(path), notes=notes, **options), notes


def test_property_system_tools_and_mapped_columns_reach_the_prompt(tmp_path: Path) -> None:
    tools = [{"function": {"name": "search"}}]
    (question,), notes = read(
        tmp_path, {"prompt": "Hi", "system": "Be brief.", "tools": tools, "answer": "x", "id": 3}
    )
    assert [message.content for message in question.prompts[0]] == ["Be brief.", "Hi"]
    assert question.tools == '[{"function":{"name":"search"}}]'
    assert notes == ["columns passed over: answer (1 row), id (1 row)"]
    mapped = {"prompt": "question", "system": "rules"}
    (question,), notes = read(tmp_path, {"question": "Hi", "rules": "S"}, columns=mapped)
    assert [message.content for message in question.prompts[0]] == ["S", "Hi"]
    assert notes == []
    pairs = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    (question,), _ = read(tmp_path, {"question": "Hi"}, columns=pairs)
    assert [message.content for message in question.prompts[0]] == ["Hi"]
    call = {"role": "assistant", "content": None, "tool_calls": tools}
    user, result = {"role": "user", "content": "Hi"}, {"role": "tool", "content": "21"}
    (question,), _ = read(tmp_path, {"prompt": [user, call, result]})
    record = json.loads(format_answers([question], [[Reply("ok", True, 1)]], "m"))
    assert record["prompt"] == [user, call, result]


def test_raises_for_columns_of_questions_that_would_be_lost(tmp_path: Path) -> None:
    for row, name in (
        ({"prompt": "Hi", "context": "Long story."}, "context"),
        ({"prompt": "Hi", "hint": "Think of the sea."}, "hint"),
        ({"instruction": "Hi", "input": "Text."}, "input"),
        ({"instruction": "Hi", "system": "Be brief."}, "system"),
        ({**QUESTION, "system": "Be brief."}, "system"),
        ({**QUESTION, "tools": [{"name": "search"}]}, "tools"),
    ):
        with pytest.raises(ValueError, match=rf"rows\.jsonl:1: column `{name}` has content"):
            read(tmp_path, row)
        notes = read(tmp_path, row, columns={name: "ignore"})[1]
        assert f"{name} (1 row)" in notes[0]
    assert len(read(tmp_path, {**QUESTION, "reference": ["a", "b"]})[0][0].prompts) == 2


def test_raises_for_conversations_in_the_text_of_a_question(tmp_path: Path) -> None:
    text = json.dumps([{"role": "user", "content": "Hi"}])
    for row, name in (
        ({"prompt": text}, "prompt"),
        ({"instruction": text}, "instruction"),
        ({**QUESTION, "turns": ["Hi", text]}, r"turns\[1\]"),
    ):
        with pytest.raises(
            ValueError, match=rf"rows\.jsonl:1: field `{name}` is a string that holds"
        ):
            read(tmp_path, row)
    with pytest.raises(ValueError, match="field `instruction` must be Unicode text"):
        read(tmp_path, {"instruction": "a\ud800"})
