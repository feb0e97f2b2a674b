"""Claims about tokenizers: boundaries and end tokens are verified, broken folders are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from llm.data.preferences import Message, RowError, parse_row
from llm.data.rows import Row
from llm.text.tokenize import tokenize_rows
from llm.text.tokenizer import ByteTokenizer, Tokenizer, check_vocab_size, load_tokenizer

SPECIAL = ["<s>", "</s>", "<|turn|>", "<|end|>", "<unk>"]
USER, REPLY = Message("user", "Hé"), Message("assistant", "Ho")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "lstrip": False},
    "pad_token": "</s>",
    "chat_template": TEMPLATE,
}


def folder_with(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a tokenizer of bytes and one merge as a Hugging Face folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "Ho"])}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("H", "o")]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(SPECIAL)
    # Truncation and padding in tokenizer.json must have no effect.
    fast.enable_truncation(4)
    fast.enable_padding(length=64)
    fast.save(str(folder / "tokenizer.json"))
    document = json.dumps({**(CONFIG if config is None else config), **changes})
    (folder / "tokenizer_config.json").write_text(document, encoding="utf-8")
    return folder


def library_tokens(folder: Path, text: str) -> list[int]:
    """Return the tokens of the tokenizers library."""
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    return fast.encode(text, add_special_tokens=False).ids


def test_golden_prompt_and_response_are_the_tokens_of_the_rendered_template(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    tokenizer = load_tokenizer(folder)
    prompt = "<s><|turn|>user:Hé<|end|>\n<|turn|>assistant:"
    assert tokenizer.encode_prompt([USER]) == library_tokens(folder, prompt)
    response = tokenizer.encode_response([USER], [REPLY]).ids
    # The line break after the end token belongs to the context of the next message.
    assert response == library_tokens(folder, "Ho<|end|>\n")
    assert tokenizer.encode_prompt([USER]) + response == library_tokens(
        folder, prompt + "Ho<|end|>\n"
    )
    assert tokenizer.decode(response) == "Ho\n"


def test_golden_ids_of_special_tokens(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == 256 + 1 + len(SPECIAL)
    assert [tokenizer.bos_id, tokenizer.eos_id] == [257, 258]
    assert tokenizer.end_ids == {258, 260}  # </s> and the template's <|end|>
    (folder / "generation_config.json").write_text('{"eos_token_id": [258, 259]}')
    assert load_tokenizer(folder).end_ids == {258, 259, 260}


def test_property_digests_distinguish_tokenizers_and_templates(tmp_path: Path) -> None:
    first = load_tokenizer(folder_with(tmp_path))
    same = load_tokenizer(folder_with(tmp_path))
    changed = load_tokenizer(folder_with(tmp_path, chat_template=TEMPLATE.replace(":", "\n")))
    assert (first.digest, first.template_digest) == (same.digest, same.template_digest)
    assert first.digest == changed.digest
    assert first.template_digest != changed.template_digest
    renamed = load_tokenizer(folder_with(tmp_path, unk_token="<unk>"))
    assert first.template_digest != renamed.template_digest


def test_golden_templates_in_a_list_and_in_a_separate_file(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    expected = load_tokenizer(folder).encode_prompt([USER])
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    assert load_tokenizer(folder_with(tmp_path, chat_template=named)).encode_prompt([USER]) == (
        expected
    )
    folder_with(tmp_path, chat_template=None)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    assert load_tokenizer(folder).encode_prompt([USER]) == expected


def test_closed_form_the_begin_token_may_mark_every_message(tmp_path: Path) -> None:
    template = TEMPLATE.replace("{{ bos_token }}", "")
    folder = folder_with(tmp_path, bos_token="<|turn|>", chat_template=template)
    tokens = load_tokenizer(folder).encode_prompt([USER, REPLY, USER])
    assert tokens.count(259) == 4


@pytest.mark.parametrize("text", SPECIAL)
def test_raises_for_a_message_that_contains_a_special_token(text: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_with(tmp_path))
    bad = f"a {text} b"
    with pytest.raises(RowError, match="must not contain the special token"):
        tokenizer.encode_prompt([Message("user", bad)])
    with pytest.raises(RowError, match="must not contain the special token") as caught:
        tokenizer.encode_response([USER], [Message("assistant", bad)])
    assert caught.value.reason == "special token"


BAD_TEMPLATES = [
    (None, "`chat_template` is missing in tokenizer_config.json"),
    ("{% for", "is not a chat template"),
    (TEMPLATE.replace("<|end|>", ""), "must write an end token after a response"),
    (TEMPLATE.replace("{{ bos_token }}", "<s><s>"), "writes the begin-of-sequence token twice"),
    (TEMPLATE.replace("assistant:{%", "reply:{%"), "differ at token"),
    ("{{ raise_exception('not this way') }}", "not this way"),
]


@pytest.mark.parametrize(("template", "message"), BAD_TEMPLATES)
def test_raises_for_a_template_that_cannot_be_used(
    template: str | None, message: str, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, chat_template=template)
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_raises_for_messages_that_the_template_writes_differently(tmp_path: Path) -> None:
    # The probe passes, but the template writes this conversation differently with its response.
    template = (
        "{% if messages | length == 4 %}again {% endif %}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% set cut = messages[-1].content == 'Ha' %}"
    ) + TEMPLATE.replace(
        "<|end|>", "{% if not (cut and m.role == 'assistant') %}<|end|>{% endif %}"
    )
    tokenizer = load_tokenizer(folder_with(tmp_path, chat_template=template))
    with pytest.raises(RowError, match=r"differ at token 1:") as caught:
        tokenizer.encode_response([USER, REPLY, USER], [REPLY])
    assert caught.value.reason == "boundary"
    with pytest.raises(RowError, match="no system"):
        tokenizer.encode_prompt([Message("system", "Be brief."), USER])
    with pytest.raises(RowError, match="writes no end token after this response"):
        tokenizer.encode_response([USER], [Message("assistant", "Ha")])


def test_closed_form_a_tokenizer_may_have_unused_tokens_beyond_the_embedding(
    tmp_path: Path,
) -> None:
    folder = folder_with(tmp_path)
    (folder / "added_tokens.json").write_text('{"<image>": 262, "<audio>": 263}')
    for tokenizer, size in ((load_tokenizer(folder), 262), (load_tokenizer(None), 261)):
        for vocab_size in (size, size + 9):
            check_vocab_size(tokenizer, vocab_size, "here")
        with pytest.raises(ValueError, match=r"^here: the tokenizer has .* embeds only 200"):
            check_vocab_size(tokenizer, 200, "here")
    assert load_tokenizer(folder).vocab_size == 264
    fields = {"prompt": "an <image>", "chosen": "x", "rejected": "y"}
    row = parse_row(Row(fields, "a.jsonl:1"), 0)
    tokenizer = load_tokenizer(folder)
    assert tokenize_rows([row], tokenizer, max_length=99, vocab_size=264).report["rows"] == 1
    with pytest.raises(RowError, match=r"^a.jsonl:1: the row has the token 262, but the model"):
        tokenize_rows([row], tokenizer, max_length=99, vocab_size=262)


def test_raises_for_missing_or_damaged_files(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    for name, content, message in [
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object"),
        ("tokenizer_config.json", '{"eos_token": 3}', "`eos_token` must be a string, got 3"),
        ("tokenizer.json", '{"model": 1}', "not a tokenizer"),
    ]:
        (folder / name).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message) as caught:
            load_tokenizer(folder)
        assert str(folder / name) in str(caught.value)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name}"):
            load_tokenizer(folder)
        folder_with(tmp_path)


def test_roundtrip_a_conversation_as_bytes() -> None:
    tokenizer = load_tokenizer(None)
    assert isinstance(tokenizer, Tokenizer)
    prompt = tokenizer.encode_prompt([Message("system", "S"), USER, REPLY, USER])
    user = [258, *"Hé".encode()]
    assert prompt == [256, 260, ord("S"), *user, 259, ord("H"), ord("o"), 257, *user, 259]
    assert tokenizer.encode_response([USER], [REPLY]).ids == [ord("H"), ord("o"), 257]
    # A longer conversation begins with the tokens of the shorter one.
    assert prompt[: len(prompt) - len(user) - 1] == (
        tokenizer.encode_prompt([Message("system", "S"), USER])
        + tokenizer.encode_response([USER], [REPLY]).ids
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_roundtrip_any_text_as_bytes(text: str) -> None:
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode_response([USER], [Message("assistant", text)]).ids
    assert tokenizer.decode(tokens) == text
    assert max(tokens) < tokenizer.vocab_size
    assert tokens[-1] in tokenizer.end_ids
    assert not tokenizer.end_ids.intersection(tokens[:-1])
