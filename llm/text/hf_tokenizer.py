"""The tokenizer of a Hugging Face folder, with its chat template and its end tokens."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from llm.data.model_folder import model_file, read_json_object, read_limited
from llm.data.preferences import Message, RowError

from .chat_template import ChatTemplate

MAX_TOKENIZER_BYTES = 200_000_000
"""Bytes of a tokenizer's file at most."""
MAX_TEMPLATE_BYTES = 2**20
"""Bytes of a chat template at most; long ones have 20,000."""
TRIAL = (Message("user", "x"), Message("assistant", "x"))
"""A conversation that shows which special tokens the template itself writes in an answer."""


class HuggingFaceTokenizer:
    """A ``tokenizer.json`` with the chat template of its ``tokenizer_config.json``.

    Text is what the template writes, tokens are what ``transformers`` makes of it. The pad token
    plays no part: it often is the end token.

    Args:
        folder: holds both files; ``chat_template.jinja`` goes before the template in the second.

    Raises:
        ValueError: a file is missing or broken, there is no template, or it writes no end token.
    """

    def __init__(self, folder: Path) -> None:
        """Read the files, and try the template."""
        path = model_file(folder, "tokenizer.json")
        content = read_limited(path, MAX_TOKENIZER_BYTES)
        with _failures(f"{path}: not a tokenizer"):
            self._fast = tokenizers.Tokenizer.from_str(content.decode())
        self._fast.no_padding()
        self._fast.no_truncation()
        self.vocab_size = max(self._fast.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        added = self._fast.get_added_tokens_decoder().items()
        self._special = {token: shape.content for token, shape in added if shape.special}
        config = read_json_object(folder, "tokenizer_config.json")
        self._variables = _special_texts(folder, config)
        self._template = ChatTemplate(_template(folder, config), name=f"{folder}: `chat_template`")
        self.bos_id = self._id("bos_token")
        self.eos_id = self._id("eos_token")
        self.digest = hashlib.sha256(content).hexdigest()
        told = json.dumps([self._template.digest, self._variables], sort_keys=True)
        self.template_digest = hashlib.sha256(told.encode()).hexdigest()
        self._last_prompt: tuple[tuple[Message, ...], list[int]] | None = None
        try:
            trial = self._answer(TRIAL[:1], TRIAL[1:])
        except RowError as error:
            raise ValueError(f"{folder}: its chat template cannot be used: {error}") from error
        self._of_template = self._special_in(trial)
        # The last special token ends the answer; before its text there may be others.
        self.end_ids = frozenset(self._of_template[-1:]) | _ends(folder, self.eos_id)
        if not self.end_ids.intersection(trial):
            raise ValueError(
                f"{folder}: `chat_template` must write an end token after an answer, it writes none"
            )

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The template's text with its generation prompt, as tokens.

        Args:
            messages: the conversation.

        Returns:
            Tokens.

        Raises:
            RowError: the template refuses these messages, or a text has a special token in it.
        """
        return list(self._prompt(tuple(messages)))

    def encode_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        """What the template adds for an answer, to its very end: often a line break after the end.

        Args:
            prompt: the conversation before.
            response: the answer.

        Returns:
            Tokens; those of the prompt and these are the tokens of the whole conversation.

        Raises:
            RowError: they are not, or there is another special token than the template writes.
        """
        self._check_texts(response)
        answer = self._answer(prompt, response)
        # Texts were checked as such; here is what the tokenizer made of them after all.
        if self._special_in(answer) != self._of_template:
            got = [self._special[token] for token in self._special_in(answer)]
            wanted = [self._special[token] for token in self._of_template]
            raise RowError(
                "special token",
                f"the special tokens of an answer must be {wanted}, got {reprlib.repr(got)}",
            )
        return answer

    def decode(self, tokens: Sequence[int]) -> str:
        """Text without special tokens."""
        return self._fast.decode(list(tokens), skip_special_tokens=True)

    def _prompt(self, messages: tuple[Message, ...]) -> list[int]:
        """Tokens of a prompt; all responses of a row ask for the same one."""
        if self._last_prompt is None or self._last_prompt[0] != messages:
            self._check_texts(messages)
            self._last_prompt = (messages, self._tokens(messages, add_generation_prompt=True))
        return self._last_prompt[1]

    def _answer(self, prompt: Sequence[Message], response: Sequence[Message]) -> list[int]:
        before = self._prompt(tuple(prompt))
        whole = self._tokens([*prompt, *response], add_generation_prompt=False)
        if whole[: len(before)] != before:
            both = zip(before, whole, strict=False)
            same = next((i for i, (a, b) in enumerate(both) if a != b), len(whole))
            raise RowError(
                "boundary",
                "the conversation must begin with the tokens of its prompt, they part at token "
                f"{same + 1}: the chat template writes an answer in another way than it asks for "
                "one",
            )
        return whole[len(before) :]

    def _tokens(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        try:
            text = self._template.render(
                [message._asdict() for message in messages],
                add_generation_prompt=add_generation_prompt,
                variables=self._variables,
            )
            text.encode()
        except UnicodeEncodeError as error:
            message = f"the chat template writes what is no Unicode text: {error.reason}"
            raise RowError("chat template", message) from error
        except ValueError as error:
            raise RowError("chat template", str(error)) from error
        with _failures("the tokenizer cannot read this text"):
            tokens = self._fast.encode(text, add_special_tokens=False).ids
        if self.bos_id is not None and tokens[:2] == [self.bos_id] * 2:
            raise RowError("chat template", "the chat template writes the begin token twice")
        return tokens

    def _check_texts(self, messages: Sequence[Message]) -> None:
        for message in messages:
            for text in self._special.values():
                if text in message.content:
                    raise RowError(
                        "special token", f"a text must not spell the special token {text!r}"
                    )

    def _special_in(self, tokens: Sequence[int]) -> list[int]:
        unknown = self._id("unk_token")  # stands for any character
        return [token for token in tokens if token in self._special and token != unknown]

    def _id(self, name: str) -> int | None:
        text = self._variables.get(name)
        return None if text is None else self._fast.token_to_id(text)


@contextmanager
def _failures(what: str) -> Iterator[None]:
    """What the library fails with, said as a row's mistake; a panic of Rust is no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise RowError("tokenizer", f"{what}: {error}") from error
        raise


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The chat template: its own file, or one in the configuration, the default of several."""
    own = model_file(folder, "chat_template.jinja")
    if own.exists():
        return read_limited(own, MAX_TEMPLATE_BYTES).decode(errors="replace")
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


def _special_texts(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by name, as templates know them."""
    texts = {}
    for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            continue
        # A lone surrogate, which JSON can spell, is no text.
        if not isinstance(text, str) or text != text.encode("utf-8", "replace").decode():
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: `{name}_token` must be a text, got "
                f"{reprlib.repr(token)}"
            )
        texts[f"{name}_token"] = text
    return texts


def _ends(folder: Path, eos_id: int | None) -> frozenset[int]:
    """The end of sequence, and what ``generation_config.json`` also stops at."""
    name = "generation_config.json"
    more = (
        read_json_object(folder, name).get("eos_token_id")
        if model_file(folder, name).exists()
        else None
    )
    found = [eos_id, *(more if isinstance(more, list) else [more])]
    return frozenset(one for one in found if isinstance(one, int))
