"""Claims about ranked rows: lists of responses in order or with numbers; what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.data.columns import RANKED_FIELDS, RowRules
from llm.data.conversation import Conversation
from llm.data.files import Row
from llm.data.labels import PairLabel
from llm.data.loader import BatchSampler
from llm.data.messages import Message
from llm.data.packing import count_roles, packed_token_counts, responses_by_role
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens, PreferenceRow, stream_preferences
from llm.data.ranked import check_ranked, is_ranked, make_ranked_row
from llm.text.tokenize import tokenize_rows
from llm.text.tokenizer import ByteTokenizer

GOOD: dict[str, Any] = {"prompt": "2 + 2 =", "responses": ["4", "5", "22"]}
PAIR = {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"}


def read(path: Path, rows: Sequence[Any], **options: Any) -> list[PreferenceRow]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(stream_preferences(path, all_kinds=True, **options))


def texts(row: PreferenceRow) -> list[str]:
    return [response[0].content for response in row.responses.values()]


def test_roundtrip_scores_ranks_and_messages_give_the_same_order(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "text.jsonl", [{**GOOD, "id": 3}])
    assert texts(row) == ["4", "5", "22"]
    assert list(row.responses) == [f"responses[{index}]" for index in range(3)]
    mixed = {"prompt": GOOD["prompt"], "responses": ["22", "4", "5"]}
    messages = [
        [{"role": "user", "content": GOOD["prompt"]}, {"role": "assistant", "content": text}]
        for text in ("22", "4", "5")
    ]
    named = {"question": GOOD["prompt"], "answers": ["22", "4", "5"], "reward": [-3, 7, 0]}
    columns = {"prompt": "question", "responses": "answers", "scores": "reward"}
    for other in (
        *read(tmp_path / "scores.jsonl", [{**mixed, "scores": [0.5, 9, 1.5]}]),
        *read(tmp_path / "ranks.jsonl", [{**mixed, "ranks": [3, 1, 2]}]),
        *read(tmp_path / "chat.jsonl", [{**mixed, "responses": messages, "ranks": [9, 0, 4]}]),
        *read(tmp_path / "named.jsonl", [named], columns=columns),
    ):
        assert texts(other) == texts(row)
        assert list(other.responses) == ["responses[1]", "responses[2]", "responses[0]"]
        assert other.prompt == row.prompt
    (weighted,) = read(tmp_path / "weight.jsonl", [{**GOOD, "weight": 2.5}])
    assert weighted.label.weight == 2.5
    tokens = tokenize_rows([row, weighted], ByteTokenizer(), max_length=16).pairs
    assert tokens.is_ranked
    assert tokens[0].responses == ((52, 257), (53, 257), (50, 50, 257))
    long = {**GOOD, "responses": ["4", "5", "6" * 30]}
    cut = tokenize_rows(read(tmp_path / "long.jsonl", [long]), ByteTokenizer(), max_length=16)
    assert cut.report["responses_cut"] == 1
    assert max(map(len, cut.pairs[0].responses)) < 16


def test_closed_form_a_row_is_ranked_by_its_columns_with_content() -> None:
    assert is_ranked({**GOOD, "chosen": None}, {})
    assert not is_ranked({**GOOD, **PAIR}, {})
    assert not is_ranked({**GOOD, "responses": "4"}, {})
    assert not is_ranked({**GOOD, "completion": "4"}, {})
    rules = RowRules(fields=RANKED_FIELDS)
    replies = {f"responses[{i}]": (Message("assistant", text),) for i, text in enumerate("ab")}
    conversation = Conversation((Message("user", "q"),), replies, "r.jsonl:1")
    fields = {"scores": [1, 2], "weight": 3, "label": 0.5}  # a label is passed over
    row = make_ranked_row(conversation, fields, 0, "", rules)
    assert (row.ranking, row.others, row.chosen[0].content) == ((1, 0), (), "b")
    assert row.label == PairLabel(3.0, 1.0)
    check_ranked(Row(GOOD, "r.jsonl:1"), rules)
    assert rules.is_ranked
    assert not RowRules().is_ranked


def test_raises_for_ranked_rows_that_cannot_be_used(tmp_path: Path) -> None:
    for third, message in (
        (PAIR, r":3: field `chosen` must not be given: the rows before this one are ranked"),
        ({**GOOD, "completion": "4"}, r":3: field `completion` must not be given"),
        ({"prompt": "a"}, r":3: field `responses` is missing: every ranked row"),
        ({"responses": ["a", "b"]}, r":3: field `prompt` is missing: every ranked row"),
        ({**GOOD, "responses": ["4"]}, r"must be a list of two responses or more, got 1: leave"),
        ({**GOOD, "responses": "4"}, r"must be a list of two responses or more, got '4': leave"),
        (
            {**GOOD, "responses": ["4", "5", "4"]},
            r":3: fields `responses\[0\]` and `responses\[2\]` are identical",
        ),
        ({**GOOD, "responses": ["4", ""]}, r":3: field `responses\[1\]` has an empty assistant"),
        ({**GOOD, "responses": ["4", 5]}, r":3: field `responses\[1\]` must be a string or a"),
        ({**GOOD, "scores": [1, 2]}, r":3: field `scores` must be .*, got 2 for 3 responses"),
        (
            {**GOOD, "scores": [1, 2, 1]},
            r":3: field `scores` .* got 1 for `responses\[0\]` and for `responses\[2\]`: a ranking",
        ),
        ({**GOOD, "ranks": [1, 2, 2]}, r":3: field `ranks` must have different values, got 2 for"),
        ({**GOOD, "ranks": [1, 2, True]}, r":3: field `ranks` must be a list of one finite"),
        ({**GOOD, "scores": [1, 2, "x"]}, r":3: field `scores` must be a list of one"),
        ({**GOOD, "scores": "1, 2, 3"}, r":3: field `scores` must be a list of one finite number"),
        ({**GOOD, "ranks": [1, 2, 3], "scores": [3, 2, 1]}, r":3: fields `scores` and `ranks`"),
        ({**GOOD, "weight": -1}, r":3: field `weight` must be a finite number"),
        ({**GOOD, "context": "Numbers."}, r":3: column `context` has content that is not used"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "rows.jsonl", [GOOD, GOOD, third])
    with pytest.raises(ValueError, match=r":2: field `chosen` is missing: `responses` is a list"):
        read(tmp_path / "rows.jsonl", [PAIR, GOOD])
    read(tmp_path / "rows.jsonl", [GOOD])
    with pytest.raises(ValueError, match=r":1: .*`objective\.method: plackett_luce` trains on"):
        list(stream_preferences(tmp_path / "rows.jsonl"))
    alike = read(tmp_path / "rows.jsonl", [{**GOOD, "responses": ["4", "5" * 20, "5" * 21]}])
    with pytest.raises(ValueError, match=r":1: two `responses` have identical tokens, or"):
        tokenize_rows(alike, ByteTokenizer(), max_length=16)


def rankings(n: int = 7, *, most: int = 5) -> list[PairTokens]:
    """Return rows of 2 to ``most`` responses, some of whose tokens are not scored."""
    rng = np.random.default_rng(0)

    def draw() -> tuple[int, ...]:
        return tuple(rng.integers(0, 200, rng.integers(2, 9)).tolist())

    rows = []
    for row in range(n):
        prompt, *responses = (draw() for _ in range(3 + row % (most - 1)))
        mask = (True, *[False] * (len(responses[1]) - 1))
        scored = (None, mask, *[None] * (len(responses) - 2)) if row % 3 == 0 else None
        pair = PairTokens(prompt, responses[0], responses[1], None, row, scored=scored)
        rows.append(pair._replace(others=tuple(responses[2:])))
    return rows


def test_roundtrip_rankings_of_different_lengths_in_a_table() -> None:
    rows = rankings()
    table = PairTable.from_pairs(rows)
    assert list(table) == rows
    assert (table.lengths.shape, count_roles(table), table.has_baselines) == ((7, 6), 5, False)
    assert count_roles(table[:1]) == 2
    halves = [PairTable.from_pairs(rows[:2]), PairTable.from_pairs(rows[2:])]
    joined = PairTable.concatenate([*halves, PairTable.from_pairs([])])
    assert list(joined) == rows
    assert joined.digest == table.digest
    assert table.scored_lengths[0].tolist() == [len(rows[0].chosen), 1, 0, 0, 0]
    pair = rows[0]._replace(others=None, scored=None)
    with pytest.raises(ValueError, match=r"all ranked, got 1 ranked rows among 2$"):
        PairTable.from_pairs([rows[0], pair])
    with pytest.raises(ValueError, match=r"^`tables` must all have ranked rows"):
        PairTable.concatenate([table, PairTable.from_pairs([pair])])


def test_closed_form_absent_responses_take_no_tokens_in_either_layout() -> None:
    rows = rankings()
    for layout in ("shared", "separate"):
        counts = packed_token_counts(rows, layout=layout, roles=5)
        wanted = []
        for row in rows:
            responses = responses_by_role(row, 5)
            prompts = len(responses) if layout == "separate" else 1
            wanted.append(prompts * len(row.prompt) + sum(len(each) - 1 for each in responses))
        assert counts.tolist() == wanted
        batch: Any = BatchSampler(rows, layout, 4, 2, seed=0).batch(0)
        assert int((batch.rows.segments > 0).sum()) == sum(wanted)
        index = batch.row_ids.reshape(-1)
        lengths = PairTable.from_pairs(rows).scored_lengths
        assert (batch.lengths.reshape(-1, 5)[index >= 0] == lengths[index[index >= 0]]).all()
        assert (batch.ranked == (batch.lengths > 0)).all()
        assert not batch.ranked.reshape(-1, 5)[index < 0].any()
        assert batch.rows.branches.max() == 5
