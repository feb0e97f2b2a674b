"""Claims about unpaired rows: one response with a label, of texts or messages; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm.data.columns import UNPAIRED_FIELDS, RowRules
from llm.data.conversation import Conversation
from llm.data.files import Row
from llm.data.labels import read_desirable
from llm.data.messages import Message
from llm.data.preferences import PreferenceRow, stream_preferences
from llm.data.unpaired import check_unpaired, is_unpaired, make_unpaired_row
from llm.text.tokenize import tokenize_rows
from llm.text.tokenizer import ByteTokenizer

GOOD: dict[str, Any] = {"prompt": "2 + 2 =", "completion": "4", "label": True}
PAIR = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}


def read(path: Path, rows: Sequence[Any], **options: Any) -> list[PreferenceRow]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(stream_preferences(path, all_kinds=True, **options))


def test_roundtrip_texts_messages_and_other_columns_give_the_same_rows(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "text.jsonl", [{**GOOD, "id": 3}])
    assert row.desirable is True
    assert row.chosen == row.rejected
    assert list(row.responses) == ["completion"]
    messages = {
        "prompt": [{"role": "user", "content": GOOD["prompt"]}],
        "completion": [{"role": "assistant", "content": "4"}],
        "label": 1,
    }
    named = {"question": GOOD["prompt"], "reply": "4", "good": "true"}
    columns = {"prompt": "question", "completion": "reply", "label": "good"}
    (tmp_path / "rows.csv").write_text("prompt,completion,label\n2 + 2 =,4,True\n")
    for other in (
        *read(tmp_path / "chat.jsonl", [messages]),
        *read(tmp_path / "named.jsonl", [named], columns=columns),
        *stream_preferences(tmp_path / "rows.csv", all_kinds=True),
    ):
        assert other._replace(where=row.where) == row
    tokens = tokenize_rows([row], ByteTokenizer(), max_length=16)
    assert tokens.pairs[0].chosen == tokens.pairs[0].rejected == (ord("4"), 257)
    assert tokens.pairs.desirable is not None
    assert tokens.pairs.desirable.tolist() == [True]
    long = row._replace(chosen=(row.chosen[0]._replace(content="4" * 30),))
    report = tokenize_rows([long], ByteTokenizer(), max_length=16).report
    assert report["responses_cut"] == 1


def test_closed_form_labels_are_true_or_false() -> None:
    for value, wanted in ((True, True), (0, False), (1.0, True), ("FALSE ", False), ("1", True)):
        assert read_desirable(value, "label", "r.jsonl:1") is wanted
    for value in (0.5, 2, "good", "", [True], float("nan")):
        with pytest.raises(ValueError, match=r"^r\.jsonl:1: field `good` of an unpaired row"):
            read_desirable(value, "good", "r.jsonl:1")


def test_closed_form_a_row_is_unpaired_by_its_columns_with_content() -> None:
    assert is_unpaired({**GOOD, "chosen": None}, {})
    assert not is_unpaired(GOOD | PAIR, {})
    assert not is_unpaired(GOOD, {"completion": "ignore"})
    assert not is_unpaired({"prompt": "a", "completion": "b"}, {})
    rules = RowRules(fields=UNPAIRED_FIELDS)
    replies = {"completion": (Message("assistant", "4"),)}
    conversation = Conversation((Message("user", "2 + 2 ="),), replies, "r.jsonl:1")
    fields = {"label": 0, "weight": 2}
    row = make_unpaired_row(conversation, fields, 0, "", rules)
    assert (row.desirable, row.label.weight, row.chosen) == (False, 2.0, replies["completion"])
    check_unpaired(Row(GOOD, "r.jsonl:1"), rules)
    assert rules.is_unpaired
    assert not RowRules().is_unpaired


def test_raises_for_unpaired_rows_that_cannot_be_used(tmp_path: Path) -> None:
    for third, message in (
        (PAIR, r":3: field `chosen` must not be given: the rows before this one are unpaired"),
        ({**GOOD, "rejected": "5"}, r":3: field `rejected` must not be given"),
        ({"prompt": "a", "label": True}, r":3: field `completion` is missing: every unpaired row"),
        ({"prompt": "a", "completion": "b"}, r":3: field `label` is missing: every unpaired row"),
        ({**GOOD, "label": 0.5}, r":3: field `label` of an unpaired row must be true or false"),
        ({**GOOD, "completion": ""}, r":3: field `completion` has an empty assistant message"),
        ({**GOOD, "completion": 4}, r":3: field `completion` must be a string or a list"),
        ({"completion": "4", "label": True}, r":3: field `prompt` is missing"),
        ({**GOOD, "weight": -1}, r":3: field `weight` must be a finite number"),
        ({**GOOD, "context": "Numbers."}, r":3: column `context` has content that is not used"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "rows.jsonl", [GOOD, GOOD, third])
    with pytest.raises(ValueError, match=r":2: field `chosen` is missing: the row is unpaired"):
        read(tmp_path / "rows.jsonl", [PAIR, GOOD])
    read(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(ValueError, match=r":1: field `chosen` is missing: the row is unpaired"):
        list(stream_preferences(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match=r":1: field `chosen` is missing, and so is `label`"):
        read(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    row = read(tmp_path / "rows.jsonl", [GOOD])[0]
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: .* token"):
        tokenize_rows([row], ByteTokenizer(), max_length=16, vocab_size=200)
