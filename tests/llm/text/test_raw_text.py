"""Claims about raw text: a prompt and its continuation, with begin and end tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import processors

from llm.data.preferences import Message, RowError, parse_row
from llm.data.rows import Row
from llm.text.raw_text import RawTextTokenizer
from llm.text.tokenize import tokenize_rows
from llm.text.tokenizer import Tokenizer, TokenizerOptions, load_tokenizer

WriteFolder = Callable[..., Path]
TEXT = TokenizerOptions(format="text")
PROMPT, REPLY = Message("user", "2 + 2 ="), Message("assistant", " 4")


def with_bos(folder: Path, single: str = "<s> $A") -> Path:
    """Let the tokenizer write tokens around a text."""
    fast = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = [("<s>", fast.token_to_id("<s>")), ("</s>", fast.token_to_id("</s>"))]
    fast.post_processor = processors.TemplateProcessing(single=single, special_tokens=names)
    fast.save(str(folder / "tokenizer.json"))
    return folder


def test_golden_raw_text_has_the_begin_token_of_the_tokenizer_and_an_end_token(
    write_folder: WriteFolder,
) -> None:
    tokenizer = load_tokenizer(write_folder(None), TEXT)
    assert isinstance(tokenizer, RawTextTokenizer)
    assert isinstance(tokenizer, Tokenizer)
    ids = tokenizer.encode_prompt([PROMPT])
    assert tokenizer.decode(ids) == "2 + 2 ="
    response = tokenizer.encode_response([PROMPT], [REPLY])
    assert (tokenizer.decode(response.ids), response.ids[-1], response.scored) == (" 4", 258, None)
    assert tokenizer.end_ids == {258}
    for single in ("<s> $A", "<s> $A </s>"):
        folder = with_bos(write_folder(None), single)
        tokenizer = load_tokenizer(folder, TEXT)
        assert tokenizer.encode_prompt([PROMPT]) == [257, *ids]
        assert tokenizer.encode_response([PROMPT], [REPLY]) == response
        assert any("writes after a text" in note for note in tokenizer.notes) == ("</s>" in single)
    row = parse_row(Row({"prompt": "abcdef", "chosen": "x", "rejected": "y"}, "a.jsonl:1"), 0)
    pair = tokenize_rows([row], tokenizer, max_length=6, max_prompt_length=4).pairs[0]
    assert tokenizer.decode(pair.prompt) == "def"
    assert pair.prompt[0] == 257


def test_raises_for_what_raw_text_cannot_express(write_folder: WriteFolder) -> None:
    tokenizer = load_tokenizer(write_folder(None), TEXT)
    system = Message("system", "S")
    for prompt in ([system, PROMPT], [PROMPT, REPLY, PROMPT], [], [PROMPT._replace(role="tool")]):
        with pytest.raises(RowError, match="`format: text` has one text of the user here"):
            tokenizer.encode_prompt(prompt)
    with pytest.raises(RowError, match="one text of the assistant"):
        tokenizer.encode_response([PROMPT], [REPLY, PROMPT, REPLY])
    with pytest.raises(RowError, match="cannot write `tools`"):
        tokenizer.encode_prompt([PROMPT], tools=json.dumps([{}]))
    with pytest.raises(RowError, match=r'cannot write \{"name"'):
        tokenizer.encode_prompt([PROMPT._replace(extra='{"name":"Ann"}')])
    # "Ho" is one token: a prompt must not end in the middle of it.
    with pytest.raises(RowError, match="let the prompt end before a space") as caught:
        tokenizer.encode_response([Message("user", "H")], [Message("assistant", "o")])
    assert caught.value.reason == "boundary"
    for text in ("a </s> b", "<s>"):
        with pytest.raises(RowError, match="must not contain the special token"):
            tokenizer.encode_prompt([Message("user", text)])
        with pytest.raises(RowError, match="must not contain the special token"):
            tokenizer.encode_response([PROMPT], [Message("assistant", text)])


def test_raises_for_options_that_do_not_apply(write_folder: WriteFolder) -> None:
    with pytest.raises(ValueError, match="needs an `eos_token`"):
        load_tokenizer(write_folder(None, eos_token=None), TEXT)
    with pytest.raises(ValueError, match="`chat_template` has no effect with `format: text`"):
        TokenizerOptions(format="text", chat_template="chatml")
    with pytest.raises(ValueError, match="`chat_template` has no effect with `format: text`"):
        TokenizerOptions(format="text", chat_template_kwargs={"a": 1})
    with pytest.raises(ValueError, match="must not be given for the byte tokenizer"):
        load_tokenizer(None, TokenizerOptions(chat_template="chatml"))
    with pytest.raises(ValueError, match="must be `chat` for the byte tokenizer"):
        load_tokenizer(None, TEXT)
