"""Claims about preference rows: all formats agree, and errors name file, line and field."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from llm.data.labels import PairLabel
from llm.data.preferences import (
    Message,
    PreferenceRow,
    RowError,
    check_row,
    read_preferences,
    stream_preferences,
)

USER, REPLY = Message("user", "Name a color."), Message("assistant", "Red.")
OTHER = Message("assistant", "Seven.")
CHAT = [USER, REPLY, Message("user", "Another?")]
GOOD = {"prompt": "Name a color.", "chosen": "Red.", "rejected": "Seven."}


def dicts(*messages: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def write_rows(folder: Path, *lines: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_roundtrip_strings_become_messages(tmp_path: Path) -> None:
    path = write_rows(tmp_path, GOOD, "", {**GOOD, "baseline": "Blue.", "models": ["a", "b"]})
    first, second = read_preferences(path)
    label = PairLabel()
    row = (USER,), (REPLY,), (OTHER,), None, 0, f"{path}:1", None, "", label
    assert first == PreferenceRow(*row)
    # A blank line is not a row, but it counts as a line.
    assert (second.row, second.where) == (1, f"{path}:3")
    assert second.baseline == (Message("assistant", "Blue."),)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": dicts(*CHAT), "chosen": dicts(REPLY), "rejected": dicts(OTHER)},
        {"prompt": dicts(*CHAT), "chosen": "Red.", "rejected": "Seven."},
        {"chosen": dicts(*CHAT, REPLY), "rejected": dicts(*CHAT, OTHER)},
        {"prompt": None, "chosen": dicts(*CHAT, REPLY), "rejected": dicts(*CHAT, OTHER)},
        {"prompt": dicts(*CHAT), "chosen": dicts(*CHAT, REPLY), "rejected": dicts(OTHER)},
    ],
)
def test_property_all_forms_of_a_conversation_give_the_same_row(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    row = read_preferences(write_rows(tmp_path, {**fields, "baseline": "Blue."}))[0]
    assert row.prompt == tuple(CHAT)
    assert (row.chosen, row.rejected) == ((REPLY,), (OTHER,))
    assert row.baseline == (Message("assistant", "Blue."),)


def test_roundtrip_formats_agree(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": dicts(*CHAT),
            "chosen": dicts(REPLY),
            "rejected": dicts(OTHER),
            "baseline": None,
        },
        {"prompt": dicts(USER), "chosen": dicts(REPLY), "rejected": dicts(OTHER), "baseline": "é"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    paths = [
        tmp_path / "rows.parquet",
        write_rows(tmp_path, *rows),
        write_rows(tmp_path, *rows, name="rows.jsonl.gz"),
    ]
    readings = [[row._replace(where="") for row in read_preferences(path)] for path in paths]
    assert readings[0] == readings[1] == readings[2]
    assert [row.where for row in read_preferences(paths[0])] == [f"{paths[0]}:{n}" for n in (1, 2)]


def test_roundtrip_byte_order_mark_and_line_separators_inside_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    text = json.dumps({**GOOD, "chosen": "a\u2028b\x85c"}, ensure_ascii=False)
    path.write_text(text + "\r\n", encoding="utf-8-sig")
    assert read_preferences(path)[0].chosen[0].content == "a\u2028b\x85c"


def test_roundtrip_reference_log_probabilities(tmp_path: Path) -> None:
    cached = {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2}
    three = {**cached, "ref_baseline_logps": -3.0, "baseline": "Blue."}
    rows = read_preferences(write_rows(tmp_path, GOOD, {**GOOD, **cached}, {**GOOD, **three}))
    assert [row.reference for row in rows] == [None, (-1.5, -2.0), (-1.5, -2.0, -3.0)]


BAD_LINES: list[tuple[Any, str]] = [
    ({"prompt": "a", "rejected": "b"}, "field `chosen` is missing"),
    ({"prompt": "a", "chosen": "b", "rejected": None}, "field `rejected` is missing"),
    ({"chosen": "b", "rejected": "c"}, "field `prompt` is missing"),
    ({**GOOD, "prompt": 3}, "field `prompt` must be a string or a list of messages, got int"),
    ({**GOOD, "chosen": ["Red."]}, r"field `chosen\[0\]` must be an object with `role`.*got str"),
    (
        {**GOOD, "chosen": [{"author": "gpt", "text": "b"}]},
        r"`chosen\[0\]`.*got \['author', 'text'\]",
    ),
    (
        {**GOOD, "chosen": [{"role": "bot", "content": "b"}]},
        r"chosen\[0\].role` must be one.*got 'bot'",
    ),
    ({**GOOD, "chosen": [{"role": "user", "content": 1}]}, "content` must be a string, got int"),
    ('{"prompt": "\\ud800", "chosen": "b", "rejected": "c"}', "field `prompt` must be Unicode"),
    ({**GOOD, "rejected": " \n"}, "field `rejected` has an empty assistant message"),
    ({**GOOD, "prompt": ""}, "field `prompt` has an empty user message"),
    ({**GOOD, "baseline": ""}, "field `baseline` has an empty assistant message"),
    ({**GOOD, "prompt": []}, "field `prompt` is empty"),
    ({**GOOD, "rejected": "Red."}, "fields `chosen` and `rejected` are identical"),
    ({**GOOD, "prompt": dicts(USER, USER)}, "field `prompt`: roles must alternate.*got user, user"),
    ({**GOOD, "prompt": dicts(USER, REPLY)}, "field `prompt`: roles must alternate"),
    ({**GOOD, "chosen": dicts(OTHER, USER)}, "field `chosen` must be a message of the assistant"),
    ({**GOOD, "chosen": dicts(REPLY, REPLY)}, "`chosen`.*several turns.*got assistant, assistant"),
    ({**GOOD, "chosen": []}, "field `chosen` must be a message.*got none"),
    ({"chosen": dicts(USER, REPLY), "rejected": dicts(OTHER)}, "field `prompt` is empty"),
    ({**GOOD, "ref_chosen_logps": -1.0}, "field `ref_rejected_logps` must be a finite.*got None"),
    ({**GOOD, "ref_chosen_logps": 0.5, "ref_rejected_logps": -1.0}, "`ref_chosen_logps`.*got 0.5"),
    ({**GOOD, "ref_chosen_logps": float("-inf")}, "not JSON: -Infinity is not a number"),
    ({**GOOD, "score": [float("nan")]}, "not JSON: NaN is not a number"),
    ({**GOOD, "ref_baseline_logps": -1.0}, "`ref_baseline_logps` needs field `baseline`"),
    ({**GOOD, "ref_chosen_logps": -(10**999)}, "`ref_chosen_logps` must be a finite"),
    ([1, 2], "the line must be an object, got list"),
    ('{"prompt": "a", ', "the line is not JSON"),
    ("[" * 100_000, "the line is not JSON: nested too deeply"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_raises_with_line_and_field_for_a_bad_row(line: Any, message: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path, GOOD, line)
    with pytest.raises(ValueError, match=message) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert "\n" not in str(caught.value)


def test_raises_for_content_only_if_it_is_checked(tmp_path: Path) -> None:
    path = write_rows(tmp_path, {**GOOD, "rejected": "Red."})
    assert len(read_preferences(path, check_content=False)) == 1
    with pytest.raises(RowError) as caught:
        read_preferences(path)
    assert caught.value.reason == "identical responses"


def test_raises_for_damaged_files(tmp_path: Path) -> None:
    rows = [{**GOOD, "chosen": str(n)} for n in range(2000)]
    truncated = write_rows(tmp_path, *rows, name="a.jsonl.gz")
    truncated.write_bytes(truncated.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:\d+: the gzip file is broken"):
        read_preferences(truncated)
    for name, reason in (("b.jsonl.gz", ":1: the gzip"), ("b.parquet", ":1: the Parquet")):
        (tmp_path / name).write_text("neither", encoding="utf-8")
        with pytest.raises(ValueError, match=f"{name}{reason} file is broken"):
            read_preferences(tmp_path / name)
    (tmp_path / "c.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match=r"c\.jsonl:1: the line is not JSON"):
        read_preferences(tmp_path / "c.jsonl")


def test_raises_for_sources_without_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\.jsonl has no rows"):
        read_preferences(write_rows(tmp_path))
    for name in ("none.jsonl", "none.parquet", "a/folder/none"):
        with pytest.raises(ValueError, match="does not exist"):
            read_preferences(tmp_path / name)
    with pytest.raises(ValueError, match=r"must end with one of \.jsonl"):
        read_preferences(write_rows(tmp_path, GOOD, name="rows.yaml"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text(max_size=4)}
)
FIELD = st.text(max_size=6) | st.lists(MESSAGE, max_size=4) | JSON
NAMES = ("prompt", "chosen", "rejected", "baseline", "ref_chosen_logps", "ref_rejected_logps")
LINE = st.dictionaries(st.sampled_from(NAMES), FIELD, max_size=6).map(json.dumps).map(str.encode)


@given(st.lists(LINE | LINE.map(lambda line: line[:-2]) | st.binary(max_size=20), max_size=3))
def test_property_any_file_gives_usable_rows_or_a_message_with_its_line(lines: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(b"\n".join(lines))
        try:
            rows = read_preferences(path)
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{path}:") or message == f"{path} has no rows"
            assert len(message.splitlines()) == 1
        else:
            for row in rows:
                assert row.prompt[-1].role == "user"
                assert row.chosen != row.rejected
                assert {row.chosen[0].role, row.rejected[0].role} == {"assistant"}


def test_golden_all_rows_of_the_real_data_are_read(shared_data: Path) -> None:
    rows = read_preferences(shared_data / "hh-harmless-test.jsonl.gz")
    assert len(rows) == 2299
    assert [row.row for row in rows] == list(range(2299))
    assert len(read_preferences(shared_data / "pandalm-test.jsonl.gz")) == 836


def test_property_rows_are_streamed_and_checked_on_request(tmp_path: Path) -> None:
    path = write_rows(tmp_path, GOOD, {**GOOD, "chosen": "Seven."}, "{")
    rows = stream_preferences(path, check_content=False)
    assert next(rows).chosen == (REPLY,)
    assert next(rows).chosen == (OTHER,)  # the caller must refuse identical responses
    with pytest.raises(ValueError, match=f"^{path}:3"):
        next(rows)
    checked = stream_preferences(path)
    assert next(checked).row == 0
    with pytest.raises(RowError, match=f"^{path}:2: fields `chosen` and `rejected` are identical$"):
        next(checked)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"chosen": (OTHER,)}, "identical responses"),
        ({"prompt": ()}, "no prompt"),
        ({"prompt": (Message("user", " "),)}, "empty text"),
        ({"prompt": (USER, USER)}, "roles out of order"),
        ({"prompt": (Message("system", "s"),)}, "roles out of order"),
        ({"prompt": (USER, REPLY)}, "roles out of order"),
        ({"chosen": (USER,)}, "roles out of order"),
        ({"baseline": ()}, "roles out of order"),
        ({"rejected": (Message("assistant", ""),)}, "empty text"),
    ],
)
def test_raises_with_a_reason_for_rows_that_cannot_be_trained_on(
    changed: dict[str, Any], reason: str
) -> None:
    row = PreferenceRow((Message("system", "s"), USER), (REPLY,), (OTHER,), None, 0, "a.jsonl:1")
    check_row(row)
    with pytest.raises(RowError, match=r"^a\.jsonl:1: field") as caught:
        check_row(row._replace(**changed))
    assert caught.value.reason == reason
