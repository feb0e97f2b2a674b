"""Claims about tracked text: the values of ``str``, and the origin of every character."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.text.template_sandbox import compile_template, render, track_inputs
from llm.text.tracked_text import TrackedText, concat, dump_json, mark, track

TEXT = st.text("ab \nÄß<", max_size=8)
OPERATIONS = [
    "strip()",
    "lstrip()",
    "rstrip('a')",
    "split()",
    "split('a')",
    "split(None, 1)",
    "rsplit('a', 1)",
    "rsplit(None, 1)",
    "splitlines()",
    "splitlines(True)",
    "partition('a')",
    "rpartition('b')",
    "replace('a', 'bb')",
    "replace('', '-')",
    "removeprefix('a')",
    "removesuffix('b')",
    "upper()",
    "lower()",
    "title()",
    "capitalize()",
    "center(11)",
    "zfill(9)",
    "join(['x', 'y', 'z'])",
    "startswith('a')",
    "find('b')",
]


def parts(value: Any) -> list[TrackedText]:
    texts = value if isinstance(value, list | tuple) else [value]
    return [text for text in texts if isinstance(text, TrackedText)]


@given(TEXT, st.sampled_from(OPERATIONS))
def test_property_operations_return_the_values_of_str_with_their_origins(
    text: str, operation: str
) -> None:
    tracked = track(text, "x")
    expected = eval(f"text.{operation}", {"text": text})
    result = eval(f"text.{operation}", {"text": tracked})
    assert result == expected
    for part in parts(result):
        covered = sum(end - start for start, end, _ in part.get_spans())
        replaced = operation in ("replace('a', 'bb')", "join(['x', 'y', 'z'])")
        assert covered == len(part) or replaced or not text


@given(TEXT, TEXT, TEXT, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, -1]))
def test_property_parts_of_a_text_keep_their_origins(
    before: str, inside: str, after: str, start: int, end: int, step: int
) -> None:
    text = before + track(inside, "x") + after
    assert isinstance(text, TrackedText)
    origins = [0] * len(before) + [1] * len(inside) + [0] * len(after)

    def marks(part: TrackedText) -> list[int]:
        found = [0] * len(part)
        for first, last, _ in part.get_spans():
            found[first:last] = [1] * (last - first)
        return found

    piece = text[start:end:step]
    assert (piece, marks(piece)) == (
        (before + inside + after)[start:end:step],
        origins[start:end:step],
    )
    left = len(text) - len(text.lstrip())
    stripped = text.strip()
    assert marks(stripped) == origins[left : left + len(stripped)]
    assert [marks(letter) for letter in text] == [[mark] for mark in origins]


VALUES = st.recursive(
    TEXT | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_property_json_is_that_of_the_library(value: Any) -> None:
    for options in ({}, {"indent": 2}, {"sort_keys": True, "separators": (",", ":")}):
        for ensure_ascii in (True, False):
            given_options: dict[str, Any] = {**options, "ensure_ascii": ensure_ascii}
            text = dump_json(track(value, "x"), **given_options)
            assert text == json.dumps(value, **given_options)
    if isinstance(value, str) and value:
        assert dump_json(track(value, "x")).get_spans()[0][0] == 1


TEMPLATES = [
    "a{{ m }}b",
    "{{ 'a' + m + 'b' }}",
    "{{ 'a' ~ m ~ 3 }}",
    "{{ 'a%sb' % m }}",
    "{{ 'a{}b'.format(m) }}",
    "{{ ['a', m] | join('-') }}",
    "{{ '-'.join(['a', m]) }}",
    "{{ m | trim | string }}",
    "{{ m[:1] + m[1:] }}",
    "{% set x %}a{{ m }}{% endset %}{{ x }}",
    "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(m) }}",
    "{% call(x) g() %}{{ x }}{% endcall %}",
    "{{ {'k': m} | tojson }}",
    "{{ {'k': m} }}",
    "{{ [m] | first }}{{ (m, 1) | last }}",
    "{{ m.split('z')[-1] }}",
    "{{ m | upper }}{{ m | indent }}{{ m | replace('a', 'b') }}",
    "{% for letter in m %}{{ letter }}{% endfor %}",
    "{% generation %}{{ m }}{% endgeneration %}",
    "{% set ns = namespace(t='') %}{% set ns.t = ns.t + m %}{{ ns.t }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
def test_property_templates_keep_the_origins_of_what_they_write(source: str) -> None:
    macro = "{% macro g() %}[{{ caller(m) }}]{% endmacro %}"
    template = compile_template(
        "{% set m = messages[0].content %}" + macro + source, datetime.datetime(2024, 5, 6)
    )
    variables = track_inputs({"messages": [{"role": "user", "content": "xyä"}]})
    text = render(template, variables, limit=99)
    plain = render(template, {"messages": [{"role": "user", "content": "xyä"}]}, limit=99)
    assert str.__str__(text) == str.__str__(plain)
    assert plain.get_spans() == ()
    written = "".join(text[start:end].lower() for start, end, _ in text.get_spans())
    assert "xyä" in written
    assert "messages" not in written


def test_closed_form_marks_and_sums() -> None:
    both = concat([track("a", "x"), "-", track("b", "y"), track("c", "y")])
    assert both.get_spans() == ((0, 1, "x"), (2, 4, "y"))
    assert (track("ab", "x") * 2).get_spans() == ((0, 4, "x"),)
    assert mark("abc", ["-", {"k": track("b", "y")}]).get_spans() == ((0, 3, "y"),)
    assert track({"a": [1, None]}, "x") == {"a": [1, None]}
