"""Keys of ``tokenizer_config.json``: used, without effect on tokens, or refused."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

USED = frozenset(
    {
        "add_prefix_space",
        "added_tokens_decoder",
        "additional_special_tokens",
        "auto_map",
        "bos_token",
        "chat_template",
        "clean_up_tokenization_spaces",
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        "cls_token",
        "eos_token",
        "extra_special_tokens",
        "legacy",
        "mask_token",
        "pad_token",
        "sep_token",
        "tokenizer_class",
        "unk_token",
    }
)
"""Keys that are read; so is any other key whose name ends with ``_token`` and holds a token."""
WITHOUT_EFFECT = frozenset(
    {
        "_commit_hash",
        "add_bos_token",
        "add_eos_token",
        "backend",
        "chat_control_tokens",
        "device_map",
        "errors",
        "files_loaded",
        "from_slow",
        "is_local",
        "local_files_only",
        "max_len",
        "max_length",
        "model_input_names",
        "model_max_length",
        "name_or_path",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "padding_side",
        "processor_class",
        "response_schema",
        "response_template",
        "return_token_type_ids",
        "sp_model_kwargs",
        "spaces_between_special_tokens",
        "special_tokens_map_file",
        "stride",
        "tokenizer_file",
        "transformers_version",
        "trim_offsets",
        "truncation_side",
        "truncation_strategy",
        "use_default_system_prompt",
        "use_fast",
        "verbose",
        "vocab_file",
        "vocab_size",
    }
)
"""Keys that ``transformers`` knows and that change no token of a chat template."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "fast_tokenizer_files": (None, [], ["tokenizer.json"]),
    "fix_mistral_regex": (None, False),
    "gguf_file": (None,),
    "init_inputs": (None, [], ()),
    "model_specific_special_tokens": (None, {}),
    "split_special_tokens": (None, False),
    "tokenizer_object": (None,),
    "tokenizer_padding": (None,),
    "tokenizer_truncation": (None,),
}
"""Values at which a key that is not supported has no effect."""
LARGE_VOCABULARY = 100_000
"""Number of tokens above which ``transformers`` reads ``fix_mistral_regex``."""


def check_keys(
    folder: Path, config: Mapping[str, Any], legacy_map: Mapping[str, Any], vocab_size: int
) -> tuple[str, ...]:
    """Refuse keys that are not supported, and list those without effect.

    Args:
        folder: folder of the tokenizer, for messages.
        config: the document of ``tokenizer_config.json``.
        legacy_map: the document of ``special_tokens_map.json`` if it is read.
        vocab_size: number of tokens.

    Returns:
        A sentence that lists the unknown keys of each file; no sentence if there are none.

    Raises:
        ValueError: if a key that is not supported has an effect.

    Examples:
        >>> check_keys(Path("model"), {"color": 3, "padding_side": "left"}, {}, 10)
        ('tokenizer_config.json: keys without effect: color',)
    """
    for key, neutral in NEUTRAL.items():
        if key == "fix_mistral_regex" and vocab_size <= LARGE_VOCABULARY:
            continue
        if key in config and config[key] not in neutral:
            raise ValueError(
                f"{folder / 'tokenizer_config.json'}: `{key}` is not supported, got "
                f"{reprlib.repr(config[key])}: remove the key"
            )
    notes: list[str] = []
    for name, document in (
        ("tokenizer_config.json", config),
        ("special_tokens_map.json", legacy_map),
    ):
        unknown = sorted(
            key
            for key in document
            if key not in USED | WITHOUT_EFFECT | NEUTRAL.keys()
            and not (key.endswith("_token") and isinstance(document[key], str | dict))
        )
        if unknown:
            notes.append(f"{name}: keys without effect: {', '.join(unknown)}")
    return tuple(notes)


SECTIONS = (
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
)
"""Keys of ``tokenizer.json``."""
TABLES = ("vocab", "merges")
"""Keys of large tables without keys of their own."""


def find_unknown_sections(document: Mapping[str, Any]) -> list[str]:
    """Return the keys that ``tokenizer.json`` does not have.

    Args:
        document: its document.

    Returns:
        Names of keys.

    Examples:
        >>> find_unknown_sections({"model": {}, "color": 3})
        ['color']
    """
    return [key for key in document if key not in SECTIONS]


def list_ignored_keys(document: Any, written: Any) -> tuple[str, ...]:
    """List the keys of ``tokenizer.json`` that the tokenizers library does not keep.

    Args:
        document: the document that was read.
        written: the document that the library writes after reading it.

    Returns:
        A sentence with the paths of the keys; no sentence if there are none.

    Examples:
        >>> list_ignored_keys({"model": {"type": "BPE", "color": 3}}, {"model": {"type": "BPE"}})
        ('tokenizer.json: keys without effect: model.color',)
    """
    paths = sorted(set(_ignored(document, written, "")))
    return (f"tokenizer.json: keys without effect: {', '.join(paths)}",) if paths else ()


def _ignored(document: Any, written: Any, path: str) -> Iterator[str]:
    if isinstance(document, dict) and isinstance(written, dict):
        for key, value in cast("dict[str, Any]", document).items():
            inner = f"{path}.{key}".lstrip(".")
            # What has no value may be left out.
            if key not in written and value is not None:
                yield inner
            elif key in written and key not in TABLES:
                yield from _ignored(value, written[key], inner)
    elif isinstance(document, list) and isinstance(written, list):
        for value, other in zip(
            cast("list[Any]", document), cast("list[Any]", written), strict=False
        ):
            yield from _ignored(value, other, path)
