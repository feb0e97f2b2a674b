"""Claims about YAML: version 1.2, plain data, and one line for every mistake."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo.runtime.yaml_files import MAX_BYTES, format_yaml, parse_yaml, read_yaml

# A word, and its value by the core schema of YAML 1.2.
CORE_SCHEMA: list[tuple[str, Any]] = [
    ("0o14", 12),
    ("0x1F", 31),
    ("-0", 0),
    ("+3", 3),
    ("1e5", 1e5),
    ("-.5", -0.5),
    ("1.", 1.0),
    (".inf", math.inf),
    ("-.Inf", -math.inf),
    ("~", None),
    ("", None),
    ("Null", None),
    ("TRUE", True),
    ("false", False),
    *((word, word) for word in ("yes", "No", "on", "OFF", "y", "tRUE", "none")),
    *((word, word) for word in ("1:30", "1:30:00", "1_000", "0b11", "1e", "1.5.2")),
    *((word, word) for word in ("2026-01-01", "2001-99-99", "2026-01-01T10:00:00Z", "<<", "=")),
    # Stricter than YAML 1.2: version 1.1 reads these as octal or as text.
    *((word, word) for word in ("014", "-01", "00", "01.5")),
]


@pytest.mark.parametrize(("word", "value"), CORE_SCHEMA)
def test_golden_plain_scalars_have_the_types_of_yaml_1_2(word: str, value: Any) -> None:
    for text in (word, f"[{word}]" if word else "[null]", f"{{a: {word}}}"):
        parsed = parse_yaml(text)
        found = parsed[0] if isinstance(parsed, list) else parsed
        found = found["a"] if isinstance(found, dict) else found
        assert (type(found), found) == (type(value), value)


PRINTABLE = st.characters(max_codepoint=0x2000, exclude_categories=["C", "Z"])
SCALARS = st.sampled_from([word for word, _ in CORE_SCHEMA]) | st.text(PRINTABLE, max_size=6)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(SCALARS, SCALARS | st.integers() | st.booleans() | st.none() | st.floats()))
def test_roundtrip_values_keep_their_type(values: dict[str, Any]) -> None:
    read = parse_yaml(format_yaml(values).decode())
    assert repr(read) == repr(values)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must be a mapping of keys to values, got an empty file"),
        (b"# only a comment\n", "got an empty file"),
        (b"- a\n", "got a list"),
        (b"seeds", "got only 'seeds'"),
        (b"a: 1\n---\na: 2\n", "line 2: but found another document"),
        (b"a: 1\na: 2\n", "line 2: key `a` is given twice"),
        (b"a: 1\n\tb: 2\n", r"line 2: found character '\t'"),
        (b"a: b: c\n", "line 1: mapping values are not allowed here"),
        (b"a: &x 1\nb: *x\n", "line 2: aliases"),
        (b"a: {<<: *x}\n", "line 1: aliases"),
        (b"? [a]\n: b\n", "line 1: key ['a'] must be a string"),
        (b"a: " + b"9" * 5000, "line 1: a number may have at most 400 digits"),
        (b"a: !!bool maybe\n", "a tag does not fit its value"),
        (b"a: !!int x\n", "a tag does not fit its value"),
        (b"a: !!timestamp 2001-01-01\n", "line 1: could not determine a constructor"),
        (b"a: \x00\n", "special characters are not allowed"),
        (b"\xff\xfea\x00", "must be text in UTF-8"),
        (b"a" * (MAX_BYTES + 1), "at most 100,000 bytes"),
        (b"a: " + b"[" * 1500, "nested too deeply"),
    ],
)
def test_raises_one_line_that_names_the_file(content: bytes, rule: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(rule)) as caught:
        read_yaml(tmp_path / "run.yaml")
    assert str(caught.value).startswith(str(tmp_path / "run.yaml:"))
    assert "\n" not in str(caught.value)


def test_raises_for_a_folder_and_names_the_configuration_in_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder, but must be a YAML file$"):
        read_yaml(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"must be a YAML file: write .*config\.yaml$"):
        read_yaml(tmp_path)


def test_closed_form_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes("\ufeffname: é\n".encode())
    assert read_yaml(tmp_path / "run.yaml") == {"name": "é"}
