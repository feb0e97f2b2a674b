"""Claims about PEFT folders: what is written is what PEFT writes, and nothing wrong is read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from llm.config import LoraConfig, ModelConfig
from llm.hf.adapter_config import read_adapter_config, write_adapter_config
from llm.hf.adapters import (
    adapted_architecture,
    adapter_tensors,
    check_adapter,
    export_adapter,
    projection_shapes,
    read_adapter,
    saved_mappings,
    with_stored_prefix,
)
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.hf.safetensors import SafetensorsReader
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import SavedParam, apply_lora, lora_shapes, trainable_filter
from llm.types import Rows

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
FIELDS = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "kasa_config",
    "layer_replication",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "monteclora_config",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "target_parameters",
    "task_type",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
    "velora_config",
]
"""Fields that the ``save_pretrained`` of PEFT 0.21.0 writes, in its order."""
NAMES = [
    "base_model.model.lm_head.weight",
    "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight",
    "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight",
    "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
    "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight",
    "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
    "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
]
"""Names of the tensors that PEFT 0.21.0 writes for the adapter below."""
SHAPES = [(11, 8), (3, 12), (8, 3), (1, 8), (8, 1), (3, 12), (8, 3), (3, 8), (8, 3)]
OPTIONS: dict[str, Any] = {
    "lora_r": 3,
    "lora_alpha": 6.0,
    "lora_dropout": 0.25,
    "lora_target_modules": ["q_proj", "down_proj"],
    "lora_rank_pattern": {r"layers\.0\.self_attn\.q_proj": 1},
    "lora_modules_to_save": ["lm_head"],
}


def randomized(decoder: Decoder, seed: int = 0) -> Decoder:
    """Add noise to the trained parameters; zeros of unused ranks and layers stay."""
    rng = np.random.default_rng(seed)
    state = nnx.state(decoder, trainable_filter(decoder))
    nnx.update(decoder, jax.tree.map(lambda x: jnp.where(x == 0, x, x + 0.1 * rng.normal()), state))
    for name in ("q_proj", "down_proj"):
        adapter = getattr(decoder.layers, name).adapter
        if adapter is not None:
            used = jnp.any(adapter.a[...] != 0, axis=1)[:, :, None]
            adapter.b[...] = jnp.where(used, jnp.asarray(rng.normal(size=adapter.b.shape)), 0.0)
    return decoder


def hidden(decoder: Decoder) -> np.ndarray:
    columns = np.arange(5)[None]
    rows = Rows(columns, columns, np.ones_like(columns), np.zeros_like(columns))
    return np.asarray(decoder.head().logits(decoder.hidden_states(rows)[0]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter of it, and the logits of both together."""
    folder = tmp_path_factory.mktemp("adapters")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        export_model(build_model(resolve_model(ModelConfig(architecture=SIZES))), folder / "base")
        config = ModelConfig(path=str(folder / "base"), **OPTIONS)
        decoder = randomized(build_model(resolve_model(config)))
        report = export_adapter(decoder, folder / "adapter", base=str(folder / "base"))
        assert report.dtype == "float32"
        assert report.n_bytes == 4 * sum(int(np.prod(shape)) for shape in SHAPES)
        np.save(folder / "logits.npy", hidden(decoder))
    return folder


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Path:
    shutil.copytree(folders / "adapter", tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(folder: Path, base: Path, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:
        resolve_model(ModelConfig(path=str(base), adapter=str(folder), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_golden_fields_and_tensors_are_those_of_peft(folders: Path) -> None:
    document = json.loads((folders / "adapter" / "adapter_config.json").read_text())
    assert list(document) == FIELDS
    changed = {
        "base_model_name_or_path": str(folders / "base"),
        "r": 3,
        "lora_alpha": 6,
        "lora_dropout": 0.25,
        "target_modules": ["down_proj", "q_proj"],
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 1},
        "modules_to_save": ["lm_head"],
    }
    assert {name: document[name] for name in changed} == changed
    tensors = load_file(folders / "adapter" / "adapter_model.safetensors")
    assert sorted(tensors) == NAMES
    assert [tensors[name].shape for name in NAMES] == SHAPES
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert sorted(path.name for path in (folders / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_roundtrip_an_adapter_has_the_same_logits_and_the_same_bytes(
    folders: Path, tmp_path: Path
) -> None:
    """The base is found by the name in the file."""
    decoder = build_model(resolve_model(ModelConfig(adapter=str(folders / "adapter"))))
    np.testing.assert_array_equal(hidden(decoder), np.load(folders / "logits.npy"))
    assert isinstance(decoder.output, SavedParam)
    export_adapter(decoder, tmp_path / "again", base=str(folders / "base"))
    for path in (folders / "adapter").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    merged = ModelConfig(adapter=str(folders / "adapter"), merge_adapter=True)
    whole = build_model(resolve_model(merged))
    assert whole.lora is None
    np.testing.assert_allclose(hidden(whole), hidden(decoder), rtol=0, atol=1e-5)


def test_closed_form_scales_and_ranks_of_every_layer() -> None:
    lora = LoraConfig(
        r=4,
        lora_alpha=6.0,
        use_rslora=True,
        target_modules=("q_proj", "up_proj"),
        layers_to_transform=(1,),
        rank_pattern=(("up_proj", 9),),
        alpha_pattern=(("mlp.up_proj", 3.0), ("up_proj", 1.0)),
    )
    shapes = lora_shapes(lora, 2)
    assert {name: [shape and shape[:2] for shape in layers] for name, layers in shapes.items()} == {
        "q_proj": [None, (4, 6.0)],
        "up_proj": [None, (9, 3.0)],
    }
    assert [shapes[name][1].scale for name in ("q_proj", "up_proj")] == [3.0, 1.0]  # pyright: ignore
    pattern = LoraConfig(target_modules=r".*\.1\.self_attn\.(k|v)_proj")
    assert set(lora_shapes(pattern, 2)) == {"k_proj", "v_proj"}
    excluded = LoraConfig(modules_to_save=("mlp",))
    assert set(lora_shapes(excluded, 2)) == {"q_proj", "k_proj", "v_proj", "o_proj"}


REFUSED: dict[str, Any] = {
    "peft_type": "IA3",
    "task_type": "SEQ_CLS",
    "bias": "lora_only",
    "use_dora": True,
    "fan_in_fan_out": True,
    "exclude_modules": ["v_proj"],
    "megatron_config": {"a": 1},
    "init_lora_weights": "pissa",
    "layer_replication": [[0, 1]],
    "trainable_token_indices": [1],
    "target_parameters": ["experts"],
    "ensure_weight_tying": True,
    "use_qalora": True,
    "a_new_field": 3,
    "r": 0,
    "lora_alpha": "much",
    "lora_dropout": 1.0,
    "target_modules": [],
}


@pytest.mark.parametrize("name", REFUSED)
def test_raises_a_field_that_changes_the_outputs_by_its_name(name: str, copy: Path) -> None:
    path = copy / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: REFUSED[name]}))
    with pytest.raises(ValueError, match=rf"adapter_config\.json: `{name}`") as caught:
        read_adapter_config(copy)
    assert "\n" not in str(caught.value)


def change(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "adapter_model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")

    return apply


def configure(**fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


A = NAMES[1]
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (change(lambda t: t.pop(A)), rf"safetensors: tensor {A} is missing \(1 of 9 are\)"),
    "extra": (change(lambda t: t.update(other=t[A])), "safetensors: tensor other is unexpected"),
    "shape": (change(lambda t: t.update({A: t[A][:, :5]})), rf"tensor {A} must have shape \[3, 12"),
    "nan": (change(lambda t: t[A].fill(np.nan)), rf"tensor {A} holds NaN or infinite numbers"),
    "dtype": (change(lambda t: t.update({A: t[A].astype(int)})), f"tensor {A} must be of type F64"),
    "rank": (configure(r=2), rf"tensor {A} must have shape \[2, 12\], got \[3, 12\]"),
    "modules": (configure(target_modules=["q_proj"]), f"tensor {A} is unexpected"),
    "names": (
        configure(target_modules=["c_attn"]),
        r"config\.json: .* got 'c_attn', which matches",
    ),
    "layers": (configure(modules_to_save=["layers.0.mlp"]), "in all layers or in none"),
    "no file": (lambda f: (f / "adapter_model.safetensors").unlink(), r"safetensors is missing$"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), r"config\.json is missing$"),
    "broken": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"a" * 9), "is broken"),
    "pickled": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "pickled weights are never read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_raises_for_a_damaged_adapter_with_file_and_tensor(
    name: str, folders: Path, copy: Path
) -> None:
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(ValueError, match=message):
        resolve_model(ModelConfig(path=str(folders / "base"), adapter=str(copy)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"lora_modules_to_save": ["embed_token"]},
            "`modules_to_save` 'embed_token' matches no mod",
        ),
        (
            {"lora_layers_to_transform": [0, 2]},
            "`layers_to_transform` must be less than 2, .* got 2",
        ),
        ({"lora_rank_pattern": {"qproj": 2}}, "`rank_pattern` 'qproj' matches no module with an"),
        ({"lora_alpha_pattern": {"x": 2.0}}, "`alpha_pattern` 'x' matches no module with an adapt"),
        ({"lora_target_modules": ".*c_attn"}, "`target_modules` must be .* got '.*c_attn', which"),
    ],
)
def test_raises_for_names_that_match_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^`model\.lora_\*`: {message}"):
        resolve_model(ModelConfig(architecture=SIZES, lora_r=2, **fields))


