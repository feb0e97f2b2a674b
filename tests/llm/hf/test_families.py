"""Claims about the registry of families, and the family of the how-to page."""

from __future__ import annotations

import inspect
import json
import re
import runpy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from llm.hf.config import from_hf_config, to_hf_config
from llm.hf.exported_tensors import exported_tensors
from llm.hf.families import (
    COMPOSITES,
    FAMILIES,
    MODULES,
    ConfigReader,
    Family,
    gemma,
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    ministral,
    mistral,
    mixtral,
    olmo3,
    olmoe,
    qwen2,
    qwen3,
    qwen3_moe,
    register_family,
    smollm3,
)
from llm.hf.families.moe import ROUTER, read_router, write_router
from llm.hf.families.windows import (
    all_but_every,
    read_windows,
    write_layer_types,
    write_window,
)
from llm.hf.io import export_model, load_model, model_notes, read_architecture
from llm.hf.multimodal import multimodal_base
from llm.hf.names import folder_mappings
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.rope import rope_frequencies

EXAMPLE = Path(__file__).parents[3] / "examples" / "seed_oss.py"
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
}


def test_property_a_family_is_a_short_file_and_is_registered_by_its_type() -> None:
    for module in MODULES:
        assert len(inspect.getsource(module).splitlines()) <= 150
        assert FAMILIES[module.FAMILY.model_type] is module.FAMILY
    assert set(COMPOSITES) == {"gemma3", "mistral3"}
    for composite in COMPOSITES.values():
        assert set(composite.families) <= set(FAMILIES)


