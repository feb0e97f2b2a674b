"""Claims about row files with damaged bytes: they are read, or refused by a one-line message."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from llm.data.preferences import read_preferences
from llm.data.rows import source_files

ROWS: list[dict[str, Any]] = [
    {"prompt": "Name a color é.", "chosen": "Red.", "rejected": "Seven.", "baseline": None},
    {"prompt": "2+2?", "chosen": "4", "rejected": "5", "ref_chosen_logps": -1.5},
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "chosen": [{"role": "assistant", "content": "\U0001f600 \\ \n"}],
        "rejected": "no",
        "ref_chosen_logps": -12,
        "ref_rejected_logps": -3e2,
    },
]
ROWS[1]["ref_rejected_logps"] = -2.5
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
FRAGMENTS = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r", b"\\u", b"\\ud800", b"\x00"),
    *(b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"NaN", b"1e999", b"null", b"true", b"[" * 9999),
    *(b"9" * 5000, b'"chosen"', b'"role": "user"', b"-0", b'""', b"{}"),
)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Apply one to three edits: change a byte, insert, delete or double a span, or truncate."""
    for _ in range(rng.integers(1, 4)):
        first, last = sorted(rng.integers(0, len(content) + 1, 2).tolist())
        last = min(last, first + int(rng.integers(1, 40)))
        kind = rng.integers(5)
        if kind == 0:
            content = content[:first] + rng.bytes(1) + content[first + 1 :]
        elif kind == 1:
            content = content[:first] + FRAGMENTS[rng.integers(len(FRAGMENTS))] + content[first:]
        elif kind == 2:
            content = content[:first] + content[last:]
        elif kind == 3:
            content = content[:last] + content[first:last] + content[last:]
        else:
            content = content[:first] if rng.integers(4) == 0 else content
    return content


def outcome(path: Path) -> str:
    """Read a file; anything but usable rows or a one-line message about it fails the test."""
    try:
        rows = read_preferences(path)
    except ValueError as error:
        message = str(error)
        assert message.startswith(str(path)), message
        assert len(message.splitlines()) == 1, message
        assert len(message) < 500
        return "refused"
    assert all(row.chosen != row.rejected and row.prompt for row in rows)
    return "read"


def as_parquet(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in ROWS[:2]]
    parquet.write_table(pyarrow.Table.from_pylist(texts), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "make_content", "times"),
    [
        ("rows.jsonl", lambda folder: LINES, 1200),
        ("rows.jsonl.gz", lambda folder: gzip.compress(LINES, mtime=0), 500),
        ("rows.parquet", as_parquet, 500),
    ],
)
def test_fuzz_damaged_files_are_read_or_refused_in_one_line(
    name: str, make_content: Callable[[Path], bytes], times: int, tmp_path: Path
) -> None:
    path, rng = tmp_path / name, np.random.default_rng(0)
    content = make_content(tmp_path)
    path.write_bytes(content)
    assert outcome(path) == "read"
    counts: Counter[str] = Counter()
    for _ in range(times):
        path.write_bytes(mutate(content, rng))
        counts[outcome(path)] += 1
    # Both outcomes are frequent, so the damage gets past the first check.
    assert min(counts["read"], counts["refused"]) > times // 50, counts


def test_fuzz_damaged_lines_inside_gzip_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path, rng = tmp_path / "rows.jsonl.gz", np.random.default_rng(1)
    for _ in range(300):
        path.write_bytes(gzip.compress(mutate(LINES, rng), mtime=0))
        outcome(path)


def test_roundtrip_a_local_source_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES)
    assert source_files(str(path)) == [(path, str(path))]
