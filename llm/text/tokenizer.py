"""Conversations to tokens and back: the tokenizer of a model, or plain bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from llm.data.preferences import Message


@runtime_checkable
class Tokenizer(Protocol):
    """What turns conversations into tokens.

    Attributes:
        vocab_size: one more than the largest id.
        bos_id: token that begins a sequence, if there is one.
        eos_id: token that ends a sequence, if there is one.
        end_ids: tokens that end a response: the template's own, and ends of sequence.
        digest: SHA-256 of what defines it.
        template_digest: SHA-256 of its chat template.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    digest: str
    template_digest: str

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a conversation, up to where the assistant's answer begins."""
        ...

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """Tokens that follow those of the prompt, an end token among them; verified."""
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
        >>> tokenizer.encode_response([Message("user", "a")], [Message("assistant", "b")])
        [98, 257]
    """

    BOS, EOS = 256, 257
    ROLES: ClassVar[dict[str, int]] = {"user": 258, "assistant": 259, "system": 260}
    vocab_size = 261
    bos_id: int | None = BOS
    eos_id: int | None = EOS
    end_ids = frozenset({EOS})
    digest = hashlib.sha256(b"bytes").hexdigest()
    template_digest = hashlib.sha256(b"bos (role text, eos after assistant)* assistant").hexdigest()

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Every message after the token of its role; at the end that of the assistant."""
        return [self.BOS, *self._turns(messages), self.ROLES["assistant"]]

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """The response without its first role, which the prompt ends with."""
        del prompt
        return self._turns(response)[1:]

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes as UTF-8."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def _turns(self, messages: Sequence[Message]) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            tokens += [self.ROLES[message.role], *message.content.encode()]
            if message.role == "assistant":
                tokens.append(self.EOS)
        return tokens


def load_tokenizer(folder: Path | None) -> Tokenizer:
    """Load the tokenizer of a model folder, or the byte tokenizer.

    Args:
        folder: local folder with ``tokenizer.json`` and ``tokenizer_config.json``; None for
            :class:`ByteTokenizer`. :func:`llm.data.model_folder.resolve_tokenizer_folder` finds it.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if a file is missing or damaged.

    Examples:
        >>> load_tokenizer(None).vocab_size
        261
    """
    if folder is None:
        return ByteTokenizer()
    from .hf_tokenizer import HuggingFaceTokenizer  # imports the tokenizers library

    return HuggingFaceTokenizer(folder)
