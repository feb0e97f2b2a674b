"""Claims about the registry of families, and the family of the how-to page."""

from __future__ import annotations

import inspect
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
from llm.hf.families import COMPOSITES, FAMILIES, MODULES, ConfigReader, Family, register_family
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
