"""Claims about conversations in rows: each field is read, refused by name, or listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm.data.preferences import PreferenceRow, RowError, read_preferences, stream_preferences

CALL = {"function": {"name": "weather", "arguments": {"unit": "c", "city": "Paris"}}}
USER = {"role": "user", "content": "Weather?"}


def read(folder: Path, *rows: Any, **options: Any) -> tuple[list[PreferenceRow], list[str]]:
    path, notes = folder / "rows.jsonl", []
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines), encoding="utf-8")
    return list(stream_preferences(path, notes=notes, **options)), notes


def refusal(folder: Path, row: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: [^\n]+$") as caught:
        read(folder, row, **options)
    return str(caught.value).split("rows.jsonl:1: ")[1]


def test_roundtrip_calls_of_tools_reach_the_template_in_their_order(tmp_path: Path) -> None:
    def row(city: str, **message: Any) -> dict[str, Any]:
        function = {"name": "weather", "arguments": {"unit": "c", "city": city}}
        call = {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}
        tools = [{"type": "function", "function": {"name": "weather", "description": "Now."}}]
        chosen = [call | message]
        rejected = [{**call, "tool_calls": [CALL]}]
        return {"prompt": [USER], "chosen": chosen, "rejected": rejected, "tools": tools}

    first, second, third = read(
        tmp_path,
        row("Rome"),
        {**row("Rome", reasoning_content="Call it."), "tools": json.dumps(row("Rome")["tools"])},
        row("Rome", tool_call_id="c1", name="w", content="Let me see."),
    )[0]
    arguments = '[{"function":{"name":"weather","arguments":{"unit":"c","city":"Rome"}}}]'
    assert first.chosen[0].content == ""
    assert first.chosen[0].extra == f'{{"content":null,"tool_calls":{arguments}}}'
    assert first.chosen != first.rejected  # they differ in one argument of the call only
    assert json.loads(second.chosen[0].extra)["reasoning_content"] == "Call it."
    expected = '[{"type":"function","function":{"name":"weather","description":"Now."}}]'
    assert first.tools == second.tools == expected
    assert list(json.loads(third.chosen[0].extra)) == ["name", "tool_call_id", "tool_calls"]
    assert third.chosen[0].content == "Let me see."
    assert "`chosen` and `rejected` are identical" in refusal(tmp_path, row("Paris"))
    assert "`chosen[0].tool_calls` must be a list" in refusal(tmp_path, row("Rome", tool_calls="f"))
    assert "`chosen[0].content` must be a string" in refusal(tmp_path, row("Rome", tool_calls=[]))
    for tools in ("[1]", "{", {"name": "weather"}, ["weather"]):
        assert refusal(tmp_path, {**row("Rome"), "tools": tools}).startswith("field `tools`")
    assert read(tmp_path, {**row("Rome"), "tools": []})[0][0].tools == ""


def test_roundtrip_multi_turn_responses_and_results_of_tools(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "21", "tool_call_id": "c1"}
    answer = {"role": "assistant", "content": "21 degrees."}
    again = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes."}]
    common = {"prompt": [USER], "rejected": [{"role": "assistant", "content": "No idea."}]}
    rows, _ = read(
        tmp_path,
        {**common, "chosen": [call, result, result, answer]},
        {**common, "chosen": [USER, answer, *again]},
        {"chosen": [USER, answer, *again], "rejected": [USER, answer, *again[:1], answer]},
        {"chosen": [USER, answer, *again], "rejected": [USER, answer]},
        {**common, "prompt": [USER, call, result], "chosen": [answer]},
    )
    roles = [[message.role for message in row.chosen] for row in rows]
    assert roles[0] == ["assistant", "tool", "tool", "assistant"]
    assert roles[1:] == [["assistant", "user", "assistant"], ["assistant"], roles[1], ["assistant"]]
    assert rows[0].chosen[1].extra == '{"tool_call_id":"c1"}'
    assert [len(row.prompt) for row in rows] == [1, 1, 3, 1, 3]
    for wrong in ([answer, *again[:1]], [answer, answer], [result, answer], [call, result]):
        with pytest.raises(RowError, match="must be a message of the assistant") as caught:
            read(tmp_path, {**common, "chosen": wrong})
        assert caught.value.reason == "roles out of order"


def test_property_content_of_parts_is_joined_or_refused_by_type(tmp_path: Path) -> None:
    def row(*parts: Any) -> dict[str, Any]:
        chosen = [{"role": "assistant", "content": list(parts)}]
        return {"prompt": "Name a color.", "chosen": chosen, "rejected": "Nine."}

    text = {"type": "text", "text": "Blue"}
    assert read(tmp_path, row(text, {**text, "text": ".", "image": None}))[0][0].chosen == (
        ("assistant", "Blue.", ""),
    )
    for part, message in (
        ({"type": "image", "image": "a.png"}, "`chosen[0].content[1]` is a part of type `image`"),
        ({"type": "input_audio", "input_audio": {}}, "is a part of type `input_audio`"),
        ({"type": "text", "text": "a", "image": "a.png"}, "got type, text, image"),
        ({"text": "a"}, "must be a part such as"),
        ("plain", "must be a part such as"),
    ):
        assert message in refusal(tmp_path, row(text, part))


def test_roundtrip_other_forms_of_conversations(tmp_path: Path) -> None:
    prompt = [{"from": "human", "value": "Hi"}]
    chosen, rejected = {"from": "gpt", "value": "Hello."}, {"from": "gpt", "value": "No."}
    plain = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}
    wrapped = {
        name: {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": c}]}
        for name, c in (("chosen", "Hello."), ("rejected", "No."))
    }
    rows, notes = read(
        tmp_path,
        plain,
        {"prompt": prompt, "chosen": chosen, "rejected": rejected},
        {"chosen": {"conversations": [*prompt, chosen]}, "rejected": [*prompt, rejected]},
        wrapped,
    )
    assert all(row[:3] == rows[0][:3] for row in rows)
    assert notes == []
    mapped = {"conversations": prompt, "chosen": chosen, "rejected": rejected}
    assert read(tmp_path, mapped, columns={"prompt": "conversations"})[0][0][:3] == rows[0][:3]
    assert "`data.columns: {prompt: conversations}`" in refusal(
        tmp_path, {**mapped, "chosen": "Hello."}
    )
    assert "from` must be one of human, user" in refusal(
        tmp_path, {**plain, "prompt": [{"from": "observation", "value": "x"}]}
    )
    assert ".system` is not read" in refusal(
        tmp_path, {**plain, "chosen": {"messages": [], "system": "Be brief."}}
    )
    assert "must be a string, a list of messages or an object with" in refusal(
        tmp_path, {**plain, "chosen": {"text": "Hello."}}
    )


def test_raises_for_conversations_in_strings_and_equal_keys(tmp_path: Path) -> None:
    plain = {"prompt": "Name a color.", "chosen": "Blue.", "rejected": "Nine."}
    message = {"role": "assistant", "content": "Blue."}
    for text in (
        json.dumps([message]),
        json.dumps([{"content": "Blue.", "role": "assistant"}], indent=1),
        json.dumps(message),
        json.dumps({"messages": [message]}),
        json.dumps([{"from": "gpt", "value": "Blue."}]),
        repr([message]),
        json.dumps([{"id": 1, **message}]),
        json.dumps({"conversations": [{"from": "gpt", "value": "Blue."}]}),
        json.dumps(json.dumps([message])),
        "\n".join(map(json.dumps, ({**message, "role": "user"}, message))),
        json.dumps([{"type": "text", "text": "Blue."}]),
    ):
        assert "`chosen` is a string that holds" in refusal(tmp_path, {**plain, "chosen": text})
        nested = [{"role": "assistant", "content": text}]
        assert "`chosen[0].content` is a" in refusal(tmp_path, {**plain, "chosen": nested})
    admin = '[{"role": "admin", "content": 3}]'
    for text in (admin, "[1, 2]", '{"role": "user"', "{'a': 1}", '"Blue."'):
        assert read(tmp_path, {**plain, "chosen": text})[0][0].chosen[0].content == text
    line = json.dumps(plain)
    for twice in (
        line[:-1] + ', "chosen": "Red."}',
        line.replace('"Blue."', '[{"role": "assistant", "content": "a", "content": "b"}]'),
        line[:-1] + ', "meta": {"id": 1, "id": 2}}',
    ):
        assert "stands twice in one object: keep one" in refusal(tmp_path, twice)
    assert "a second value begins at column" in refusal(tmp_path, line + line)


def test_property_responses_that_begin_with_their_prompt_are_cut_or_counted(tmp_path: Path) -> None:
    text = "Name a color."
    for prompt, chosen, rejected in (
        (text, f"{text} Blue.", f"{text} Nine."),
        (text, f"\n{text}\nBlue.", f"{text}Nine."),
        (text, "Name  a\r\ncolor. Blue.", "\tName a color.\tNine."),
        ("2+2=", "2+2=Blue.", "2+2= Nine."),
        ([{"role": "user", "content": text}], f"{text} Blue.", f"{text} Nine."),
        (
            [{"role": "system", "content": "s"}, {"role": "user", "content": text}],
            [{"role": "assistant", "content": f"{text} Blue."}],
            [{"role": "assistant", "content": f"{text} Nine."}],
        ),
    ):
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "baseline": "Red."}
        rows, notes = read(tmp_path, row, row)
        assert [rows[0].chosen[0].content, rows[0].rejected[0].content] == ["Blue.", "Nine."]
        assert rows[0].baseline is not None
        assert rows[0].baseline[0].content == "Red."
        assert len(notes) == 1
        assert notes[0].startswith("rows whose responses begin with their own prompt, which is re")
        assert ": 2 (the first is " in notes[0]
        assert notes[0].endswith("rows.jsonl:1)")
    spaced = {"prompt": "2 + 2 =", "chosen": "2 + 2 = 4", "rejected": "2 + 2 = 5"}
    assert read(tmp_path, spaced, raw_text=True)[0][0].chosen[0].content == " 4"
    for prompt, chosen, rejected in (
        (text, f"{text} Blue.", "Nine."),
        (text, "Blue.", text),
        ("Good evening", "Good evening to you!", "Good evening, what?"),
        (text, f"{text} Blue.", text),
        (text, f"Question: {text} Answer: Blue.", f"Question: {text} Answer: Nine."),
        (text, f"Human: {text}\n\nAssistant: Blue.", "Nine."),
    ):
        rows, notes = read(tmp_path, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
        assert (rows[0].chosen[0].content, rows[0].rejected[0].content) == (chosen, rejected)
        assert notes[0].startswith("rows with a response that begins with its own prompt, used as")
    assert read(tmp_path, {"prompt": "a b c", "chosen": "A b c d", "rejected": "d"})[1] == []
    reply, system = f"Be kind. Be brief.\n{text} Blue.", "Be kind. Be brief."
    notes = read(
        tmp_path, {"prompt": text, "system": system, "chosen": reply, "rejected": "Nine."}
    )[1]
    assert notes[0].startswith("rows with a response that begins with its own prompt, used as")


def test_property_a_system_column_is_the_first_message(tmp_path: Path) -> None:
    plain = {"prompt": "Good evening", "chosen": "Bonsoir", "rejected": "Hi"}
    system = {"role": "system", "content": "Answer in French."}
    user = {"role": "user", "content": "Good evening"}
    reply = {"role": "assistant", "content": "Bonsoir"}
    for value in ("Answer in French.", system, [system], {**system, "role": "developer"}):
        for row in (
            plain,
            {**plain, "prompt": [user]},
            {**plain, "prompt": [user], "chosen": [user, reply]},
            {"chosen": [user, reply], "rejected": [user, {**reply, "content": "Hi"}]},
        ):
            first = read(tmp_path, {**row, "system": value})[0][0]
            assert first.prompt[0].content == "Answer in French."
            assert [message.role for message in first.prompt][1:] == ["user"]
            assert [message.content for message in first.chosen] == ["Bonsoir"]
    same = {**plain, "prompt": [system, user], "system": "Answer in French."}
    assert len(read(tmp_path, same)[0][0].prompt) == 2
    assert "must be the system message with which" in refusal(tmp_path, {**same, "system": "Hm."})
    assert "must be a text or one system message" in refusal(tmp_path, {**plain, "system": [user]})
    assert read(tmp_path, {**plain, "system": " "})[0][0].prompt == (("user", "Good evening", ""),)
    other = {**plain, "system_prompt": "Answer in French."}
    assert "(`system: system_prompt`)" in refusal(tmp_path, other)
    assert len(read(tmp_path, other, columns={"system": "system_prompt"})[0][0].prompt) == 2


def test_roundtrip_the_same_row_from_parquet_has_no_fields_of_other_rows(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    other = {"function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [
        {"prompt": [USER], "chosen": [call], "rejected": [{"role": "assistant", "content": "No."}]},
        {"prompt": [USER], "chosen": [{**call, "tool_calls": [other]}], "rejected": [call]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    from_parquet = read_preferences(tmp_path / "rows.parquet")
    assert [row[:3] for row in from_parquet[:1]] == [
        row[:3] for row in read(tmp_path, *rows)[0][:1]
    ]
    assert "city" not in from_parquet[1].chosen[0].extra