def test_raises_for_the_adapter_of_another_model(folders: Path, tmp_path: Path) -> None:
    for name, sizes in (
        ("wider", {"hidden_size": 16}),
        ("deeper", {"num_hidden_layers": 3}),
    ):
        model = resolve_model(ModelConfig(architecture=SIZES | sizes))
        export_model(build_model(model), tmp_path / name)
    adapter = folders / "adapter"
    assert f"{NAMES[0]} must have shape [11, 16], got [11, 8]" in refusal(
        adapter, tmp_path / "wider"
    )
    message = refusal(adapter, tmp_path / "deeper")
    assert "layers.2.mlp.down_proj.lora_A.weight is missing (4 of 13 are)" in message


def test_raises_for_keys_that_the_adapter_decides(folders: Path, tmp_path: Path) -> None:
    adapter = str(folders / "adapter")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"lora_r": 2}, "`model.lora_r` must not be given with `model.adapter`"),
        ({"lora_dropout": 0.1}, "`model.lora_dropout` must not be given with `model.adapter`"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            ModelConfig(adapter=adapter, **options)
    with pytest.raises(ValueError, match=r"`model\.merge_adapter` needs `model\.adapter`"):
        ModelConfig(path="model", merge_adapter=True)
    shutil.copytree(adapter, tmp_path / "moved")
    configure(base_model_name_or_path="owner/name")(tmp_path / "moved")
    message = r"`model\.path` is missing: the base model of the adapter .* is owner/name, which"
    with pytest.raises(ValueError, match=message):
        resolve_model(ModelConfig(adapter=str(tmp_path / "moved")))
    model = resolve_model(ModelConfig(adapter=str(tmp_path / "moved"), path=str(folders / "base")))
    assert "the adapter was trained on owner/name" in model.notes[-1]


def test_raises_to_write_a_model_without_adapters(folders: Path, tmp_path: Path) -> None:
    decoder = build_model(resolve_model(ModelConfig(architecture=SIZES)))
    with pytest.raises(ValueError, match="the model has no adapters"):
        export_adapter(decoder, tmp_path / "a")
    adapted = build_model(resolve_model(ModelConfig(adapter=str(folders / "adapter"))))
    with pytest.raises(ValueError, match="exists already and is not an empty folder"):
        export_adapter(adapted, folders / "adapter")
    export_adapter(adapted, tmp_path / "narrow", dtype=jnp.bfloat16)
    with SafetensorsReader(tmp_path / "narrow", "adapter_model.safetensors") as file:
        assert {file.dtype(name) for name in file.names()} == {"BF16"}


def test_closed_form_saved_embeddings_are_not_tied(folders: Path) -> None:
    tied = resolve_model(ModelConfig(architecture=SIZES | {"tie_word_embeddings": True}))
    for names, stays in ((("embed_tokens",), False), (("lm_head",), False), (("norm",), True)):
        lora = LoraConfig(modules_to_save=names)
        assert adapted_architecture(lora, tied.architecture).tie_word_embeddings is stays
    lora = LoraConfig(modules_to_save=("norm",))
    saved = [mapping.path for mapping in saved_mappings(lora, tied.architecture)]
    assert saved == [
        ("norm", "weight"),
        *(("layers", f"{n}_norm", "weight") for n in ("input", "mlp")),
    ]


def test_roundtrip_the_configuration_and_the_parameters_of_an_adapter(
    folders: Path, tmp_path: Path
) -> None:
    lora = LoraConfig(
        r=2,
        lora_alpha=2.5,
        target_modules=("k_proj", "q_proj"),
        layers_to_transform=(1,),
        layers_pattern=("layers",),
        alpha_pattern=(("q_proj", 3.0),),
    )
    write_adapter_config(tmp_path, lora, base=None)
    assert read_adapter_config(tmp_path) == (lora, None)
    stored = read_adapter_config(folders / "adapter").lora
    architecture = resolve_model(ModelConfig(architecture=SIZES)).architecture
    shapes = {
        ("layers", "q_proj", "adapter", "a"): (2, 8, 3),
        ("layers", "q_proj", "adapter", "b"): (2, 3, 8),
        ("layers", "down_proj", "adapter", "a"): (2, 12, 3),
        ("layers", "down_proj", "adapter", "b"): (2, 3, 8),
        ("output",): (11, 8),
    }
    check_adapter(folders / "adapter", stored, architecture, shapes)
    values = dict(read_adapter(folders / "adapter", stored, architecture, shapes))
    assert {path: each.shape for path, each in values.items()} == shapes
    a = values[("layers", "q_proj", "adapter", "a")]
    assert not a[0, :, 1:].any()  # the rank of layer 0 is 1
    assert a[1].all()


def test_roundtrip_adapters_of_embeddings_are_those_of_peft(folders: Path, tmp_path: Path) -> None:
    """PEFT writes the weights beneath them too, and reads files without these."""
    targets = ["embed_tokens", "lm_head"]
    config = ModelConfig(path=str(folders / "base"), lora_r=2, lora_target_modules=targets)
    decoder = build_model(resolve_model(config))
    assert decoder.embedding_adapter is not None
    factor = decoder.embedding_adapter.a
    factor[...] = jnp.ones_like(factor[...])
    export_adapter(decoder, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    prefix, tensors = "base_model.model.", load_file(path)
    assert {name.removeprefix(prefix): each.shape for name, each in tensors.items()} == {
        "lm_head.base_layer.weight": (11, 8),
        "lm_head.lora_A.weight": (2, 8),
        "lm_head.lora_B.weight": (11, 2),
        "model.embed_tokens.base_layer.weight": (11, 8),
        "model.embed_tokens.lora_embedding_A": (2, 11),
        "model.embed_tokens.lora_embedding_B": (8, 2),
    }
    adapter = ModelConfig(path=str(folders / "base"), adapter=str(tmp_path / "adapter"))
    for _ in range(2):
        np.testing.assert_array_equal(hidden(build_model(resolve_model(adapter))), hidden(decoder))
        kept = {name: each for name, each in tensors.items() if "base_layer" not in name}
        save_file(kept, path)


def test_raises_for_a_folder_of_projections_that_the_files_of_a_model_fuse(tmp_path: Path) -> None:
    """Training with such adapters is possible; the whole model is exported."""
    phi = {**SIZES, "model_type": "phi3"}
    decoder = build_model(resolve_model(ModelConfig(architecture=phi, lora_r=2)))
    with pytest.raises(ValueError, match=r"q_proj has no name in PEFT's files: .*qkv_proj\.weight"):
        export_adapter(decoder, tmp_path / "adapter")
    with pytest.raises(ValueError, match="experts and fused projections cannot be saved"):
        resolve_model(ModelConfig(architecture=phi, lora_r=2, lora_modules_to_save=["qkv_proj"]))
    sizes: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    sizes["model_type"] = "mixtral"
    with pytest.raises(ValueError, match="got 'up_proj', which matches no such module"):
        resolve_model(
            ModelConfig(architecture=SIZES | sizes, lora_r=2, lora_target_modules=["up_proj"])
        )
    model = resolve_model(ModelConfig(architecture=SIZES | sizes, lora_r=2))
    assert list(projection_shapes(LoraConfig(), model.architecture)) == [
        f"{name}_proj" for name in "qkvo"
    ]


def test_property_tensor_names_follow_the_architecture() -> None:
    architecture = resolve_model(ModelConfig(architecture=SIZES)).architecture
    tensors = adapter_tensors(LoraConfig(r=2, target_modules=("q_proj",)), architecture)
    assert [tensor.name for tensor in tensors] == [name for name in NAMES if "q_proj" in name]


def test_roundtrip_adapters_of_a_multimodal_model_have_the_names_of_its_text_model(
    tmp_path: Path,
) -> None:
    prefix, targets = "model.language_model.", ("v_proj", "lm_head")
    config = ModelConfig(architecture=SIZES)
    decoder = build_model(resolve_model(config))
    apply_lora(decoder, LoraConfig(target_modules=targets, module_prefix=prefix), rngs=nnx.Rngs(0))
    export_adapter(decoder, tmp_path / "adapter", base="base")
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    module = f"base_model.model.{prefix}layers.1.self_attn.v_proj"
    assert {f"{module}.lora_A.weight", "base_model.model.lm_head.lora_A.weight"} <= set(names)
    pattern = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    modules = [f"{prefix}layers.0.self_attn.v_proj", "lm_head", "model.vision_tower.v_proj"]
    found = [re.fullmatch(pattern["target_modules"], each) is not None for each in modules]
    assert found == [True, True, False]
    again = ModelConfig(architecture=SIZES, adapter=str(tmp_path / "adapter"))
    read = build_model(resolve_model(again))
    assert read.lora is not None
    assert read.lora.module_prefix == prefix
    assert with_stored_prefix(tmp_path / "adapter", LoraConfig()).module_prefix == prefix
    for ours, stored in zip(*map(jax.tree.leaves, map(nnx.state, (decoder, read))), strict=True):
        np.testing.assert_array_equal(stored, ours)


def test_closed_form_a_saved_router_has_the_name_of_the_class_of_the_model() -> None:
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    mixtral = Architecture(**SIZES, **experts, model_type="mixtral")
    (router,) = saved_mappings(LoraConfig(modules_to_save=("gate",)), mixtral)
    assert router.name == "model.layers.{layer}.mlp.gate.weight"
    for name in ("experts", "mlp"):
        with pytest.raises(ValueError, match="experts and fused projections cannot be saved"):
            saved_mappings(LoraConfig(modules_to_save=(name,)), mixtral)
