"""Claims about JSON documents: values with their paths, and one line for every error."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from rpo_io.json_document import (
    DocumentError,
    document_from_values,
    is_number,
    load_document,
    parse_document,
)

TEXT = b"""{
  "kind": "tabular",
  "max": 2.0,
  "policy": [[0.5, 0.5],
             [1, 0]]
}"""


def test_roundtrip_a_document_is_read_from_a_file_and_from_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(TEXT)
    from_file = load_document(str(path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    from_stdin = load_document("-")
    assert from_file.value == from_stdin.value
    assert (from_file.name, from_stdin.name) == (str(path), "standard input")


def test_closed_form_members_have_their_values() -> None:
    keys = parse_document(TEXT, name="p.json").members(["kind", "policy"], ["max", "radius"])
    assert sorted(keys) == ["kind", "max", "policy"]
    assert keys["kind"].one_of(["tabular", "linear"]) == "tabular"
    assert keys["max"].number() == 2.0
    assert keys["policy"].numbers(2).tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert len(keys["policy"].items()) == 2


def test_raises_with_the_line_and_the_path_of_the_value() -> None:
    root = parse_document(TEXT, name="p.json")
    with pytest.raises(DocumentError, match=r"^p\.json, line 5: `policy\[1\]\[0\]` is wrong$"):
        root.at("policy").refuse("is wrong", 1, 0)
    with pytest.raises(DocumentError, match=r"`kind` must be \"linear\", got \"tabular\""):
        root.at("kind").one_of(["linear"])
    with pytest.raises(DocumentError, match=r"`maximum` is not a known key|`max` is not a known"):
        root.members(["kind", "policy", "maximum"])
    with pytest.raises(DocumentError, match=r"`policy\[0\]` must be a number"):
        root.at("policy").numbers(1)


@pytest.mark.parametrize(
    ("value", "expected"), [(1, True), (0.5, True), (True, False), ("1", False), (None, False)]
)
def test_closed_form_booleans_and_strings_are_no_numbers(value: object, expected: bool) -> None:
    assert is_number(value) is expected


def test_raises_for_python_values_without_a_form_in_json() -> None:
    nested: list[object] = []
    nested.append(nested)
    bad = [
        ({"a": np.ma.array([1, 2], mask=[False, True])}, "p: `a` must not have masked entries"),
        ({"a": nested}, "p: is nested too deeply"),
        ({"a": {1}}, "p: `a` must be a number, a string, a list, an array or a mapping, got set"),
    ]
    for values, message in bad:
        with pytest.raises(DocumentError, match=message):
            document_from_values(values, name="p")
