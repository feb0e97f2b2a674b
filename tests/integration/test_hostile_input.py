"""Claims about hostile data and configurations: bounded memory and time, harmless output."""

from __future__ import annotations

import gzip
import importlib
import io
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from llm.config import TrainConfig
from llm.data.rows import read_json_list, read_rows
from rpo.cli import main
from rpo.report.page import Section, render_page
from rpo.results import Claim
from rpo.runtime.config_files import read_config
from rpo.runtime.output import escape_control_characters
from rpo.runtime.progress import progress_bars, track_progress

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
growth_below: Any = importlib.import_module("peak_memory").growth_below

ESCAPE = "\x1b[2J\x1b]0;title\x07\x9b31m"
SCRIPT = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
ROW = {"prompt": "q", "chosen": "yes", "rejected": "no"}


# Data and configurations


BAD_YAML = [
    "name: !!python/object/apply:os.system ['touch owned']",
    "name: !!python/name:os.system",
    "name: !!python/object/new:type [x, [], {}]",
    "name: !include /etc/passwd",
    "name: !!binary aGVsbG8=",
    "name: !!set {a, b}",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nname: [*c, *c]",
    "a: &a {name: b}\n<<: *a",
    "name: " + "[" * 50_000,
    "name: " + "{a: " * 50_000,
    "name: a\n" + "x: 1\n" * 300_000,
    "name: 2001-99-99",
    "seeds: " + "9" * 5000,
    "model: {class_path: os.system, init_args: {command: touch owned}}\nname: a",
    "name: {class_path: subprocess.Popen, init_args: {args: [touch, owned]}}",
]


@pytest.mark.parametrize("text", BAD_YAML)
def test_raises_for_yaml_that_creates_objects_or_expands(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"^run\.yaml:") as caught:
        read_config(Path("run.yaml"), TrainConfig)
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - start < 5.0
    assert not (tmp_path / "owned").exists()


def write_gzip(path: Path, block: bytes, repeats: int) -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(repeats):
            file.write(block)


LINE = json.dumps(ROW).encode() + b"\n"


@pytest.mark.parametrize(
    ("block", "repeats", "rule"),
    [
        (b"x" * 2**20, 20, r":1: a row must have at most"),
        (b"\n" * 2**20, 8, r": the file unpacks to more than"),
        (LINE * 20_000, 6, r": the file unpacks to more than"),
    ],
    ids=["a line", "blank lines", "equal rows"],
)
def test_raises_for_gzip_bombs(block: bytes, repeats: int, rule: str, tmp_path: Path) -> None:
    write_gzip(tmp_path / "rows.jsonl.gz", block, repeats)
    message = rf"rows\.jsonl\.gz{rule}|rows\.jsonl\.gz:\d+{rule}"
    with growth_below(2**27), pytest.raises(ValueError, match=message):
        for _ in read_rows(tmp_path / "rows.jsonl.gz"):
            pass


def test_closed_form_highly_compressible_data_is_read(tmp_path: Path) -> None:
    write_gzip(tmp_path / "rows.jsonl.gz", LINE * 100, 20)
    assert sum(1 for _ in read_rows(tmp_path / "rows.jsonl.gz")) == 2_000


LONG = "x" * 2**20
PARQUET_BOMBS: list[tuple[Callable[[], pa.Array], str]] = [
    (lambda: pa.array([LONG] * 99), "unpacks to more than"),
    (lambda: pa.array([[{"role": "user", "content": LONG}]] * 99), "unpacks to more than"),
    (lambda: pa.array([LONG] * 99).dictionary_encode(), "unpacks to more than"),
    (lambda: pa.array(["x" * 2**25]), "unpacks to more than"),
    (lambda: pa.array(["x"] * 200_000), "more rows than bytes"),
]


@pytest.mark.parametrize(("column", "rule"), PARQUET_BOMBS)
def test_raises_for_parquet_bombs(
    column: Callable[[], pa.Array], rule: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({"prompt": column()}), path, compression="zstd")
    assert path.stat().st_size < 20_000
    with growth_below(2**29), pytest.raises(ValueError, match=rf"rows\.parquet.*{rule}"):
        list(read_rows(path))


