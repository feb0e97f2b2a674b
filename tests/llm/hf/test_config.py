"""Claims about ``config.json``: no key with content is passed over in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.hf.architecture_mapping import architecture_from_mapping
from llm.hf.config import from_hf_config, to_hf_config
from llm.hf.config_keys import NO_EFFECT, REFUSED
from llm.hf.config_notes import config_notes
from llm.hf.config_reference import config_reference
from llm.hf.families import FAMILIES
from llm.models.architecture import Architecture
from llm.models.rope import rope_angles, rope_frequencies

SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention"]
LINEAR = {"rope_type": "linear", "factor": 4.0}
NO_POSITIONS = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1}
LONG = {"type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1, 2, 3, 4]}
SCALINGS: dict[str, dict[str, Any]] = {"ministral3": YARN, "phi3": LONG}
"""Scalings of the families that do not know :data:`LINEAR`."""
DOCS = Path(__file__).parents[3] / "docs" / "reference" / "model_configs.md"


def read(family: str = "llama", /, **keys: Any) -> Architecture:
    return from_hf_config({"model_type": family, **sizes_of(family), **keys})


def sizes_of(family: str) -> dict[str, Any]:
    """Return sizes that a family accepts."""
    return {**SIZES, "head_dim": 2} if family == "olmoe" else SIZES


def test_golden_the_reference_page_is_that_of_the_table() -> None:
    assert DOCS.read_text(encoding="utf-8") == config_reference()


@pytest.mark.parametrize("family", FAMILIES)
def test_property_an_extra_key_with_content_is_used_refused_or_listed(family: str) -> None:
    for name, value in (("extra", 1), ("color", "red"), ("a_list", [0]), ("an_object", {"b": 0})):
        sizes = {"model_type": family, **sizes_of(family)}
        notes = config_notes({**sizes, name: value})
        assert notes == (f"config.json: keys without effect: {name}",)
        scaling = {**SCALINGS.get(family, LINEAR), name: value}
        if isinstance(value, dict) and not FAMILIES[family].rope_by_layer_type:
            with pytest.raises(ValueError, match=f"^`rope_scaling.{name}` must not be an object"):
                read(family, rope_scaling=scaling)
        else:
            notes = config_notes({**sizes, "rope_scaling": scaling})
            assert notes == (f"config.json: keys without effect: rope_scaling.{name}",)
    empty = {"extra": None, "other": []}
    assert config_notes({"model_type": family, **sizes_of(family), **empty}) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_raises_for_every_key_that_must_be_neutral(family: str) -> None:
    for key, (neutral, _) in {**REFUSED, **FAMILIES[family].refused}.items():
        if key in FAMILIES[family].keys:
            continue
        for value in neutral:
            assert read(family, **{key: value}) == read(family)
        for value in ({"bits": 4}, [1], "yes", 0.25):
            with pytest.raises(ValueError, match=f"^`{key}` must be absent, got "):
                read(family, **{key: value})


def test_closed_form_the_base_of_rotary_angles_is_read_wherever_it_stands() -> None:
    for settings in (
        {"rope_scaling": {**LLAMA_3, "rope_theta": 5e5}},
        {"rope_scaling": LLAMA_3, "rope_theta": 5e5},
        {"rope_parameters": {**LLAMA_3, "rope_theta": 5e5}},
        {"rope_parameters": {**LLAMA_3, "rope_theta": 5e5}, "rope_theta": 3.0},
    ):
        architecture = read(max_position_embeddings=64, **settings)
        assert architecture.rope_theta == 5e5
        assert architecture.rope_scaling is not None
        assert architecture.rope_scaling.original_max_position_embeddings == 64
    linear = read(rope_parameters={"type": "linear", "factor": 4.0, "rope_theta": 1e6})
    assert (linear.rope_theta, linear.rope_scaling) == (1e6, read(rope_scaling=LINEAR).rope_scaling)
    top = read(rope_scaling=LLAMA_3, original_max_position_embeddings=32).rope_scaling
    assert top is not None
    assert top.original_max_position_embeddings == 32


def test_closed_form_yarn_interpolates_over_planes_and_scales_angles() -> None:
    """Yarn over 16 positions with base 10: plane i of 4 rotates 2.5, 1.4, 0.8 and 0.45 times."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    plain = read(rope_theta=10.0)
    scaled = read(rope_theta=10.0, rope_scaling={**yarn, "beta_fast": 2.5, "beta_slow": 0.5})
    ratio = (rope_frequencies(scaled) / rope_frequencies(plain))[0]
    assert ratio.tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25])
    cosines = rope_angles(scaled, np.zeros((1, 1), np.int32), "float32").cosine
    assert float(cosines.max()) == pytest.approx(1.1386294)  # 0.1 log 4 + 1
    dynamic = read(rope_theta=10.0, rope_scaling={"type": "dynamic", "factor": 4.0})
    assert rope_frequencies(dynamic).tolist() == rope_frequencies(plain).tolist()


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 7.0}}, "`rope_param"),
        ("llama", {"rope_scaling": {**LINEAR, "type": "yarn"}}, "`rope_scaling.rope_type` is 'li"),
        ("llama", {"rope_parameters": {"full_attention": LINEAR}}, "`rope_parameters.full_atten"),
        ("gemma3_text", {"rope_parameters": LINEAR}, "`rope_parameters.rope_type` must stand in"),
        ("qwen3", {"sliding_window": 4, "layer_types": MIXED}, "`layer_types` has sliding_atten"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": None, "layer_types": MIXED}, "`l"),
        ("mistral", {"sliding_window": None, "layer_types": MIXED}, "`layer_types` has sliding"),
        ("mistral", {"sliding_window": 0}, "`sliding_window` must be positive"),
        ("gemma2", {"layer_types": MIXED[:1]}, "`layer_types` must have one entry for each of 2"),
        ("llama", {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 0}}, "`orig"),
        ("qwen2", {"rope_parameters": NO_POSITIONS}, "`original_max_position_embeddings` must be"),
        ("smollm3", {"no_rope_layers": [1]}, "`no_rope_layers` must have one entry for each of 2"),
        ("smollm3", {"no_rope_layers": [2, 1]}, "`no_rope_layers` must be a list of 0 and 1"),
        ("smollm3", {"layer_types": MIXED}, "`layer_types` has sliding_attention, but `use_slid"),
        ("olmo3", {"sliding_window": None}, "`sliding_window` must be of type int, got None"),
        ("phi3", {"rope_scaling": LINEAR}, "`rope_scaling.rope_type` must be one of default, long"),
        (
            "phi3",
            {"rope_scaling": {**LONG, "long_factor": [1.0]}},
            "`long_factor` must have one nu",
        ),
        ("phi3", {"rope_scaling": {"type": "su"}}, "`short_factor` must be a list of numbers"),
        ("phi3", {"partial_rotary_factor": 0.2}, "`partial_rotary_factor` must be in "),
        ("granite", {"logits_scaling": 0.0}, "`logits_scaling` must be positive, got 0.0"),
        ("ministral3", {"rope_scaling": {**YARN, "llama_4_scaling_beta": None}}, "`llama_4_scal"),
        ("ministral3", {"rope_scaling": LINEAR}, "`rope_scaling.rope_type` must be one of yarn"),
        ("mixtral", {"num_experts": 4, "num_local_experts": 8}, "`num_experts` is 4, but `num_loc"),
        ("mixtral", {"num_local_experts": 0}, "`num_experts` must be positive, got 0"),
        ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` must be absent"),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "`num_experts_per_tok` mu"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "`mlp_only_layers` must be absent"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "`decoder_sparse_step` must be absent"),
        ("qwen3_moe", {"moe_intermediate_size": 0}, "`moe_intermediate_size` must be positive"),
        ("olmoe", {"clip_qkv": 8.0}, "`clip_qkv` must be absent, got 8.0"),
        ("olmoe", {"head_dim": 8}, "`head_dim` times `num_attention_heads` must be"),
        ("gpt_oss", {"swiglu_limit": 0.0}, "`swiglu_limit` must be positive"),
        ("gpt_oss", {"quantization_config": {"quant_method": "mxfp4"}}, "`quantization_config` m"),
        ("mistral3", {"text_config": {"model_type": "llama"}}, "`text_config.model_type` must be"),
        ("llama", {"hidden_size": 10}, "`hidden_size` must be a multiple of `num_attention_hea"),
        ("llama", {"pad_token_id": 16}, "`pad_token_id` must be below `vocab_size` 16, got 16"),
        ("llama", {"bos_token_id": [1, 2]}, "`bos_token_id` must be of type int"),
        ("llava", {"text_config": {}}, "`model_type` must be one of .*images or sound are not"),
        ("custom", {"auto_map": {"AutoModel": "a.B"}}, "`model_type` must .*code in the folder"),
    ],
)
def test_raises_for_contradictions_by_key(family: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        read(family, **keys)


def test_closed_form_absent_keys_have_the_defaults_of_transformers() -> None:
    assert read("mistral").sliding_window == 4096
    windowed = read("qwen2", use_sliding_window=True, max_window_layers=1)
    assert (windowed.sliding_window, windowed.local_layers) == (4096, (False, True))
    assert read("qwen2", use_sliding_window=True, sliding_window=None).local_layers == ()
    assert (read().bos_token_id, read().eos_token_id, read("qwen3").eos_token_id) == (1, 2, None)
    sizes = {key: value for key, value in SIZES.items() if key != "pad_token_id"}
    assert from_hf_config({"model_type": "gemma", **sizes}).pad_token_id == 0
    assert read("mistral").max_position_embeddings == 131072
    assert read("gemma", hidden_act="gelu_pytorch_tanh", hidden_activation="silu").hidden_act == (
        "gelu_pytorch_tanh"
    )


def test_roundtrip_every_architecture_that_can_be_read_can_be_exported() -> None:
    for family, keys in (
        ("mistral", {"layer_types": MIXED, "sliding_window": 4}),
        ("mistral", {"layer_types": MIXED[1:] * 2, "sliding_window": 4}),
        ("gemma2", {"layer_types": MIXED[1:] * 2}),
        ("gemma", {"hidden_act": "gelu_python"}),
        ("gemma3_text", {"rope_scaling": {**LINEAR}, "rope_local_base_freq": 7.0}),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "eos_token_id": []}),
        ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 1, "beta_fast": 9}}),
        ("llama", {"pad_token_id": -1}),
        ("olmo3", {"rope_scaling": {**LINEAR}, "rope_theta": 7.0, "sliding_window": 3}),
        ("granite", {"attention_multiplier": 0.5, "residual_multiplier": 2}),
        ("smollm3", {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 3}),
        ("phi3", {"rope_scaling": LONG, "original_max_position_embeddings": 512}),
        ("phi3", {"partial_rotary_factor": 0.5, "sliding_window": 4}),
        ("ministral3", {}),
        ("mixtral", {"num_experts": 4, "output_router_logits": True}),
        ("qwen3_moe", {"moe_intermediate_size": 6, "norm_topk_prob": True, "head_dim": None}),
        ("gpt_oss", {"rope_scaling": LINEAR, "swiglu_limit": 3, "num_local_experts": 4}),
        ("gpt_oss", {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}),
        ("llama", {"rope_scaling": {**YARN, "truncate": False, "llama_4_scaling_beta": None}}),
        ("llama", {"rope_scaling": {**LONG, "factor": 3, "attention_factor": 1.5}}),
    ):
        architecture = read(family, **keys)
        written = to_hf_config(architecture)
        assert from_hf_config(written) == architecture
        if written["model_type"] == "ministral":  # transformers wants a number in any case
            assert written["sliding_window"] in (4, 4096)


