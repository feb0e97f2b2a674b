"""Tokenization of preference rows, with truncation to a maximum length and a report of counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Literal, NamedTuple

from llm.data.pair_table import PairTable
from llm.data.preferences import (
    PairTokens,
    PreferenceRow,
    RowError,
    ScoredTokens,
    check_row,
)

from .tokenizer import ResponseTokens, Tokenizer
from .truncation import TruncationMode, cut_prompt

OnOverlong = Literal["truncate", "skip", "refuse"]
OnError = Literal["raise", "skip"]
NAMES = ("chosen", "rejected", "baseline")
TOO_LONG = "too long"
"""Reason of rows that exceed the limits."""
COUNTS = ("rows", "rows_skipped", "prompts_cut", "responses_cut")


class TokenizedPairs(NamedTuple):
    """Tokenized pairs and counts of what was skipped or truncated.

    Attributes:
        pairs: the pairs, in the order of the rows.
        report: number of ``rows`` read, ``rows_skipped`` in total and by reason as
            ``rows_skipped: reason``, ``prompts_cut`` and ``responses_cut``; and, if there are any,
            the messages of which the chat template leaves out a field, as
            ``messages without FIELD``.
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
    on_overlong: OnOverlong = "truncate",
    on_error: OnError = "raise",
    vocab_size: int | None = None,
) -> TokenizedPairs:
    """Tokenize preference rows and truncate them to a maximum length.

    The prompt is truncated first. It loses only tokens of contents, and with ``keep_end`` earlier
    messages as a whole: the begin-of-sequence token, the opening of each turn and the opening of
    the answer stay. A response keeps its first tokens, at least one.

    What the chat template writes before every response belongs to the prompt.

    Args:
        rows: parsed rows; an iterator is consumed one row at a time.
        tokenizer: tokenizer of the model.
        max_length: largest number of tokens of prompt and response together, at least 2.
        max_prompt_length: largest number of tokens of a prompt. None leaves room for the longest
            response of the row, but gives the prompt at least half of ``max_length``.
        truncation_mode: whether a long prompt keeps the end or the start of its contents.
        on_overlong: whether a row that is too long is truncated, skipped and counted, or an error
            of that row.
        on_error: whether a row that cannot be used raises an error, or is skipped and counted.
        vocab_size: number of tokens that the model embeds; a row with another token is an error.
            None accepts all tokens.

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
        on_overlong=on_overlong,
    )

    def pairs() -> Iterator[PairTokens]:
        for row in rows:
            report["rows"] += 1
            try:
                full = _encode(row, tokenizer)
                _check_ids(full, row.where, vocab_size)
                pair = truncate(full, row)
            except RowError as error:
                skips = on_overlong == "skip" and error.reason == TOO_LONG
                if on_error == "raise" and not skips:
                    raise
                report["rows_skipped"] += 1
                report[f"rows_skipped: {error.reason}"] += 1
                continue
            report["prompts_cut"] += pair.prompt != full.prompt
            stop = None if row.desirable is None else 1  # an unpaired row has one response
            before_and_after = zip(pair.responses[:stop], full.responses[:stop], strict=True)
            report["responses_cut"] += sum(short != long for short, long in before_and_after)
            yield pair

    before = Counter(tokenizer.unwritten)
    table = PairTable.from_pairs(pairs())
    for field, count in (Counter(tokenizer.unwritten) - before).items():
        report[f"messages without {field}"] = count
    return TokenizedPairs(table, dict(report))


def _encode(row: PreferenceRow, tokenizer: Tokenizer) -> PairTokens:
    """Tokenize a row without truncation."""
    check_row(row)
    responses: dict[str, ResponseTokens] = {}
    name = "prompt"
    try:
        prompt = tokenizer.encode_prompt(row.prompt, tools=row.tools)
        for name, messages in row.responses.items():
            tokens = tokenizer.encode_response(row.prompt, messages, tools=row.tools)
            if not tokens.ids or tokens.ids[0] in tokenizer.end_ids:
                raise RowError("empty text", "it has no tokens besides its end token")
            responses[name] = tokens
    except RowError as error:
        raise RowError(error.reason, f"{row.where}: field `{name}`: {error}") from error
    prompts = {tuple(prompt if r.prompt is None else r.prompt) for r in responses.values()}
    if len(prompts) > 1:
        raise RowError(
            "boundary",
            f"{row.where}: the chat template writes the prompt in different ways before the "
            "responses",
        )
    (shared,) = prompts
    if not shared:
        raise RowError("no prompt", f"{row.where}: field `prompt` has no tokens")
    opening = _common_opening(list(responses.values()))
    names = NAMES if row.ranking is None else tuple(responses)
    if row.desirable is not None:
        responses = dict.fromkeys(NAMES[:2], responses["completion"])
    first = next(iter(responses.values()))
    ids = {name: tuple(tokens.ids[opening:]) for name, tokens in responses.items()}
    scored = tuple(_scored(responses.get(name), opening) for name in names)
    return PairTokens(
        shared + tuple(first.ids[:opening]),
        ids[names[0]],
        ids[names[1]],
        ids.get("baseline"),
        row.row,
        row.reference,
        scored if any(mask is not None for mask in scored) else None,
        row.label,
        row.desirable,
        None if row.ranking is None else tuple(ids[name] for name in names[2:]),
    )


def _common_opening(responses: list[ResponseTokens]) -> int:
    """Return how many tokens the chat template writes before all responses of a row."""
    length = min(_first_scored(tokens) for tokens in responses)
    first, *others = (tokens.ids[:length] for tokens in responses)
    while any(ids[:length] != first[:length] for ids in others):
        length -= 1
    return length


def _first_scored(tokens: ResponseTokens) -> int:
    return 0 if tokens.scored is None else tokens.scored.index(True)


def _scored(tokens: ResponseTokens | None, opening: int) -> ScoredTokens | None:
    """Return which tokens after the opening are scored; None if all are.

    Tokens of the opening that the responses do not share distinguish them, and are scored.
    """
    if tokens is None or tokens.scored is None:
        return None
    start = _first_scored(tokens)
    scored = (True,) * (start - opening) + tuple(tokens.scored[start:])
    return None if all(scored) else scored


def _check_ids(pair: PairTokens, where: str, vocab_size: int | None) -> None:
    """Refuse tokens that the model does not embed."""
    largest = max(map(max, (pair.prompt, *pair.responses)))
    if vocab_size is not None and largest >= vocab_size:
        raise RowError(
            "token beyond the embedding",
            f"{where}: the row has the token {largest}, but the model embeds only {vocab_size} "
            "tokens: use the model's own tokenizer, or remove the token's text",
        )


def _truncate(
    full: PairTokens,
    row: PreferenceRow,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    max_prompt_length: int | None,
    mode: TruncationMode,
    on_overlong: OnOverlong,
) -> PairTokens:
    """Truncate a pair to ``max_length`` tokens, the prompt before the responses."""
    where, limit = row.where, max_prompt_length
    longest = max(map(len, full.responses))
    if limit is None:
        limit = max_length - min(longest, max_length // 2)
    fits = len(full.prompt) <= limit and len(full.prompt) + longest <= max_length
    if not fits and on_overlong != "truncate":
        raise RowError(
            TOO_LONG,
            f"{where}: the prompt has {len(full.prompt)} tokens and its longest response "
            f"{longest}, but `max_length` is {max_length} and a prompt has at most {limit}: raise "
            "the limit, or set `on_overlong` to `truncate` or `skip`",
        )
    pair = full
    if len(full.prompt) > limit:
        indices = tokenizer.content_indices(row.prompt, tools=row.tools)
        indices += [-1] * (len(full.prompt) - len(indices))  # the opening of the responses
        roles = [message.role for message in row.prompt]
        kept = cut_prompt(indices[: len(full.prompt)], roles, limit, mode)
        if kept is None:
            raise RowError(
                TOO_LONG,
                f"{where}: field `prompt`: the {limit} tokens to which it is truncated have no "
                "room for its text beside the chat template: raise `max_length` or "
                "`max_prompt_length`",
            )
        pair = full._replace(prompt=tuple(full.prompt[index] for index in kept))
    pair = _truncate_responses(pair, max_length - len(pair.prompt), where)
    if pair != full and pair.reference is not None:
        raise RowError(
            "reference of a truncated row",
            f"{where}: the reference log-probabilities are of the whole row, but the row is "
            f"truncated to `max_length` {max_length}",
        )
    return pair


def _truncate_responses(pair: PairTokens, limit: int, where: str) -> PairTokens:
    """Truncate the responses of a pair to ``limit`` tokens."""
    scored = pair.scored
    if scored is not None:
        cut = [None if mask is None else mask[:limit] for mask in scored]
        if any(mask is not None and not any(mask) for mask in cut):
            raise RowError(
                TOO_LONG, f"{where}: the first {limit} tokens of a response are not scored"
            )
        masks = [None if mask is None or all(mask) else mask for mask in cut]
        scored = tuple(masks) if any(mask is not None for mask in masks) else None
    truncated = pair._replace(
        chosen=pair.chosen[:limit],
        rejected=pair.rejected[:limit],
        baseline=None if pair.baseline is None else pair.baseline[:limit],
        others=None if pair.others is None else tuple(each[:limit] for each in pair.others),
        scored=scored,
    )
    compared = truncated._replace(baseline=None).responses
    if pair.desirable is None and len(set(compared)) < len(compared):
        fields = "fields `chosen` and `rejected`" if pair.others is None else "two `responses`"
        raise RowError(
            "identical responses",
            f"{where}: {fields} have identical tokens, or identical first "
            f"{limit} tokens, to which `max_length` truncates them",
        )
    return truncated
