"""The tokenizer of a Hugging Face model folder, with its chat template and its end tokens."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from llm.data.model_folder import model_file, read_json_object, read_limited
from llm.data.preferences import Message, RowError
from rpo_io.digests import sha256_hex

from .chat_template import ChatTemplate
from .tokenizer import DEFAULT_OPTIONS, ResponseTokens, TokenizerOptions

MAX_TOKENIZER_BYTES = 200_000_000
"""Largest ``tokenizer.json``."""
MAX_TEMPLATE_BYTES = 2**20
"""Largest chat template; long ones have 20,000 bytes."""
PROBE = (Message("user", "x"), Message("assistant", "x"))
"""A conversation that shows which special tokens the template itself writes in a response."""


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` with the chat template of its ``tokenizer_config.json``.

    The token ids are those of ``transformers``' ``apply_chat_template``. The pad token is not used,
    since it often is the end token.

    Args:
        folder: folder of both files; a ``chat_template.jinja`` takes precedence over the template
            in ``tokenizer_config.json``.

    Raises:
        ValueError: if a file is missing or damaged, there is no chat template, or the template
            writes no end token.
    """

    template_date: str | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, options: TokenizerOptions = DEFAULT_OPTIONS) -> None:
        """Read the files and render a probe conversation."""
        del options
        path = model_file(folder, "tokenizer.json")
        content = read_limited(path, MAX_TOKENIZER_BYTES)
        with _library_errors(f"{path}: not a tokenizer"):
            self._fast = tokenizers.Tokenizer.from_str(content.decode())
        self._fast.no_padding()
        self._fast.no_truncation()
        vocabulary = self._fast.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values(), default=-1) + 1
        added = self._fast.get_added_tokens_decoder().items()
        self._special = {token: entry.content for token, entry in added if entry.special}
        config = read_json_object(folder, "tokenizer_config.json")
        self._variables = _special_texts(folder, config)
        self._template = ChatTemplate(_template(folder, config), name=f"{folder}: `chat_template`")
        self.bos_id: int | None = self._id("bos_token")
        self.eos_id: int | None = self._id("eos_token")
        self.digest: str = sha256_hex(content)
        self.template_digest: str = sha256_hex(
            json.dumps([self._template.digest, self._variables], sort_keys=True)
        )
        self._last_prompt: tuple[tuple[Message, ...], list[int]] | None = None
        try:
            probe = self._response(PROBE[:1], PROBE[1:])
        except RowError as error:
            raise ValueError(f"{folder}: its chat template cannot be used: {error}") from error
        self._template_special = self._special_in(probe)
        # The last special token ends the response; others may precede its text.
        template_end = frozenset(self._template_special[-1:])
        self.end_ids: frozenset[int] = template_end | _end_ids(folder, self.eos_id)
        if not self.end_ids.intersection(probe):
            raise ValueError(
                f"{folder}: `chat_template` must write an end token after a response, got none"
            )

    def content_mask(self, messages: Sequence[Message], *, tools: str = "") -> list[bool]:
        """Return which tokens of a prompt are content."""
        return [False] * len(self.encode_prompt(messages, tools=tools))

    def encode_prompt(self, messages: Sequence[Message], *, tools: str = "") -> list[int]:
        """Return the tokens of a conversation with the template's generation prompt.

        Args:
            messages: messages before the response.
            tools: tools that the assistant may call, a JSON list.

        Returns:
            Token ids.

        Raises:
            RowError: if the template fails on these messages, or a message contains the text of a
                special token.
        """
        return list(self._prompt(tuple(messages)))

    def encode_response(
        self, prompt: Sequence[Message], response: Sequence[Message], *, tools: str = ""
    ) -> ResponseTokens:
        """Return the tokens that the template adds for a response, often with a final line break.

        Args:
            prompt: messages before the response.
            response: messages of the response.
            tools: tools that the assistant may call, a JSON list.

        Returns:
            Token ids; appended to those of the prompt they are the whole conversation.

        Raises:
            RowError: if the tokens of the conversation do not begin with those of the prompt, or
                the response has other special tokens than the template writes.
        """
        self._check_special_texts(response)
        tokens = self._response(prompt, response)
        # The texts were checked above; this checks the tokens that were made of them.
        if self._special_in(tokens) != self._template_special:
            got = [self._special[token] for token in self._special_in(tokens)]
            expected = [self._special[token] for token in self._template_special]
            raise RowError(
                "special token",
                f"the special tokens of a response must be {expected}, got {reprlib.repr(got)}",
            )
        return ResponseTokens(tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens."""
        return self._fast.decode(list(tokens), skip_special_tokens=True)

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        """Return the tokens of a prompt; the last prompt is cached for the responses of a row."""
        if self._last_prompt is None or self._last_prompt[0] != messages:
            self._check_special_texts(messages)
            self._last_prompt = (messages, self._tokens(messages, add_generation_prompt=True))
        return self._last_prompt[1]

    def _response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        prefix = self._prompt(tuple(prompt))
        tokens = self._tokens([*prompt, *response], add_generation_prompt=False)
        if tokens[: len(prefix)] != prefix:
            both = enumerate(zip(prefix, tokens, strict=False))
            same = next((i for i, (ours, theirs) in both if ours != theirs), len(tokens))
            raise RowError(
                "boundary",
                "the tokens of the conversation must begin with those of its prompt, but differ "
                f"at token {same + 1}: the chat template writes a response in another way than "
                "its generation prompt",
            )
        return tokens[len(prefix) :]

    def _tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        try:
            text = self._template.render(
                [{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=add_generation_prompt,
                variables=self._variables,
            )
            text.encode()
        except UnicodeEncodeError as error:
            message = f"the output of the chat template is not Unicode text: {error.reason}"
            raise RowError("chat template", message) from error
        except ValueError as error:
            raise RowError("chat template", str(error)) from error
        with _library_errors("the tokenizer cannot read this text"):
            tokens = self._fast.encode(text, add_special_tokens=False).ids
        if self.bos_id is not None and tokens[:2] == [self.bos_id] * 2:
            raise RowError(
                "chat template", "the chat template writes the begin-of-sequence token twice"
            )
        return tokens

    def _check_special_texts(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for text in self._special.values():
                if text in message.content:
                    raise RowError(
                        "special token", f"a message must not contain the special token {text!r}"
                    )

    def _special_in(self, tokens: Sequence[int]) -> list[int]:
        unknown = self._id("unk_token")  # the tokenizer writes it for any unknown character
        return [token for token in tokens if token in self._special and token != unknown]

    def _id(self, name: str) -> int | None:
        text = self._variables.get(name)
        return None if text is None else self._fast.token_to_id(text)


@contextmanager
def _library_errors(summary: str) -> Iterator[None]:
    """Raise errors of the tokenizers library as a ``RowError``."""
    try:
        yield
    except BaseException as error:  # a panic of Rust is not an Exception
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise RowError("tokenizer", f"{summary}: {error}") from error
        raise


def _template(folder: Path, config: dict[str, Any]) -> str:
    """Return the chat template: a separate file, or the default template of the configuration."""
    path = model_file(folder, "chat_template.jinja")
    if path.exists():
        return read_limited(path, MAX_TEMPLATE_BYTES).decode(errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):
        by_name = {
            item.get("name"): item.get("template") for item in template if isinstance(item, dict)
        }
        template = by_name.get("default")
    if not isinstance(template, str):
        raise ValueError(
            f"{folder}: `chat_template` is missing in tokenizer_config.json: without one the "
            "tokenizer cannot tell where a response begins"
        )
    return template


def _special_texts(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the texts of special tokens by the names that templates use."""
    texts = {}
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            continue
        # JSON can encode a lone surrogate, which is not Unicode text.
        if not isinstance(text, str) or text != text.encode("utf-8", "replace").decode():
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: `{name}_token` must be a string, got "
                f"{reprlib.repr(token)}"
            )
        texts[f"{name}_token"] = text
    return texts


def _end_ids(folder: Path, eos_id: int | None) -> frozenset[int]:
    """Return the end of sequence and the end tokens of ``generation_config.json``."""
    name = "generation_config.json"
    config = read_json_object(folder, name) if model_file(folder, name).exists() else {}
    listed = config.get("eos_token_id")
    ids = [eos_id, *(listed if isinstance(listed, list) else [listed])]
    return frozenset(token for token in ids if isinstance(token, int))
