"""Tokenization of rendered conversations in which control tokens come only from the template.

A control token opens or closes a message. The text of a message must never become one: not
literally, not through a normalizer that changes letters, not through whitespace that a token
swallows, and not together with the template's text before or after it. The tokens are therefore
compared with the origins of their characters.
"""

from __future__ import annotations

import json
import unicodedata
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import NamedTuple

import tokenizers

from llm.data.preferences import RowError

from .chat_template import TracedText

MAX_REASON = 300
"""Largest number of characters of a message of the library."""
Range = tuple[int, int]
"""First character and the one after the last."""


class EncodedText(NamedTuple):
    """Tokens of a rendered conversation.

    Attributes:
        traced: the text and the origins of its characters.
        ids: token ids.
        offsets: range of characters of each token.
    """

    traced: TracedText
    ids: list[int]
    offsets: list[Range]

    def content_origins(self) -> list[str]:
        """Return the origin of each token; empty for tokens that the template writes in part.

        Returns:
            Origins as in :class:`llm.text.chat_template.TracedText`.
        """
        starts = [start for start, _, _ in self.traced.spans]
        origins: list[str] = []
        for start, end in self.offsets:
            index = bisect_right(starts, start) - 1
            inside = index >= 0 and end <= self.traced.spans[index][1]
            origins.append(self.traced.spans[index][2] if inside else "")
        return origins

    def tokens_before(self, position: int) -> list[int]:
        """Return the tokens that end at a character or before it.

        Args:
            position: index of a character.

        Returns:
            Token ids.
        """
        return self.ids[: bisect_right(self.offsets, position, key=itemgetter(1))]


