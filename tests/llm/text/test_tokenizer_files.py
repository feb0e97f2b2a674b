"""Claims about files of a tokenizer: where tokens are declared, and which keys have an effect."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from llm.data.preferences import Message
from llm.text.tokenizer import TokenizerOptions, load_tokenizer
from llm.text.tokenizer_classes import choose_class
from llm.text.tokenizer_files import read_tokenizer
from llm.text.tokenizer_keys import NEUTRAL, USED, WITHOUT_EFFECT

WriteFolder = Callable[..., Path]
TEXT = [Message("user", "a <extra> b")]
FLAGS = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
EXTRA = {"content": "<extra>", "special": True, **FLAGS}
AS_TEXT = TokenizerOptions(special_tokens="as_text")


def write_json(folder: Path, name: str, document: Any) -> None:
    (folder / name).write_text(json.dumps(document), encoding="utf-8")


DECLARATIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"added_tokens_decoder": {"262": EXTRA}}, {}),
    ({"additional_special_tokens": ["<extra>"]}, {}),
    ({"extra_special_tokens": [EXTRA]}, {}),
    ({"extra_special_tokens": {"note_token": "<extra>"}}, {}),
    ({"image_token": "<extra>"}, {}),
    ({"pad_token": "<extra>"}, {}),
    ({}, {"added_tokens.json": {"<extra>": 262}}),
    ({}, {"special_tokens_map.json": {"additional_special_tokens": ["<extra>"]}}),
    ({}, {"special_tokens_map.json": {"mask_token": EXTRA}}),
]


@pytest.mark.parametrize(("config", "files"), DECLARATIONS)
def test_golden_a_token_may_be_declared_outside_of_tokenizer_json(
    config: dict[str, Any], files: dict[str, Any], write_folder: WriteFolder
) -> None:
    folder = write_folder()
    plain = load_tokenizer(folder)
    assert 262 not in plain.encode_prompt(TEXT)
    write_folder(**config)
    for name, document in files.items():
        write_json(folder, name, document)
    tokenizer = load_tokenizer(folder)
    fast = read_tokenizer(folder).fast
    assert (fast.token_to_id("<extra>"), tokenizer.vocab_size) == (262, 263)
    assert tokenizer.digest != plain.digest
    assert tokenizer.notes == ()
    if fast.get_added_tokens_decoder()[262].special:
        with pytest.raises(ValueError, match="must not contain the special token '<extra>'"):
            tokenizer.encode_prompt(TEXT)
    else:
        assert 262 in tokenizer.encode_prompt(TEXT)


def test_golden_the_declaration_of_the_configuration_replaces_the_older_files(
    write_folder: WriteFolder,
) -> None:
    folder = write_folder(added_tokens_decoder={"262": EXTRA})
    write_json(folder, "added_tokens.json", {"<other>": 263})
    write_json(folder, "special_tokens_map.json", {"bos_token": "</s>"})
    files = read_tokenizer(folder)
    assert files.fast.token_to_id("<other>") is None
    assert files.special_texts["bos_token"] == "<s>"
    write_folder()
    assert read_tokenizer(folder).special_texts["bos_token"] == "</s>"


def test_golden_variables_of_templates_are_the_named_tokens(write_folder: WriteFolder) -> None:
    template = (
        "{{ image_token }}{{ note_token }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    )
    named = {"extra_special_tokens": {"note_token": "<n>"}, "image_token": "<i>"}
    tokenizer = load_tokenizer(write_folder(template, **named))
    assert tokenizer.encode_prompt([Message("user", "x")])[:2] == [262, 263]


def sentence_folder(folder: Path, config: dict[str, Any], family: str = "llama") -> Path:
    """Write a tokenizer in the style of Llama 2."""
    letters = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{i:02X}>": i + 3 for i in range(256)}}
    vocabulary = {**letters, "▁": 259, "a": 260, "▁a": 261}
    model = models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    fast = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    fast.add_special_tokens(["<unk>", "<s>", "</s>"])
    fast.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ bos_token }}a{{ m.content }}{{ eos_token }}{% endfor %}"
    defaults = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    write_json(folder, "tokenizer_config.json", {**defaults, **config})
    write_json(folder, "config.json", {"model_type": family})
    return folder


@pytest.mark.parametrize(
    ("config", "family", "start"),
    [
        # tokenizer.json writes a space before each text between tokens.
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "llama", [261]),
        ({"tokenizer_class": "LlamaTokenizer"}, "mistral", [261]),
        # The class of Llama writes one before the first text, or before each with `legacy`.
        ({"tokenizer_class": "LlamaTokenizer"}, "llama", [260]),
        ({"tokenizer_class": "LlamaTokenizerFast", "legacy": True}, "llama", [261]),
        ({"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}, "llama", [260]),
        # The class of Gemma never does.
        ({"tokenizer_class": "GemmaTokenizer"}, "gemma", [260]),
    ],
)
def test_golden_the_class_of_a_tokenizer_decides_about_its_first_space(
    config: dict[str, Any], family: str, start: list[int], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(sentence_folder(tmp_path, config, family))
    ids = tokenizer.encode_prompt([Message("user", "x")])
    assert ids[1:2] == start
    assert ids[0] == 1


def test_raises_for_classes_that_are_not_supported(tmp_path: Path) -> None:
    for name in ("T5Tokenizer", "BertTokenizerFast", "MyTokenizer"):
        with pytest.raises(ValueError, match=f"`tokenizer_class` {name[:5]}.* is not supported"):
            load_tokenizer(sentence_folder(tmp_path, {"tokenizer_class": name}))
    byte_level = '{"type": "ByteLevel"}'
    assert choose_class({"tokenizer_class": "LlamaTokenizer"}, {}, byte_level) is None
    assert choose_class({}, {"model_type": "qwen3"}, "{}") == "Qwen2Tokenizer"
    declared = {"tokenizer_class": "LlamaTokenizer"}
    assert choose_class(declared, {"model_type": "qwen2"}, "{}") == "Qwen2Tokenizer"


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "tekken.json"])
def test_raises_for_a_folder_with_another_kind_of_tokenizer(
    name: str, write_folder: WriteFolder
) -> None:
    folder = write_folder()
    (folder / "tokenizer.json").rename(folder / name)
    with pytest.raises(ValueError, match=rf"tokenizer.json is missing, got only {name}: write it"):
        load_tokenizer(folder)


REFUSED = [
    ("split_special_tokens", True, "`split_special_tokens` is not supported, got True"),
    ("init_inputs", ["x"], "`init_inputs` is not supported"),
    ("fast_tokenizer_files", ["tokenizer.4.0.json"], "`fast_tokenizer_files` is not supported"),
    ("tokenizer_object", {"a": 1}, "`tokenizer_object` is not supported"),
    ("added_tokens_decoder", ["<x>"], "`added_tokens_decoder` must be an object"),
    ("added_tokens_decoder", {"x": EXTRA}, "must have token ids as keys"),
    ("added_tokens_decoder", {"262": "<extra>"}, "must be a string, got '<extra>'"),
    ("extra_special_tokens", "<x>", "must be a list of tokens"),
    ("bos_token", {"content": "<s>", "color": 3}, "`bos_token` is not a token"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_raises_for_keys_that_are_not_supported(
    key: str, value: Any, message: str, write_folder: WriteFolder
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(write_folder(**{key: value}))
    assert "\n" not in str(caught.value)
    for neutral in NEUTRAL.get(key, ()):
        load_tokenizer(write_folder(**{key: neutral}))


VALUES = st.sampled_from([True, 3, "x", ["x"], {"content": "x"}, {"a": "b"}])
KEYS = st.text("abcdefgh_", min_size=1, max_size=12) | st.sampled_from(
    sorted(USED | WITHOUT_EFFECT | NEUTRAL.keys())
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
)
@given(KEYS, VALUES, st.sampled_from(["tokenizer_config.json", "special_tokens_map.json"]))
def test_property_a_further_key_is_used_refused_or_listed(
    write_folder: WriteFolder, key: str, value: Any, name: str
) -> None:
    folder = write_folder()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    before = read_tokenizer(folder)
    document = {key: value}
    if name == "tokenizer_config.json":
        document = {**json.loads((folder / name).read_text()), **document}
    write_json(folder, name, document)
    refusal, after = "", before
    try:
        after = read_tokenizer(folder)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        names = {key, "additional_special_tokens"} if "special_tokens" in key else {key}
        assert any(f"`{each}`" in refusal for each in names), refusal
        return
    is_used = after[1:5] != before[1:5] or after.fast.to_str() != before.fast.to_str()
    is_listed = any(f" {key}" in note for note in after.notes)
    known = key in USED | WITHOUT_EFFECT | NEUTRAL.keys()
    assert is_used or is_listed or known, (key, value)
    assert not (is_used and is_listed), (key, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), 3),
        (("model",), {"a": 1}),
        (("pre_tokenizer",), "x"),
        (("decoder",), [1]),
        (("added_tokens", 0), True),
    ],
)
def test_raises_or_lists_a_further_key_of_tokenizer_json(
    path: tuple[Any, ...], value: Any, write_folder: WriteFolder
) -> None:
    folder = write_folder()
    document = json.loads((folder / "tokenizer.json").read_text())
    section = document
    for key in path:
        section = section[key]
    section["color"] = value
    write_json(folder, "tokenizer.json", document)
    if not path:
        with pytest.raises(ValueError, match=r"`color` is not a key of tokenizer\.json"):
            read_tokenizer(folder)
        return
    named = ".".join(key for key in path if isinstance(key, str))
    try:
        notes = read_tokenizer(folder).notes
    except ValueError as error:
        notes = (str(error),)
    assert any(f"{named}.color" in note or "color" in note for note in notes), notes


def test_raises_for_a_tokenizer_that_draws_at_random(write_folder: WriteFolder) -> None:
    folder = write_folder()
    document = json.loads((folder / "tokenizer.json").read_text())
    for dropout in (None, 0.0, 0.5):
        document["model"]["dropout"] = dropout
        write_json(folder, "tokenizer.json", document)
        if not dropout:
            read_tokenizer(folder)
    with pytest.raises(ValueError, match=r"tokenizer\.json: .* `model\.dropout` draws tokens at r"):
        read_tokenizer(folder)


def test_golden_older_files_that_are_not_read_are_listed_if_they_differ(
    write_folder: WriteFolder,
) -> None:
    folder = write_folder(added_tokens_decoder={"262": EXTRA})
    write_json(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": EXTRA})
    write_json(folder, "added_tokens.json", {"<extra>": 262, "<other>": 263})
    assert read_tokenizer(folder).notes == (
        "special_tokens_map.json: not read beside `added_tokens_decoder` of tokenizer_config.json, "
        "with other values: eos_token",
        "added_tokens.json: not read beside `added_tokens_decoder` of tokenizer_config.json, "
        "with other values: <other>",
    )


def test_property_clean_up_applies_to_whole_word_models_and_not_to_bytes(
    write_folder: WriteFolder,
) -> None:
    # As in Transformers, where only models of whole words lose spaces before punctuation.
    folder = write_folder(clean_up_tokenization_spaces=True)
    tokenizer = load_tokenizer(folder, AS_TEXT)
    text = "".join(random.Random(0).choices("ab .,'", k=60))
    assert tokenizer.decode(tokenizer.encode_prompt([Message("user", text)])).endswith(
        f"user:{text}\nassistant:"
    )
    key = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    forced = load_tokenizer(write_folder(clean_up_tokenization_spaces=True, **{key: True}))
    assert forced.decode(forced.encode_prompt([Message("user", "a .")])).startswith("user:a.")
