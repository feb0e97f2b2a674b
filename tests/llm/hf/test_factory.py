"""Claims about models from a configuration: sizes are known before any parameter is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from llm.config import ModelConfig
from llm.hf.factory import abstract_model, resolve_model
from llm.models.architecture import Architecture

SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
FILE = {
    "model_type": "llama",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def test_parity_an_architecture_is_read_from_the_configuration_or_the_model_folder(
    tmp_path: Path,
) -> None:
    random = resolve_model(ModelConfig(architecture=SIZES))
    assert (random.folder, random.architecture) == (None, Architecture(**SIZES))
    (tmp_path / "config.json").write_text(json.dumps(FILE))
    read = resolve_model(ModelConfig(path=str(tmp_path)))
    assert read.folder == tmp_path
    assert {name: getattr(read.architecture, name) for name in SIZES} == SIZES


def test_raises_with_the_key_of_an_invalid_architecture() -> None:
    with pytest.raises(ValueError, match=r"architecture`: `hidden_size` must be positive, got 0$"):
        resolve_model(ModelConfig(architecture={**SIZES, "hidden_size": 0}))
    with pytest.raises(ValueError, match=r"^`model.architecture`: `depth` is not a field"):
        resolve_model(ModelConfig(architecture={**SIZES, "depth": 2}))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"model_type": "qwen2"}, "qkv_bias"),
        ({"model_type": "mistral", "mlp_bias": True}, "mlp_bias"),
        ({"local_layers": [True, False], "sliding_window": 3}, "sliding_window"),
    ],
)
def test_raises_before_training_for_a_model_that_cannot_be_exported(
    options: dict[str, Any], field: str
) -> None:
    message = f"^`model.architecture`: .* could not be exported: `{field}` would be"
    with pytest.raises(ValueError, match=message):
        resolve_model(ModelConfig(architecture={**SIZES, **options}))
    with pytest.raises(ValueError, match=r"`model_type` must be one of .*got 'toy'$"):
        resolve_model(ModelConfig(architecture={**SIZES, "model_type": "toy"}))


def test_closed_form_notes_of_a_resolved_model_name_unused_keys(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**FILE, "clip_qkv": 8.0}))
    assert resolve_model(ModelConfig(path=str(tmp_path))).notes == (
        "config.json: keys without effect: clip_qkv",
    )
    assert resolve_model(ModelConfig(architecture=SIZES)).notes == ()


def test_closed_form_an_abstract_model_has_the_shapes_of_parameters_and_adapters() -> None:
    config = ModelConfig(architecture=SIZES, param_dtype="bfloat16", lora_r=3)
    state: Any = nnx.state(abstract_model(resolve_model(config)), nnx.Param)
    leaves = jax.tree.leaves(state)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    up = state["layers"]["up_proj"]
    parameters = up["kernel"], up["adapter"]["a"], up["adapter"]["b"]
    assert [leaf.get_value().shape for leaf in parameters] == [(2, 8, 12), (2, 8, 3), (2, 3, 12)]
    kernels = 2 * (4 * 8 * 8 + 3 * 8 * 12)
    adapters = 2 * 3 * (4 * (8 + 8) + 3 * (8 + 12))
    assert sum(leaf.size for leaf in leaves) == kernels + adapters + 5 * 8 + 2 * 11 * 8
    assert up["kernel"].get_value().dtype == jnp.bfloat16
