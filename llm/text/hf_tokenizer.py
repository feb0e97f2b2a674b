"""The tokenizer of a Hugging Face model folder, with its chat template and its end tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from llm.data.model_folder import model_file, read_json_object
from llm.data.preferences import Message, Messages, RowError
from rpo_io.digests import sha256_hex

from .chat_template import ChatTemplate, TracedText
from .encoding import EncodedText, GuardedEncoder
from .message_fields import UnwrittenFields
from .templates import open_templates
from .tokenizer import DEFAULT_OPTIONS, ResponseTokens, TokenizerOptions
from .tokenizer_files import read_tokenizer

PROBE = (Message("user", "x"), Message("assistant", "x"))
"""A conversation that shows what the template itself writes around a response."""
CACHE_SIZE = 8
"""Number of rendered conversations that are kept: those of one row."""


class _Opening(NamedTuple):
    """What the template writes between a prompt and a response.

    Attributes:
        constant: text before every response of a conversation that the generation prompt lacks.
        generation: end of the generation prompt that a conversation lacks.
    """

    constant: str
    generation: str


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` with the chat template of its folder.

    The token ids are those of ``transformers``' ``apply_chat_template``. The pad token is not used,
    since it often is the end token.

    Args:
        folder: folder of the tokenizer's files.
        options: how conversations are written as tokens.

    Raises:
        ValueError: if a file is missing or damaged, there is no chat template, or the template
            writes no end token.
    """

    def __init__(self, folder: Path, options: TokenizerOptions = DEFAULT_OPTIONS) -> None:
        """Read the files and render a probe conversation."""
        files = read_tokenizer(folder)
        self._files = files
        self._fast = files.fast
        self._encode = lru_cache(CACHE_SIZE)(self._encode_uncached)
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        self._variables = {**files.special_texts, **options.chat_template_kwargs}
        self.bos_id: int | None = self._id("bos_token")
        self.eos_id: int | None = self._id("eos_token")
        self.digest: str = files.digest
        templates = open_templates(folder, files, options)
        self._templates: Mapping[str, ChatTemplate] = templates.by_name
        self.template_date: str | None = next(
            (template.date for template in self._templates.values() if template.date), None
        )
        fields = [each.fields for each in self._templates.values()]
        self._fields = UnwrittenFields(self._render, frozenset[str]().union(*fields))
        literals = [text for each in self._templates.values() for text in each.literals]
        self._guard = GuardedEncoder(
            self._fast,
            literals=literals,
            unknown=files.special_texts.get("unk_token"),
            as_text=options.special_tokens == "as_text",
        )
        digests = [each.digest for each in self._templates.values()]
        identity: list[Any] = [digests if len(digests) > 1 else digests[0], self._variables]
        if options.special_tokens == "as_text":
            identity.append("as_text")
        self.template_digest: str = sha256_hex(json.dumps(identity, sort_keys=True))
        self.end_ids: frozenset[int] = _end_ids(folder, self.eos_id)
        try:
            self._opening, template_end = self._probe()
        except RowError as error:
            raise ValueError(f"{folder}: its chat template cannot be used: {error}") from error
        self.end_ids |= template_end
        if not self.end_ids.intersection(self._encode(PROBE, "", False).ids):
            raise ValueError(
                f"{folder}: `chat_template` must write an end token after a response, got none"
            )
        self.notes: tuple[str, ...] = (*files.notes, *templates.notes, *self._opening_notes())

    @property
    def unwritten(self) -> dict[str, int]:
        """Number of messages by field that the chat template leaves out by design."""
        return self._fields.counts()

    def encode_prompt(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the tokens of a conversation with the template's generation prompt.

        Args:
            messages: messages before the response.
            tools: tools that the assistant may call, a JSON list; empty for no tools.

        Returns:
            Token ids.

        Raises:
            RowError: if the template fails on these messages, it does not write one of them, or a
                message contains a control token.
        """
        return list(self._encode(tuple(messages), tools, True).ids)

    def content_indices(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the message from whose content each token of :meth:`encode_prompt` comes.

        Args:
            messages: messages before the response.
            tools: tools that the assistant may call, a JSON list; empty for no tools.

        Returns:
            An index of ``messages`` per token; -1 for tokens that the template writes.
        """
        origins = self._encode(tuple(messages), tools, True).content_origins()
        split = (origin.partition(".") for origin in origins)
        return [int(index) if field == "content" else -1 for index, _, field in split]

    def encode_response(
        self, prompt: Sequence[Message], response: Sequence[Message], *, tools: str = ""
    ) -> ResponseTokens:
        """Return the tokens that the template adds for a response, often with a final line break.

        Args:
            prompt: messages before the response.
            response: messages of the response: assistant messages, possibly with messages of tools
                and users between them.
            tools: tools that the assistant may call, a JSON list; empty for no tools.

        Returns:
            Token ids, and which of them are scored.

        Raises:
            RowError: if the tokens of the conversation do not begin with those of the prompt, or
                the template does not write the response in full.
        """
        messages = (*prompt, *response)
        encoded = self._encode(messages, tools, False)
        scored = [False] * len(encoded.ids)
        start = 0
        for index in range(len(prompt), len(messages)):
            if messages[index].role != "assistant":
                continue
            first, opening, last = self._bounds_of_message(messages, index, tools, encoded)
            start = first if index == len(prompt) else start
            scored[opening:last] = [True] * (last - opening)
            self._check_end(encoded, index, last)
        prefix = encoded.ids[:start]
        generation = self._encode(tuple(prompt), tools, True).ids
        return ResponseTokens(
            encoded.ids[start:],
            None if all(scored[start:]) else scored[start:],
            None if prefix == generation else prefix,
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return self._files.decode(tokens)

    def _bounds_of_message(
        self, messages: Messages, index: int, tools: str, encoded: EncodedText
    ) -> tuple[int, int, int]:
        """Return the indices of the first token of an assistant's turn, of its text, and its end.

        The tokens between the first two are those that the template writes before every response.
        """
        text = encoded.traced.text
        before = self._encode(messages[:index], tools, True)
        opening, generation = self._opening
        prompt = before.traced.text.removesuffix(generation) if generation else before.traced.text
        if not text.startswith(prompt):
            raise _boundary(len(encoded.tokens_before(_n_common(prompt, text))))
        first = len(encoded.tokens_before(len(prompt)))
        if before.tokens_before(len(prompt)) != encoded.ids[:first]:
            raise _boundary(_n_common(before.ids, encoded.ids))
        constant = len(prompt)
        if opening and text.startswith(opening, constant):
            constant += len(opening)
        if index + 1 == len(messages):
            last = len(encoded.ids)
        else:
            # The turn as the last one of a conversation, possibly with the opening.
            text_of_message = self._encode(messages[: index + 1], tools, False).traced.text[
                len(prompt) :
            ]
            text_of_message = text_of_message.removeprefix(opening)
            end = constant + len(text_of_message)
            last = len(encoded.tokens_before(end))
            if not text.startswith(text_of_message, constant) or encoded.offsets[last][0] < end:
                raise _boundary(last)
        return first, len(encoded.tokens_before(constant)), last

    def _check_end(self, encoded: EncodedText, index: int, last: int) -> None:
        """Check that the template, and not the message, writes an end token after a turn."""
        spans = [span for span in encoded.traced.spans if span[2].partition(".")[0] == str(index)]
        closed = False
        for token, (start, _) in zip(encoded.ids[:last], encoded.offsets, strict=False):
            if token not in self.end_ids:
                continue
            if any(first <= start < end for first, end, _ in spans):
                raise RowError(
                    "special token",
                    f"a response must not contain the end token {token}, got it at character "
                    f"{start} of the conversation",
                )
            closed |= start >= max((end for _, end, _ in spans), default=0)
        if not closed:
            raise RowError(
                "chat template", "the chat template writes no end token after this response"
            )

    def _encode_uncached(
        self, messages: Messages, tools: str, add_generation_prompt: bool
    ) -> EncodedText:
        traced = self._render(messages, tools, add_generation_prompt)
        self._fields.check(traced, messages, tools, add_generation_prompt)
        encoded = self._guard.encode(traced)
        if self.bos_id is not None and encoded.ids[:2] == [self.bos_id] * 2:
            raise RowError(
                "chat template", "the chat template writes the begin-of-sequence token twice"
            )
        return encoded

    def _render(self, messages: Messages, tools: str, add_generation_prompt: bool) -> TracedText:
        template = self._templates["tool_use" if tools and "tool_use" in self._templates else ""]
        fields = [
            {"role": each.role, "content": each.content, **json.loads(each.extra or "{}")}
            for each in messages
        ]
        # As in Transformers, a field that is null is not there.
        fields = [
            {name: value for name, value in message.items() if value is not None}
            for message in fields
        ]
        try:
            traced = template.trace(
                fields,
                tools=json.loads(tools) if tools else None,
                add_generation_prompt=add_generation_prompt,
                variables=self._variables,
            )
            traced.text.encode()
        except UnicodeEncodeError as error:
            message = f"the output of the chat template is not Unicode text: {error.reason}"
            raise RowError("chat template", message) from error
        except ValueError as error:
            raise RowError("chat template", str(error)) from error
        return traced

    def _probe(self) -> tuple[_Opening, frozenset[int]]:
        """Return the opening and the end token of responses, from a probe conversation."""
        prompt = self._encode(PROBE[:1], "", True)
        conversation = self._encode(PROBE, "", False)
        text, spans = conversation.traced
        start, end, _ = next(span for span in spans if span[2] == "1.content")
        generation = prompt.traced.text
        if text[:start].startswith(generation):
            opening = _Opening(text[len(generation) : start], "")
        elif start and generation.startswith(text[:start]):
            opening = _Opening("", generation[start:])
        else:
            raise _boundary(len(conversation.tokens_before(_n_common(generation, text))))
        # The last control token ends the response; others may precede its text.
        tail = [
            token
            for token, (first, _) in zip(conversation.ids, conversation.offsets, strict=True)
            if first >= end and token in self._guard.control
        ]
        return opening, frozenset(tail[-1:])

    def _opening_notes(self) -> list[str]:
        opening, generation = self._opening
        notes: list[str] = []
        if opening.strip():
            notes.append(
                f"the chat template writes {opening!r} before every response: it is part of the "
                "prompt, and not scored"
            )
        if generation:
            notes.append(
                f"the generation prompt ends with {generation!r}, which the chat template does not "
                "write in a conversation: responses are trained without it"
            )
        return notes

    def _id(self, name: str) -> int | None:
        text = self._files.special_texts.get(name)
        return None if text is None else self._fast.token_to_id(text)


def _n_common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return the number of equal items with which two sequences begin."""
    pairs = zip(first, second, strict=False)
    same = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
    return min(len(first), len(second)) if same is None else same


def _boundary(index: int) -> RowError:
    return RowError(
        "boundary",
        "the tokens of the conversation must begin with those of its prompt, but differ at token "
        f"{index + 1}: the chat template writes a response in another way than its generation "
        "prompt",
    )


def _end_ids(folder: Path, eos_id: int | None) -> frozenset[int]:
    """Return the end of sequence and the end tokens of ``generation_config.json``."""
    name = "generation_config.json"
    config = read_json_object(folder, name) if model_file(folder, name).exists() else {}
    listed = config.get("eos_token_id")
    ids = [eos_id, *(listed if isinstance(listed, list) else [listed])]
    return frozenset(token for token in ids if isinstance(token, int))
