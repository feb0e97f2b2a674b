"""Tokenization of preference rows, with truncation to a maximum length and a report of counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from llm.data.pair_table import PairTable
from llm.data.preferences import Messages, PairTokens, PreferenceRow, RowError, check_row

from .tokenizer import Tokenizer

TruncationMode = Literal["keep_end", "keep_start"]
OnError = Literal["raise", "skip"]
COUNTS = ("rows", "rows_skipped", "prompts_cut", "responses_cut")


class TokenizedPairs(NamedTuple):
    """Tokenized pairs and counts of what was skipped or truncated.

    Attributes:
        pairs: the pairs, in the order of the rows.
        report: number of ``rows`` read, ``rows_skipped`` in total and by reason as
            ``rows_skipped: reason``, ``prompts_cut`` and ``responses_cut``.
    """

    pairs: PairTable
    report: dict[str, int]


def tokenize_rows(
    rows: Iterable[PreferenceRow],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_prompt_length: int | None = None,
    truncation_mode: TruncationMode = "keep_end",
    on_error: OnError = "raise",
) -> TokenizedPairs:
    """Tokenize preference rows and truncate them to a maximum length.

    The prompt is truncated first; it keeps its begin-of-sequence token. A response keeps its first
    tokens, at least one.

    Args:
        rows: parsed rows; an iterator is consumed one row at a time.
        tokenizer: tokenizer of the model.
        max_length: largest number of tokens of prompt and response together, at least 2.
        max_prompt_length: largest number of tokens of a prompt. None leaves room for the longest
            response of the row, but gives the prompt at least half of ``max_length``.
        truncation_mode: whether a long prompt keeps its last or its first tokens.
        on_error: whether a row that cannot be used raises an error, or is skipped and counted.

    Returns:
        The pairs and a report.

    Raises:
        ValueError: if ``max_length`` leaves no room for a prompt and a response.
        RowError: if a row cannot be used and ``on_error`` is ``raise``; the message names file,
            line and field.

    Examples:
        >>> from llm.data.preferences import Row, parse_row
        >>> from llm.text.tokenizer import ByteTokenizer
        >>> row = parse_row(Row({"prompt": "a", "chosen": "b", "rejected": "cd"}, "a.jsonl:1"), 0)
        >>> tokenize_rows([row], ByteTokenizer(), max_length=8).pairs[0][:3]
        ((256, 258, 97, 259), (98, 257), (99, 100, 257))
    """
    if not 1 <= (1 if max_prompt_length is None else max_prompt_length) < max_length:
        raise ValueError(
            "`max_length` must leave room for a token of prompt and one of response, got "
            f"`max_length` {max_length} and `max_prompt_length` {max_prompt_length}"
        )
    report: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))

    truncate = partial(
        _truncate,
        tokenizer=tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        mode=truncation_mode,
    )

    def pairs() -> Iterator[PairTokens]:
        for row in rows:
            report["rows"] += 1
            try:
                full = _encode(row, tokenizer)
                pair = truncate(full, row.where)
            except RowError as error:
                if on_error == "raise":
                    raise
                report["rows_skipped"] += 1
                report[f"rows_skipped: {error.reason}"] += 1
                continue
            report["prompts_cut"] += pair.prompt != full.prompt
            report["responses_cut"] += sum(
                short != long for short, long in zip(pair[1:4], full[1:4], strict=True)
            )
            yield pair

    return TokenizedPairs(PairTable.from_pairs(pairs()), dict(report))


def _encode(row: PreferenceRow, tokenizer: Tokenizer) -> PairTokens:
    """Tokenize a row without truncation."""
    check_row(row)
    responses: dict[str, tuple[int, ...]] = {}
    name = "prompt"
    try:
        prompt = tuple(tokenizer.encode_prompt(row.prompt))
        for name in ("chosen", "rejected", "baseline"):
            messages: Messages | None = getattr(row, name)
            if messages is None:
                continue
            responses[name] = tuple(tokenizer.encode_response(row.prompt, messages).ids)
            if not responses[name] or responses[name][0] in tokenizer.end_ids:
                raise RowError("empty text", "it has no tokens besides its end token")
    except RowError as error:
        raise RowError(error.reason, f"{row.where}: field `{name}`: {error}") from error
    if not prompt:
        raise RowError("no prompt", f"{row.where}: field `prompt` has no tokens")
    chosen, rejected = responses["chosen"], responses["rejected"]
    return PairTokens(prompt, chosen, rejected, responses.get("baseline"), row.row, row.reference)


def _truncate(
    full: PairTokens,
    where: str,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    max_prompt_length: int | None,
    mode: TruncationMode,
) -> PairTokens:
    """Truncate a pair to ``max_length`` tokens, the prompt before the responses."""
    limit = max_prompt_length
    if limit is None:
        longest = max(len(response) for response in full[1:4] if response is not None)
        limit = max_length - min(longest, max_length // 2)
    pair = full._replace(prompt=_truncate_prompt(full.prompt, limit, mode, tokenizer))
    pair = _truncate_responses(pair, max_length - len(pair.prompt), where)
    if pair != full and pair.reference is not None:
        raise RowError(
            "reference of a truncated row",
            f"{where}: the reference log-probabilities are of the whole row, but the row is "
            f"truncated to `max_length` {max_length}",
        )
    return pair


def _truncate_prompt(
    prompt: tuple[int, ...], limit: int, mode: TruncationMode, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """Truncate a prompt to ``limit`` tokens."""
    if len(prompt) <= limit:
        return prompt
    if mode == "keep_start":
        return prompt[:limit]
    # A model has never seen a sequence without its begin token, so that token is kept.
    has_bos = prompt[0] == tokenizer.bos_id and prompt.count(prompt[0]) == 1 and limit > 1
    prefix = prompt[:1] if has_bos else ()
    return prefix + prompt[len(prompt) - limit + len(prefix) :]


def _truncate_responses(pair: PairTokens, limit: int, where: str) -> PairTokens:
    """Truncate the responses of a pair to ``limit`` tokens."""
    truncated = pair._replace(
        chosen=pair.chosen[:limit],
        rejected=pair.rejected[:limit],
        baseline=None if pair.baseline is None else pair.baseline[:limit],
    )
    if truncated.chosen == truncated.rejected:
        raise RowError(
            "identical responses",
            f"{where}: fields `chosen` and `rejected` have identical tokens, or identical first "
            f"{limit} tokens, to which `max_length` truncates them",
        )
    return truncated
