"""Claims about Hugging Face folders: round trips, and messages that name the bad file."""

from __future__ import annotations

import fnmatch
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import llm.hf.io
from llm.data.model_folder import resolve_model_folder, resolve_tokenizer_folder
from llm.hf.io import CONFIG_NAME, export_model, load_model, read_architecture, read_parameters
from llm.hf.safetensors import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, write_safetensors
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import add_lora, merge_lora
from llm.parallel.mesh import single_device

SMALL = Architecture(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    eos_token_id=2,
)
FIRST = "model.layers.0.self_attn.q_proj.weight"
KERNELS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
NORMS = {"input_layernorm": "input_norm", "post_attention_layernorm": "mlp_norm"}
SAME_SUMS = 1e-6  # float32, numbers of order 1


def random_decoder() -> Decoder:
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(SMALL, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    return nnx.merge(graphdef, state)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    with jax.enable_x64(True):
        return random_decoder()


@pytest.fixture
def folder(decoder: Decoder, tmp_path: Path) -> Path:
    export_model(decoder, tmp_path / "model")
    return tmp_path / "model"


def test_roundtrip_preserves_parameters_and_bytes(
    decoder: Decoder, folder: Path, tmp_path: Path
) -> None:
    loaded = load_model(folder)
    assert loaded.architecture == SMALL
    assert _equal(loaded, decoder)
    export_model(loaded, tmp_path / "again")
    for name in (SAFE_WEIGHTS_NAME, CONFIG_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_closed_form_exported_tensors_have_the_layout_of_hugging_face(
    decoder: Decoder, folder: Path
) -> None:
    tensors, layers = load_file(folder / SAFE_WEIGHTS_NAME), decoder.layers
    assert decoder.output is not None
    expected = {
        "model.embed_tokens.weight": decoder.embedding[...],
        "model.norm.weight": decoder.norm.weight[...],
        "lm_head.weight": decoder.output[...],
    }
    for layer in range(SMALL.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name in KERNELS:
            kernel = getattr(layers, name.split(".")[1]).kernel
            expected[f"{prefix}{name}.weight"] = kernel[layer].T
        for hf_name, name in NORMS.items():
            expected[f"{prefix}{hf_name}.weight"] = getattr(layers, name).weight[layer]
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensors[name], tensor, err_msg=name)


def test_roundtrip_through_several_files(decoder: Decoder, folder: Path, tmp_path: Path) -> None:
    export_model(decoder, tmp_path / "parts", max_file_bytes=1000)
    index = json.loads((tmp_path / "parts" / SAFE_WEIGHTS_INDEX_NAME).read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert not (tmp_path / "parts" / SAFE_WEIGHTS_NAME).exists()
    assert index["metadata"]["total_size"] == sum(
        x.nbytes for x in load_file(folder / SAFE_WEIGHTS_NAME).values()
    )
    for name in files:
        assert sum(x.nbytes for x in load_file(tmp_path / "parts" / name).values()) <= 1000
    assert _equal(load_model(tmp_path / "parts"), decoder)


def test_roundtrip_through_bfloat16(decoder: Decoder, tmp_path: Path) -> None:
    export_model(decoder, tmp_path / "narrow", dtype=jnp.bfloat16)
    config = json.loads((tmp_path / "narrow" / CONFIG_NAME).read_text())
    assert config["dtype"] == "bfloat16"
    loaded = load_model(tmp_path / "narrow", param_dtype=jnp.float32)
    expected = np.asarray(decoder.embedding[...]).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(loaded.embedding[...], expected)
    export_model(loaded, tmp_path / "again", dtype=jnp.bfloat16)
    first, second = (tmp_path / name / SAFE_WEIGHTS_NAME for name in ("narrow", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_roundtrip_merges_adapters_without_touching_the_model(tmp_path: Path) -> None:
    decoder = random_decoder()
    add_lora(decoder, rank=2, alpha=4.0, target_modules=["q_proj", "down_proj"], rngs=nnx.Rngs(1))
    adapters = nnx.state(decoder, nnx.LoRAParam)
    nnx.update(decoder, jax.tree.map(lambda x: x + jnp.float32(0.5), adapters))
    before = nnx.state(decoder)
    export_model(decoder, tmp_path / "merged")
    assert jax.tree.all(jax.tree.map(np.array_equal, nnx.state(decoder), before))
    loaded, merged = load_model(tmp_path / "merged"), merge_lora(decoder)
    for actual, expected in zip(_leaves(loaded), _leaves(merged), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=SAME_SUMS)


def test_closed_form_tokenizer_files_are_copied(decoder: Decoder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    (source / "pytorch_model.bin").write_bytes(b"never copied")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates/tool_use.jinja").write_text("x")
    export_model(decoder, tmp_path / "model", tokenizer_folder=source)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    templates = "additional_chat_templates"
    assert names == {CONFIG_NAME, SAFE_WEIGHTS_NAME, "tokenizer.json", templates}
    assert (tmp_path / "model" / templates / "tool_use.jinja").read_text() == "x"
    export_model(decoder, tmp_path / "other", tokenizer_folder=source, chat_template="y")
    assert not (tmp_path / "other" / templates).exists()


def test_closed_form_a_tied_model_may_store_its_embedding_twice(folder: Path) -> None:
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_model(folder)
    _edit(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    loaded = load_model(folder)
    assert loaded.output is None
    np.testing.assert_array_equal(
        loaded.head().weight, load_file(folder / SAFE_WEIGHTS_NAME)["lm_head.weight"]
    )


def test_closed_form_rope_angles_in_old_files_are_ignored(folder: Path) -> None:
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(1, np.float32)}
    _edit(folder, lambda tensors: tensors.update(angles))
    assert load_model(folder).architecture == SMALL


def _with_nan(tensors: dict[str, np.ndarray]) -> None:
    tensors[FIRST][3, 1] = np.nan


def _with_integers(tensors: dict[str, np.ndarray]) -> None:
    tensors[FIRST] = np.zeros((8, 8), np.int32)


BROKEN: list[tuple[Callable[[dict[str, np.ndarray]], Any], str]] = [
    (lambda t: t.pop(FIRST), rf"tensor {FIRST} is missing \(1 of 21 are\)"),
    (lambda t: t.update(extra=np.ones(2)), "safetensors: tensor extra is unexpected"),
    (_with_nan, rf"safetensors: tensor {FIRST} holds NaN or infinite numbers"),
    (
        lambda t: t.update({FIRST: np.ones((8, 9), np.float32)}),
        rf"safetensors: tensor {FIRST} must have shape \[8, 8\], got \[8, 9\]",
    ),
    (_with_integers, rf"tensor {FIRST} must be of type F64, F32, F16, BF16, got I32"),
    (
        lambda t: t.update({FIRST: np.full((8, 8), 1e300)}),
        rf"tensor {FIRST} is too large for float32",
    ),
]


@pytest.mark.parametrize(("edit", "message"), BROKEN)
def test_raises_for_tensors_that_do_not_fit(folder: Path, edit: Any, message: str) -> None:
    _edit(folder, edit)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_raises_for_a_truncated_file(folder: Path) -> None:
    content = (folder / SAFE_WEIGHTS_NAME).read_bytes()
    (folder / SAFE_WEIGHTS_NAME).write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is broken"):
        load_model(folder)


def test_raises_for_any_flipped_bit_of_an_exported_tensor(folder: Path) -> None:
    good = (folder / SAFE_WEIGHTS_NAME).read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    for i in range(header, len(good), 1 + (len(good) - header) // 50):
        flipped = bytes([good[i] ^ (1 << i % 8)])
        (folder / SAFE_WEIGHTS_NAME).write_bytes(good[:i] + flipped + good[i + 1 :])
        with pytest.raises(ValueError, match=r"is damaged: tensor .* is not the one|NaN|differs"):
            load_model(folder)


def test_raises_for_folders_without_safetensors_and_never_unpickles(folder: Path) -> None:
    (folder / SAFE_WEIGHTS_NAME).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_FailsIfUnpickled()))
    with pytest.raises(ValueError, match=r"neither .*pickled \.bin files\) are never read"):
        load_model(folder)


def test_raises_for_a_file_of_the_index_that_is_missing_or_outside_the_folder(
    decoder: Decoder, folder: Path, tmp_path: Path
) -> None:
    export_model(decoder, tmp_path / "parts", max_file_bytes=1000)
    index = json.loads((tmp_path / "parts" / SAFE_WEIGHTS_INDEX_NAME).read_text())
    missing = min(index["weight_map"].values())
    (tmp_path / "parts" / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        load_model(tmp_path / "parts")
    outside = dict.fromkeys(index["weight_map"], f"../model/{SAFE_WEIGHTS_NAME}")
    (tmp_path / "parts" / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps({"weight_map": outside}))
    for shard in (tmp_path / "parts").glob("model-*.safetensors"):
        shard.unlink()
    with pytest.raises(ValueError, match=r"parts/model\.safetensors is missing"):
        load_model(tmp_path / "parts")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.json is missing"),
        ("{", r"config\.json is not JSON"),
        ("[]", r"config\.json must hold a JSON object, got list"),
        ('{"model_type": "gpt2"}', r"config\.json: `model_type` must be one of"),
    ],
)
def test_raises_for_configurations_that_cannot_be_read(
    folder: Path, content: str | None, message: str
) -> None:
    (folder / CONFIG_NAME).unlink()
    if content is not None:
        (folder / CONFIG_NAME).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_closed_form_only_safetensors_are_downloaded_from_the_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests: dict[str, list[str]] = {}

    def snapshot_download(name: str, *, allow_patterns: list[str], **options: Any) -> str:
        assert options == {"repo_type": "model", "revision": None}
        requests[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_model(resolve_model_folder("someone/small")).architecture == SMALL
    patterns = requests["someone/small"]
    assert "*.safetensors" in patterns
    assert resolve_tokenizer_folder("hf://someone/words") == folder
    assert "tokenizer.json" in requests["someone/words"]
    assert "*.safetensors" not in requests["someone/words"]
    for name in ("pytorch_model.bin", "weights.pt", "modeling.py", "model.pkl"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def test_raises_for_unknown_models() -> None:
    with pytest.raises(
        ValueError, match="no/such/folder does not exist: give a model folder, or a "
    ):
        resolve_model_folder("no/such/folder")


def test_raises_instead_of_overwriting_a_folder(decoder: Decoder, folder: Path) -> None:
    before = (folder / SAFE_WEIGHTS_NAME).stat().st_mtime_ns
    with pytest.raises(ValueError, match="exists already and is not an empty folder"):
        export_model(decoder, folder)
    assert (folder / SAFE_WEIGHTS_NAME).stat().st_mtime_ns == before


def test_raises_and_leaves_nothing_when_writing_fails(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(llm.hf.io, "write_safetensors", disk_full)
    with pytest.raises(OSError, match="No space left"):
        export_model(decoder, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


class _FailsIfUnpickled:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the file was unpickled",))


def _edit(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    tensors = load_file(folder / SAFE_WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, folder / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})


def _n_bytes(path: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(path).values())


def _leaves(decoder: Decoder) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(decoder))]


def _equal(first: Decoder, second: Decoder) -> bool:
    pairs = zip(_leaves(first), _leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_roundtrip_architecture_and_parameters_are_read_separately(
    decoder: Decoder, folder: Path
) -> None:
    assert resolve_model_folder(folder) == folder
    assert read_architecture(folder) == SMALL
    expected = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(decoder))}
    shardings = {path: single_device().sharding(path) for path in expected}
    found = list(read_parameters(folder, SMALL, expected, shardings))
    sizes = [values.size for _, values in found]
    assert sizes == sorted(sizes, reverse=True)
    assert {path for path, _ in found} == expected.keys()
    for path, values in found:
        np.testing.assert_array_equal(values, expected[path], err_msg=str(path))
    (folder / CONFIG_NAME).write_text('{"model_type": "other"}')
    with pytest.raises(ValueError, match=f"^{folder / CONFIG_NAME}: "):
        read_architecture(folder)


def test_closed_form_tensors_are_split_into_files_of_limited_size(tmp_path: Path) -> None:
    lengths = {"a": 3, "b": 2, "c": 9, "d": 1}
    tensors = {name: np.full(length, length, np.float32) for name, length in lengths.items()}
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    write_safetensors(tmp_path, sizes, tensors.__getitem__, max_file_bytes=20)
    groups = [["a", "b"], ["c"], ["d"]]  # c alone exceeds the limit
    for number, names in enumerate(groups, start=1):
        found = load_file(tmp_path / f"model-{number:05d}-of-00003.safetensors")
        assert sorted(found) == names
        for name, tensor in found.items():
            np.testing.assert_array_equal(tensor, tensors[name])
    index = json.loads((tmp_path / SAFE_WEIGHTS_INDEX_NAME).read_text())
    assert index["metadata"]["total_size"] == 4 * (3 + 2 + 9 + 1)
    assert index["weight_map"]["d"] == "model-00003-of-00003.safetensors"