def test_closed_form_notes_say_what_is_passed_over() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"architectures": ["LlamaForSequenceClassification"]}, "read as LlamaForCausalLM"),
        ({"auto_map": {"AutoModel": "a.B"}}, "the folder's own code (auto_map) is not run"),
        ({"attention_dropout": 0.1}, "`attention_dropout` has no effect"),
        ({"eos_token_id": [1, 99]}, "`eos_token_id` 99 is not a token of the model"),
        ({"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 7.0}, "`rope_theta` at the top"),
    ]
    inner = {**LLAMA_3, "original_max_position_embeddings": 32}
    top = {"rope_scaling": inner, "original_max_position_embeddings": 16}
    cases.append((top, "`original_max_position_embeddings` 32 has no effect beside 16"))
    for keys, expected in cases:
        (note,) = config_notes({"model_type": "llama", **SIZES, **keys})
        assert expected in note
    layers = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 6.0}}
    bases = {"rope_parameters": layers, "rope_theta": 7.0, "rope_local_base_freq": 8.0}
    found = config_notes({"model_type": "gemma3_text", **SIZES, **bases})
    assert [note.split()[1] for note in found] == ["`rope_theta`", "`rope_local_base_freq`"]
    outer = {"model_type": "gemma3", "text_config": SIZES}
    (note,) = config_notes({**outer, **SIZES})
    assert "only the text model is read" in note
    found = config_notes({**outer, "hidden_size": 64, "sliding_window": 7})
    assert found[1] == "config.json: keys without effect: hidden_size, sliding_window"
    tied = {"model_type": "mistral3", "tie_word_embeddings": True}
    text = {**SIZES, "tie_word_embeddings": False}
    notes = config_notes({**tied, "text_config": text})
    assert "`text_config.tie_word_embeddings` False has no effect beside True" in notes[1]
    assert from_hf_config({**tied, "text_config": text}).tie_word_embeddings
    unused = dict.fromkeys(
        NO_EFFECT.keys() - {"architectures", "attention_dropout", "model_type"}, "x"
    )
    assert config_notes({"model_type": "llama", **SIZES, **unused}) == ()


