"""Fuzz targets of model files."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

import mutations
from fuzz_target import NAME, Target

USER, REPLY = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.role }}:{{ m['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
SYSTEM = (
    "{%- if messages[0].role == 'system' %}{% set system = messages[0]['content'] %}{% else %}"
    "{% set system = '' %}{% endif %}{% set ns = namespace(n=0) %}{% macro turn(m) %}[{{ m.role }}]"
    "{{ m.content ~ system[:3] }}{% endmacro %}{% for m in messages if m.role != 'system' %}"
    "{% set ns.n = ns.n + 1 %}{{ turn(m) }}{% if not loop.last %}{{ '-' * ns.n }}{% endif %}"
    "{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) | length }}"
)
JINJA = (
    *("{{", "}}", "{%", "%}", "{#", "-", "|", "~", "**", "*", "%", "//", "[1:]", ".x", "()", "''"),
    *(
        "for a in range(9)",
        "endfor",
        "if",
        "endif",
        "set x = x ~ x",
        "macro f(x)",
        "endmacro",
        "f(",
    ),
    *("x", "messages", "loop", "namespace()", "lipsum()", "range(99999)", "10**10", "'x' * 10**9"),
    *("|join", "|center(10**9)", "|format(1)", "|list", "|tojson", "|map('upper')", "|attr('x')"),
    *(
        ".__class__",
        ".format(x)",
        ".append(1)",
        "is defined",
        "recursive",
        "{% raw %}",
        "generation",
    ),
    *(
        "include 'x'",
        "import 'x' as x",
        "extends 'x'",
        "break",
        "continue",
        "{% block a %}",
        "call",
    ),
)
HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
}
MODEL = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "eos_token_id": [1, 2],
}
GEMMA = MODEL | {
    "model_type": "gemma3_text",
    "num_key_value_heads": 2,
    "head_dim": 2,
    "sliding_window": 4,
    "layer_types": None,
}


def chat_template(folder: Path) -> Target:
    """Make the target of chat templates."""
    from llm.text import chat_template as module

    module.MAX_SECONDS = 0.1
    messages = [{**USER, "role": "system"}, USER, REPLY, USER]

    def read(data: bytes) -> None:
        template = module.ChatTemplate(data.decode(errors="replace"), name=NAME)
        template.render(messages, add_generation_prompt=True, variables={"bos_token": "<s>"})

    def damage(rng: Random) -> bytes:
        tokens = [rng.choice(JINJA) for _ in range(rng.randrange(1, 9))]
        i = rng.randrange(len(SYSTEM))
        inserted = SYSTEM[:i] + " ".join(tokens) + SYSTEM[i:]
        return rng.choice((inserted, "{{ " + " ".join(tokens) + " }}", "".join(tokens))).encode()

    return Target(
        read, [TEMPLATE.encode(), SYSTEM.encode()], damage, [token.encode() for token in JINJA]
    )


@functools.cache
def _tokenizer_files() -> tuple[dict[str, Any], dict[str, Any]]:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {"<unk>": 0, "a": 1, "s": 2, "as": 3, "x": 4, "Ġ": 5}
    fast = tokenizers.Tokenizer(models.BPE(vocabulary, [("a", "s")], unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["<|turn|>", "<|end|>"])
    config = {"eos_token": "<|end|>", "unk_token": {"content": "<unk>"}, "chat_template": TEMPLATE}
    return json.loads(fast.to_str()), config


def _tokenizer(folder: Path, name: str, good: dict[str, Any]) -> Target:
    from llm.data.preferences import Message, RowError
    from llm.text import chat_template as module
    from llm.text.hf_tokenizer import HuggingFaceTokenizer

    module.MAX_SECONDS = 0.1
    home = folder / NAME
    home.mkdir(exist_ok=True)
    file_names = ("tokenizer.json", "tokenizer_config.json")
    for file_name, content in zip(file_names, _tokenizer_files(), strict=True):
        (home / file_name).write_text(json.dumps(content))
    conversation = [Message("user", "as sa é")]

    def read(data: bytes) -> None:
        (home / name).write_bytes(data)
        tokenizer = HuggingFaceTokenizer(home)
        try:
            prompt = tokenizer.encode_prompt(conversation)
            response = tokenizer.encode_response(conversation, [Message("assistant", "x")]).ids
            tokenizer.decode(prompt + response)
        except RowError as error:  # the reader of rows adds their source to the message
            raise RowError(error.reason, f"{NAME}: {error}") from error

    def damage(rng: Random) -> bytes:
        return mutations.to_bytes(mutations.mutate_document(rng, good))

    return Target(read, [json.dumps(good).encode()], damage, errors=(ValueError, RowError))


def tokenizer(folder: Path) -> Target:
    """Make the target of ``tokenizer.json``."""
    return _tokenizer(folder, "tokenizer.json", _tokenizer_files()[0])


def tokenizer_config(folder: Path) -> Target:
    """Make the target of ``tokenizer_config.json``."""
    return _tokenizer(folder, "tokenizer_config.json", _tokenizer_files()[1])


def safetensors(folder: Path) -> Target:
    """Make the target of headers of safetensors files."""
    from llm.hf.safetensors import SAFE_WEIGHTS_NAME, SafetensorsReader

    home = folder / NAME
    home.mkdir(exist_ok=True)

    def file_content(header: Any, data: bytes, length: int = 0) -> bytes:
        text = mutations.to_bytes(header)
        return struct.pack("<Q", (len(text) + length) % 2**64) + text + data

    def read(data: bytes) -> None:
        (home / SAFE_WEIGHTS_NAME).write_bytes(data)
        with SafetensorsReader(home) as files:
            for name in sorted(files.names()):
                files.read(name, (2, 3))
                files.read(name, (2, 3), (slice(1), slice(3)))

    def damage(rng: Random) -> bytes:
        header = mutations.mutate_document(rng, HEADER, ("F16", "BF16", "I8", "F4", 24, 48))
        return file_content(header, bytes(24), rng.choice((0,) * 8 + (1, -1, 2**63)))

    return Target(read, [file_content(HEADER, bytes(24))], damage)


def weight_index(folder: Path) -> Target:
    """Make the target of ``model.safetensors.index.json``."""
    weights = safetensors(folder)
    from llm.hf.safetensors import SAFE_WEIGHTS_INDEX_NAME, SafetensorsReader

    home = folder / NAME
    (home / "a.safetensors").write_bytes(weights.seeds[0])
    good = {"metadata": {"total_size": 24}, "weight_map": {"a": "a.safetensors"}}

    def read(data: bytes) -> None:
        (home / SAFE_WEIGHTS_INDEX_NAME).write_bytes(data)
        with SafetensorsReader(home) as files:
            for name in files.names():
                files.read(name, (2, 3))

    def damage(rng: Random) -> bytes:
        return mutations.to_bytes(mutations.mutate_document(rng, good))

    return Target(read, [json.dumps(good).encode()], damage)


def model_config(folder: Path) -> Target:
    """Make the target of ``config.json`` of models."""
    from llm.hf.io import CONFIG_NAME, read_architecture

    home = folder / NAME
    home.mkdir(exist_ok=True)

    def read(data: bytes) -> None:
        (home / CONFIG_NAME).write_bytes(data)
        read_architecture(home)

    def damage(rng: Random) -> bytes:
        return mutations.to_bytes(mutations.mutate_document(rng, rng.choice((MODEL, GEMMA))))

    return Target(read, [json.dumps(config).encode() for config in (MODEL, GEMMA)], damage)
