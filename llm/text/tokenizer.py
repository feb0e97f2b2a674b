"""Tokenizers of conversations: the protocol, a byte tokenizer, and loading from a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from llm.data.preferences import Message
from rpo_io.digests import sha256_hex


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
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    end_ids: frozenset[int]
    digest: str
    template_digest: str

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation with the generation prompt.

        Args:
            messages: messages before the response.

        Returns:
            Token ids.
        """
        ...

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """Return the tokens that a response adds to those of its prompt, with an end token.

        Args:
            prompt: messages before the response.
            response: messages of the response.

        Returns:
            Token ids; appended to those of the prompt they are the whole conversation.
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
        >>> tokenizer.encode_response([Message("user", "a")], [Message("assistant", "b")])
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

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return every message after the token of its role, then the token of the assistant."""
        return [self.BOS, *self._encode(messages), self.ROLE_IDS["assistant"]]

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """Return the response without its first role token, with which the prompt ends."""
        del prompt
        return self._encode(response)[1:]

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode the bytes as UTF-8; invalid bytes become replacement characters."""
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        tokens: list[int] = []
        for message in messages:
            tokens += [self.ROLE_IDS[message.role], *message.content.encode()]
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
