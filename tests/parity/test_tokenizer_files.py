"""Token ids of odd tokenizer folders against ``AutoTokenizer`` of Transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from llm.data.preferences import Message, RowError
from llm.text.tokenizer import TokenizerOptions, load_tokenizer

transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

pytestmark = pytest.mark.parity

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXTS = [
    "Hello world, it's 12:30!",
    "  two spaces, Größe, 東京 🙂",
    "a\n\nb\tc ",
    "x",
    "ＦＵＬＬ width ﬁ and e\u0301",
    "<extra> and <tool> beside words",
]
FAMILIES = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi3",
    "cohere",
    "gpt_neox",
]
CLASSES = [
    None,
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GemmaTokenizer",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizer",
    "CohereTokenizer",
    "CodeLlamaTokenizer",
    "TokenizersBackend",
]


def sentence_piece() -> tokenizers.Tokenizer:
    """Return a tokenizer in the style of Llama 2, with bytes for unknown characters."""
    fast = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    spaces = normalizers.Replace(" ", "▁")
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *letters], show_progress=False
    )
    fast.train_from_iterator([*TEXTS, TEMPLATE], trainer)
    document = json.loads(fast.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    return tokenizers.Tokenizer.from_str(json.dumps(document))


def byte_level() -> tokenizers.Tokenizer:
    """Return a byte-level tokenizer in the style of GPT-2."""
    fast = tokenizers.Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator([*TEXTS, TEMPLATE], trainer)
    return fast


def write_random_folder(folder: Path, seed: int) -> dict[str, Any]:
    """Write a tokenizer folder with odd settings; return the settings."""
    rng = random.Random(seed)
    fast = rng.choice([sentence_piece, byte_level])()
    if rng.random() < 0.7:
        fast.add_special_tokens(["<|turn|>", "<|end|>"])
    if rng.random() < 0.5:
        fast.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", fast.token_to_id("<s>"))]
        )
    fast.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    name = rng.choice(CLASSES)
    if name is not None:
        config["tokenizer_class"] = name
    if rng.random() < 0.5:
        config["unk_token"] = "<unk>"
    for key, values in {
        "add_prefix_space": [True, False, None],
        "legacy": [True, False],
        "add_bos_token": [True, False],
        "clean_up_tokenization_spaces": [True, False],
        "model_max_length": [16],
        "padding_side": ["left"],
        "pad_token": ["</s>", "<pad>"],
        "color": ["red"],
        "image_token": ["<image>"],
    }.items():
        if rng.random() < 0.3:
            config[key] = rng.choice(values)
    size = fast.get_vocab_size()
    entry = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    if rng.random() < 0.4:
        config["added_tokens_decoder"] = {
            "1": {"content": "<s>", "special": True, **entry},
            "2": {"content": "</s>", "special": True, **entry},
            str(size): {
                "content": "<extra>",
                "special": rng.random() < 0.5,
                **entry,
                "lstrip": rng.random() < 0.5,
                "rstrip": rng.random() < 0.5,
            },
            str(size + 1): {"content": "<|end|>", "special": True, **entry},
        }
    if rng.random() < 0.3:
        key = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        config[key] = ["<|turn|>", "<|end|>"]
    if rng.random() < 0.2:
        config["extra_special_tokens"] = {"tool_token": "<tool>"}
    if rng.random() < 0.3:
        added = {"<extra>": size, "<|end|>": size + 1}
        (folder / "added_tokens.json").write_text(json.dumps(added))
    if rng.random() < 0.3:
        tokens = {"eos_token": {"content": "</s>", **entry}, "pad_token": "<pad>"}
        if rng.random() < 0.5:
            tokens["additional_special_tokens"] = ["<|turn|>"]
        (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    family = rng.choice(FAMILIES)
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    return {**config, "model_type": family}


@pytest.mark.parametrize("seed", range(85))
def test_parity_odd_tokenizer_folders_have_the_ids_of_transformers_or_are_refused_by_key(
    seed: int, tmp_path: Path
) -> None:
    settings = write_random_folder(tmp_path, seed)
    options = TokenizerOptions(special_tokens="as_text")
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    except (TypeError, ValueError, AttributeError) as error:
        pytest.skip(f"Transformers refuses the folder: {error}")
    refusal, ours = "", None
    try:
        ours = load_tokenizer(tmp_path, options)
    except ValueError as error:
        refusal = str(error)
    if ours is None:
        # Without an end token, or with one that is found only after a space, nothing is trained.
        reasons = ("must write an end token", "tokenizer_class", "text beside the special token")
        assert refusal.startswith(str(tmp_path))
        assert any(reason in refusal for reason in reasons), refusal
        return
    assert ours.vocab_size == len(theirs) or settings.get("tokenizer_class") is not None
    for text in TEXTS:
        messages = [Message("user", text), Message("assistant", "Yes. " + text)]
        chat = [{"role": each.role, "content": each.content} for each in messages]
        apply = theirs.apply_chat_template
        marked: dict[str, Any] = {"return_dict": False, "sanitize_control_tokens": True}
        try:
            prompt = ours.encode_prompt(messages[:1])
            response = ours.encode_response(messages[:1], messages[1:])
        except RowError:
            continue
        expected = apply(chat[:1], add_generation_prompt=True, **marked)
        assert prompt == expected, (settings, text)
        start = prompt if response.prompt is None else response.prompt
        assert start + response.ids == apply(chat, **marked), (settings, text)
        plain = theirs.decode(expected, skip_special_tokens=True)
        assert ours.decode(prompt) == plain, (settings, text)


def test_parity_a_token_beside_text_takes_its_whitespace_as_in_transformers(
    tmp_path: Path,
) -> None:
    fast = byte_level()
    fast.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True), "<|turn|>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    messages = [{"role": "user", "content": "a  "}]
    assert ours.encode_prompt([Message("user", "a  ")]) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
