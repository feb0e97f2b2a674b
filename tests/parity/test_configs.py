"""Claims about ``config.json``: every key is classified, and odd settings give the same logits.

Every folder is written with the keys of the case, and loaded by ``transformers`` and by this
package. The logits agree, or this package refuses the folder and names the key (extra ``parity``).
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from llm.hf.config import from_hf_config
from llm.hf.config_keys import NO_EFFECT, REFUSED
from llm.hf.config_notes import config_notes
from llm.hf.families import FAMILIES
from llm.hf.io import export_model, load_model
from llm.types import Rows

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LOGITS = 2e-5  # both sides sum in float32, in different orders
N_TOKENS, VOCABULARY = 24, 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING, FULL = "sliding_attention", "full_attention"
MIXED = [SLIDING, FULL, SLIDING]
LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 16,
}
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 9.0]}
ORIGINAL = {"original_max_position_embeddings": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
BASE = {"rope_type": "default", "rope_theta": 500.0}
ABSENT = object()
"""Value of a key that is taken out of the sizes."""
# Family, keys, and the start of the refusal; None if the logits must agree.
CASES: list[tuple[str, dict[str, Any], str | None]] = [
    # Rotary settings, in all spellings.
    ("llama", {"rope_scaling": {**LLAMA_3, "rope_theta": 500.0}}, None),
    ("llama", {"rope_scaling": LLAMA_3, "rope_theta": 500.0}, None),
    ("llama", {"rope_parameters": {"type": "linear", "factor": 4.0, "rope_theta": 100.0}}, None),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, None),
    ("llama", {"rope_scaling": {**LINEAR, "type": "linear"}}, None),
    (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
        "`rope_",
    ),
    ("llama", {"rope_scaling": {**LINEAR, "rope_theta": 100.0}, "rope_theta": 1000.0}, None),
    ("llama", {"rope_scaling": LINEAR, "rope_parameters": BASE}, "`rope_parameters.rope_type` is"),
    (
        "llama",
        {"rope_scaling": {**LINEAR, "rope_theta": 500.0}, "rope_parameters": {"rope_theta": 500}},
        None,
    ),
    ("llama", {"rope_scaling": LINEAR, "rope_parameters": {"rope_theta": 500.0}}, "`rope_par"),
    ("llama", {"rope_scaling": {}, "rope_parameters": BASE}, None),
    ("llama", {"rope_scaling": None, "rope_parameters": BASE, "rope_theta": 7.0}, None),
    ("llama", {"rope_parameters": {"full_attention": BASE}}, "`rope_parameters.full_attention`"),
    ("llama", {"rope_parameters": {**BASE, "factor": 8.0}}, None),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, None),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.0, "alpha": 3}}, None),
    ("llama", {"rope_scaling": YARN}, None),
    ("llama", {"rope_scaling": {**YARN, "attention_factor": 1.5}}, None),
    ("llama", {"rope_scaling": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}}, None),
    ("llama", {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4}}, None),
    ("llama", {"rope_scaling": {**YARN, "mscale": 0.7}}, None),
    ("llama", {"rope_scaling": {**YARN, "truncate": False}}, None),
    ("llama", {"rope_scaling": {**YARN, "factor": None}}, None),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, None),
    (
        "llama",
        {
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
            "original_max_position_embeddings": 8,
        },
        None,
    ),
    ("llama", {"rope_scaling": YARN, "original_max_position_embeddings": 8}, None),
    ("llama", {"rope_scaling": LLAMA_3, "original_max_position_embeddings": 32}, None),
    (
        "llama",
        {"rope_scaling": {k: v for k, v in LLAMA_3.items() if "original" not in k}},
        None,
    ),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "`low_freq_factor` is"),
    ("llama", {"rope_scaling": LONG}, None),
    ("llama", {"rope_scaling": {**LONG, "factor": 0.5}}, None),
    ("llama", {"rope_scaling": {**LONG, "attention_factor": 1.2, "factor": 9.0}}, None),
    ("llama", {"rope_scaling": {**LONG, "short_factor": None}}, "`short_factor` must be a list"),
    ("llama", {"rope_scaling": {**LONG, "long_factor": [1.0]}}, "`long_factor` must have one"),
    ("phi3", {"rope_scaling": {"type": "su", **FACTORS, **ORIGINAL}}, None),
    ("phi3", {"rope_scaling": {"type": "yarn", **FACTORS}, **ORIGINAL}, None),
    ("phi3", {"rope_scaling": {"type": "longrope", **FACTORS}, "rope_theta": 500.0}, None),
    ("phi3", {"rope_scaling": LONG, **ORIGINAL}, None),
    ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "`rope_scaling.rope_type` must"),
    ("phi3", {"partial_rotary_factor": 0.5}, None),
    ("phi3", {"partial_rotary_factor": 0.5, "rope_parameters": {**BASE}}, None),
    ("phi3", {"partial_rotary_factor": 0.1}, "`partial_rotary_factor` must be in (0, 1]"),
    ("phi3", {"sliding_window": 5, "layer_types": MIXED}, None),
    ("olmo2", {"rope_scaling": YARN, "num_key_value_heads": None}, None),
    ("olmo2", {"head_dim": 12}, None),
    ("olmo3", {"rope_scaling": YARN, "rope_theta": 300.0, "sliding_window": 5}, None),
    ("olmo3", {"rope_theta": 300.0, "sliding_window": 5, "layer_types": MIXED}, None),
    ("olmo3", {"rope_parameters": {FULL: {**YARN, "truncate": False}}}, "`truncate` must be"),
    ("olmo3", {"sliding_window": None}, "`sliding_window` must be of type int"),
    ("olmo3", {"layer_types": [FULL] * 3}, None),
    ("granite", {"attention_bias": True, "residual_multiplier": 0.3, "logits_scaling": 0.5}, None),
    ("granite", {"attention_multiplier": 0.1, "embedding_multiplier": 2, "head_dim": 6}, None),
    ("smollm3", {"no_rope_layer_interval": 2}, None),
    ("smollm3", {"no_rope_layers": [0, 1, 1, 0]}, None),
    ("smollm3", {"no_rope_layers": [0, 0, 0], "rope_scaling": YARN}, None),
    ("smollm3", {"no_rope_layers": [0, 1]}, "`no_rope_layers` must have one entry for each"),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED}, None),
    ("ministral3", {"head_dim": 8}, None),
    # Mixtures of experts.
    ("mixtral", {"num_local_experts": 4}, None),
    ("mixtral", {"num_experts": 4, "rope_scaling": YARN, "head_dim": 8}, None),
    ("mixtral", {"num_experts": 4, "num_local_experts": 8}, "`num_experts` is 4, but `num_local"),
    ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` must be absent"),
    ("qwen3_moe", {**EXPERTS, "norm_topk_prob": True}, None),
    ("qwen3_moe", {**EXPERTS, "sliding_window": 5, "use_sliding_window": False}, None),
    ("qwen3_moe", {**EXPERTS, "sliding_window": 5, "use_sliding_window": True}, None),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16, "decoder_sparse_step": 1}, None),
    ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [1]}, "`mlp_only_layers` must be absent"),
    ("olmoe", {"num_local_experts": 4, "num_experts_per_tok": 3}, None),
    ("olmoe", {"num_experts": 4, "num_experts_per_tok": 4, "norm_topk_prob": True}, None),
    ("olmoe", {"clip_qkv": 3.0}, "`clip_qkv` must be absent"),
    ("olmoe", {"head_dim": 12}, "`head_dim` times `num_attention_heads` must be"),
    ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}, None),
    ("gpt_oss", {"num_local_experts": 4, "head_dim": 8, "attention_bias": False}, None),
    ("gpt_oss", {"num_local_experts": 4, "head_dim": 8, "rope_scaling": LINEAR}, None),
    ("gpt_oss", {"sliding_window": None}, "`sliding_window` must be of type int"),
    ("ministral3", {"head_dim": 8, "rope_scaling": {**YARN, "llama_4_scaling_beta": 0.3}}, None),
    ("ministral3", {"rope_scaling": YARN}, "`llama_4_scaling_beta` is missing"),
    ("ministral3", {"head_dim": 8, "sliding_window": 5, "rope_theta": 70.0}, None),
    (
        "llama",
        {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}},
        "`rope_scaling.rope",
    ),
    ("llama", {"rope_theta": 7}, None),
    ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` must be absent"),
    ("llama", {"rope_parameters": {**BASE, "partial_rotary_factor": 0.5}}, "`partial_rotary_fac"),
    ("llama", {"rope_parameters": {**BASE, "partial_rotary_factor": 1.0}}, None),
    ("qwen2", {"rope_scaling": YARN, "rope_parameters": BASE}, "`rope_parameters.rope_type` is"),
    ("qwen2", {"rope_scaling": {**YARN, "type": "yarn"}, "rope_theta": 1e6}, None),
    ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e6}}, None),
    ("qwen3", {"rope_scaling": YARN, "head_dim": 16}, None),
    ("mistral", {"rope_scaling": LLAMA_3, "sliding_window": None}, None),
    ("gemma", {"rope_scaling": LINEAR, "head_dim": 8}, None),
    ("gemma2", {"rope_scaling": YARN, "head_dim": 8}, None),
    # Sizes and their defaults.
    ("llama", {"num_key_value_heads": None}, None),
    ("llama", {"num_key_value_heads": ABSENT}, None),
    ("llama", {"head_dim": 10}, None),
    ("llama", {"head_dim": None}, None),
    ("llama", {"head_dim": 0}, "`head_dim` must be positive"),
    ("llama", {"hidden_size": 30}, "`hidden_size` must be a multiple"),
    ("qwen2", {"hidden_size": 34}, None),
    ("qwen2", {"head_dim": 10}, None),
    ("qwen2", {"num_key_value_heads": None}, None),
    ("qwen3", {"head_dim": ABSENT, "num_hidden_layers": 1}, None),
    ("mistral", {"num_key_value_heads": ABSENT, "num_attention_heads": 16}, None),
    ("gemma", {"head_dim": ABSENT, "num_hidden_layers": 1}, None),
    ("gemma2", {"num_key_value_heads": ABSENT, "head_dim": 8}, None),
    ("llama", {"vocab_size": ABSENT, "num_hidden_layers": 1}, None),
    ("llama", {"max_position_embeddings": ABSENT, "rms_norm_eps": 0.1}, None),
    ("llama", {"pad_token_id": -1}, None),
    ("llama", {"pad_token_id": 61}, "`pad_token_id` must be below"),
    ("llama", {"pad_token_id": ABSENT, "eos_token_id": [2, 3]}, None),
    # Biases, tied embeddings and activations.
    ("llama", {"attention_bias": True}, None),
    ("llama", {"mlp_bias": True}, None),
    ("mistral", {"attention_bias": True, "mlp_bias": True}, None),
    ("qwen2", {"attention_bias": False}, None),
    ("qwen3", {"attention_bias": True, "head_dim": 8}, None),
    ("gemma3_text", {"attention_bias": True, "head_dim": 8}, None),
    ("llama", {"tie_word_embeddings": True}, None),
    ("gemma", {"tie_word_embeddings": False, "head_dim": 8}, None),
    ("gemma", {"hidden_act": "gelu", "head_dim": 8}, None),
    (
        "gemma",
        {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu", "head_dim": 8},
        None,
    ),
    ("gemma", {"hidden_activation": "silu", "head_dim": 8}, None),
    ("gemma", {"hidden_act": "gelu_python", "head_dim": 8}, None),
    ("ministral", {"layer_types": [FULL] * 3, "head_dim": 8}, None),
    ("gemma2", {"hidden_act": "silu", "head_dim": 8}, None),
    ("gemma2", {"hidden_activation": "gelu", "head_dim": 8}, None),
    ("gemma3_text", {"hidden_act": "silu", "head_dim": 8}, None),
    ("llama", {"hidden_act": "gelu"}, None),
    ("llama", {"hidden_act": "swish"}, None),
    ("llama", {"hidden_act": "gelu_new"}, None),
    ("llama", {"hidden_act": "relu"}, "`hidden_act` must be one of"),
    ("llama", {"hidden_act": "quick_gelu"}, "`hidden_act` must be one of"),
    ("llama", {"hidden_activation": "gelu"}, None),
    # Soft caps and the scale of attention.
    (
        "gemma2",
        {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "head_dim": 8},
        None,
    ),
    ("gemma2", {"attn_logit_softcapping": None, "head_dim": 8}, None),
    ("gemma2", {"query_pre_attn_scalar": 7, "head_dim": 8}, None),
    ("gemma2", {"final_logit_softcapping": 0.0, "head_dim": 8}, "`final_logit_softcapping` must"),
    ("gemma3_text", {"final_logit_softcapping": 3.0, "head_dim": 8}, None),
    ("gemma3_text", {"attn_logit_softcapping": 2.0, "head_dim": 8}, "`attn_logit_softcapping`"),
    ("llama", {"attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 7}, None),
    # Windows and types of layers.
    ("mistral", {}, None),
    ("mistral", {"sliding_window": 5}, None),
    ("mistral", {"sliding_window": None}, None),
    ("mistral", {"sliding_window": 0}, "`sliding_window` must be positive"),
    ("mistral", {"sliding_window": 5, "layer_types": MIXED, "head_dim": 8}, None),
    ("mistral", {"sliding_window": 5, "layer_types": None, "head_dim": 8}, None),
    ("mistral", {"sliding_window": None, "layer_types": MIXED}, "`layer_types` has sliding"),
    ("ministral", {"sliding_window": 5, "layer_types": MIXED, "head_dim": 12}, None),
    ("llama", {"sliding_window": 5, "use_sliding_window": True}, None),
    ("llama", {"sliding_window": 5, "layer_types": MIXED}, None),
    ("qwen2", {"sliding_window": 5}, None),
    ("qwen2", {"sliding_window": 5, "use_sliding_window": True}, None),
    ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}, None),
    (
        "qwen2",
        {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0},
        None,
    ),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, None),
    ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "layer_types": MIXED}, None),
    ("qwen3", {"sliding_window": 4, "layer_types": MIXED, "head_dim": 8}, "`layer_types` has sl"),
    ("qwen3", {"layer_types": [FULL] * 3, "head_dim": 8, "sliding_window": 4}, None),
    ("qwen3", {"layer_types": ["attention"] * 3, "head_dim": 8}, None),
    ("qwen3", {"layer_types": [FULL] * 2, "head_dim": 8}, "`layer_types` must have one entry"),
    ("gemma", {"sliding_window": 5, "head_dim": 8}, None),
    ("gemma2", {"sliding_window": 5, "head_dim": 8}, None),
    ("gemma2", {"sliding_window": 5, "head_dim": 8, "layer_types": [FULL, *MIXED[:2]]}, None),
    ("gemma2", {"sliding_window": None, "head_dim": 8}, "`sliding_window` must be of type int"),
    ("gemma2", {"sliding_window": None, "layer_types": [FULL] * 3}, "`sliding_window` must be of"),
    ("gemma2", {"sliding_window": 5, "head_dim": 8, "layer_types": [FULL] * 3}, None),
    ("gemma3_text", {"sliding_window": 5, "head_dim": 8, "layer_types": [FULL] * 3}, None),
    (
        "gemma3_text",
        {"sliding_window": None, "head_dim": 8},
        "`sliding_window` must be of type int",
    ),
    ("gemma3_text", {"sliding_window": 5, "head_dim": 8, "sliding_window_pattern": 2}, None),
    ("gemma3_text", {"sliding_window": 5, "head_dim": 8, "_sliding_window_pattern": 2}, None),
    (
        "gemma3_text",
        {"sliding_window": 5, "head_dim": 8, "sliding_window_pattern": 2, "layer_types": MIXED},
        None,
    ),
    ("gemma3_text", {"head_dim": 8, "use_bidirectional_attention": True}, "`use_bidirectional_"),
    # Rotary settings by layer type.
    ("gemma3_text", {"rope_theta": 500.0, "rope_local_base_freq": 50.0, "head_dim": 8}, None),
    ("gemma3_text", {"rope_scaling": LINEAR, "head_dim": 8, "layer_types": MIXED}, None),
    (
        "gemma3_text",
        {
            "rope_parameters": {FULL: {**LINEAR, "rope_theta": 5.0}, SLIDING: {"rope_theta": 90.0}},
            "head_dim": 8,
            "layer_types": MIXED,
        },
        None,
    ),
    (
        "gemma3_text",
        {
            "rope_parameters": {FULL: BASE, SLIDING: BASE},
            "rope_scaling": LINEAR,
            "head_dim": 8,
            "layer_types": MIXED,
        },
        None,
    ),
    (
        "gemma3_text",
        {
            "rope_parameters": {FULL: BASE, SLIDING: BASE},
            "rope_scaling": {"type": "linear", "factor": 4.0},
            "head_dim": 8,
            "layer_types": MIXED,
        },
        "`rope_scaling.rope_type` is 'default', but",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {FULL: YARN}, "head_dim": 8, "layer_types": MIXED},
        None,
    ),
    (
        "gemma3_text",
        {"rope_parameters": {SLIDING: LINEAR}, "head_dim": 8, "layer_types": MIXED},
        "`rope_type` of sliding_attention must be default",
    ),
    (
        "gemma3_text",
        {"rope_parameters": {**LINEAR, "rope_theta": 5.0}, "head_dim": 8, "layer_types": MIXED},
        "`rope_parameters.rope_type` must stand inside",
    ),
    # Keys that must be neutral, and keys without effect.
    ("llama", {"quantization_config": {"quant_method": "fp8"}}, "`quantization_config` must be"),
    ("llama", {"pretraining_tp": 2, "attention_dropout": 0.5, "use_cache": False}, None),
    ("llama", {"num_labels": 3, "torch_dtype": "bfloat16", "problem_type": "regression"}, None),
    ("llama", {"temperature": 0.5, "residual_scale": 3.0, "layer_norm_eps": 0.5}, None),
]


def _config(family: str, keys: dict[str, Any]) -> dict[str, Any]:
    merged = {"model_type": family, **SIZES, **keys}
    return {key: value for key, value in merged.items() if value is not ABSENT}


def _tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(3, VOCABULARY, (2, N_TOKENS)).astype(np.int32)


def _write_folder(folder: Path, config: dict[str, Any]) -> Any:
    """Write a folder with random weights; return the model as transformers loads it."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    loaded = transformers.AutoConfig.from_pretrained(folder)
    loaded.dtype = torch.float32
    model = transformers.AutoModelForCausalLM.from_config(loaded)
    tied = model.config.tie_word_embeddings
    tensors = {}
    for name, parameter in model.state_dict().items():
        if "norm" in name or "bias" in name:  # the initial ones and zeros would hide errors
            parameter.add_(0.3 * torch.randn_like(parameter))
        if not (tied and name == "lm_head.weight"):
            tensors[name] = parameter.numpy()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _hf_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(_tokens())).logits.numpy().astype(np.float64)


