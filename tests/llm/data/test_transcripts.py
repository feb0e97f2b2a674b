"""Claims about transcripts: HH's texts are read as the conversations that they stand for."""

from __future__ import annotations

import pytest

from llm.data.columns import RowRules
from llm.data.preferences import Message, Row, check_row, parse_row, parse_with_rules
from llm.data.transcripts import is_transcript, parse_transcript

START = "\n\nHuman: Name a color.\n\nAssistant: Blue.\n\nHuman: Another?"


def transcripts(chosen: str, rejected: str) -> Row:
    """Return a row as HH has it: two transcripts and no prompt."""
    return Row({"chosen": START + chosen, "rejected": START + rejected}, "hh.jsonl:1")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("\n\nAssistant: Red.", "\n\nAssistant: Nine."),
        ("\n\nAssistant: Red: a Human: color\n\nor so. ", "\n\nAssistant:\n\nNine."),
        ("\n\nAssistant: Red.", "\n\nAssistant: What?\n\nHuman: A color.\n\nAssistant: Nine."),
    ],
)
def test_property_a_row_of_transcripts_is_read_as_its_messages(chosen: str, rejected: str) -> None:
    rules = RowRules()
    row = parse_with_rules(transcripts(chosen, rejected), 0, rules)
    check_row(row)
    assert [message.role for message in row.prompt] == ["user", "assistant", "user"]
    assert [message.content for message in row.prompt] == ["Name a color.", "Blue.", "Another?"]
    for text, messages in ((chosen, row.chosen), (rejected, row.rejected)):
        spoken = [f"{message.role}: {message.content}" for message in messages]
        written = text.replace("\n\nAssistant:", "\0assistant:").replace("\n\nHuman:", "\0user:")
        expected = [part.split(":", 1) for part in written.split("\0")[1:]]
        assert spoken == [f"{role}: {content.strip()}" for role, content in expected]
    (note,) = rules.notes()
    assert "transcripts" in note
    assert ": 1 (the first is hh.jsonl:1)" in note


def test_raises_if_only_one_response_is_a_transcript_or_a_transcript_ends_with_a_question() -> None:
    with pytest.raises(ValueError, match=r"hh\.jsonl:1: field `prompt` .* another is not"):
        parse_row(
            Row({"chosen": START + "\n\nAssistant: Red.", "rejected": "Nine."}, "hh.jsonl:1"), 0
        )
    with pytest.raises(ValueError, match=r"hh\.jsonl:1"):
        check_row(parse_row(transcripts("", "\n\nAssistant: Nine."), 0))


def test_property_only_a_text_that_begins_with_a_human_is_a_transcript() -> None:
    assert is_transcript("\n\nHuman: Hi")
    assert not any(map(is_transcript, ("Human: Hi", "He\n\nHuman: Hi", ["\n\nHuman: Hi"], None)))
    assert parse_transcript("\n\nHuman: Hi\n\nAssistant:")[-1].content == ""


def test_property_transcripts_beside_a_prompt_repeat_it() -> None:
    human = "\n\nHuman: Name a color.\n\nAssistant:"
    for prompt in ("Name a color. ", human, [{"role": "user", "content": "Name a color."}]):
        fields = {"prompt": prompt, "chosen": human + " Blue.", "rejected": human + " Nine."}
        row = parse_row(Row({**fields, "baseline": "Red."}, "hh.jsonl:1"), 0)
        assert row.prompt == (Message("user", "Name a color."),)
        assert [row.chosen[0].content, row.rejected[0].content] == ["Blue.", "Nine."]
        rules = RowRules(raw_text=True)
        raw = parse_with_rules(Row({**fields, "prompt": human}, "hh.jsonl:1"), 0, rules)
        assert raw.prompt[0].content == human
        assert raw.chosen[0].content == " Blue."
    rules = RowRules()
    fields = {"prompt": human, "chosen": "Blue.", "rejected": "Nine."}
    assert parse_with_rules(Row(fields, "hh.jsonl:1"), 0, rules).prompt[0].content == human
    assert "whose prompt is a transcript" in rules.notes()[0]
    other = {"prompt": "Hi", "chosen": human + " Blue.", "rejected": human + " Nine."}
    with pytest.raises(ValueError, match=r"hh\.jsonl:1: .* got user, assistant"):
        check_row(parse_row(Row(other, "hh.jsonl:1"), 0))