class GuardedEncoder:
    """A tokenizer that keeps control tokens out of contents.

    Args:
        fast: tokenizer of the library, without truncation, padding and post-processor.
        literals: constant texts of the template. An added token that is not special is a control
            token if the template writes it.
        unknown: text of the token for unknown characters, which contents may become; None if
            there is none.
        as_text: tokenize control tokens in contents as ordinary text instead of refusing them.
    """

    def __init__(
        self,
        fast: tokenizers.Tokenizer,
        *,
        literals: Collection[str],
        unknown: str | None,
        as_text: bool,
    ) -> None:
        """Collect the control tokens."""
        self._fast = fast
        self._as_text = as_text
        self._unknown = unknown
        template = "\0".join(literals)
        self._added = fast.get_added_tokens_decoder()
        self.control: dict[int, tokenizers.AddedToken] = {
            token: entry
            for token, entry in self._added.items()
            if entry.special or (entry.content in template and not entry.content.isspace())
        }
        self._texts = tuple(entry.content for entry in self.control.values() if entry.content)
        self._plain: tokenizers.Tokenizer | None = None

    def encode(self, traced: TracedText) -> EncodedText:
        """Tokenize a rendered conversation.

        Args:
            traced: the text and the origins of its characters.

        Returns:
            The tokens.

        Raises:
            RowError: if a control token comes from a content, or a content destroys one.
        """
        plain: list[Range] = []
        while True:
            encoded = self._encode_pieces(traced, plain)
            self._add_control_tokens(encoded)
            found = list(self._tokens_of_contents(encoded))
            if not found:
                self._check_template_tokens(encoded)
                return encoded
            token, range_ = found[0]
            name = self.control[token].content
            if not self._as_text:
                raise RowError(
                    "special token",
                    f"a message must not contain the special token {name!r}, got "
                    f"{traced.text[slice(*range_)]!r}: remove it, or write it as ordinary text "
                    "with `special_tokens: as_text`",
                )
            if any(range_[0] < end and start < range_[1] for start, end in plain):
                raise RowError(
                    "special token",
                    f"the tokenizer has no ordinary tokens for the special token {name!r}: remove "
                    "it from the message",
                )
            plain = sorted([*plain, *_disjoint(range_ for _, range_ in found)])

    def _encode_pieces(self, traced: TracedText, plain: Sequence[Range]) -> EncodedText:
        """Tokenize a text whose ranges ``plain`` have no added tokens."""
        ids: list[int] = []
        offsets: list[Range] = []
        position = 0
        for start, end in [*plain, (len(traced.text), len(traced.text))]:
            for first, last, is_plain in ((position, start, False), (start, end, True)):
                if first == last:
                    continue
                fast = self._without_added_tokens() if is_plain else self._fast
                new_ids, new_offsets = _encode_piece(fast, traced.text[first:last], first > 0)
                ids += new_ids
                offsets += [(first + a, first + b) for a, b in new_offsets]
            position = end
        return EncodedText(traced, ids, offsets)

    def _add_control_tokens(self, encoded: EncodedText) -> None:
        """Add the tokens that the template has put together from several texts."""
        others = self._added.keys() - self.control.keys()
        if others.isdisjoint(encoded.ids):
            return
        text, spans = encoded.traced
        starts = [start for start, _, _ in spans]
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            if token in others and not text[start:end].isspace():
                index = bisect_right(starts, end - 1) - 1
                if index < 0 or spans[index][1] <= start:
                    self.control[token] = self._added[token]
                    self._texts += (self._added[token].content,)

    def _tokens_of_contents(self, encoded: EncodedText) -> Iterator[tuple[int, Range]]:
        """Yield the control tokens that are made of characters of a content, and their ranges."""
        text, spans = encoded.traced
        starts = [start for start, _, _ in spans]
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True):
            entry = self.control.get(token)
            if entry is None:
                continue
            # Whitespace beside the token may come from a content: the token swallows it.
            if entry.lstrip:
                start += len(text[start:end]) - len(text[start:end].lstrip())
            if entry.rstrip:
                end -= len(text[start:end]) - len(text[start:end].rstrip())
            index = max(0, bisect_right(starts, start) - 1)
            touches = any(
                first < end and start < last for first, last, _ in spans[index : index + 2]
            )
            is_unknown = entry.content == self._unknown and _fold(entry.content) not in _fold(
                text[start:end]
            )
            if touches and not is_unknown:
                yield token, (start, end)

    def _check_template_tokens(self, encoded: EncodedText) -> None:
        """Refuse a content that destroys a control token which the template writes beside it."""
        text, spans = encoded.traced
        written = {
            range_
            for token, range_ in zip(encoded.ids, encoded.offsets, strict=True)
            if token in self.control
        }
        edges = [0, *(edge for start, end, _ in spans for edge in (start, end)), len(text)]
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            ending = opening = ""
            if end < len(text):
                ending = max(filter(text[start:end].endswith, self._texts), key=len, default="")
            if start > 0:
                opening = max(filter(text[start:end].startswith, self._texts), key=len, default="")
            for content, first in ((ending, end - len(ending)), (opening, start)):
                range_ = (first, first + len(content))
                if not content or any(a <= range_[0] and range_[1] <= b for a, b in written):
                    continue
                if self._is_found(content):
                    raise RowError(
                        "special token",
                        f"the text beside the special token {content!r} of the chat template "
                        "changes how it is tokenized: change the message's first or last character",
                    )

    def _is_found(self, content: str) -> bool:
        """Return whether the tokenizer finds a token between spaces."""
        ids = _encode_piece(self._fast, f" {content} ", follows=False)[0]
        return any(self.control[token].content == content for token in ids if token in self.control)

    def _without_added_tokens(self) -> tokenizers.Tokenizer:
        if self._plain is None:
            document = json.loads(self._fast.to_str())
            document["added_tokens"] = []
            with library_errors("the tokenizer cannot write special tokens as ordinary text"):
                self._plain = tokenizers.Tokenizer.from_str(json.dumps(document))
        return self._plain


@contextmanager
def library_errors(summary: str) -> Iterator[None]:
    """Raise errors of the tokenizers library as a ``RowError``.

    Args:
        summary: what failed.

    Raises:
        RowError: for an error or a panic of the library.
    """
    try:
        yield
    except BaseException as error:  # a panic of Rust is not an Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split())[:MAX_REASON]
            raise RowError("tokenizer", f"{summary}: {reason}") from error
        raise


def _encode_piece(
    fast: tokenizers.Tokenizer, text: str, follows: bool
) -> tuple[list[int], list[Range]]:
    """Tokenize a text; a text that follows another one gets no space at its start.

    Some tokenizers write a space before a text. It is tokenized after a line break, whose tokens
    are removed, as ``transformers`` does.
    """
    with library_errors("the tokenizer cannot read this text"):
        if follows:
            line_break = fast.encode("\n", add_special_tokens=False).ids
            encoding = fast.encode("\n" + text, add_special_tokens=False)
            if encoding.ids[: len(line_break)] == line_break:
                offsets = encoding.offsets[len(line_break) :]
                return encoding.ids[len(line_break) :], [(a - 1, b - 1) for a, b in offsets]
        encoding = fast.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


def _disjoint(ranges: Iterator[Range]) -> list[Range]:
    """Return ranges without those that overlap an earlier one."""
    kept: list[Range] = []
    for start, end in ranges:
        if not kept or start >= kept[-1][1]:
            kept.append((start, end))
    return kept


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
