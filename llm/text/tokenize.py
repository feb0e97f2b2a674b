"""Rows of text to pairs of tokens: cut where they are too long, refused or counted where wrong."""

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
    """Pairs, and what became of the rows.

    Attributes:
        pairs: as tokens, in the order of the rows.
        report: ``rows`` read, ``rows_skipped`` in all and as ``rows_skipped: reason``,
            ``prompts_cut`` and ``responses_cut``.
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
    """Turn rows into tokens.

    A prompt is cut before a response is, and keeps the token that begins a sequence if it has one;
    a response keeps its first tokens, and at least one of them.

    Args:
        rows: the rows; of an iterator, one at a time is in memory.
        tokenizer: of the model.
        max_length: most tokens of prompt and response together.
        max_prompt_length: most tokens of a prompt; None for those that the longest response of
            its row leaves, or half of all if that is more.
        truncation_mode: whether a long prompt keeps its end or its start.
        on_error: raise at a row that cannot be used, or skip and count it.

    Returns:
        The pairs and a report.

    Raises:
        ValueError: lengths that leave nothing; with ``raise``, a row that cannot be used, by file,
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

    fitted = partial(
        _fitted,
        tokenizer=tokenizer,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        mode=truncation_mode,
    )

    def pairs() -> Iterator[PairTokens]:
        for row in rows:
            report["rows"] += 1
            try:
                whole = _whole(row, tokenizer)
                pair = fitted(whole, row.where)
            except RowError as error:
                if on_error == "raise":
                    raise
                report["rows_skipped"] += 1
                report[f"rows_skipped: {error.reason}"] += 1
                continue
            report["prompts_cut"] += pair.prompt != whole.prompt
            report["responses_cut"] += sum(
                cut != one for cut, one in zip(pair[1:4], whole[1:4], strict=True)
            )
            yield pair

    return TokenizedPairs(PairTable.from_pairs(pairs()), dict(report))


def _whole(row: PreferenceRow, tokenizer: Tokenizer) -> PairTokens:
    """A row's tokens, all of them."""
    check_row(row)
    responses: dict[str, tuple[int, ...]] = {}
    name = "prompt"
    try:
        prompt = tuple(tokenizer.encode_prompt(row.prompt))
        for name in ("chosen", "rejected", "baseline"):
            messages: Messages | None = getattr(row, name)
            if messages is None:
                continue
            responses[name] = tuple(tokenizer.encode_response(row.prompt, messages))
            if not responses[name] or responses[name][0] in tokenizer.end_ids:
                raise RowError("empty text", "it has no tokens but its end")
    except RowError as error:
        raise RowError(error.reason, f"{row.where}: field `{name}`: {error}") from error
    if not prompt:
        raise RowError("no prompt", f"{row.where}: field `prompt` has no tokens")
    chosen, rejected = responses["chosen"], responses["rejected"]
    return PairTokens(prompt, chosen, rejected, responses.get("baseline"), row.row, row.reference)


def _fitted(
    whole: PairTokens,
    where: str,
    *,
    tokenizer: Tokenizer,
    max_length: int,
    max_prompt_length: int | None,
    mode: TruncationMode,
) -> PairTokens:
    """A pair of at most so many tokens: its prompt is cut first."""
    limit = max_prompt_length
    if limit is None:
        longest = max(len(one) for one in whole[1:4] if one is not None)
        limit = max_length - min(longest, max_length // 2)
    pair = whole._replace(prompt=_cut(whole.prompt, limit, mode, tokenizer))
    pair = _with_room(pair, max_length - len(pair.prompt), where)
    if pair != whole and pair.reference is not None:
        raise RowError(
            "reference of a cut row",
            f"{where}: reference log-probabilities are of the whole row, which is "
            f"longer than `max_length` {max_length} lets it be",
        )
    return pair


def _cut(
    prompt: tuple[int, ...], limit: int, mode: TruncationMode, tokenizer: Tokenizer
) -> tuple[int, ...]:
    """A prompt of at most ``limit`` tokens."""
    if len(prompt) <= limit:
        return prompt
    if mode == "keep_start":
        return prompt[:limit]
    # Without the token that begins every sequence a model reads what it has never seen.
    begins = prompt[0] == tokenizer.bos_id and prompt.count(prompt[0]) == 1 and limit > 1
    kept = prompt[:1] if begins else ()
    return kept + prompt[len(prompt) - limit + len(kept) :]


def _with_room(pair: PairTokens, room: int, where: str) -> PairTokens:
    """A pair whose responses have at most ``room`` tokens."""
    baseline = None if pair.baseline is None else pair.baseline[:room]
    cut = pair._replace(chosen=pair.chosen[:room], rejected=pair.rejected[:room], baseline=baseline)
    if cut.chosen == cut.rejected:
        raise RowError(
            "identical responses",
            f"{where}: fields `chosen` and `rejected` are identical as tokens, or as the first "
            f"{room} of them, for which `max_length` has room",
        )
    return cut