def _logits(folder: Path) -> np.ndarray:
    decoder, tokens = load_model(folder), _tokens()
    columns = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    rows = Rows(tokens, columns, np.ones_like(tokens), np.zeros_like(tokens))
    head, hidden = decoder.head(), decoder.hidden_states(rows)
    return np.stack([np.asarray(head.logits(row), np.float64) for row in hidden])


def _name(case: tuple[str, dict[str, Any], str | None]) -> str:
    return f"{case[0]}-{'-'.join(case[1])}"


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_parity_of_logits_with_odd_settings_or_refused_by_key(
    case: tuple[str, dict[str, Any], str | None], tmp_path: Path
) -> None:
    family, keys, refusal = case
    config = _config(family, keys)
    if refusal is not None:
        with pytest.raises(ValueError, match="`") as error:
            from_hf_config(config)
        assert str(error.value).startswith(refusal)
        return
    model = _write_folder(tmp_path / "model", config)
    difference = np.abs(_logits(tmp_path / "model") - _hf_logits(model)).max()
    assert difference < LOGITS
    export_model(load_model(tmp_path / "model"), tmp_path / "ours")
    exported, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    assert np.abs(_hf_logits(exported.eval()) - _hf_logits(model)).max() < LOGITS


def test_golden_every_key_of_the_classes_of_transformers_is_classified() -> None:
    for family in FAMILIES:
        config_class = transformers.CONFIG_MAPPING[family]
        known = {*FAMILIES[family].keys, *FAMILIES[family].refused, *REFUSED, *NO_EFFECT}
        names = {field.name for field in dataclasses.fields(config_class)}
        written = set(config_class(num_hidden_layers=1).to_dict())
        assert names | written <= known, (family, (names | written) - known)


def test_golden_defaults_of_absent_keys_are_those_of_transformers() -> None:
    nullable = {"rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"}
    nullable |= {"original_max_position_embeddings", "sliding_window_pattern", "head_dim"}
    for family in FAMILIES:
        fields = {
            field.name: field for field in dataclasses.fields(transformers.CONFIG_MAPPING[family])
        }
        for key, default in FAMILIES[family].keys.items():
            if key in fields and key not in nullable:
                assert fields[key].default == default, (family, key)


def test_property_an_extra_key_with_content_is_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for family in FAMILIES:
        for value in (1, 0.5, "text", [1], {"a": 1}, True):
            key = f"key_{rng.integers(10**9)}"
            assert any(key in note for note in config_notes(_config(family, {key: value})))
