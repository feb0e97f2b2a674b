"""Text to tokens and back: a Hugging Face tokenizer with its chat template, or plain bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from .chat_template import ChatTemplate
from .preference_data import Message

LARGEST = 200_000_000
"""Bytes of a tokenizer's file at most."""


class Tokenizer(Protocol):
    """What turns conversations into tokens.

    Attributes:
        vocab_size: one more than the largest id.
        end_ids: tokens that end a response.
        digest: SHA-256 of what defines it.
        template_digest: SHA-256 of its chat template.
    """

    vocab_size: int
    end_ids: frozenset[int]
    digest: str
    template_digest: str

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation, up to where the assistant's answer begins."""
        ...

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """Tokens of an answer, its end token last; the boundary is verified."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        ...


class ByteTokenizer:
    """A token a byte, and a few for turns: for tests, and for models without a tokenizer.

    Examples:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode_prompt([Message("user", "a")])
        [256, 258, 97, 259]
    """

    BOS, EOS = 256, 257
    ROLES = {"user": 258, "assistant": 259, "system": 260, "tool": 261}  # noqa: RUF012
    vocab_size = 262
    end_ids = frozenset({EOS})
    digest = hashlib.sha256(b"bytes").hexdigest()
    template_digest = hashlib.sha256(b"bos (role text)* assistant").hexdigest()

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Every message after the token of its role; at the end that of the assistant."""
        turns = [[self.ROLES[one.role], *one.content.encode()] for one in messages]
        return [self.BOS, *(token for turn in turns for token in turn), self.ROLES["assistant"]]

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """The text of the first message, further ones after their roles, and the end."""
        del prompt
        first, *rest = response
        turns = [[self.ROLES[one.role], *one.content.encode()] for one in rest]
        return [*first.content.encode(), *(token for turn in turns for token in turn), self.EOS]

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes as UTF-8."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class TemplateTokenizer:
    """A ``tokenizer.json`` with the chat template of its ``tokenizer_config.json``."""

    def __init__(self, folder: Path) -> None:
        """Read both files.

        Args:
            folder: where they are.

        Raises:
            ValueError: a file is missing or damaged, or there is no template.
        """
        from tokenizers import Tokenizer as Fast

        content = _read(folder / "tokenizer.json")
        try:
            self._fast = Fast.from_str(content.decode())
        except Exception as error:  # the library raises plain exceptions
            raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer: {error}") from error
        config = _object(folder / "tokenizer_config.json")
        self._template = ChatTemplate(_template(folder, config), name=f"{folder}: `chat_template`")
        self._special = {
            name: _text(config[name])
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if config.get(name) is not None
        }
        self._fast.no_padding()
        self._fast.no_truncation()
        self.vocab_size = max(self._fast.get_vocab().values()) + 1
        self.bos_id = self._id("bos_token")
        self.end_ids = self._ends(folder)
        self.digest = hashlib.sha256(content).hexdigest()
        told = json.dumps([self._template.digest, self._special], sort_keys=True)
        self.template_digest = hashlib.sha256(told.encode()).hexdigest()
        decoder = self._fast.get_added_tokens_decoder()
        self._control = [token.content for token in decoder.values() if token.special]

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The template's text with its generation prompt, as tokens."""
        self._check_contents(messages)
        return self._tokens(messages, add_generation_prompt=True)

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """What the template adds for an answer, up to its last end token.

        Args:
            prompt: the conversation before.
            response: the answer.

        Returns:
            Tokens; those of the prompt and these are the tokens of the whole conversation.

        Raises:
            ValueError: they are not, or the answer does not end.
        """
        self._check_contents(response)
        before = self._tokens(prompt, add_generation_prompt=True)
        whole = self._tokens([*prompt, *response], add_generation_prompt=False)
        if whole[: len(before)] != before:
            place = next(
                (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
                len(whole),
            )
            raise ValueError(
                "the prompt's tokens must be those that the whole conversation begins with, they "
                f"part at token {place + 1}: the chat template writes an answer in another way "
                "than it asks for one"
            )
        answer = whole[len(before) :]
        ends = [place for place, token in enumerate(answer) if token in self.end_ids]
        if not ends:
            raise ValueError("the chat template must end an answer with an end token, it does not")
        return answer[: ends[-1] + 1]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        return self._fast.decode(list(tokens), skip_special_tokens=True)

    def _tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        text = self._template.render(
            [message._asdict() for message in messages],
            add_generation_prompt=add_generation_prompt,
            variables=self._special,
        )
        tokens = self._fast.encode(text, add_special_tokens=False).ids
        if self.bos_id is not None and tokens[:2] == [self.bos_id] * 2:
            raise ValueError("the chat template writes the beginning-of-sequence token twice")
        return tokens

    def _check_contents(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for token in self._control:
                if token in message.content:
                    raise ValueError(f"`content` must not have the special token {token!r} in it")

    def _id(self, name: str) -> int | None:
        token = self._special.get(name)
        return None if token is None else self._fast.token_to_id(token)

    def _ends(self, folder: Path) -> frozenset[int]:
        """The end of sequence, and what ``generation_config.json`` also stops at."""
        found = {self._id("eos_token")}
        path = folder / "generation_config.json"
        if path.exists():
            more = _object(path).get("eos_token_id")
            found |= set(more) if isinstance(more, list) else {more}
        ends = frozenset(one for one in found if isinstance(one, int))
        if not ends:
            raise ValueError(f"{folder}: `eos_token` must be a token of the tokenizer")
        return ends


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a folder, of a model on the hub, or ``bytes``.

    Args:
        source: which.

    Returns:
        The tokenizer.

    Raises:
        ValueError: there is none, or its files are damaged.
    """
    if source == "bytes":
        return ByteTokenizer()
    from .hf_io import find_model

    return TemplateTokenizer(find_model(source))


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template: its own file, or one in the configuration, the default of several."""
    own = folder / "chat_template.jinja"
    if own.exists():
        return _read(own).decode()
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise ValueError(
            f"{folder}: `chat_template` is missing in tokenizer_config.json: a tokenizer without "
            "one cannot tell where an answer begins"
        )
    return found


def _text(token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"a special token must be a text, got {token!r:.60}")
    return text


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error!s:.80}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must be an object, got {type(found).__name__}")
    return found


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: larger than {LARGEST:,} bytes")
    return path.read_bytes()
