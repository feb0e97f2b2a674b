"""Claims about hostile model files: they run nothing, reach nothing, and stay within limits."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from llm.data.model_folder import MAX_JSON_BYTES, model_file
from llm.hf.io import CONFIG_NAME, TOKENIZER_FILES, export_model, load_model
from llm.hf.safetensors import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.text import chat_template
from llm.text.chat_template import ChatTemplate
from llm.text.hf_tokenizer import HuggingFaceTokenizer
from rpo.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))
growth_below: Any = importlib.import_module("peak_memory").growth_below

HELLO = [{"role": "user", "content": "Hello"}]
SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    with jax.numpy_dtype_promotion("strict"):
        export_model(Decoder(Architecture(**SIZES), rngs=nnx.Rngs(0)), folder)
    return folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for path in exported.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model"


# Chat templates


def render(source: str) -> str:
    template = ChatTemplate(source, name="t")
    return template.render(HELLO, add_generation_prompt=True, variables={"bos_token": "<s>"})


ESCAPING_TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ('{0.__class__}'|format)('') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "{{ lipsum.__globals__['os'].system('touch owned') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ strftime_now.__self__.__class__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{% set messages[0].content = 1 %}",
    "{{ messages.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
]


@pytest.mark.parametrize("source", ESCAPING_TEMPLATES)
def test_extreme_a_chat_template_cannot_leave_its_sandbox(source: str) -> None:
    try:
        text = render(source)
    except ValueError as error:
        text = str(error)
        assert text.startswith("t ")
    # The output may name a builtin type, but holds nothing of the interpreter or the machine.
    assert "root:" not in text
    assert not re.search(r"<class 'os|<module|<function|object at 0x", text)
    assert not Path("owned").exists()


SLOW_TEMPLATES = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 7 ** (7 ** 9) }}",
    "{% set n = namespace(x=7) %}{% for a in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "{% set n = namespace(x=[]) %}{% for a in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
]
LARGE_TEMPLATES = [
    "{{ 'x' * 10 ** 10 }}",
    "{{ ['x'] * 10 ** 10 }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ 'x'|center(10 ** 10) }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ ('\t' * 99999).expandtabs(99999) }}",
    "{{ ('x' * 99999).replace('x', 'x' * 99999) }}",
    "{{ ('x' * 99999)|replace('x', 'x' * 99999) }}",
    "{{ ('x' * 99999).join(range(99999)|map('string')) }}",
    "{{ range(99999)|list|tojson(indent=99999) }}",
    "{{ lipsum(n=10 ** 9) }}",
    "{% set n = namespace(x='x') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% for a in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
    "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + "{{ " + "f(" * 40 + "'x'" + ")" * 40 + " }}",
]


@pytest.mark.parametrize("source", [*SLOW_TEMPLATES, *LARGE_TEMPLATES])
def test_extreme_a_chat_template_is_stopped_within_its_limits(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    start = time.monotonic()
    with growth_below(2**26), pytest.raises(ValueError, match=r"^t (is not a ch|cannot render)"):
        render(source)
    assert time.monotonic() - start < 5.0
    assert render("{{ messages[0].content }}") == "Hello"


def test_extreme_the_template_process_has_no_files_no_network_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = (
        "import os, runpy, socket\n"
        f"confine = runpy.run_module({chat_template.PROGRAM!r})['_confine']\n"
        "confine()\n"
        "failed = 0\n"
        "for attempt in (lambda: open('/etc/passwd'), socket.socket, lambda: open('x', 'w'),\n"
        "                lambda: bytearray(2 * 2**30)):\n"
        "    try: attempt()\n"
        "    except (OSError, MemoryError): failed += 1\n"
        "print(failed)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.stdout == "4\n", process.stderr
    chat_template._PROCESS._end()
    assert render("{{ bos_token }}") == "<s>"
    running = chat_template._PROCESS._running
    assert running is not None
    environment = Path(f"/proc/{running.pid}/environ")
    if environment.exists():
        assert b"secret" not in environment.read_bytes()


# Model folders


def write_header(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(*offsets: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD_HEADERS: list[tuple[Any, bytes, int | None]] = [
    ({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12), None),
    ({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8), None),
    ({"a": tensor(0, 2**62, shape=(2**60,))}, bytes(8), None),
    ({"a": tensor(0, 8, shape=(2**63, 2**63))}, bytes(8), None),
    ({"a": tensor(8, 0)}, bytes(8), None),
    ({"a": tensor(-8, 0)}, bytes(8), None),
    ({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24), None),
    ({"a": tensor(0, 8)}, bytes(99), None),
    (b"{}", b"", 2**63),
    (b"{}", b"", 2**64 - 1),
    (b"{" + b" " * 99 + b"}", b"", 10**8),
    (b'{"a":' * 10**5, b"", None),
    (b"\xff\xfe", b"", None),
]


@pytest.mark.parametrize(("header", "data", "length"), BAD_HEADERS)
def test_raises_for_safetensors_headers_with_bad_offsets(
    header: Any, data: bytes, length: int | None, model: Path
) -> None:
    write_header(model / SAFE_WEIGHTS_NAME, header, data, length)
    with growth_below(2**28), pytest.raises(ValueError, match=r"model\.safetensors is broken"):
        load_model(model)


@pytest.mark.parametrize("name", ["../../secret", "{secret}", "/dev/zero", "", ".", "..", "a\0b"])
def test_raises_for_an_index_that_leads_out_of_its_folder(name: str, model: Path) -> None:
    secret = model.parent.parent / "secret"
    secret.write_bytes((model / SAFE_WEIGHTS_NAME).read_bytes())
    (model / SAFE_WEIGHTS_NAME).rename(model / "other.safetensors")
    listed = {"weight_map": {"model.norm.weight": name.format(secret=secret)}}
    (model / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(listed))
    with pytest.raises(
        ValueError, match=r"(is missing|must be a file|not a usable file name|out of its)"
    ):
        load_model(model)


def publish(model: Path) -> None:
    policy = Decoder(Architecture(**SIZES), rngs=nnx.Rngs(0))
    export_model(policy, model.parent / "published", tokenizer_folder=model)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        (CONFIG_NAME, load_model),
        (SAFE_WEIGHTS_NAME, load_model),
        ("tokenizer.json", HuggingFaceTokenizer),
        ("chat_template.jinja", publish),
        ("tokenizer_config.json", publish),
    ],
)
def test_raises_for_links_out_of_a_model_folder_and_copies_none(
    name: str, use: Callable[[Path], Any], model: Path
) -> None:
    (model.parent / "secret").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(Path("..") / "secret")
    with pytest.raises(ValueError, match=rf"{name} leads out of its folder"):
        use(model)
    assert not (model.parent / "published").exists()


def test_raises_for_special_files_in_a_model_folder(model: Path) -> None:
    for name in TOKENIZER_FILES[:3]:
        (model / name).unlink(missing_ok=True)
    os.mkfifo(model / "tokenizer.json")
    (model / "added_tokens.json").symlink_to("added_tokens.json")
    (model / "vocab.json").symlink_to("/dev/zero")
    for name, rule in {
        "tokenizer.json": "must be a file",
        "added_tokens.json": "is not a usable file name",
        "vocab.json": "leads out",
    }.items():
        with pytest.raises(ValueError, match=rule):
            model_file(model, name)
    with open(model / CONFIG_NAME, "wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match="must have at most"):
        load_model(model)


def test_closed_form_links_inside_a_folder_and_into_the_hub_cache_are_followed(
    model: Path,
) -> None:
    (model / CONFIG_NAME).rename(model / "real.json")
    (model / CONFIG_NAME).symlink_to("real.json")
    assert load_model(model).architecture.hidden_size == 8
    snapshot = model.parent / "models--a--b" / "snapshots" / "0123"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate((CONFIG_NAME, SAFE_WEIGHTS_NAME)):
        (blobs / str(number)).write_bytes((model / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert load_model(snapshot).architecture.hidden_size == 8


# Inputs that fuzzing has found


BAD_VALUES = [
    {"model_type": ["llama"]},
    {"num_hidden_layers": 10**9},
    {"vocab_size": 2**40},
    {"rms_norm_eps": float("nan")},
    {"rope_theta": 10**400},
    {"hidden_act": ["silu"]},
    {"eos_token_id": ["</s>"]},
    {"bos_token_id": "<s>"},
    {"model_type": "gemma2", "layer_types": 5},
    {"model_type": "gemma2", "layer_types": [["full_attention"], 1]},
    {"model_type": "gemma2", "attn_logit_softcapping": "50"},
    {"model_type": "mistral", "sliding_window": "4096"},
]


@pytest.mark.parametrize("change", BAD_VALUES)
def test_raises_for_invalid_values_of_an_architecture(change: dict[str, Any], model: Path) -> None:
    config = json.loads((model / CONFIG_NAME).read_text()) | change
    (model / CONFIG_NAME).write_text(json.dumps(config).replace(f"{10**400}", "1" + "0" * 400))
    with pytest.raises(ValueError, match=rf"config\.json: `{list(change)[-1]}`"):
        load_model(model)


@pytest.mark.parametrize("content", [b"[" * 10**5, b"1" * 5000, b"\xff", b'{"a": ' + b"9" * 5000])
def test_raises_for_json_of_a_model_that_cannot_be_read(content: bytes, model: Path) -> None:
    (model / CONFIG_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(model)


def write_tokenizer(model: Path, config: dict[str, Any]) -> None:
    bpe = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    (model / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": bpe}))
    (model / "tokenizer_config.json").write_text(json.dumps(config))


def test_raises_if_the_tokenizers_library_panics_or_gets_invalid_unicode(model: Path) -> None:
    template = "{{ eos_token }}"
    prefixed = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "continuing_subword_prefix": "x" * 6}
    write_tokenizer(model, {"chat_template": template})
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"] = prefixed | {"merges": [["a", "b"]]}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        HuggingFaceTokenizer(model)
    write_tokenizer(model, {"chat_template": template, "eos_token": "\ud800"})
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: `eos_token` must be a string"):
        HuggingFaceTokenizer(model)
    write_tokenizer(model, {"chat_template": "\ud800"})
    with pytest.raises(ValueError, match="is not Unicode text"):
        HuggingFaceTokenizer(model)


# No connections


def test_property_no_connection_is_made_for_local_files(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a connection was requested: {args}")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.chdir(model.parent)
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    Path("rows.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    Path("votes.csv").write_text("context,winner,loser\nq,a,b\n", encoding="utf-8")
    Path("run.yaml").write_text(
        "name: local\nmodel: {path: model}\n"
        "data: {train: rows.jsonl, tokenizer: bytes, max_length: 16}\n"
        "objective: {method: rpo, beta: 0.5, eta: 0.05}\n"
    )
    model_options = ["--model", "model", "--tokenizer", "bytes"]
    for argv in (
        ["solve", "--votes", "votes.csv"],
        ["train", "run.yaml", "--dry-run"],
        ["score", *model_options, "--data", "rows.jsonl", "--out", "scores.jsonl"],
        ["generate", *model_options, "--prompt", "q", "--max-new-tokens", "2"],
    ):
        assert main(argv) == 0, argv