def test_raises_for_rows_and_lists_that_are_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.data.files.MAX_ROW_BYTES", 100)
    monkeypatch.setattr("llm.data.rows.MAX_LIST_BYTES", 100)
    (tmp_path / "rows.jsonl").write_bytes(LINE + LINE.replace(b"yes", b"y" * 100))
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: a row must have at most 100 bytes"):
        list(read_rows(tmp_path / "rows.jsonl"))
    (tmp_path / "list.json").write_text("[" + " " * 100 + "]")
    with pytest.raises(ValueError, match=r"list\.json: must have at most 100 bytes"):
        list(read_json_list(tmp_path / "list.json"))


def test_raises_with_a_message_much_shorter_than_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged = {"generator_1": "a", "generator_2": "b", "preference": "x" * 10**5}
    (tmp_path / "judged.json").write_text(json.dumps([judged]))
    (tmp_path / "run.yaml").write_text("name: a\nseeds: " + "x" * 50_000)
    names = ["--model", "a", "--reference", "b"]
    for argv in (
        ["evaluate", "--judgments", str(tmp_path / "judged.json"), *names],
        ["study", str(tmp_path / "run.yaml")],
        ["solve", "x" * 200 + "\n" * 50_000],
    ):
        code, text = run_rpo(argv, capsys)
        assert code == 2
        assert 20 < len(text) < 3000


# The terminal and the report


def run_rpo(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(argv)
    out, err = capsys.readouterr()
    return code, out + err


def test_property_no_control_character_of_data_reaches_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"{ESCAPE}[bold]x[/] :smile:"
    Path("votes.csv").write_text(f"context,winner,loser\nq,{name},b\n", encoding="utf-8")
    Path("bad.csv").write_text(f"context,winner,loser\nq,{name}\n", encoding="utf-8")
    Path("rows.jsonl").write_text(json.dumps({**ROW, "chosen": [{ESCAPE: name}]}) + "\n")
    Path("run.yaml").write_text(f"name: {json.dumps(name)}\n")
    Path("judged.json").write_text(json.dumps([{"generator_1": name, "generator_2": name}]))
    for argv, code in (
        (["solve", "--votes", "votes.csv"], 0),
        (["solve", "--votes", "bad.csv"], 2),
        (["solve", f"{name}.json"], 2),
        (["train", "run.yaml"], 2),
        (["study", "run.yaml"], 2),
        (["evaluate", "--judgments", "judged.json", "--model", name, "--reference", "b"], 2),
    ):
        actual_code, text = run_rpo(argv, capsys)
        assert actual_code == code, text
        assert all(c.isprintable() or c == "\n" for c in text), (argv, text)
        if code == 0:
            assert "[bold]x[/] :smile:" in text


@pytest.mark.parametrize("label", ["\x1b[31mred", "$\\frac{$", "a\nb"])
def test_raises_for_labels_that_a_terminal_or_a_figure_would_interpret(
    label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = json.dumps({"method": "rpo", "label": label})
    text = f"name: a\nmethods: [{method}]\ncomparisons: [9]\nseeds: 1\n"
    (tmp_path / "study.yaml").write_text(text)
    code, output = run_rpo(["study", str(tmp_path / "study.yaml"), "--dry-run"], capsys)
    assert code == 2
    assert "`label` must be printable text without $" in output
    assert output[:-1].isprintable()


def test_closed_form_replies_and_names_are_plain_text_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (
        escape_control_characters(f"{ESCAPE}\ta\r\n")
        == r"\x1b[2J\x1b]0;title\x07\x9b31m" + "\ta\\r\n"
    )
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bars():
        assert list(track_progress([1, 2], 2, "scored by [/red]{task.x}\x1b[2J")) == [1, 2]
    assert r"scored by [/red]{task.x}\x1b[2J" in terminal.getvalue()


def test_closed_form_markup_in_data_is_plain_text_in_the_report() -> None:
    section = Section(SCRIPT, SCRIPT, SCRIPT.encode(), SCRIPT, SCRIPT)
    page = render_page(SCRIPT, [Claim(SCRIPT, 1.0, 0.5, True)], [section])
    assert page.count("&lt;script&gt;") == 6
    assert "<script" not in page
    assert not re.search(r"<img (?!src=\"data:image/png;base64,[\w+/=]+\" alt=\"[^\"]*\">)", page)
