"""Tokenizers of conversations: the protocol, a byte tokenizer, and loading from a model folder."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from llm.config import DataConfig
from llm.data.preferences import Message, RowError
from rpo_io.digests import sha256_hex

SpecialTokens = Literal["refuse", "as_text"]
DataFormat = Literal["chat", "text"]


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """How conversations are written as tokens.

    Attributes:
        chat_template: ``chatml``, or the path of a Jinja file; None for the template of the folder.
        chat_template_kwargs: variables of the template, such as ``{"enable_thinking": False}``.
        template_date: date that the template reads as today, ``YYYY-MM-DD``; None for today (UTC).
        special_tokens: whether a message that contains a control token is refused (``refuse``), or
            the token's text is tokenized as ordinary text (``as_text``).
        format: ``chat`` applies the chat template; ``text`` tokenizes prompt and response as raw
            text, for base models.

    Raises:
        ValueError: if a value is not one of those, or the date is not a date.

    Examples:
        >>> TokenizerOptions(template_date="2024-07-26").special_tokens
        'refuse'
    """

    chat_template: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    special_tokens: SpecialTokens = "refuse"
    format: DataFormat = "chat"

    def __post_init__(self) -> None:
        """Check the values."""
        for name, allowed in (("special_tokens", SpecialTokens), ("format", DataFormat)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                names = " or ".join(map(repr, get_args(allowed)))
                raise ValueError(f"`{name}` must be {names}, got {value!r}")
        if self.template_date is not None:
            try:
                datetime.date.fromisoformat(self.template_date)
            except ValueError as error:
                raise ValueError(
                    f"`template_date` must be a date YYYY-MM-DD, got {self.template_date!r}"
                ) from error
        given = self.chat_template is not None or bool(self.chat_template_kwargs)
        if self.format == "text" and given:
            raise ValueError(
                "`chat_template` has no effect with `format: text`: remove one of them"
            )

    @classmethod
    def from_config(cls, config: DataConfig) -> TokenizerOptions:
        """Return the options that a data configuration names.

        Args:
            config: the data and their tokenization.

        Returns:
            The options.
        """
        return cls(
            chat_template=config.chat_template,
            chat_template_kwargs=config.chat_template_kwargs,
            template_date=config.template_date,
            special_tokens=config.special_tokens,
            format=config.format,
        )


DEFAULT_OPTIONS = TokenizerOptions()
"""The template of the folder, with control tokens refused."""


class ResponseTokens(NamedTuple):
    """Tokens of a response.

    Attributes:
        ids: token ids; appended to those of the prompt they are the whole conversation.
        scored: whether each token is scored: True for tokens of the assistant. None if all are.
        prompt: tokens of the prompt as the conversation writes it; None if they are those of
            :meth:`Tokenizer.encode_prompt`.
    """

    ids: list[int]
    scored: list[bool] | None = None
    prompt: list[int] | None = None


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer with a chat template.

    Attributes:
        vocab_size: one more than the largest token id.
        bos_id: id of the token that begins a sequence; None if there is none.
        eos_id: id of the token that ends a sequence; None if there is none.
        end_ids: ids that end a response: the template's end token and the end-of-sequence tokens.
        digest: SHA-256 of the tokenizer's definition.
        template_digest: SHA-256 of the chat template and its variables.
        template_date: date that the chat template reads, ``YYYY-MM-DD``; None if it reads none.
        notes: sentences about files and keys of the tokenizer that have no effect.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    digest: str
    template_digest: str
    template_date: str | None
    notes: tuple[str, ...]

    @property
    def unwritten(self) -> Mapping[str, int]:
        """Number of messages by field that the chat template leaves out by design."""
        ...

    def encode_prompt(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the tokens of a conversation with the generation prompt.

        Args:
            messages: messages before the response.
            tools: tools that the assistant may call, a JSON list; empty for no tools.

        Returns:
            Token ids.
        """
        ...

    def content_indices(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the message from whose content each token of :meth:`encode_prompt` comes.

        Truncation removes only tokens of contents.

        Args:
            messages: messages before the response.
            tools: tools that the assistant may call, a JSON list; empty for no tools.

        Returns:
            An index of ``messages`` per token; -1 for tokens that the template writes.
        """
        ...

    def encode_response(
        self, prompt: Sequence[Message], response: Sequence[Message], *, tools: str = ""
    ) -> ResponseTokens:
        """Return the tokens that a response adds to those of its prompt, with an end token.

        Args:
            prompt: messages before the response.
            response: messages of the response: assistant messages, possibly with messages of tools
                and users between them.
            tools: tools that the assistant may call, a JSON list; empty for no tools.

        Returns:
            Token ids, and which of them are scored.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens.

        Args:
            tokens: token ids.

        Returns:
            The text.
        """
        ...


class ByteTokenizer:
    """A tokenizer of UTF-8 bytes, for tests and for models without a tokenizer.

    Ids 0 to 255 are bytes; 256 begins a sequence, 257 ends a message of the assistant, and 258 to
    260 begin the messages of user, assistant and system.

    Examples:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode_prompt([Message("user", "a")])
        [256, 258, 97, 259]
        >>> tokenizer.encode_response([Message("user", "a")], [Message("assistant", "b")]).ids
        [98, 257]
    """

    BOS, EOS = 256, 257
    ROLE_IDS: ClassVar[dict[str, int]] = {"user": 258, "assistant": 259, "system": 260}
    vocab_size: int = 261
    bos_id: int | None = BOS
    eos_id: int | None = EOS
    end_ids: frozenset[int] = frozenset({EOS})
    digest: str = sha256_hex("bytes")
    template_digest: str = sha256_hex("bos (role text, eos after assistant)* assistant")
    template_date: str | None = None
    notes: tuple[str, ...] = ()
    unwritten: Mapping[str, int] = MappingProxyType({})

    def encode_prompt(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return every message after the token of its role, then the token of the assistant."""
        _refuse_tools(tools)
        return [self.BOS, *self._encode(messages), self.ROLE_IDS["assistant"]]

    def content_indices(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the message of each byte; -1 for other tokens."""
        indices = [-1]
        for index, message in enumerate(messages):
            ids = self._encode([message])
            indices += [index if token < 256 else -1 for token in ids]
        return [*indices, -1]

    def encode_response(
        self, prompt: Sequence[Message], response: Sequence[Message], *, tools: str = ""
    ) -> ResponseTokens:
        """Return the response without its first role token, with which the prompt ends."""
        del prompt
        _refuse_tools(tools)
        tokens: list[int] = []
        scored: list[bool] = []
        for message in response:
            ids = self._encode([message])
            tokens += ids
            is_scored = message.role == "assistant"
            scored += [False, *[is_scored] * (len(ids) - 1)]
        return ResponseTokens(tokens[1:], None if len(response) == 1 else scored[1:])

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode the bytes as UTF-8; invalid bytes become replacement characters."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            if message.role not in self.ROLE_IDS or message.extra:
                named = message.extra or message.role
                raise RowError("chat template", f"the byte tokenizer cannot write {named}")
            tokens += [self.ROLE_IDS[message.role], *message.content.encode()]
            if message.role == "assistant":
                tokens.append(self.EOS)
        return tokens


def _refuse_options(options: TokenizerOptions) -> None:
    if options.chat_template is not None or options.chat_template_kwargs:
        raise ValueError("`chat_template` must not be given for the byte tokenizer, which has none")
    if options.format == "text":
        raise ValueError("`format` must be `chat` for the byte tokenizer, got 'text'")


def _refuse_tools(tools: str) -> None:
    if tools:
        raise RowError("chat template", "the byte tokenizer cannot write `tools`")


def check_vocab_size(tokenizer: Tokenizer, vocab_size: int, source: str) -> None:
    """Refuse a tokenizer that writes tokens which a model does not embed into every conversation.

    A few unused tokens beyond the embedding are common; rows that use one are refused later, by
    :func:`llm.text.tokenize.tokenize_rows`.

    Args:
        tokenizer: the tokenizer.
        vocab_size: number of tokens that the model embeds.
        source: name of the tokenizer, for the message.

    Raises:
        ValueError: if no conversation can be read by the model.

    Examples:
        >>> check_vocab_size(ByteTokenizer(), 261, "bytes")
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    prompt, response = [Message("user", "x")], [Message("assistant", " x")]
    try:
        ids = [*tokenizer.encode_prompt(prompt), *tokenizer.encode_response(prompt, response).ids]
    except RowError:
        return
    if max(ids) >= vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size} tokens, but the model embeds only "
            f"{vocab_size}, and every conversation has the token {max(ids)}: use the tokenizer of "
            "the model"
        )


def load_tokenizer(folder: Path | None, options: TokenizerOptions = DEFAULT_OPTIONS) -> Tokenizer:
    """Load the tokenizer of a model folder, or the byte tokenizer.

    Args:
        folder: local folder with ``tokenizer.json`` and ``tokenizer_config.json``; None for
            :class:`ByteTokenizer`. :func:`llm.data.model_folder.resolve_tokenizer_folder` finds it.
        options: how conversations are written as tokens.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if a file is missing or damaged, or an option does not apply to the tokenizer.

    Examples:
        >>> load_tokenizer(None).vocab_size
        261
    """
    if folder is None:
        _refuse_options(options)
        return ByteTokenizer()
    # These import the tokenizers library.
    if options.format == "text":
        from .raw_text import RawTextTokenizer

        return RawTextTokenizer(folder, options)
    from .hf_tokenizer import HuggingFaceTokenizer

    return HuggingFaceTokenizer(folder, options)
