"""Claims about formats of files: one table of rows is read alike from all of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import feather, ipc, parquet

from llm.data.files import open_text, read_lines, read_whole
from llm.data.preferences import read_preferences
from llm.data.rows import read_rows
from llm.data.tables import arrow_rows, csv_rows, parquet_rows

ROWS = [
    {"prompt": "Name a color é.", "chosen": 'Red, "or" so.', "rejected": "Seven\nor\n\nnine."},
    {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "system": "Be brief."},
]
JSON = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = (
    "prompt,chosen,rejected,system\n"
    'Name a color é.,"Red, ""or"" so.","Seven\nor\n\nnine.",\n'
    "\n"
    "2 + 2 =,4,5,Be brief.\n"
)


def arrow(path: Path, *, stream: bool) -> None:
    table = pyarrow.Table.from_pylist([{"system": None, **row} for row in ROWS])
    new = ipc.new_stream if stream else ipc.new_file
    with open(path, "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


def write_table(path: Path, kind: str) -> None:
    table = pyarrow.Table.from_pylist([{"system": None, **row} for row in ROWS])
    writers: dict[str, Callable[..., Any]] = {
        "parquet": parquet.write_table,
        "feather": feather.write_feather,
    }
    writers[kind](table, path)


def text(content: str, *, packed: bool = False) -> Callable[[Path], Any]:
    data = content.encode()
    return lambda path: path.write_bytes(gzip.compress(data) if packed else data)


TSV = CSV.replace(",", "\t").replace("Red\t", "Red,")
FORMATS: dict[str, tuple[Callable[[Path], Any], list[int]]] = {
    "a.jsonl": (text(JSON), [1, 2]),
    "b.JSONL": (text("\ufeff\r\n" + JSON.replace("\n", "\r\n\r\n")), [2, 4]),
    "c.ndjson": (text(JSON, packed=True), [1, 2]),
    "d.json": (text(json.dumps(ROWS)), [1, 1]),
    "e.json.gz": (text("\ufeff" + json.dumps(ROWS, indent=1), packed=True), [2, 7]),
    "f.jsonl": (text("\n" + json.dumps(ROWS)), [2, 2]),
    "g.csv": (text(CSV), [2, 7]),
    "h.CSV.GZ": (text("\ufeff" + CSV, packed=True), [2, 7]),
    "i.tsv": (text(TSV), [2, 7]),
    "j.csv": (text(CSV, packed=True), [2, 7]),
    "k.arrow": (lambda path: arrow(path, stream=False), [1, 2]),
    "l.ipc": (lambda path: arrow(path, stream=True), [1, 2]),
    "m.feather": (lambda path: write_table(path, "feather"), [1, 2]),
    "n.Parquet": (lambda path: write_table(path, "parquet"), [1, 2]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_property_all_formats_give_the_same_rows(name: str, tmp_path: Path) -> None:
    write, numbers = FORMATS[name]
    path = tmp_path / name
    write(path)
    rows = read_preferences(path)
    assert [message.content for row in rows for message in row.prompt] == [
        *("Name a color é.", "Be brief.", "2 + 2 =")
    ]
    contents = [row.chosen[0].content + "|" + row.rejected[0].content for row in rows]
    assert contents == ['Red, "or" so.|Seven\nor\n\nnine.', "4|5"]
    assert [row.where for row in rows] == [f"{path}:{number}" for number in numbers]


def test_roundtrip_tables_and_lines_name_the_file_as_they_are_asked_to(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    write_table(path, "parquet")
    whole = [row.fields for row in parquet_rows(path, "hub/a.parquet")]
    assert [row.where for row in parquet_rows(path, "hub/a.parquet")][1] == "hub/a.parquet:2"
    arrow(path, stream=True)
    assert [row.fields for row in arrow_rows(path, "hub/a.arrow")] == whole
    path.write_bytes(gzip.compress(b"a;b\n1;\n\n2;3\n"))
    rows = list(csv_rows(path, "hub/a.csv", delimiter=";"))
    assert rows == [({"a": "1", "b": None}, "hub/a.csv:2"), ({"a": "2", "b": "3"}, "hub/a.csv:4")]
    assert list(read_lines(path, "hub/a.csv")) == [(1, b"a;b\n"), (2, b"1;\n"), (4, b"2;3\n")]
    assert read_whole(path, "hub/a.csv", 20) == b"a;b\n1;\n\n2;3\n"
    with pytest.raises(ValueError, match=r"^hub/a\.csv: must have at most 3 bytes"):
        read_whole(path, "hub/a.csv", 3)
    file, is_packed = open_text(path, "hub/a.csv")
    with file:
        assert (file.read(3), is_packed) == (b"a;b", True)


def test_roundtrip_numbers_and_further_columns_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    header = ",prompt,chosen,rejected,ref_chosen_logps,ref_rejected_logps,score\n"
    path.write_text(header + "0,a,b,c,-1.5,-2,9\n1,a,b,d,,,8\n")
    assert [row.reference for row in read_preferences(path)] == [(-1.5, -2.0), None]
    path.write_text(header + "0,a,b,c,much,-2,9\n")
    with pytest.raises(ValueError, match=r"rows\.csv:2: field `ref_chosen_logps` must be a finite"):
        read_preferences(path)


BAD: list[tuple[str, bytes, str]] = [
    (
        "a.csv",
        b"prompt,chosen\na,b,c\n",
        ":2: the row must have 2 cells like the first line, got 3",
    ),
    ("b.csv", b"prompt,chosen\n\na\n", ":3: the row must have 2 cells like the first line, got 1"),
    ("c.csv", b"prompt;chosen;rejected\na;b;c\n", ":1: the columns must be separated by ',', got"),
    ("d.csv", b"prompt\tchosen\na\tb\n", r"got '\\t': convert the file, or name it \.tsv"),
    ("e.csv", b"prompt,prompt\na,b\n", ":1: the column 'prompt' stands twice"),
    ("f.csv", b'prompt,chosen\na,"b\n', ":2: the row is not CSV: unexpected end of data"),
    ("g.csv", b"prompt,chosen\na,\xff\n", ":2: the line must be UTF-8"),
    ("h.jsonl", b"\x28\xb5\x2f\xfd123", "the file is compressed with zstd: unpack it with"),
    ("i.jsonl.zst", b"\x28\xb5\x2f\xfd123", "the file is compressed with zstd: unpack it with"),
    ("j.csv.xz", b"\xfd7zXZ\x00", "the file is compressed with xz"),
    ("k.jsonl", b"PK\x03\x04", "the file is a zip archive"),
    ("l.jsonl", "\ufeffa".encode("utf-16-le"), "the file is UTF-16: save it as UTF-8"),
    ("m.json", b"PAR1....", "the file is Parquet: name it .parquet"),
    ("n.txt", b"a\n", r"must end with one of \.jsonl"),
    ("o.parquet", b"", ":1: the Parquet file is broken"),
    ("p.arrow", b"ARROW1\0\0junk", ":1: the Arrow file is broken"),
    ("q.json", b"{\n", "one object a line, or be one list of objects"),
    ("r.json", f"[{json.dumps(ROWS[1])}] {{}}".encode(), ":1: must be one JSON list of objects"),
    ("s.json", b'[{"a": 1, "a": 2}]', ":1: the element is not JSON: the key `a` stands twice"),
    ("t.json", b'[\n\n{"a": NaN}]', ":3: the element is not JSON: NaN is not a number"),
    ("u.jsonl", b"", "has no rows"),
    ("v.csv", b"prompt,chosen,rejected\n", "has no rows"),
    ("w.jsonl.gz", b"", "has no rows"),
    ("x.json", b" [ ] ", "has no rows"),
    ("y.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_raises_for_files_that_are_not_what_their_name_says(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_extreme_an_arrow_file_that_unpacks_to_an_unusual_size_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["x" * 2**20] * 40})
    options = ipc.IpcWriteOptions(compression="zstd")
    with (
        open(tmp_path / "a.arrow", "wb") as file,
        ipc.new_file(file, table.schema, options=options) as writer,
    ):
        writer.write_table(table)
    with pytest.raises(ValueError, match=r"a\.arrow:\d+: the file unpacks to more than"):
        list(read_rows(tmp_path / "a.arrow"))
