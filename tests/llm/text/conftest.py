"""A small tokenizer of bytes, written as a Hugging Face folder with a template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

SPECIAL = ["<s>", "</s>", "<|turn|>", "<|end|>", "<unk>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
WriteFolder = Callable[..., Path]


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """Return a function that writes the folder; further arguments are keys of its configuration."""

    def write(
        template: str | None = TEMPLATE,
        *,
        tokens: tuple[AddedToken, ...] = (),
        normalizer: normalizers.Normalizer | None = None,
        special: tuple[str, ...] = tuple(SPECIAL),
        **config: Any,
    ) -> Path:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: index for index, token in enumerate([*alphabet, "Ho"])}
        fast = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[("H", "o")]))
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        fast.decoder = decoders.ByteLevel()
        if normalizer is not None:
            fast.normalizer = normalizer
        fast.add_special_tokens(list(special))
        fast.add_tokens(list(tokens))
        fast.save(str(tmp_path / "tokenizer.json"))
        document = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template, **config}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(document), encoding="utf-8")
        return tmp_path

    return write
