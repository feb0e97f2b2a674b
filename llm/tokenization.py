"""Rows of text to pairs of tokens: cut where they are too long, refused or counted where wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from .preference_data import Messages, PairTokens, PreferenceRow
from .tokenizer import Tokenizer

TruncationMode = Literal["keep_end", "keep_start"]
OnError = Literal["raise", "skip"]


class TokenizedData(NamedTuple):
    """Pairs, and what became of the rows.

    Attributes:
        pairs: as tokens, in the order of the rows.
        report: how many rows were read, skipped, and cut at prompt or response.
    """

    pairs: list[PairTokens]
    report: dict[str, int]


def tokenize(
    rows: Sequence[PreferenceRow],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    truncation_mode: TruncationMode = "keep_end",
    on_error: OnError = "raise",
) -> TokenizedData:
    """Turn rows into tokens.

    A prompt is cut first; a response keeps its first tokens, and at least one of them.

    Args:
        rows: the rows.
        tokenizer: of the model.
        max_length: most tokens of prompt and response together.
        max_prompt_length: most tokens of a prompt; None for all but one.
        truncation_mode: whether a long prompt keeps its end or its start.
        on_error: raise at a row that has no such tokens, or skip and count it.

    Returns:
        The pairs and a report.

    Raises:
        ValueError: with ``raise``: a row that cannot be used, by file and line.
    """
    limit = max_length - 1 if max_prompt_length is None else max_prompt_length
    report: Counter[str] = Counter(rows=len(rows), rows_skipped=0)
    pairs = []
    for row in rows:
        try:
            pair, cut = _tokens(row, tokenizer, max_length, limit, truncation_mode)
        except ValueError as error:
            if on_error == "raise":
                raise ValueError(f"{row.where}: {error}") from error
            report["rows_skipped"] += 1
            continue
        report.update(cut)
        pairs.append(pair)
    return TokenizedData(pairs, dict(report))


def _tokens(
    row: PreferenceRow,
    tokenizer: Tokenizer,
    max_length: int,
    max_prompt_length: int,
    truncation_mode: TruncationMode,
) -> tuple[PairTokens, Counter[str]]:
    cut: Counter[str] = Counter()
    prompt = tokenizer.encode_prompt(row.prompt)
    if len(prompt) > max_prompt_length:
        cut["prompts_cut"] += 1
        keep_end = truncation_mode == "keep_end"
        prompt = prompt[-max_prompt_length:] if keep_end else prompt[:max_prompt_length]
    room = max_length - len(prompt)

    def response(name: str, messages: Messages) -> tuple[int, ...]:
        tokens = tokenizer.encode_response(row.prompt, messages)
        if not any(token not in tokenizer.end_ids for token in tokens):
            raise ValueError(f"`{name}` has no token but its end")
        if len(tokens) > room:
            cut["responses_cut"] += 1
        return tuple(tokens[:room])

    chosen, rejected = response("chosen", row.chosen), response("rejected", row.rejected)
    if chosen == rejected:
        raise ValueError(f"`chosen` and `rejected` are the same {len(chosen)} tokens when cut")
    baseline = None if row.baseline is None else response("baseline", row.baseline)
    largest = max(max(part) for part in (prompt, chosen, rejected, baseline or (0,)))
    if largest >= tokenizer.vocab_size:
        raise ValueError(f"token {largest} is outside of the vocabulary")
    return PairTokens(tuple(prompt), chosen, rejected, baseline, row.row), cut
