"""Raw text for base models: a prompt and its continuation, without a chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from llm.data.preferences import Message, RowError
from rpo_io.digests import sha256_hex

from .chat_template import TracedText
from .encoding import EncodedText, GuardedEncoder, library_errors
from .tokenizer import ResponseTokens, TokenizerOptions
from .tokenizer_files import CONFIG_FILE, read_tokenizer


class RawTextTokenizer:
    """A ``tokenizer.json`` without a chat template.

    A prompt begins with the tokens that the tokenizer writes before any text, such as the
    begin-of-sequence token. A response ends with the end-of-sequence token.

    Args:
        folder: folder of the tokenizer's files.
        options: whether control tokens in a text are refused.

    Raises:
        ValueError: if a file is missing or damaged, or the tokenizer has no ``eos_token``.
    """

    unwritten: Mapping[str, int] = MappingProxyType({})
    template_date: str | None = None

    def __init__(self, folder: Path, options: TokenizerOptions) -> None:
        """Read the files."""
        files = read_tokenizer(folder)
        self._files = files
        self.digest: str = files.digest
        self.template_digest: str = sha256_hex(f"text, special tokens: {options.special_tokens}")
        self.notes: tuple[str, ...] = files.notes
        vocabulary = files.fast.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        texts = files.special_texts
        self.bos_id: int | None = files.fast.token_to_id(texts.get("bos_token", ""))
        eos_id = files.fast.token_to_id(texts.get("eos_token", ""))
        if eos_id is None:
            raise ValueError(
                f"{folder / CONFIG_FILE}: `format: text` needs an `eos_token`, which ends a "
                "response, got none"
            )
        self.eos_id: int | None = eos_id
        self._eos = eos_id
        self.end_ids: frozenset[int] = frozenset({eos_id})
        with library_errors(f"{folder}: its post-processor is not usable"):
            probe = files.fast.encode("x", add_special_tokens=True)
            length = next((i for i, special in enumerate(probe.special_tokens_mask) if not special))
        self._prefix = probe.ids[:length]
        if probe.special_tokens_mask[-1]:
            self.notes += (
                f"tokenizer.json: the token {probe.tokens[-1]!r} that it writes after a text is "
                "left out; a response ends with one end token",
            )
        self._guard = GuardedEncoder(
            files.fast,
            literals=(),
            unknown=texts.get("unk_token"),
            as_text=options.special_tokens == "as_text",
        )
        self._encode = lru_cache(4)(self._encode_uncached)

    def encode_prompt(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the tokens of a prompt.

        Args:
            messages: one message of the user.
            tools: must be empty.

        Returns:
            Token ids.

        Raises:
            RowError: if there are other messages or tools, which raw text cannot express.
        """
        return [*self._prefix, *self._encode((_text(messages, "user", tools),)).ids]

    def content_indices(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return 0 for the tokens of the text, and -1 for those before it.

        Args:
            messages: one message of the user.
            tools: must be empty.

        Returns:
            A value per token of the prompt.
        """
        tokens = self.encode_prompt(messages, tools=tools)
        return [-1] * len(self._prefix) + [0] * (len(tokens) - len(self._prefix))

    def encode_response(
        self, prompt: Sequence[Message], response: Sequence[Message], *, tools: str = ""
    ) -> ResponseTokens:
        """Return the tokens of a response, with the end-of-sequence token.

        Args:
            prompt: one message of the user.
            response: one message of the assistant.
            tools: must be empty.

        Returns:
            Token ids.

        Raises:
            RowError: if a token would cover the end of the prompt and the start of the response.
        """
        text = _text(prompt, "user", tools)
        before = self._encode((text,)).ids
        ids = self._encode((text, _text(response, "assistant", tools))).ids
        if ids[: len(before)] != before:
            raise RowError(
                "boundary",
                "the tokens of prompt and response together must begin with those of the prompt: "
                "let the prompt end before a space, and the response begin with it",
            )
        if self._eos in ids:
            raise RowError("special token", "a text must not contain the end-of-sequence token")
        return ResponseTokens([*ids[len(before) :], self._eos])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens.

        Args:
            tokens: token ids.

        Returns:
            The text.
        """
        return self._files.decode(tokens)

    def _encode_uncached(self, texts: tuple[str, ...]) -> EncodedText:
        text = "".join(texts)
        return self._guard.encode(TracedText(text, [(0, len(text), "0.content")] if text else []))


def _text(messages: Sequence[Message], role: str, tools: str) -> str:
    """Return the only text of a prompt or of a response."""
    roles = [message.role for message in messages]
    if roles != [role]:
        raise RowError(
            "raw text",
            f"`format: text` has one text of the {role} here, got messages of "
            f"{', '.join(roles) or 'nobody'}: use a chat template",
        )
    if tools or messages[0].extra:
        named = "`tools`" if tools else messages[0].extra
        raise RowError("raw text", f"`format: text` cannot write {named}: use a chat template")
    return messages[0].content
