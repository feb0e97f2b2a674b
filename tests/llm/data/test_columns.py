"""Claims about columns: each one is read, refused by name, or listed, whatever it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.columns import FIELDS, RowRules, check_columns
from llm.data.files import Row
from llm.data.preferences import PreferenceRow, parse_with_rules, stream_preferences

GOOD = {"prompt": "Name a color.", "chosen": "Blue.", "rejected": "Nine."}
CHAT = [{"role": "user", "content": "Name a color."}, {"role": "assistant", "content": "Blue."}]


def parse(row: dict[str, Any], columns: Any = None) -> tuple[PreferenceRow, str]:
    rules = RowRules(columns)
    return parse_with_rules(Row(row, "a.jsonl:1"), 0, rules), " ".join(rules.notes())


def refusal(row: dict[str, Any], columns: Any = None) -> str:
    with pytest.raises(ValueError, match=r"^a\.jsonl:1: [^\n]+$") as caught:
        parse(row, columns)
    return str(caught.value).removeprefix("a.jsonl:1: ")


NAMES = (
    "system tools documents history instruction input images messages notes x id score model_name "
    "reference text weight train tool_calls name reasoning_content channel é ref_logps"
)
NAME = st.sampled_from(NAMES.split())
SCALAR = st.integers() | st.booleans() | st.text(min_size=1, max_size=9) | st.just("Two words.")
CONTENT = st.recursive(
    SCALAR.filter(lambda value: not isinstance(value, str) or value.strip()),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=2)
        | st.dictionaries(NAME, inner, min_size=1, max_size=2)
    ),
    max_leaves=4,
)


def shown(name: str) -> str:
    return ascii(name)[1:-1] or "(no name)"


def is_accounted_for(plain: dict[str, Any], row: dict[str, Any], name: str) -> bool:
    """Return whether a row with one name more is read, refused by that name, or lists it."""
    try:
        changed, notes = parse(row)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return shown(name) in str(error)
    return changed != parse(plain)[0] or f"{shown(name)} (1 row)" in notes


@given(NAME | st.text(max_size=6).filter(lambda name: name not in FIELDS), CONTENT)
def test_property_a_further_column_is_read_refused_or_listed(name: str, value: Any) -> None:
    assert is_accounted_for(GOOD, {**GOOD, name: value}, name)


@given(
    NAME | st.text("abxyé \n.", min_size=1, max_size=6),
    CONTENT,
    st.sampled_from(["prompt", "chosen"]),
)
def test_property_a_further_field_of_a_message_is_read_refused_or_listed(
    name: str, value: Any, column: str
) -> None:
    messages = {"prompt": [CHAT[0]], "chosen": [CHAT[1]], "rejected": "Nine."}
    further = {**messages, column: [{**messages[column][0], name: value}]}
    assert is_accounted_for(messages, further, name)


def test_closed_form_columns_of_published_data_sets_are_listed_or_refused() -> None:
    binarized = {
        "prompt": "Name a color.",
        "prompt_id": "6aac",
        "score_chosen": 8.5,
        "chosen": CHAT,
        "rejected": [CHAT[0], {**CHAT[1], "content": "Nine."}],
        "messages": CHAT,
        "score_rejected": 4.0,
    }
    row, notes = parse(binarized)
    assert len(row.chosen) == len(row.rejected) == len(row.prompt) == 1
    listed = ("messages", "prompt_id", "score_chosen", "score_rejected")
    assert notes == "columns passed over: " + ", ".join(f"{name} (1 row)" for name in listed)
    cleaned = {**GOOD, "source": "evol_instruct", "chosen-rating": 5, "rejected-model": "gpt-4"}
    assert "chosen-rating (1 row), rejected-model (1 row), source (1 row)" in parse(cleaned)[1]
    dpo = {"system": "", "question": "Name a color.", "chosen": "Blue.", "rejected": "Nine."}
    assert "`data.columns: {prompt: question}`" in refusal(dpo)
    assert parse(dpo, {"prompt": "question"})[0][:3] == parse(GOOD)[0][:3]
    distilled = {**GOOD, "generations": ["Blue.", "Nine."], "raw_labelling_response": "Rating: 8"}
    assert "columns `generations`, `raw_labelling_response` have content" in refusal(distilled)
    assert "generations (1 row), raw_labelling_response" in parse(distilled, {"*": "ignore"})[1]


def test_raises_for_content_that_would_be_lost_with_its_column() -> None:
    for name, value in (
        ("system_prompt", "Answer in French."),
        ("documents", [{"title": "a", "text": "b"}]),
        ("history", [["Hi", "Hello"]]),
        ("context", "Blue is a color."),
        ("images", ["a.png"]),
        ("image_path", "a.png"),
        ("available_tools", [{"name": "weather"}]),
        ("task", "Answer in French."),
        ("messages", [CHAT[0], {**CHAT[1], "content": "Red."}]),
        ("instruction", "Name a number."),
        ("response", "Red."),
        ("hint", "Think of the sea."),
        ("提示", "想想大海。"),
        ("extra", [{"role": "user", "content": "Hi"}]),
        ("pairs", [("a", "Think of the sea.")]),
    ):
        message = f"column `{shown(name)}` has content that is not used"
        assert message in refusal({**GOOD, name: value})
        for columns in ({name: "ignore"}, {"*": "ignore"}):
            row, notes = parse({**GOOD, name: value}, columns)
            assert row == parse(GOOD)[0]
            assert f"{shown(name)} (1 row)" in notes
        assert parse({**GOOD, name: None})[1] == ""
    assert "`data.chat_template_kwargs`" in refusal(
        {**GOOD, "chat_template_kwargs": {"enable_thinking": False}}
    )
    pictured = [{**CHAT[1], "images": ["a.png"]}]
    assert "`chosen[0].images` is a field that no chat" in refusal({**GOOD, "chosen": pictured})
    assert '(`"": ignore`)' in refusal({**GOOD, "": "Answer in French."})
    weighted = [{**CHAT[1], "weight": 0}]
    assert "`chosen[0].weight` is a field that no chat" in refusal({**GOOD, "chosen": weighted})
    assert "message.weight" in parse({**GOOD, "chosen": weighted}, {"message.weight": "ignore"})[1]


def test_raises_for_other_kinds_of_rows_with_what_to_write() -> None:
    for row, message in (
        ({"prompt": "a", "completion": "b", "label": True}, "the row is unpaired"),
        (
            {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 2]},
            "is a list of 2 responses, but",
        ),
        ({"instruction": "a", "completions": [{"response": "b"}]}, "is a list of 1 responses"),
        (
            {"question": "a", "preferred": "b", "other": "c"},
            "`data.columns: {prompt: question, chosen: preferred, rejected: other}`",
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "No"},
            "field `prompt` is missing: one response is a transcript",
        ),
        ({"x": 1}, "got x: name its column with `data.columns: {chosen: COLUMN}`"),
        ({}, "field `chosen` is missing, got no column"),
    ):
        assert message in refusal(row)
    other = {"question": "Name a color.", "preferred": "Blue.", "other": "Nine."}
    columns = {"prompt": "question", "chosen": "preferred", "rejected": "other"}
    assert parse(other, columns)[0] == parse(GOOD)[0]
    assert "column `preferred`, which `data.columns`" in refusal(GOOD, {"chosen": "preferred"})
    assert "column `prompt` is not read, because" in refusal({**GOOD, **other}, columns)


def test_raises_for_mappings_of_columns_that_contradict_themselves() -> None:
    for columns, message in (
        ({"question": "prompt"}, "`data.columns.question` must be `ignore`, or its key one of"),
        ({"prompt": "a", "chosen": "a"}, "must name a column once, got `a` for `prompt` and"),
        ({"chosen": "ignore"}, "`data.columns.chosen` must be a column"),
        ({"prompt": ""}, "`data.columns.prompt` must be a name, got ''"),
    ):
        with pytest.raises(ValueError, match=r"^`data\.columns") as caught:
            check_columns(columns)
        assert message in str(caught.value)


def test_closed_form_passed_over_columns_are_counted_by_rows(tmp_path: Path) -> None:
    path, notes = tmp_path / "rows.jsonl", []
    rows = [
        {**GOOD, f"score_{row % 1200}": 1, "id": row, "x": row % 2 or None} for row in range(1500)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(list(stream_preferences(path, notes=notes))) == 1500
    (note,) = notes
    assert "id (1,500 rows), score_0 (2 rows), score_1 (2 rows)" in note
    assert note.endswith("and 1102 more")


def test_raises_for_columns_that_are_nested_too_deeply() -> None:
    deep: Any = "x y"
    for _ in range(900):
        deep = [deep]
    for row in ({**GOOD, "x": deep}, {**GOOD, "chosen": [{**CHAT[1], "name": deep}]}):
        assert refusal(row) == "the row is nested too deeply"


def test_property_a_column_that_is_named_and_missing_is_listed() -> None:
    for columns in ({"system": "persona"}, {"hint": "ignore"}, {"message.weight": "ignore"}):
        name = columns.get("system", next(iter(columns)))
        assert (
            parse(GOOD, columns)[1] == f"columns that `data.columns` names and no row has: {name}"
        )
    assert parse({**GOOD, "persona": "Be kind."}, {"system": "persona"})[1] == ""
    assert "no row has" not in parse({**GOOD, "hint": "a b"}, {"hint": "ignore"})[1]
