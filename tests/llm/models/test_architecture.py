"""Architectures: checked values, and Hugging Face configurations of every family."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from llm.hf.config import from_hf_config, to_hf_config
from llm.hf.families import FAMILIES
from llm.hf.names import tensor_mappings
from llm.models.architecture import Architecture, RopeScaling
from llm.models.rope import rope_frequencies

SIZES = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TINY: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ROUNDING = 1e-14  # relative, float64


@pytest.mark.parametrize("family", FAMILIES)
def test_roundtrip_of_every_family_by_its_defaults(family: str) -> None:
    architecture = from_hf_config({"model_type": family, **SIZES})
    assert from_hf_config(to_hf_config(architecture)) == architecture


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "eos_token_id": [2, 3]}),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("mistral", {"sliding_window": 3}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}),
        ("gemma2", {"query_pre_attn_scalar": 144, "attn_logit_softcapping": None}),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}),
        ("gemma3_text", {"rope_local_base_freq": 50.0, "sliding_window_pattern": 3}),
    ],
)
def test_roundtrip_of_options(family: str, options: dict[str, Any]) -> None:
    architecture = from_hf_config({"model_type": family, **SIZES, **options})
    assert architecture != from_hf_config({"model_type": family, **SIZES})
    assert from_hf_config(to_hf_config(architecture)) == architecture


def test_closed_form_keys_of_transformers_4_and_5_are_equivalent() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}
    sizes = {"model_type": "llama", **SIZES}
    assert from_hf_config(sizes | old) == from_hf_config(sizes | new)
    third = {"model_type": "gemma3_text", **SIZES}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 7e5},
            "sliding_attention": {"rope_theta": 70.0},
        }
    }
    old = {"rope_theta": 7e5, "rope_local_base_freq": 70.0}
    assert from_hf_config(third | old) == from_hf_config(third | new)


def test_closed_form_local_layers_of_the_families() -> None:
    def flags(family: str, **options: Any) -> str:
        architecture = from_hf_config({"model_type": family, **SIZES, **options})
        return "".join("L" if local else "." for local in architecture.local_layers)

    assert flags("llama", sliding_window=4) == ""
    assert flags("mistral", sliding_window=4) == "LLLLLLL"
    assert flags("mistral", sliding_window=None) == ""
    assert flags("qwen2", sliding_window=4, use_sliding_window=False) == ""
    assert flags("qwen2", use_sliding_window=True, max_window_layers=5) == ".....LL"
    assert flags("gemma2") == "L.L.L.L"
    assert flags("gemma3_text") == "LLLLL.L"
    assert flags("olmo3") == "LLL.LLL"
    assert flags("phi3", sliding_window=4) == "LLLLLLL"
    assert flags("smollm3", sliding_window=4, use_sliding_window=True) == "...L..."


def test_closed_form_layers_of_smollm_3_without_rotary_angles() -> None:
    smollm = {"model_type": "smollm3", **SIZES}
    assert from_hf_config(smollm).rope_layers == (True, True, True, False, True, True, True)
    listed = from_hf_config(smollm | {"no_rope_layers": [1, 0, 1, 1, 1, 1, 1, 0]})
    assert listed.rope_layers == (True, False, True, True, True, True, True)
    assert from_hf_config(smollm | {"no_rope_layers": [1] * 7}).rope_layers == ()


def test_closed_form_gelu_of_the_first_gemma_is_the_approximate_one() -> None:
    gemma = from_hf_config({"model_type": "gemma", "hidden_act": "gelu", **SIZES})
    assert gemma.hidden_act == "gelu_pytorch_tanh"
    assert (gemma.norm_plus_one, gemma.scaled_embeddings, gemma.tie_word_embeddings) == (True,) * 3


def test_closed_form_llama_3_scaling_divides_slow_frequencies_only() -> None:
    """The planes rotate 10, 2.5 and 0.5 times within 64 positions."""
    scaling = RopeScaling(rope_type="llama3", factor=8.0, original_max_position_embeddings=64)
    base = 4.0
    plain = Architecture(**TINY, head_dim=8, rope_theta=base)
    scaled = rope_frequencies(dataclasses.replace(plain, rope_scaling=scaling))[0]
    omega = base ** (-np.arange(4) / 4)
    wavelengths = 2 * np.pi / omega
    expected = []
    for frequency, wavelength in zip(omega, wavelengths, strict=True):
        if wavelength < 64 / 4:
            expected.append(frequency)
        elif wavelength > 64 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    np.testing.assert_allclose(scaled, expected, rtol=ROUNDING)
    slow = rope_frequencies(dataclasses.replace(plain, rope_theta=1e6, rope_scaling=scaling))[0]
    assert slow[-1] == pytest.approx(1e6**-0.75 / 8, rel=ROUNDING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_key_value_heads": 3},
            "`num_attention_heads` must be a multiple of `num_key_value_heads`, got 4 and 3",
        ),
        ({"head_dim": 3}, "`head_dim` must be even, got 3"),
        ({"hidden_size": 0}, "`hidden_size` must be positive, got 0"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` must be positive, got nan"),
        (
            {"local_layers": (True,), "sliding_window": 3},
            "`local_layers` must have one flag for each",
        ),
        (
            {"local_layers": (True, False)},
            "`sliding_window` must be positive if there are local layers, got None",
        ),
        ({"hidden_act": "relu"}, "hidden_act"),
        (
            {"final_logit_softcapping": 0.0},
            "`final_logit_softcapping` must be positive or absent, got 0.0",
        ),
    ],
)
def test_raises_on_architectures_that_cannot_be(options: dict[str, Any], message: str) -> None:
    """Under the test run a name outside a literal type is refused even before."""
    with pytest.raises((ValueError, TypeError), match=message):
        Architecture(**(TINY | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "gpt2"}, "`model_type` must be one of llama, .*got 'gpt2'"),
        ({"model_type": None}, "`model_type` must be one of"),
        ({"hidden_size": None}, "`hidden_size` must be of type int, got None"),
        ({"hidden_size": "8"}, "`hidden_size` must be of type int, got '8'"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings` must be of type bool, got 1"),
        ({"rms_norm_eps": True}, "`rms_norm_eps` must be of type float, got True"),
        ({"hidden_act": "relu"}, "`hidden_act` must be one of .*got 'relu'"),
        ({"rope_scaling": {"rope_type": "su"}}, "`rope_scaling.rope_type` must be .*got 'su'"),
        ({"rope_scaling": {"type": "linear"}}, "`factor` is missing"),
        ({"rope_scaling": "linear"}, "`rope_scaling` must be an object, got 'linear'"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config` must be absent"),
    ],
)
def test_raises_for_configurations_that_cannot_be_read(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_hf_config({"model_type": "llama", **SIZES, **options})


def test_raises_on_layers_of_unknown_type_and_scaled_local_angles() -> None:
    third = {"model_type": "gemma3_text", **SIZES}
    with pytest.raises(ValueError, match=r"`layer_types` must be .*got 'linear_attention'"):
        from_hf_config(third | {"layer_types": ["linear_attention"] * 7})
    scaled = {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}
    with pytest.raises(ValueError, match="sliding_attention must be default, got 'linear'"):
        from_hf_config(third | {"rope_parameters": scaled})


@pytest.mark.parametrize(
    "options", [{"model_type": "toy"}, {"final_logit_softcapping": 3.0}, {"post_norms": True}]
)
def test_raises_on_writing_what_the_family_cannot_express(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`model_type`"):
        to_hf_config(Architecture(**(TINY | options)))


def test_closed_form_lists_of_configuration_files_become_tuples() -> None:
    lists: dict[str, Any] = {
        "local_layers": [True, False],
        "eos_token_id": [1, 2],
        "sliding_window": 3,
    }
    architecture = Architecture(**TINY, **lists)
    assert architecture.local_layers == (True, False)
    assert hash(architecture) == hash(dataclasses.replace(architecture))


def test_raises_on_scalings_that_cannot_be() -> None:
    with pytest.raises((ValueError, TypeError), match="rope_type"):
        RopeScaling(rope_type="su", factor=2.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`factor` must be 1 or more, got 0\.5"):
        RopeScaling(rope_type="linear", factor=0.5)
    with pytest.raises(ValueError, match="`low_freq_factor` must be positive and below"):
        RopeScaling(rope_type="llama3", factor=2.0, low_freq_factor=4.0)


def test_closed_form_names_of_a_gemma_2_layer() -> None:
    gemma = from_hf_config({"model_type": "gemma2", **SIZES})
    names = {entry.path: entry.name for entry in tensor_mappings(gemma)}
    norms = {path[1]: name for path, name in names.items() if name.endswith("layernorm.weight")}
    assert {ours: name.split(".")[-2] for ours, name in norms.items()} == {
        "input_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
    assert "lm_head.weight" not in names.values()


def test_closed_form_names_of_an_olmo_2_layer_and_fused_projections_of_phi_3() -> None:
    olmo = from_hf_config({"model_type": "olmo2", **SIZES})
    names = {entry.path[1]: entry.name for entry in tensor_mappings(olmo) if len(entry.path) > 2}
    assert {module: name.split(".")[-2] for module, name in names.items() if "norm" in module} == {
        "q_proj_norm": "q_norm",
        "k_proj_norm": "k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
    phi = from_hf_config({"model_type": "phi3", **SIZES, "eos_token_id": 2})
    parts = {entry.path[1]: entry for entry in tensor_mappings(phi) if entry.part is not None}
    assert {module: tuple(entry.part or ())[:2] for module, entry in parts.items()} == {
        "q_proj": (0, 16),
        "k_proj": (8, 16),
        "v_proj": (12, 16),
        "gate_proj": (0, 24),
        "up_proj": (12, 24),
    }
    assert parts["v_proj"].names(1) == ["model.layers.0.self_attn.qkv_proj.weight"]
