"""Claims about tokenized rows: what is truncated, refused and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.preferences import Message, PreferenceRow, RowError, parse_row, read_preferences
from llm.data.rows import Row
from llm.text.tokenize import TokenizedPairs, tokenize_rows
from llm.text.tokenizer import ByteTokenizer, ResponseTokens

TOKENIZER = ByteTokenizer()
BOS, EOS, USER, ASSISTANT = 256, 257, 258, 259


def row_of(prompt: str, chosen: str, rejected: str, number: int = 0, **more: Any) -> PreferenceRow:
    fields = {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}
    return parse_row(Row(fields, f"a.jsonl:{number + 1}"), number)


def tokens_of(row: PreferenceRow, **options: Any) -> TokenizedPairs:
    return tokenize_rows([row], TOKENIZER, **options)


def test_golden_a_row_that_fits_is_not_truncated() -> None:
    data = tokens_of(row_of("ab", "c", "de", 7, baseline="f"), max_length=8)
    pair = data.pairs[0]
    assert pair.prompt == (BOS, USER, 97, 98, ASSISTANT)
    assert (pair.chosen, pair.rejected, pair.baseline) == ((99, EOS), (100, 101, EOS), (102, EOS))
    assert pair.row == 7
    expected = {"rows": 1, "rows_skipped": 0, "prompts_cut": 0, "responses_cut": 0}
    assert data.report == expected


def test_golden_a_truncated_prompt_keeps_the_openings_of_its_message_and_of_the_answer() -> None:
    row = row_of("abcdef", "x", "y")
    end = tokens_of(row, max_length=7, max_prompt_length=5)
    assert end.pairs[0].prompt == (BOS, USER, 101, 102, ASSISTANT)
    assert (end.report["prompts_cut"], end.report["responses_cut"]) == (1, 0)
    start = tokens_of(row, max_length=7, max_prompt_length=5, truncation_mode="keep_start")
    assert start.pairs[0].prompt == (BOS, USER, 97, 98, ASSISTANT)
    last = tokens_of(row, max_length=6, max_prompt_length=4)
    assert last.pairs[0].prompt == (BOS, USER, 102, ASSISTANT)
    with pytest.raises(RowError, match="no room for its text beside the chat template"):
        tokens_of(row, max_length=6, max_prompt_length=3)


def test_golden_a_truncated_conversation_loses_whole_messages_and_keeps_its_system_message() -> (
    None
):
    messages = [("system", "S"), ("user", "abc"), ("assistant", "B"), ("user", "def")]
    prompt = [{"role": role, "content": content} for role, content in messages]
    row = parse_row(Row({"prompt": prompt, "chosen": "x", "rejected": "y"}, "a.jsonl:1"), 0)
    system, full = [BOS, 260, 83], [USER, 97, 98, 99, ASSISTANT, 66, EOS, USER, 100, 101, 102]
    assert tokens_of(row, max_length=20).pairs[0].prompt == (*system, *full, ASSISTANT)
    for mode, limit, kept in [
        ("keep_end", 14, [USER, 98, 99, *full[4:]]),
        ("keep_start", 14, full[:-1]),
        # The answer B goes with the question that it belongs to.
        ("keep_end", 11, [USER, 100, 101, 102]),
        ("keep_start", 11, [USER, 97, 98, 99]),
        ("keep_end", 7, [USER, 101, 102]),
        ("keep_start", 7, [USER, 97, 98]),
    ]:
        options: dict[str, Any] = {"max_prompt_length": limit, "truncation_mode": mode}
        pair = tokens_of(row, max_length=16, **options).pairs[0]
        assert pair.prompt == (*system, *kept, ASSISTANT), (mode, limit)
    shortest = tokens_of(row, max_length=16, max_prompt_length=5).pairs[0]
    assert shortest.prompt == (BOS, 260, USER, 102, ASSISTANT)


def test_raises_or_counts_rows_that_are_too_long_if_they_are_not_to_be_truncated() -> None:
    short, long, longest = (
        row_of("a", "x", "y"),
        row_of("abcdef", "x", "y"),
        row_of("a", "x" * 9, "y"),
    )
    rows = [short, long, longest]
    options: dict[str, Any] = {"max_length": 8, "max_prompt_length": 5}
    assert len(tokenize_rows(rows, TOKENIZER, **options).pairs) == 3
    data = tokenize_rows(rows, TOKENIZER, on_overlong="skip", **options)
    assert [len(data.pairs), data.report["rows_skipped: too long"]] == [1, 2]
    for row in (long, longest):
        with pytest.raises(RowError, match=r"`max_length` is 8 and a prompt has at most 5"):
            tokens_of(row, on_overlong="refuse", **options)
    counted = tokenize_rows(rows, TOKENIZER, on_overlong="refuse", on_error="skip", **options)
    assert counted.report["rows_skipped: too long"] == 2


def test_raises_for_a_token_that_the_model_does_not_embed() -> None:
    row = row_of("az", "x", "y")
    assert len(tokens_of(row, max_length=8, vocab_size=261).pairs) == 1
    for size, token in ((259, 259), (122, 259), (97, 259)):
        with pytest.raises(RowError, match=rf"the token {token}, but the model embeds only {size}"):
            tokens_of(row, max_length=8, vocab_size=size)


def test_golden_a_truncated_response_keeps_its_first_tokens() -> None:
    data = tokens_of(row_of("a", "xyz", "y", baseline="xyzw"), max_length=6, max_prompt_length=4)
    pair = data.pairs[0]
    assert (pair.chosen, pair.rejected, pair.baseline) == ((120, 121), (121, EOS), (120, 121))
    assert (data.report["prompts_cut"], data.report["responses_cut"]) == (0, 2)


def test_golden_a_prompt_is_truncated_to_half_of_the_length_at_most() -> None:
    # The longest response has 3 tokens with its end, so 7 of 10 are left for a prompt of 8.
    assert len(tokens_of(row_of("abcde", "xy", "z"), max_length=10).pairs[0].prompt) == 7
    data = tokens_of(row_of("abcde", "x" * 20, "z"), max_length=10)
    assert len(data.pairs[0].prompt) == len(data.pairs[0].chosen) == 5
    assert (data.report["prompts_cut"], data.report["responses_cut"]) == (1, 1)


TEXT = st.text("abc", min_size=1, max_size=12)


@settings(deadline=None)
@given(
    TEXT,
    st.lists(TEXT, min_size=2, max_size=2, unique=True),
    st.integers(2, 20),
    st.none() | st.integers(1, 19),
    st.sampled_from(["keep_end", "keep_start"]),
)
def test_property_a_truncated_pair_fits_and_is_a_prefix_of_the_full_pair(
    prompt: str, responses: list[str], max_length: int, max_prompt: int | None, mode: Any
) -> None:
    row = row_of(prompt, responses[0], responses[1])
    if max_prompt is not None and max_prompt >= max_length:
        max_prompt = max_length - 1
    options = {"max_prompt_length": max_prompt, "truncation_mode": mode, "on_error": "skip"}
    data = tokens_of(row, max_length=max_length, **options)
    assert data.report["rows_skipped"] == 1 - len(data.pairs)
    full = tokens_of(row, max_length=100).pairs[0]
    for pair in data.pairs:
        assert len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= max_length
        assert 4 <= len(pair.prompt) <= (max_prompt or max_length)
        assert pair.prompt[:2] == (BOS, USER)
        assert pair.prompt[-1] == ASSISTANT
        assert pair.chosen == full.chosen[: len(pair.chosen)] != ()
        assert pair.rejected == full.rejected[: len(pair.rejected)] != ()
        assert pair.chosen != pair.rejected
        assert (pair != full) == bool(data.report["prompts_cut"] + data.report["responses_cut"])


class PickyTokenizer(ByteTokenizer):
    """A tokenizer that refuses the response "r" and returns no tokens for the response "n"."""

    def encode_response(
        self, prompt: Sequence[Message], response: Sequence[Message], *, tools: str = ""
    ) -> ResponseTokens:
        if response[0].content == "r":
            raise RowError("boundary", "the tokens differ")
        tokens = super().encode_response(prompt, response, tools=tools)
        return ResponseTokens([EOS]) if response[0].content == "n" else tokens


BAD_ROWS: list[tuple[PreferenceRow, str, str]] = [
    (row_of("a", "x", "x"), "identical responses", "fields `chosen` and `rejected` are identical"),
    (row_of("a", "xxxy", "xxxz"), "identical responses", r"identical tokens.*first 3 tokens"),
    (row_of("a", "x", ""), "empty text", "field `rejected` has an empty"),
    (row_of("a", "n", "x"), "empty text", "field `chosen`: it has no tokens besides its end"),
    (row_of("a", "x", "r"), "boundary", "field `rejected`: the tokens differ"),
    (row_of("a", "x", "y", baseline="r"), "boundary", "field `baseline`: the tokens differ"),
    (
        row_of("aaa", "x", "y", ref_chosen_logps=-1.0, ref_rejected_logps=-2.0),
        "reference of a truncated row",
        "truncated to `max_length` 7",
    ),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD_ROWS)
def test_raises_or_counts_a_row_that_cannot_be_used(
    row: PreferenceRow, reason: str, message: str
) -> None:
    good = row_of("a", "x", "y", 1)
    with pytest.raises(RowError, match=rf"^a\.jsonl:1: .*{message}"):
        tokenize_rows([row, good], PickyTokenizer(), max_length=7)
    data = tokenize_rows([row, good], PickyTokenizer(), max_length=7, on_error="skip")
    assert [pair.row for pair in data.pairs] == [1]
    assert data.report["rows_skipped"] == data.report[f"rows_skipped: {reason}"] == 1


@pytest.mark.parametrize(("max_length", "max_prompt"), [(1, None), (4, 4), (4, 0)])
def test_raises_for_lengths_without_room_for_a_response(
    max_length: int, max_prompt: int | None
) -> None:
    with pytest.raises(ValueError, match="`max_length` must leave room"):
        tokens_of(row_of("a", "x", "y"), max_length=max_length, max_prompt_length=max_prompt)


def test_roundtrip_reference_log_probabilities_of_a_row_that_fits() -> None:
    row = row_of("a", "x", "y", ref_chosen_logps=-1.0, ref_rejected_logps=-2.0)
    assert tokens_of(row, max_length=8).pairs[0].reference == (-1.0, -2.0)


def test_golden_all_rows_of_the_real_data_are_tokenized(shared_data: Path) -> None:
    rows = read_preferences(shared_data / "hh-harmless-test.jsonl.gz")
    data = tokenize_rows(rows, TOKENIZER, max_length=2**20)
    assert len(data.pairs) == 2299
    for row, pair in zip(rows, data.pairs, strict=True):
        assert TOKENIZER.decode(pair.chosen) == row.chosen[0].content
        assert pair.prompt.count(ASSISTANT) == 1 + sum(m.role == "assistant" for m in row.prompt)
