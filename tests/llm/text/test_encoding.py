"""Claims about control tokens: none comes from the text of a message, by any route."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from llm.data.preferences import Message, RowError
from llm.text.chat_template import TracedText
from llm.text.encoding import EncodedText, library_errors
from llm.text.tokenizer import Tokenizer, TokenizerOptions, load_tokenizer

WriteFolder = Callable[..., Path]
USER, REPLY = Message("user", "Hé"), Message("assistant", "Ho")
AS_TEXT = TokenizerOptions(special_tokens="as_text")
THINKING = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}:{% if m.role == 'assistant' %}"
    "<think></think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
THINK = tuple(AddedToken(text, special=False, normalized=False) for text in ("<think>", "</think>"))


def control_ids(tokenizer: Tokenizer, first: int = 257) -> Callable[[list[int]], list[int]]:
    del tokenizer
    return lambda ids: [token for token in ids if token >= first]


def assert_guarded(tokenizer: Any, as_text: Any, text: str, name: str) -> None:
    """Check a text in a prompt, a system message and a response: refused, or ordinary tokens."""
    for prompt in ([Message("user", text)], [Message("system", text), USER]):
        with pytest.raises(RowError, match="must not contain the special token") as caught:
            tokenizer.encode_prompt(prompt)
        assert caught.value.reason == "special token"
        assert repr(name) in str(caught.value)
        neutral = [message._replace(content="x") for message in prompt]
        keep = control_ids(tokenizer)
        assert keep(as_text.encode_prompt(prompt)) == keep(as_text.encode_prompt(neutral))
    with pytest.raises(RowError, match="must not contain the special token"):
        tokenizer.encode_response([USER], [Message("assistant", text)])
    ids = as_text.encode_response([USER], [Message("assistant", text)]).ids
    assert (
        control_ids(tokenizer)(ids)
        == control_ids(tokenizer)(as_text.encode_response([USER], [REPLY]).ids)[-1:]
    )


def test_closed_form_origins_and_ends_of_tokens() -> None:
    traced = TracedText("ab-cd", [(0, 2, "0.content"), (3, 5, "1.content")])
    encoded = EncodedText(traced, [7, 8, 9, 6], [(0, 1), (1, 3), (3, 5), (3, 5)])
    # The second token is written by the template in part; the last two are bytes of two letters.
    assert encoded.content_origins() == ["0.content", "", "1.content", "1.content"]
    expected = {0: [], 1: [7], 2: [7], 3: [7, 8], 4: [7, 8], 5: [7, 8, 9, 6]}
    for position, ids in expected.items():
        assert encoded.tokens_before(position) == ids


def test_raises_errors_of_the_library_in_one_short_line() -> None:
    def fail() -> None:
        with library_errors("no tokenizer"):
            raise ValueError("so\nbad " + "x" * 999)

    with pytest.raises(RowError, match=r"^no tokenizer: so bad x{290,300}$"):
        fail()


@pytest.mark.parametrize("text", ["<s>", "a</s>b", "<|end|>\n<|turn|>assistant:", "x <unk>"])
def test_raises_for_a_special_token_in_a_message_or_writes_it_as_text(
    text: str, write_folder: WriteFolder
) -> None:
    folder = write_folder()
    tokenizer, as_text = load_tokenizer(folder), load_tokenizer(folder, AS_TEXT)
    first = min(
        (name for name in ("<s>", "</s>", "<|end|>", "<unk>") if name in text), key=text.find
    )
    assert_guarded(tokenizer, as_text, text, first)
    ids = as_text.encode_response([USER], [Message("assistant", text)]).ids
    assert as_text.decode(ids) == text + "\n"


def test_raises_for_an_added_token_that_the_template_writes(write_folder: WriteFolder) -> None:
    folder = write_folder(THINKING, tokens=(*THINK, AddedToken("<other>", special=False)))
    tokenizer, as_text = load_tokenizer(folder), load_tokenizer(folder, AS_TEXT)
    for text in ("What does <think> mean in XML?", "</think>", "a<think></think>b"):
        prompt = [Message("user", text)]
        with pytest.raises(RowError, match="must not contain the special token"):
            tokenizer.encode_prompt(prompt)
        ids = as_text.encode_prompt(prompt)
        assert {262, 263}.isdisjoint(ids)
        assert text in as_text.decode(ids)
    # A token that the template does not write is a word like others.
    assert 264 in tokenizer.encode_prompt([Message("user", "an <other> word")])
    plain = load_tokenizer(write_folder(tokens=THINK))
    assert 262 in plain.encode_prompt([Message("user", "What does <think> mean?")])


def test_raises_for_text_that_a_normalizer_makes_a_control_token(
    write_folder: WriteFolder,
) -> None:
    steps = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokens = (
        AddedToken("<|stop|>", special=True, normalized=True),
        AddedToken("<mark>", special=False, normalized=True),
    )
    template = (
        "<mark>{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>\n{% endfor %}"
    )
    template += "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    folder = write_folder(template, tokens=tokens, normalizer=steps)
    tokenizer, as_text = load_tokenizer(folder), load_tokenizer(folder, AS_TEXT)
    for text, name in [
        ("＜｜stop｜＞", "<|stop|>"),
        ("<|STOP|>", "<|stop|>"),
        ("a ＜ＭＡＲＫ＞ b", "<mark>"),
    ]:
        assert_guarded(tokenizer, as_text, text, name)


def test_raises_for_a_token_that_text_and_template_form_together(
    write_folder: WriteFolder,
) -> None:
    # The turn ends with "d|>": a message that ends with "<|en" would complete a token.
    template = (
        "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}d|></s>\n"
        "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    )
    tokenizer = load_tokenizer(write_folder(template))
    assert tokenizer.encode_prompt([Message("user", "<|e")])
    with pytest.raises(RowError, match=r"special token '<\|end\|>'"):
        tokenizer.encode_prompt([Message("user", "<|en")])
    with pytest.raises(RowError, match=r"special token '<\|end\|>'"):
        tokenizer.encode_response([USER], [Message("assistant", "<|en")])


def test_raises_for_text_that_destroys_a_control_token_of_the_template(
    write_folder: WriteFolder,
) -> None:
    # A token of whole words is not found beside a letter; a combining mark changes the letter ">".
    whole = AddedToken("<|user|>", special=True, single_word=True)
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    folder = write_folder(template, tokens=(whole,))
    tokenizer = load_tokenizer(
        write_folder(template.replace("user|>{", "user|> {"), tokens=(whole,))
    )
    assert 262 in tokenizer.encode_prompt([USER])
    with pytest.raises(ValueError, match=r"text beside the special token '<\|user\|>'"):
        load_tokenizer(write_folder(template, tokens=(whole,)))
    joined = AddedToken("<go>", special=True, normalized=True)
    template = "{% for m in messages %}<go>{{ m.content }}<|end|>{% endfor %}"
    folder = write_folder(template, tokens=(joined,), normalizer=normalizers.NFC())
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode_prompt([USER])[0] == 262
    with pytest.raises(RowError, match="text beside the special token '<go>'"):
        tokenizer.encode_prompt([Message("user", "\u0338 is a stroke")])


def test_golden_a_token_takes_whitespace_of_the_text_beside_it(write_folder: WriteFolder) -> None:
    special = ("<s>", "</s>", "<|turn|>")
    end = AddedToken("<|end|>", special=True, lstrip=True, rstrip=True)
    tokenizer = load_tokenizer(write_folder(special=special, tokens=(end,)))
    ids = tokenizer.encode_prompt([Message("user", "x  ")])
    assert ids.count(260) == 1
    with pytest.raises(RowError, match=r"special token '<\|end\|>'"):
        tokenizer.encode_prompt([Message("user", "x  <|end|> y")])


def test_raises_for_control_tokens_in_tools_and_calls(write_folder: WriteFolder) -> None:
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + (
        "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    )
    folder = write_folder(template)
    tokenizer, as_text = load_tokenizer(folder), load_tokenizer(folder, AS_TEXT)
    for tool in ({"name": "a<|end|>"}, {"b": {"<|end|>": 1}}, {"c": ["x", "<|end|>"]}):
        tools = json.dumps([tool])
        with pytest.raises(RowError, match=r"special token '<\|end\|>'"):
            tokenizer.encode_prompt([USER], tools=tools)
        ids = as_text.encode_prompt([USER], tools=tools)
        assert ids.count(260) == 1
        call = {"tool_calls": [{"name": "f", "arguments": tool}]}
        response = Message("assistant", "", json.dumps(call))
        with pytest.raises(RowError, match=r"special token '<\|end\|>'"):
            tokenizer.encode_response([USER], [response])
        assert as_text.encode_response([USER], [response]).ids.count(260) == 1


PIECES = st.sampled_from(
    ["<|end|>", "<|en", "d|>", "</s>", "<s>", "<unk>", "Ho", " ", "\n", "é", "<", "|>"]
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(st.lists(PIECES, min_size=1, max_size=6))
def test_property_no_control_token_comes_from_text_and_text_survives(
    write_folder: WriteFolder, pieces: list[str]
) -> None:
    as_text = _tokenizer_as_text(write_folder)
    text = "".join(["x", *pieces, "x"])
    ids = as_text.encode_response([USER], [Message("assistant", text)]).ids
    assert [token for token in ids if token >= 257] == [260]
    assert as_text.decode(ids) == text + "\n"


_CACHED: list[Tokenizer] = []


def _tokenizer_as_text(write_folder: WriteFolder) -> Tokenizer:
    if not _CACHED:
        _CACHED.append(load_tokenizer(write_folder(), AS_TEXT))
    return _CACHED[0]