def test_roundtrip_of_the_family_of_the_example(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    family: Family = runpy.run_path(str(EXAMPLE))["FAMILY"]
    monkeypatch.setitem(FAMILIES, family.model_type, family)
    assert register_family(family) is family
    a = from_hf_config({"model_type": "seed_oss", **SIZES, "attention_out_bias": True})
    assert (a.qkv_bias, a.o_proj_bias, a.mlp_bias, a.pad_token_id) == (True, True, False, 1)
    assert from_hf_config(to_hf_config(a)) == a
    decoder = Decoder(a, rngs=nnx.Rngs(0))
    export_model(decoder, tmp_path / "model")
    kernel = load_model(tmp_path / "model").layers.o_proj.kernel[...]
    np.testing.assert_array_equal(kernel, decoder.layers.o_proj.kernel[...])
    with pytest.raises(ValueError, match="'llama' is registered already"):
        register_family(Family(model_type="llama", class_name="Mine", keys={}))


def test_closed_form_windows_and_routers_are_read_and_written() -> None:
    keys = ConfigReader(
        {"layer_types": ["sliding_attention", "full_attention"]}, {"layer_types": 0}
    )
    fields = read_windows(keys, 4, all_but_every(4, 2))
    assert fields == {"sliding_window": 4, "local_layers": (True, False)}
    a = Architecture(**SIZES, **fields, num_experts=4, num_experts_per_tok=2)
    assert write_layer_types(a)["layer_types"] == keys.config["layer_types"]
    assert write_window(a) == {"sliding_window": 4}
    router = ConfigReader(write_router(a, "num_local_experts"), ROUTER)
    assert read_router(router) == {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.0,
        "output_router_logits": False,
    }


FAMILY_KEYS: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "llama": (llama, llama.read, llama.write, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (mistral, mistral.read, mistral.write, {"sliding_window": 5}),
    "ministral": (mistral, mistral.read, ministral.write, {"sliding_window": 5}),
    "qwen2": (qwen2, qwen2.read, qwen2.write, {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": (qwen3, qwen3.read, qwen3.write, {"attention_bias": True}),
    "gemma": (gemma, gemma.read, gemma.write, {"attention_bias": True}),
    "gemma2": (gemma2, gemma2.read, gemma2.write, {"query_pre_attn_scalar": 7}),
    "gemma3": (gemma3, gemma3.read, gemma2.write, {"sliding_window_pattern": 2}),
    "olmo3": (olmo3, olmo3.read, olmo3.write, {"sliding_window": 5}),
    "granite": (granite, granite.read, granite.write, {"residual_multiplier": 0.3}),
    "smollm3": (smollm3, smollm3.read, smollm3.write, {"no_rope_layers": [0, 1]}),
    "mixtral": (mixtral, mixtral.read, mixtral.write, {"num_local_experts": 4}),
    "qwen3_moe": (qwen3_moe, qwen3_moe.read, qwen3_moe.write, {"norm_topk_prob": True}),
    "olmoe": (olmoe, olmoe.read, olmoe.write, {"num_experts": 9}),
    "gpt_oss": (gpt_oss, gpt_oss.read, gpt_oss.write, {"swiglu_limit": 3.0}),
}
"""Module of a family, its functions of own keys, and a value that is not the default."""


@pytest.mark.parametrize("family", FAMILY_KEYS)
def test_roundtrip_of_the_keys_of_one_family(family: str) -> None:
    module, read, write, changed = FAMILY_KEYS[family]
    defaults = module.FAMILY.keys
    sizes = {key: SIZES[key] for key in ("hidden_size", "num_attention_heads", "num_hidden_layers")}
    fields = read(ConfigReader(sizes | changed, {**defaults, **changed}))
    assert fields != read(ConfigReader(sizes, defaults)) or family == "ministral"
    written = write(Architecture(**{**SIZES, **fields}))
    assert (
        written.items() >= {key: value for key, value in changed.items() if key in written}.items()
    )
    assert read(ConfigReader(sizes | written, defaults)) == fields


def test_property_an_explicit_architecture_has_the_same_scale_and_angles() -> None:
    local = {"local_layers": (True, False), "sliding_window": 4}
    a = Architecture(**{**SIZES, "head_dim": 4}, **local, rope_theta=7.0)
    for explicit in (
        gemma2.explicit,
        gemma3.explicit,
        gemma3.explicit_local_base,
        granite.explicit,
    ):
        same = explicit(a)
        assert same.attention_scale == a.attention_scale
        frequencies = rope_frequencies(same)
        assert (frequencies == rope_frequencies(a)[0]).all()
        assert explicit(same) == same
    scalars = ConfigReader({"query_pre_attn_scalar": 9}, gemma2.KEYS)
    assert gemma2.read_scale_and_caps(scalars)["attn_logit_softcapping"] == 50.0
    assert (scalars.optional("head_dim"), scalars.positive("query_pre_attn_scalar")) == (256, 9)
    names = [each.name for each in gpt_oss.experts(a, {"router": "router"})]
    assert names[0] == "model.layers.{layer}.mlp.router.weight"


def test_roundtrip_of_the_images_of_a_multimodal_folder(tmp_path: Path) -> None:
    text = {**SIZES, "sliding_window": 4, "head_dim": 4, "torch_dtype": "float64"}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"depth": 1}, "x": [1]}
    decoder = Decoder(from_hf_config(config), rngs=nnx.Rngs(0))
    export_model(decoder, tmp_path / "text")
    tensors = load_file(tmp_path / "text" / "model.safetensors")
    renamed = {f"language_{name}": values for name, values in tensors.items()}
    image = {"vision_tower.patch.weight": np.arange(6, dtype=np.int32).reshape(2, 3)}
    base = tmp_path / "base"
    base.mkdir()
    save_file(renamed | image, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(config))
    (base / "preprocessor_config.json").write_text("{}")
    loaded = load_model(base)
    export_model(loaded, tmp_path / "policy", base_folder=base)
    written = load_file(tmp_path / "policy" / "model.safetensors")
    assert written.keys() == (renamed | image).keys()
    for name, values in (renamed | image).items():
        assert written[name].tobytes() == values.tobytes(), name
    found = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert found == {
        **config,
        "dtype": "float32",
        "text_config": {**text, "torch_dtype": "float32"},
    }
    with multimodal_base(base, loaded.architecture) as multimodal:
        assert multimodal is not None
        assert multimodal.config_of("float32") == found
        multimodal.copy_files(tmp_path)
        sizes, read = multimodal.with_images({}, read=lambda name: np.zeros(0))
        assert sizes == {"vision_tower.patch.weight": 24}
        assert (read("vision_tower.patch.weight") == image["vision_tower.patch.weight"]).all()
        multimodal.files.check_shape("vision_tower.patch.weight", (2, 3))
        assert multimodal.files.read_unchecked("vision_tower.patch.weight").dtype == np.int32
    assert (tmp_path / "preprocessor_config.json").read_text() == "{}"
    with multimodal_base(base, from_hf_config({"model_type": "llama", **SIZES})) as multimodal:
        assert multimodal is None


@pytest.mark.parametrize("family", ["phi3", "gpt_oss", "mixtral"])
def test_roundtrip_of_tensors_that_hold_several_parameters(family: str, tmp_path: Path) -> None:
    experts = {} if family == "phi3" else {"num_local_experts": 3, "num_experts_per_tok": 2}
    tokens = {"eos_token_id": 2, "pad_token_id": 0}
    a = from_hf_config({"model_type": family, **SIZES, **tokens, **experts})
    graphdef, state = nnx.split(Decoder(a, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)
    leaves = {
        path: leaf.replace(jnp.asarray(rng.normal(size=leaf.shape), jnp.float32))
        for path, leaf in nnx.to_flat_state(state)
    }
    decoder = nnx.merge(graphdef, nnx.from_flat_state(leaves))
    export_model(decoder, tmp_path / "model")
    loaded = dict(nnx.to_flat_state(nnx.state(load_model(tmp_path / "model"))))
    assert loaded.keys() == leaves.keys()
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(loaded[path][...], leaf[...], err_msg=str(path))
    assert read_architecture(tmp_path / "model") == a
    sizes, read = exported_tensors(decoder, np.dtype("float32"), None, None)
    prefix = "model.layers.1."
    layer = {path[1:]: np.asarray(leaf[1]) for path, leaf in loaded.items() if path[0] == "layers"}
    if family == "phi3":
        fused = read(f"{prefix}self_attn.qkv_proj.weight")
        parts = [layer[f"{name}_proj", "kernel"] for name in "qkv"]
        np.testing.assert_array_equal(fused, np.concatenate(parts, axis=1).T)
    elif family == "gpt_oss":
        fused = read(f"{prefix}mlp.experts.gate_up_proj_bias")
        np.testing.assert_array_equal(fused[:, 1::2], layer["experts", "up_proj", "bias"])
    else:
        down = read(f"{prefix}block_sparse_moe.experts.2.w2.weight")
        np.testing.assert_array_equal(down, layer["experts", "down_proj", "kernel"][2].T)
    assert all(sizes[name] == read(name).nbytes for name in sizes)
    with multimodal_base(tmp_path / "model", a) as base:
        assert base is None


def test_roundtrip_of_experts_that_a_folder_holds_in_one_tensor(tmp_path: Path) -> None:
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    a = from_hf_config({"model_type": "mixtral", **SIZES, **experts})
    decoder = Decoder(a, rngs=nnx.Rngs(0))
    export_model(decoder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        moe = {name: tensors.pop(name) for name in list(tensors) if f"{prefix}block_sp" in name}
        gate, down, up = (
            np.stack([moe[f"{prefix}block_sparse_moe.experts.{e}.w{n}.weight"] for e in range(3)])
            for n in (1, 2, 3)
        )
        tensors[f"{prefix}mlp.gate.weight"] = moe[f"{prefix}block_sparse_moe.gate.weight"]
        tensors[f"{prefix}mlp.experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        tensors[f"{prefix}mlp.experts.down_proj"] = down
    save_file(tensors, path)
    loaded = dict(nnx.to_flat_state(nnx.state(load_model(tmp_path / "model"))))
    for key, leaf in nnx.to_flat_state(nnx.state(decoder)):
        np.testing.assert_array_equal(loaded[key][...], leaf[...], err_msg=str(key))
    assert folder_mappings(a, tensors)[-1].part is None


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("experts.1.w2.weight", None, "tensor model.layers.1.{name} is missing"),
        ("experts.1.w2.weight", (8, 11), "{name} must have shape [8, 12], got [8, 11]"),
        ("gate.weight", (2, 8), "{name} must have shape [3, 8], got [2, 8]"),
    ],
)
def test_raises_before_any_tensor_is_read_for_experts_that_do_not_fit(
    name: str, change: tuple[int, int] | None, message: str, tmp_path: Path
) -> None:
    name = f"block_sparse_moe.{name}"
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2}
    a = from_hf_config({"model_type": "mixtral", **SIZES, **experts})
    export_model(Decoder(a, rngs=nnx.Rngs(0)), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors[f"model.layers.1.{name}"]
    if change is not None:
        tensors[f"model.layers.1.{name}"] = np.zeros(change, np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=re.escape(message.format(name=name))) as error:
        model_notes(tmp_path / "model")
    assert str(tmp_path / "model") in str(error.value)
