"""Claims about weight files: the index and the files agree, or the folder is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm.hf.io import CONFIG_NAME, model_notes
from llm.hf.safetensors import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, SafetensorsReader

CONFIG = {
    "model_type": "llama",
    "vocab_size": 5,
    "hidden_size": 4,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LAYER = {
    **{f"self_attn.{name}_proj": (4, 4) for name in "qkvo"},
    "mlp.gate_proj": (6, 4),
    "mlp.up_proj": (6, 4),
    "mlp.down_proj": (4, 6),
    "input_layernorm": (4,),
    "post_attention_layernorm": (4,),
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Tensors = dict[str, np.ndarray]


def tensors(prefix: str = "model.", head: str | None = "lm_head.weight") -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens": (5, 4), f"{prefix}norm": (4,)}
    shapes |= {f"{prefix}layers.0.{name}": shape for name, shape in LAYER.items()}
    rng = np.random.default_rng(0)
    named = {f"{name}.weight": rng.normal(size=shape) for name, shape in shapes.items()}
    if head is not None:
        named[head] = rng.normal(size=(5, 4))
    return {name: values.astype(np.float32) for name, values in named.items()}


def write(folder: Path, files: dict[str, Tensors], index: dict[str, str] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(CONFIG))
    for name, content in files.items():
        save_file(content, folder / name)
    if index is not None:
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps({"weight_map": index}))
    return folder


def shards() -> tuple[dict[str, Tensors], dict[str, str]]:
    named = tensors()
    names = sorted(named)
    files = {
        FIRST: {name: named[name] for name in names[:5]},
        SECOND: {name: named[name] for name in names[5:]},
    }
    return files, {name: file for file, content in files.items() for name in content}


def read(folder: Path) -> Tensors:
    with SafetensorsReader(folder) as files:
        return {name: files.read(name, tensors()[name].shape) for name in sorted(files.names())}


def test_roundtrip_of_shards_that_their_index_names(tmp_path: Path) -> None:
    files, index = shards()
    assert read(write(tmp_path, files, index)).keys() == index.keys()
    assert model_notes(tmp_path) == ()
    (tmp_path / "consolidated.safetensors").write_bytes(b"other format")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    expected = ("files passed over: consolidated.safetensors, pytorch_model.bin",)
    assert model_notes(tmp_path) == expected


def test_raises_for_a_tensor_in_two_files(tmp_path: Path) -> None:
    files, index = shards()
    norm = "model.norm.weight"
    files[FIRST][norm] = files[SECOND][norm] + 1
    for named in (FIRST, SECOND):
        with pytest.raises(ValueError, match=rf"tensor {norm} is in {FIRST} and in {SECOND}: rem"):
            read(write(tmp_path, files, index | {norm: named}))


def test_raises_if_the_index_and_the_files_differ(tmp_path: Path) -> None:
    files, index = shards()
    cases: list[tuple[dict[str, Any], str]] = [
        (index | {"ghost": FIRST}, f"names tensor ghost in {FIRST}, which does not hold it"),
        (index | {"model.norm.weight": FIRST}, f"in {FIRST}, but it is in {SECOND}"),
        ({name: file for name, file in index.items() if "norm" not in name}, "does not name tens"),
        (dict.fromkeys(index, FIRST), f"holds {SECOND}, which .* does not name"),
        (index | {"lm_head.weight": 3}, "must map tensors to file names"),
        ({}, "must name at least one tensor"),
    ]
    for changed, message in cases:
        with pytest.raises(ValueError, match=message):
            read(write(tmp_path, files, changed))
    (tmp_path / SAFE_WEIGHTS_INDEX_NAME).write_text('{"weight_map": {"a": "b", "a": "c"}}')
    with pytest.raises(ValueError, match=r"index.json is not JSON: the key `a` stands twice"):
        read(tmp_path)


def test_raises_if_a_whole_file_stands_beside_an_index_or_shards(tmp_path: Path) -> None:
    files, index = shards()
    write(tmp_path / "both", files | {SAFE_WEIGHTS_NAME: tensors()}, index)
    with pytest.raises(
        ValueError, match=rf"holds {SAFE_WEIGHTS_NAME}, and .*index.json that names"
    ):
        read(tmp_path / "both")
    write(tmp_path / "stray", {SAFE_WEIGHTS_NAME: tensors(), FIRST: files[FIRST]})
    with pytest.raises(ValueError, match=rf"holds {SAFE_WEIGHTS_NAME} and {FIRST}, and no index"):
        read(tmp_path / "stray")
    with pytest.raises(ValueError, match=rf"holds {FIRST}, but not its index"):
        read(write(tmp_path / "no index", files))
    single = dict.fromkeys(tensors(), SAFE_WEIGHTS_NAME)
    assert read(write(tmp_path / "one", {SAFE_WEIGHTS_NAME: tensors()}, single))


@pytest.mark.parametrize(
    ("prefix", "head"),
    [
        ("", "lm_head.weight"),
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("module.model.", "module.lm_head.weight"),
        ("base_model.model.model.", "base_model.model.lm_head.weight"),
    ],
)
def test_roundtrip_of_weights_with_another_prefix(prefix: str, head: str, tmp_path: Path) -> None:
    write(tmp_path, {SAFE_WEIGHTS_NAME: tensors(prefix, head)})
    (note,) = model_notes(tmp_path)
    assert note == (
        f"weights: tensors are stored as {prefix}embed_tokens.weight, not model.embed_tokens.weight"
    )


def test_raises_for_prefixes_that_are_not_clear(tmp_path: Path) -> None:
    two = {**tensors("text."), **tensors("vision.", None)}
    with pytest.raises(
        ValueError, match=r"text.embed_tokens.weight and vision.embed_tokens.weight"
    ):
        model_notes(write(tmp_path, {SAFE_WEIGHTS_NAME: two}))
    heads = {**tensors("a.model."), "a.lm_head.weight": np.ones((5, 4), np.float32)}
    with pytest.raises(ValueError, match=r"lm_head.weight and a.lm_head.weight could both be"):
        model_notes(write(tmp_path, {SAFE_WEIGHTS_NAME: heads}))
    with pytest.raises(
        ValueError, match=r"lm_head.weight is missing .*`tie_word_embeddings` to tr"
    ):
        model_notes(write(tmp_path, {SAFE_WEIGHTS_NAME: tensors("", None)}))


def test_property_an_extra_tensor_is_used_listed_or_refused(tmp_path: Path) -> None:
    row = np.ones(2, np.float32)
    write(tmp_path, {SAFE_WEIGHTS_NAME: tensors() | {"model.rotary_emb.inv_freq": row}})
    assert model_notes(tmp_path) == ("weights: 1 tensors of rotary angles follow from config.json",)
    names = ("score.weight", "vision_tower.a", "model.layers.1.mlp.up_proj.weight", "lm_head.bias")
    for name in (*names, "model.layers.0.self_attn.q_proj.bias", "model.norm.bias"):
        write(tmp_path, {SAFE_WEIGHTS_NAME: tensors() | {name: row}})
        with pytest.raises(ValueError, match=f"tensor {name} is unexpected"):
            model_notes(tmp_path)


def test_raises_for_weights_of_eight_bits_by_name(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    for dtype, shown in ((ml_dtypes.float8_e4m3fn, "F8_E4M3"), (np.int8, "I8"), (np.uint8, "U8")):
        write(tmp_path, {SAFE_WEIGHTS_NAME: tensors() | {name: np.ones((6, 4), dtype)}})
        with pytest.raises(ValueError, match=f"tensor {name} must be of type F64.*got {shown}$"):
            model_notes(tmp_path)
        with SafetensorsReader(tmp_path) as files:
            files.check_dtype("model.norm.weight")


def test_closed_form_the_text_part_of_a_model_with_images_is_read(tmp_path: Path) -> None:
    layer = {"self_attn.q_norm": (2,), "self_attn.k_norm": (2,)}
    layer |= {"pre_feedforward_layernorm": (4,), "post_feedforward_layernorm": (4,)}
    named = tensors("language_model.model.", None) | {"vision_tower.a": np.ones(2, np.float32)}
    for name, shape in layer.items():
        named[f"language_model.model.layers.0.{name}.weight"] = np.ones(shape, np.float32)
    write(tmp_path, {SAFE_WEIGHTS_NAME: named})
    text = {**CONFIG, "model_type": "gemma3_text", "head_dim": 2, "num_key_value_heads": 2}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 9}}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    notes = model_notes(tmp_path)
    assert notes[0] == "config.json: only the text model is read, its images are not"
    assert notes[-1] == "weights: 1 tensors of the image model are kept aside"
    assert load_file(tmp_path / SAFE_WEIGHTS_NAME).keys() == named.keys()