@pytest.mark.parametrize("name", list(Architecture.__dataclass_fields__))
def test_raises_for_every_field_of_a_wrong_type(name: str) -> None:
    for value in ({"a": 1}, object(), [None]):
        with pytest.raises(ValueError, match=f"^`{name}|^`rope_scaling.a` is not a field"):
            architecture_from_mapping({**SIZES, name: value})


def test_raises_for_fields_without_effect() -> None:
    scaling = {"rope_type": "linear", "factor": 2, "beta_fast": 3}
    for values, message in (
        ({"sliding_window": 4}, "`sliding_window` has no effect without `local_layers`"),
        (
            {"rope_local_base_freq": 4},
            "`rope_local_base_freq` has no effect without `local_layers`",
        ),
        ({"sliding_window": 4, "local_layers": [False] * 2}, "`sliding_window` has no effect"),
        ({"rope_scaling": scaling}, "`rope_scaling.beta_fast` has no effect for the type linear"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            architecture_from_mapping({**SIZES, **values})


def test_raises_for_fields_of_a_scaling_by_their_name() -> None:
    for scaling, message in (
        ({"rope_type": "linear"}, "`rope_scaling.factor` must be given"),
        ({"rope_type": "su", "factor": 2}, "`rope_scaling.rope_type` must be linear or "),
        ({"rope_type": "linear", "factor": "2"}, "`rope_scaling.factor` must be a number"),
        ({"rope_type": "linear", "factor": 0.5}, "`rope_scaling.factor` must be 1 or more"),
        ({"rope_type": "linear", "factr": 2}, "`rope_scaling.factr` is .*did you mean `factor`"),
        ("linear", "`rope_scaling` must be a mapping or null, got 'linear'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            architecture_from_mapping({**SIZES, "rope_scaling": scaling})
    with pytest.raises(ValueError, match=r"^`hidden_sze` is not .*did you mean `hidden_size`\?$"):
        architecture_from_mapping({**SIZES, "hidden_sze": 8})
