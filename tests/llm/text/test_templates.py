"""Claims about the choice of a chat template, its variables and date, and what it writes."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.data.preferences import Message, RowError, parse_row
from llm.data.rows import Row
from llm.text.templates import open_templates
from llm.text.tokenize import tokenize_rows
from llm.text.tokenizer import Tokenizer, TokenizerOptions, load_tokenizer
from llm.text.tokenizer_files import read_tokenizer

WriteFolder = Callable[..., Path]
USER, REPLY = Message("user", "Hé"), Message("assistant", "Ho")
MESSAGES = (
    "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)


def text_of(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer._fast.decode(ids, skip_special_tokens=False)


def load(folder: Path, **options: Any) -> Tokenizer:
    return load_tokenizer(folder, TokenizerOptions(**options))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("strftime_now('%d %B %Y')", "09 March 2025"),
        ("strftime_now('%H:%M:%S')", "00:00:00"),
        ("strftime_now('%A, day %j')", "Sunday, day 068"),
    ],
)
def test_golden_the_date_of_a_template_is_fixed(
    call: str, expected: str, write_folder: WriteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(f"{{{{ {call} }}}}" + MESSAGES)
    tokenizer = load(folder, template_date="2025-03-09")
    assert tokenizer.template_date == "2025-03-09"
    assert text_of(tokenizer, tokenizer.encode_prompt([USER])).startswith(expected)
    again, other = (load(folder, template_date=f"2025-03-{day:02}") for day in (9, 10))
    assert again.template_digest == tokenizer.template_digest != other.template_digest
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert load(folder).template_date in (
        today,
        datetime.datetime.now(datetime.UTC).date().isoformat(),
    )
    # Hosts in other time zones have the same date, and a template without one has no date.
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    assert load(folder).template_digest == load(folder, template_date=today).template_digest
    assert load(write_folder()).template_date is None


@pytest.mark.parametrize("source", ["{{ ['a', 'b'] | random }}", "{{ lipsum() }}", "{{ now() }}"])
def test_raises_for_a_template_that_draws_or_reads_a_clock(
    source: str, write_folder: WriteFolder
) -> None:
    with pytest.raises(ValueError, match=r"No filter named 'random'|is undefined"):
        load(write_folder(source + MESSAGES))


@pytest.mark.parametrize("date", ["yesterday", "2025-13-01", "20 March"])
def test_raises_for_a_date_that_is_none(date: str) -> None:
    with pytest.raises(ValueError, match="`template_date` must be a date YYYY-MM-DD"):
        TokenizerOptions(template_date=date)


OPENING = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
EMPTY_THINKING = MESSAGES.replace("{{ m.content }}", OPENING + "{{ m.content }}")


def pair_of(tokenizer: Tokenizer, chosen: str, rejected: str, **fields: Any) -> Any:
    row = {"prompt": "Hé", "chosen": chosen, "rejected": rejected, **fields}
    return tokenize_rows([parse_row(Row(row, "a.jsonl:1"), 0)], tokenizer, max_length=999).pairs[0]


def test_golden_text_that_a_template_writes_before_every_response_is_part_of_the_prompt(
    write_folder: WriteFolder,
) -> None:
    tokenizer = load(write_folder(EMPTY_THINKING))
    pair = pair_of(tokenizer, "Ho", "Ha", baseline="He")
    prompt = "<|turn|>user:Hé<|end|>\n<|turn|>assistant:<think>\n\n</think>\n\n"
    assert text_of(tokenizer, list(pair.prompt)) == prompt
    assert [text_of(tokenizer, list(ids)) for ids in pair[1:4]] == [
        f"{text}<|end|>\n" for text in ("Ho", "Ha", "He")
    ]
    assert pair.scored is None
    assert any("before every response" in note for note in tokenizer.notes)
    # Other constants: a space, and a tag that only conversations have.
    for constant in (" ", "[answer]\n"):
        tokenizer = load(
            write_folder(EMPTY_THINKING.replace(OPENING, OPENING[:30] + constant + OPENING[-11:]))
        )
        pair = pair_of(tokenizer, "Ho", "Ha")
        assert text_of(tokenizer, list(pair.prompt)).endswith("assistant:" + constant)
        assert text_of(tokenizer, list(pair.chosen)) == "Ho<|end|>\n"


def test_golden_a_generation_prompt_that_conversations_lack_is_left_out(
    write_folder: WriteFolder,
) -> None:
    # As the distillations of DeepSeek-R1: "<think>" opens an answer only if one is generated.
    template = (
        "{% for m in messages %}{% set c = m.content %}"
        "{% if m.role == 'assistant' and '</think>' in c %}{% set c = c.split('</think>')[-1] %}"
        "{% endif %}<|turn|>{{ m.role }}:{{ c }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:<think>\n{% endif %}"
    )
    tokenizer = load(write_folder(template))
    generation = "<|turn|>user:Hé<|end|><|turn|>assistant:<think>\n"
    assert text_of(tokenizer, tokenizer.encode_prompt([USER])) == generation
    pair = pair_of(tokenizer, "Ho", "Ha")
    assert text_of(tokenizer, list(pair.prompt)) == generation.removesuffix("<think>\n")
    assert text_of(tokenizer, list(pair.rejected)) == "Ha<|end|>"
    assert any("generation prompt ends with '<think>" in note for note in tokenizer.notes)
    # What the template leaves out of a response is counted.
    row = parse_row(Row({"prompt": "Hé", "chosen": "so</think>Ho", "rejected": "Ha"}, "a:1"), 0)
    data = tokenize_rows([row], tokenizer, max_length=99)
    assert text_of(tokenizer, list(data.pairs[0].chosen)) == "Ho<|end|>"
    assert data.report["messages without a part of `content`"] == 1
    with pytest.raises(RowError, match="does not write the content of message 2"):
        tokenizer.encode_response([USER], [Message("assistant", "only reasons</think>")])


def test_golden_variables_reach_the_template(write_folder: WriteFolder) -> None:
    template = MESSAGES.replace(
        "assistant:{%", "assistant:{% if think is false %}<think></think>{% endif %}{%"
    ).replace("{{ m.content }}", OPENING.replace("\n", "") + "{{ m.content }}")
    folder = write_folder(template)
    without = load(folder)
    thinking = load(folder, chat_template_kwargs={"think": False})
    assert text_of(thinking, thinking.encode_prompt([USER])).endswith("assistant:<think></think>")
    assert thinking.template_digest != without.template_digest
    pairs = [pair_of(tokenizer, "Ho", "Ha") for tokenizer in (without, thinking)]
    assert pairs[0] == pairs[1]
    for key, message in [
        ("thinc", r"`chat_template_kwargs.thinc` has no effect: .* reads only think"),
        ("messages", r"`chat_template_kwargs.messages` comes from the data"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(folder, chat_template_kwargs={key: False})
    named = write_folder(MESSAGES + "{{ sep_token }}")
    extended = load(named, chat_template_kwargs={"sep_token": "!"})
    assert text_of(extended, extended.encode_prompt([USER])).endswith("!")


def test_golden_absent_tools_and_documents_are_none_as_in_transformers(
    write_folder: WriteFolder,
) -> None:
    tests = {
        "tools is not none": "",
        "tools is none": "T",
        "documents is none": "T",
        "builtin_tools is defined": "",
        "date_string is not defined": "T",
        "tools is defined": "T",
        "messages[0].tool_calls is not defined": "T",
    }
    for test, expected in tests.items():
        tokenizer = load(write_folder(f"{{% if {test} %}}T{{% endif %}}" + MESSAGES))
        text = text_of(tokenizer, tokenizer.encode_prompt([USER]))
        assert text.partition("<")[0] == expected, test


def test_golden_a_base_model_gets_a_template_by_name_or_from_a_file(
    write_folder: WriteFolder, tmp_path: Path
) -> None:
    folder = write_folder(None)
    with pytest.raises(ValueError, match=r"`data.chat_template` to `chatml` .*`data.format`"):
        load(folder)
    chatml = load(folder, chat_template="chatml")
    prompt = text_of(chatml, chatml.encode_prompt([USER]))
    assert prompt == "<|im_start|>user\nHé</s>\n<|im_start|>assistant\n"
    assert any("no token '<|im_end|>'" in note for note in chatml.notes)
    special = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
    tokenizer = load(write_folder(None, special=special), chat_template="chatml")
    assert text_of(tokenizer, tokenizer.encode_response([USER], [REPLY]).ids) == "Ho<|im_end|>\n"
    assert tokenizer.encode_prompt([USER]).count(259) == 2
    path = tmp_path / "mine.jinja"
    path.write_text(MESSAGES, encoding="utf-8")
    mine = load(write_folder("{{ raise_exception('not this one') }}"), chat_template=str(path))
    assert mine.encode_prompt([USER]) == load(write_folder(MESSAGES)).encode_prompt([USER])
    for value, message in [("chatlm", "must be `chatml` or a template file"), ("", "must be")]:
        with pytest.raises(ValueError, match=message):
            load(folder, chat_template=value)
    for text in (MESSAGES + "é", "{# é #}" + MESSAGES):
        for encoding in ("latin-1", "utf-16"):
            path.write_text(text, encoding=encoding)
            with pytest.raises(ValueError, match=r"mine\.jinja: .* save the file as UTF-8"):
                load(folder, chat_template=str(path))
    with pytest.raises(ValueError, match=r"needs the token `<\|im_end\|>` or an"):
        load(write_folder(None, eos_token=None), chat_template="chatml")


def test_golden_named_templates_and_files_are_chosen_as_in_transformers(
    write_folder: WriteFolder,
) -> None:
    tools = json.dumps([{"name": "f"}])
    with_tools = "{{ tools | tojson }}" + MESSAGES
    named = [
        {"name": "default", "template": MESSAGES},
        {"name": "tool_use", "template": with_tools},
    ]
    with pytest.raises(ValueError, match="has two templates 'default': keep one"):
        load(write_folder(None, chat_template=[named[0], named[0]]))
    folder = write_folder(None, chat_template=[*named, {"name": "rag", "template": "x"}])
    tokenizer = load(folder)
    assert tokenizer.notes == ("chat templates that are not used: rag",)
    assert text_of(tokenizer, tokenizer.encode_prompt([USER])).startswith("<|turn|>user")
    assert text_of(tokenizer, tokenizer.encode_prompt([USER], tools=tools)).startswith('[{"name"')
    # Files replace the templates of the configuration.
    (folder / "chat_template.jinja").write_text("F" + MESSAGES, encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("G" + with_tools)
    tokenizer = load(folder)
    assert text_of(tokenizer, tokenizer.encode_prompt([USER])).startswith("F<|turn|>")
    assert text_of(tokenizer, tokenizer.encode_prompt([USER], tools=tools)).startswith("G[")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="got only templates named tool_use"):
        load(folder)
    with pytest.raises(ValueError, match="must be a string or a list of objects"):
        load(write_folder(None, chat_template=[{"name": 3}], tokens=()) and _without(folder))


def _without(folder: Path) -> Path:
    (folder / "additional_chat_templates/tool_use.jinja").unlink()
    return folder


def test_golden_tokens_of_contents_name_their_messages(write_folder: WriteFolder) -> None:
    tokenizer = load(write_folder(MESSAGES.replace(":{{", ": {{")))
    messages = [Message("system", "S"), Message("user", "é"), REPLY, USER]
    ids = tokenizer.encode_prompt(messages)
    indices = tokenizer.content_indices(messages)
    assert len(indices) == len(ids)
    for index, message in enumerate(messages):
        inside = [token for token, found in zip(ids, indices, strict=True) if found == index]
        assert text_of(tokenizer, inside) == message.content
    rest = [token for token, found in zip(ids, indices, strict=True) if found < 0]
    assert text_of(tokenizer, rest[:11]) == "<|turn|>system: <|end|>\n"
    # In raw text, everything but the tokens before the text is content.
    raw = load(write_folder(None), format="text")
    assert raw.content_indices([USER]) == [0] * len(raw.encode_prompt([USER]))
    assert load_tokenizer(None).content_indices([USER]) == [-1, -1, 0, 0, 0, -1]


def test_closed_form_a_template_by_itself(write_folder: WriteFolder) -> None:
    folder = write_folder()
    opened = open_templates(folder, read_tokenizer(folder), TokenizerOptions())
    assert list(opened.by_name) == [""]
    assert opened.by_name[""].variables == {"bos_token", "messages", "add_generation_prompt"}
    assert opened.notes == ()


CALLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|turn|>{{ m.role }}:"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)


def call(name: str, **arguments: Any) -> Message:
    function = {"name": name, "arguments": arguments}
    fields = {"tool_calls": [{"id": "1", "type": "function", "function": function}]}
    return Message("assistant", "", json.dumps(fields))


def test_golden_only_messages_of_the_assistant_are_scored(write_folder: WriteFolder) -> None:
    tokenizer = load(write_folder(CALLS))
    response = [call("f", x=1), Message("tool", "3"), Message("assistant", "Ho")]
    tokens = tokenizer.encode_response([USER], response)
    assert tokens.scored is not None
    scored = [
        token for token, is_scored in zip(tokens.ids, tokens.scored, strict=True) if is_scored
    ]
    others = [
        token for token, is_scored in zip(tokens.ids, tokens.scored, strict=True) if not is_scored
    ]
    assert text_of(tokenizer, scored) == '<call>f{"x": 1}</call><|end|>\nHo<|end|>\n'
    assert text_of(tokenizer, others) == "<|turn|>tool:3<|end|>\n<|turn|>assistant:"
    # Each turn begins where a model would be asked for it.
    for end in (0, 2):
        asked = tokenizer.encode_prompt([USER, *response[:end]])
        assert (tokenizer.encode_prompt([USER]) + tokens.ids)[: len(asked)] == asked
    # A turn that a later one changes is refused.
    changing = CALLS.replace("{{ m.content }}", "{{ m.content if loop.last else m.content[:1] }}")
    with pytest.raises(RowError, match="must begin with those of its prompt"):
        load(write_folder(changing)).encode_response([USER], [REPLY, Message("user", "x"), REPLY])


def test_raises_for_what_a_template_does_not_write(write_folder: WriteFolder) -> None:
    tokenizer, full = load(write_folder(MESSAGES)), load(write_folder(CALLS))
    tools = json.dumps([{"name": "f"}])
    with pytest.raises(RowError, match="does not write `tools`"):
        tokenizer.encode_prompt([USER], tools=tools)
    assert full.encode_prompt([USER], tools=tools)
    for message, field in [
        (call("f", x=1), "tool_calls"),
        (Message("assistant", "Ho", '{"reasoning_content":"so"}'), "reasoning_content"),
        (Message("assistant", "Ho", '{"name":"Ann"}'), "name"),
        (Message("assistant", "Ho", '{"prefix":true}'), "prefix"),
    ]:
        with pytest.raises(RowError, match=f"does not write `{field}.*` of a message of the"):
            tokenizer.encode_response([USER], [message])
    no_arguments = load(write_folder(CALLS.replace("{{ c.function.arguments | tojson }}", "")))
    with pytest.raises(RowError, match=r"does not write `tool_calls.function.arguments`"):
        no_arguments.encode_response([USER], [call("f", x=1)])
    # The arguments are a number, of which the text alone tells nothing.
    first, second = (full.encode_response([USER], [call("f", x=x)]).ids for x in (1, 2))
    assert first != second
    no_system = MESSAGES.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    with pytest.raises(RowError, match="does not write the content of message 1, of the system"):
        load(write_folder(no_system)).encode_prompt([Message("system", "S"), USER])
    # Identifiers are counted, and so is the reasoning of earlier turns.
    result = Message("tool", "3", '{"tool_call_id":"1"}')
    full.encode_prompt([USER, call("f", x=1), result])
    assert full.unwritten == {"`tool_call_id`": 1, "`tool_calls.id`": 2}
    # A field that is null is not there, as in Transformers.
    shown = CALLS.replace("{{ m.content }}", "{{ m.content }}{{ 'N' if m.content is none }}")
    empty = load(write_folder(shown))
    null = call("f", x=1)
    null = null._replace(extra=json.dumps({**json.loads(null.extra), "content": None}))
    assert "N" not in text_of(empty, empty.encode_response([USER], [null]).ids)


def test_golden_reasoning_of_earlier_messages_is_counted(write_folder: WriteFolder) -> None:
    template = MESSAGES.replace(
        "{{ m.content }}",
        "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>"
        "{% endif %}{{ m.content }}",
    )
    tokenizer = load(write_folder(template))
    thought = Message("assistant", "Ho", '{"reasoning":"so"}')
    tokens = tokenizer.encode_response([USER], [thought])
    assert text_of(tokenizer, tokens.ids) == "<think>so</think>Ho<|end|>\n"
    assert tokenizer.unwritten == {}
    tokenizer.encode_prompt([USER, thought._replace(extra='{"reasoning_content":"so"}'), USER])
    assert tokenizer.unwritten == {"`reasoning_content`": 1}


NAMES = st.sampled_from(["name", "tool_calls", "tool_call_id", "id", "reasoning", "weight", "x"])
SCALARS = st.sampled_from(["x", 3, True, 0.5, "", False])
FIELDS = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(NAMES, SCALARS, max_size=2)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(NAMES, FIELDS, st.booleans())
def test_property_a_further_field_of_a_message_is_used_refused_or_counted(
    write_folder: WriteFolder, name: str, value: Any, is_written: bool
) -> None:
    shown = "{{ m.content }}{{ m.weight }}{{ m.x | tojson if m.x is defined }}"
    tokenizer = load(write_folder(CALLS.replace("{{ m.content }}", shown) if is_written else CALLS))
    message = Message("user", "Hé", json.dumps({name: value}))
    refusal, ids = "", []
    try:
        ids = tokenizer.encode_prompt([message])
    except RowError as error:
        refusal = str(error)
    is_used = bool(ids) and ids != tokenizer.encode_prompt([USER])
    is_counted = any(name in field for field in tokenizer.unwritten)
    # An empty value, such as no calls, has no content.
    assert name in refusal or "cannot render" in refusal or is_used or is_counted or not value
