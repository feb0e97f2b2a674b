"""Claims about chat templates: the text of well-known ones, and limits of untrusted programs."""

from __future__ import annotations

import datetime

import pytest

from llm.text import chat_template
from llm.text.chat_template import ChatTemplate

HELLO = [{"role": "user", "content": "Hello <b>"}]
CHAT = [*HELLO, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"}]
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The format of Llama 2 and Mistral; it rejects other orders of roles.
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)


def render(source: str, messages: list[dict[str, str]] = HELLO, prompt: bool = True) -> str:
    return ChatTemplate(source, name="folder/template").render(
        messages, add_generation_prompt=prompt, variables={"bos_token": "<s>", "eos_token": "</s>"}
    )


def test_golden_chatml() -> None:
    assert render(CHATML) == "<|im_start|>user\nHello <b><|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, prompt=False) == "<|im_start|>user\nHello <b><|im_end|>\n"


def test_golden_instruct() -> None:
    assert render(INSTRUCT, CHAT) == "<s>[INST] Hello <b> [/INST]Hi</s>[INST] Bye [/INST]"


def test_golden_whitespace_around_blocks_is_trimmed() -> None:
    assert render(
        "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n{% endif %}\n{% endfor %}"
    ) == ("user\n")


def test_golden_extensions_of_template_authors() -> None:
    source = (
        "{% macro quoted(x) %}<{{ x }}>{% endmacro %}{% for m in messages %}"
        "{% if m.role == 'assistant' %}{% continue %}{% endif %}"
        "{% generation %}{{ quoted(m.content) }}{% endgeneration %}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ messages[:1] | tojson }}"
    )
    expected = '<Hello <b>><Bye>[{"role": "user", "content": "Hello <b>"}]'
    assert render(source, CHAT) == expected


def test_closed_form_the_date_is_fixed_and_part_of_the_digest() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    first, second = (
        ChatTemplate(source, name="t", now=datetime.datetime(2024, 7, day)) for day in (26, 27)
    )
    assert first.render(HELLO, add_generation_prompt=True) == "26 Jul 2024"
    assert first.digest != second.digest
    undated = {
        ChatTemplate(CHATML, name="t", now=datetime.datetime(2024, 7, day)).digest
        for day in (26, 27)
    }
    assert len(undated) == 1
    assert undated != {ChatTemplate(CHATML + " ", name="t").digest}


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (INSTRUCT.replace("== 0", "== 1"), "roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception.__globals__.json }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ nothing.at_all }}", "undefined"),
        ("{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}", "recursion"),
        ("{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "output is too long"),
    ],
)
def test_raises_with_the_name_of_the_template(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^folder/template cannot render.*{reason}"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
    ],
)
def test_raises_for_a_template_that_does_not_end(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.05)
    with pytest.raises(ValueError, match=r"longer than 0\.05 seconds"):
        render(source)


@pytest.mark.parametrize("source", ["{% for m in messages %}", "{{ '", "{% generation %}"])
def test_raises_for_an_invalid_template(source: str) -> None:
    with pytest.raises(ValueError, match=r"^folder/template is not a chat template"):
        render(source)
