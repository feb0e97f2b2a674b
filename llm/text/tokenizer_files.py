"""Files of a tokenizer, read as ``AutoTokenizer`` of ``transformers`` 5 reads them.

Tokens can be declared in ``tokenizer.json`` and, in older folders, in ``tokenizer_config.json``,
``special_tokens_map.json`` and ``added_tokens.json``.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import tokenizers
from tokenizers import AddedToken

from llm.data.model_folder import (
    MORE_TEMPLATES_NAME,
    model_file,
    read_json_object,
    read_limited,
    read_limited_text,
)
from rpo_io.digests import sha256_hex

from .encoding import library_errors
from .tokenizer_classes import REBUILT, choose_class, set_post_processor
from .tokenizer_keys import check_keys, find_unknown_sections, list_ignored_keys

MAX_TOKENIZER_BYTES = 200_000_000
"""Largest ``tokenizer.json``."""
MAX_TEMPLATE_BYTES = 2**20
"""Largest chat template; long ones have 20,000 bytes."""
CONFIG_FILE = "tokenizer_config.json"
NAMED_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
"""Special tokens with names, in the order in which ``transformers`` adds them."""
TOKEN_FIELDS = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
"""Fields of a token that is declared as an object."""
Token = str | AddedToken


class TokenizerFiles(NamedTuple):
    """The files of a tokenizer.

    Attributes:
        fast: the tokenizer, without truncation and padding.
        special_texts: texts of the named special tokens, which are variables of templates.
        templates: chat templates by name.
        digest: SHA-256 of what the tokens depend on.
        cleans_up: whether decoded text loses its spaces before punctuation.
        notes: sentences about keys and files without effect.
    """

    fast: tokenizers.Tokenizer
    special_texts: dict[str, str]
    templates: dict[str, str]
    digest: str
    cleans_up: bool
    notes: tuple[str, ...]

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens.

        Args:
            tokens: token ids.

        Returns:
            The text.
        """
        text = self.fast.decode(list(tokens), skip_special_tokens=True)
        if self.cleans_up:
            for written in (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're"):
                text = text.replace(written, written[1:])
            text = text.replace(" ' ", "'")
        return text


def read_tokenizer(folder: Path) -> TokenizerFiles:
    """Read the files of a tokenizer.

    Args:
        folder: folder of ``tokenizer.json`` and ``tokenizer_config.json``.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if a file is missing or damaged, or a key is not supported.
    """
    path = model_file(folder, "tokenizer.json")
    if not path.is_file():
        _refuse_other_formats(folder)
    content = read_limited(path, MAX_TOKENIZER_BYTES)
    with library_errors(f"{path}: not a tokenizer"):
        text = content.decode()
        document = json.loads(text)
        unknown = find_unknown_sections(document)
        if unknown:
            raise ValueError(f"`{unknown[0]}` is not a key of tokenizer.json: remove it")
        if document.get("model", {}).get("dropout"):
            raise ValueError("`model.dropout` draws tokens at random: set it to null")
        plain = tokenizers.Tokenizer.from_str(text)
        padding = plain.padding
        plain.no_padding()
        plain.no_truncation()
        plain_text = plain.to_str()
    config = read_json_object(folder, CONFIG_FILE)
    model_config = _optional(folder, "config.json")
    declared = _DeclaredTokens(folder, config, document)
    notes = check_keys(folder, config, declared.legacy_map, len(plain.get_vocab()))
    notes += (*declared.notes, *list_ignored_keys(document, json.loads(plain_text)))
    name = choose_class(config, model_config, text)
    rebuilt = None if name is None else REBUILT.get(name)
    if name is not None and rebuilt is None:
        raise ValueError(
            f"{folder / CONFIG_FILE}: `tokenizer_class` {name} is not supported: save the "
            "tokenizer with `PreTrainedTokenizerFast`"
        )
    if rebuilt is None:
        fast = plain
        if padding is not None:
            declared.named.setdefault("pad_token", padding["pad_token"])
    else:
        with library_errors(f"{path}: not a tokenizer of class {name}"):
            vocabulary, merges = _vocabulary_and_merges(document, str(name))
            fast = rebuilt.build(vocabulary, merges, declared.with_texts(config))
        for key, value in rebuilt.special_texts.items():
            if key not in config and key not in declared.named:
                declared.named[key] = value
    with library_errors(f"{folder}: its added tokens are not usable"):
        declared.add_to(fast)
        if rebuilt is not None and rebuilt.resets_special:
            texts = [str(token) for token in [*declared.named.values(), *declared.extra]]
            fast.add_tokens([AddedToken(token, special=True) for token in dict.fromkeys(texts)])
        if rebuilt is not None:
            begin = str(declared.named.get("bos_token", ""))
            set_post_processor(fast, rebuilt, plain.post_processor, begin)
        final = fast.to_str()
    cleans_up = bool(config.get("clean_up_tokenization_spaces")) and (
        json.loads(final)["model"]["type"] != "BPE"
        or bool(
            config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        )
    )
    return TokenizerFiles(
        fast,
        {name: str(token) for name, token in declared.named.items()},
        _templates(folder, config),
        sha256_hex(content if final == plain_text else final),
        cleans_up,
        notes,
    )


class _DeclaredTokens:
    """The tokens that the files declare, in the order in which ``transformers`` adds them."""

    def __init__(
        self, folder: Path, config: Mapping[str, Any], document: Mapping[str, Any]
    ) -> None:
        """Collect the tokens."""
        self._folder = folder
        self.by_id: dict[int, AddedToken] = {}
        self.named: dict[str, Token] = {}
        self.extra: list[Token] = []
        self.legacy_map: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        values = dict(config)
        if not values.get("extra_special_tokens") and "additional_special_tokens" in values:
            values["extra_special_tokens"] = values.pop("additional_special_tokens")
        if "added_tokens_decoder" in config:
            self._read_decoder(config["added_tokens_decoder"])
            self.notes = tuple(self._older_declarations(config))
        else:
            self.legacy_map = _optional(folder, "special_tokens_map.json")
            self._merge_legacy_map(values)
            self._read_added_tokens(values)
            for entry in document.get("added_tokens", []):
                fields = {key: value for key, value in entry.items() if key != "id"}
                self.by_id[entry["id"]] = AddedToken(**fields)
        self._read_named(values)
        self._read_extra(values)

    def with_texts(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration with the texts of named tokens."""
        return {**config, **{name: str(token) for name, token in self.named.items()}}

    def add_to(self, fast: tokenizers.Tokenizer) -> None:
        """Add the tokens to a tokenizer; those that it has take the declared properties."""
        tokens: list[Token] = [self.by_id[index] for index in sorted(self.by_id)]
        known = {entry.content for entry in fast.get_added_tokens_decoder().values()}
        known.update(map(str, tokens))
        for token in [*self.named.values(), *self.extra]:
            if str(token) not in known:
                tokens.append(token)
                known.add(str(token))
        names = {str(token) for token in self.named.values()}
        added: list[AddedToken] = []
        for token in tokens:
            if isinstance(token, str):
                token = AddedToken(token, special=True)
            elif not token.special and str(token) in names:
                token.special = True
            added.append(token)
        if added:
            fast.add_tokens(added)

    def _read_decoder(self, decoder: Any) -> None:
        key = "added_tokens_decoder"
        if not isinstance(decoder, dict):
            raise self._error(CONFIG_FILE, key, "must be an object", decoder)
        for index, entry in cast("dict[str, Any]", decoder).items():
            if not index.isdecimal():
                raise self._error(CONFIG_FILE, key, "must have token ids as keys", index)
            self.by_id[int(index)] = self._token(CONFIG_FILE, key, entry, only_object=True)

    def _older_declarations(self, config: Mapping[str, Any]) -> Iterator[str]:
        """Yield a sentence about each older file that declares something else and is not read."""
        texts = {entry.content for entry in self.by_id.values()}
        for name in ("special_tokens_map.json", "added_tokens.json"):
            differing = [
                key
                for key, value in _optional(self._folder, name).items()
                if (
                    key not in texts
                    if name == "added_tokens.json"
                    else not _same(key, value, config)
                )
            ]
            if differing:
                yield (
                    f"{name}: not read beside `added_tokens_decoder` of {CONFIG_FILE}, with other "
                    f"values: {', '.join(differing)}"
                )

    def _merge_legacy_map(self, values: dict[str, Any]) -> None:
        for key, value in self.legacy_map.items():
            if key == "extra_special_tokens" and isinstance(value, list):
                existing = list(values.get(key) or [])
                values[key] = existing + [item for item in value if item not in existing]
            elif key == "additional_special_tokens":
                values.setdefault("extra_special_tokens", value)
            elif isinstance(value, dict) and "content" in value:
                values[key] = {**value, "special": True}
            else:
                values[key] = value

    def _read_added_tokens(self, values: Mapping[str, Any]) -> None:
        special = {_text_of(values.get(name)) for name in NAMED_TOKENS}
        extra = values.get("extra_special_tokens")
        special.update(map(_text_of, extra if isinstance(extra, list) else []))
        for text, index in _optional(self._folder, "added_tokens.json").items():
            if not isinstance(index, int):
                raise self._error("added_tokens.json", text, "must be a token id", index)
            is_special = text in special
            self.by_id[index] = AddedToken(text, normalized=not is_special, special=is_special)

    def _read_named(self, values: Mapping[str, Any]) -> None:
        known = {entry.content: entry for entry in self.by_id.values()}
        extra = values.get("extra_special_tokens")
        specific = cast("dict[str, Any]", extra) if isinstance(extra, dict) else {}
        others = [
            name
            for name, value in values.items()
            if name.endswith("_token")
            and name not in NAMED_TOKENS
            and (isinstance(value, str) or _text_of(value) is not None)
        ]
        items = [(name, values.get(name)) for name in (*NAMED_TOKENS, *others)]
        for name, value in [*items, *specific.items()]:
            if value is None:
                continue
            token = self._token(CONFIG_FILE, name, value)
            replaced = known.get(str(token)) if name in NAMED_TOKENS else None
            self.named[name] = token if replaced is None else replaced

    def _read_extra(self, values: Mapping[str, Any]) -> None:
        extra = values.get("extra_special_tokens")
        key = "additional_special_tokens"
        if isinstance(extra, dict):  # named tokens, beside which the older key is read
            extra = values.get(key)
        if extra is None:
            return
        if not isinstance(extra, list):
            raise self._error(CONFIG_FILE, key, "must be a list of tokens", extra)
        self.extra = [self._token(CONFIG_FILE, key, entry) for entry in cast("list[Any]", extra)]

    def _token(self, file: str, key: str, value: Any, *, only_object: bool = False) -> Any:
        """Return a token, which is given as a string or as an object with ``content``."""
        if isinstance(value, dict) and isinstance(_text_of(value), str):
            fields = {
                name: field
                for name, field in cast("dict[str, Any]", value).items()
                if name != "__type"
            }
            if fields.keys() - TOKEN_FIELDS:
                rule = f"is not a token: its fields are {', '.join(TOKEN_FIELDS)}"
                raise self._error(file, key, rule, value)
            try:
                token: Token = AddedToken(**fields)
            except TypeError as error:
                raise self._error(file, key, f"is not a token ({error})", value) from error
        elif isinstance(value, str) and not only_object:
            token = value
        else:
            raise self._error(file, key, "must be a string", value)
        # JSON can encode a lone surrogate, which is not Unicode text.
        if str(token) != str(token).encode("utf-8", "replace").decode():
            raise self._error(file, key, "must be a string", value)
        return token

    def _error(self, file: str, key: str, rule: str, value: Any) -> ValueError:
        return ValueError(f"{self._folder / file}: `{key[:80]}` {rule}, got {reprlib.repr(value)}")


def _same(key: str, value: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a configuration declares the same tokens."""
    other = config.get(key, config.get("extra_special_tokens"))
    if isinstance(value, list) and isinstance(other, list):
        items = cast("list[Any]", value), cast("list[Any]", other)
        return [_text_of(item) for item in items[0]] == [_text_of(item) for item in items[1]]
    return _text_of(value) == _text_of(other)


def _text_of(value: Any) -> str | None:
    text = cast("dict[str, Any]", value).get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _optional(folder: Path, name: str) -> dict[str, Any]:
    return read_json_object(folder, name) if model_file(folder, name).exists() else {}


def _vocabulary_and_merges(
    document: dict[str, Any], name: str
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = document["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ValueError(f"`tokenizer_class` {name} needs a BPE model, got {model.get('type')}")
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
        for merge in model.get("merges", [])
    ]
    return model["vocab"], cast("list[tuple[str, str]]", merges)


def _refuse_other_formats(folder: Path) -> None:
    others = ("tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")
    for name in others:
        if model_file(folder, name).is_file():
            raise ValueError(
                f"{folder}: tokenizer.json is missing, got only {name}: write it with "
                "`transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`"
            )


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the chat templates; separate files replace those of the configuration."""
    files = dict(_template_files(folder))
    if files:
        return {name: _read_template(path) for name, path in files.items()}
    template = config.get("chat_template")
    if template is None:
        return {}
    if isinstance(template, str):
        return {"default": template}
    items = cast("list[Any]", template) if isinstance(template, list) else [template]
    templates: dict[str, str] = {}
    for item in items:
        fields = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        name, source = fields.get("name"), fields.get("template")
        if not isinstance(name, str) or not isinstance(source, str):
            raise ValueError(
                f"{folder / CONFIG_FILE}: `chat_template` must be a string or a list of objects "
                f"with `name` and `template`, got {reprlib.repr(item)}"
            )
        if name in templates:
            raise ValueError(
                f"{folder / CONFIG_FILE}: `chat_template` has two templates {name!r:.60}: keep one"
            )
        templates[name] = source
    return templates


def _template_files(folder: Path) -> Iterator[tuple[str, Path]]:
    path = model_file(folder, "chat_template.jinja")
    if path.exists():
        yield "default", path
    more = folder / MORE_TEMPLATES_NAME
    if more.is_dir():
        for each in sorted(more.glob("*.jinja")):
            yield each.stem, model_file(folder, f"{more.name}/{each.name}")


def _read_template(path: Path) -> str:
    return read_limited_text(path, MAX_TEMPLATE_BYTES)
