"""Claims about files of a model folder: JSON objects are read, anything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm.data.model_folder import (
    model_file,
    read_json_object,
    read_limited,
    read_limited_text,
)


def test_roundtrip_an_object_and_bytes_are_read_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"é": [1, null]}', encoding="utf-8")
    assert read_json_object(tmp_path, "a.json") == {"é": [1, None]}
    assert read_limited(model_file(tmp_path, "a.json"), 17) == '{"é": [1, null]}'.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "a.json must hold a JSON object, got list"),
        (b"{", "a.json is not JSON: Expecting property name"),
        (b'{"a": "\xff"}', "a.json is not JSON: 'utf-8' codec"),
        (b"[" * 100_000, "a.json is not JSON: nested too deeply"),
        (None, "a.json is missing"),
    ],
)
def test_raises_with_the_file_name_for_anything_but_an_object(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json_object(tmp_path, "a.json")


def test_raises_for_a_file_above_the_size_limit(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"x" * 1001)
    with pytest.raises(ValueError, match=r"a.json must have at most 1,000 bytes"):
        read_limited(tmp_path / "a.json", 1000)


def test_raises_for_a_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes("caf\u00e9".encode())
    assert read_limited_text(path, 5) == "caf\u00e9"
    path.write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"chat_template\.jinja: .*: save the file as UTF-8"):
        read_limited_text(path, 5)
