"""Claims about adapters of families with names of their own: images, layers without rotary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.config import ModelConfig
from llm.hf.adapters import export_adapter
from llm.hf.factory import build_model, resolve_model

from .test_adapters import LOGITS, SIZES, contents, difference, hf_logits, our_logits, peft_model

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
peft = pytest.importorskip("peft", reason="needs peft")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::UserWarning",
        "error:Found missing adapter keys",
    ),
]
TEXT = {**SIZES, "eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def gemma3(folder: Path) -> Path:
    """Write a Gemma 3 with images, whose modules of the images have the same last names."""
    config = transformers.Gemma3Config(
        text_config={**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 8},
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=58,
        eoi_token_index=59,
    )
    torch.manual_seed(1)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def smollm3(folder: Path) -> Path:
    """Write a SmolLM3 whose second layer has no rotary embedding."""
    config = transformers.SmolLM3Config(**TEXT, no_rope_layers=[1, 0, 1], use_sliding_window=False)
    torch.manual_seed(1)
    transformers.SmolLM3ForCausalLM(config).save_pretrained(folder)
    return folder


def mixtral(folder: Path) -> Path:
    """Write a Mixtral, whose files name the router otherwise than its class."""
    config = transformers.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2)
    torch.manual_seed(1)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


BASES = {"gemma3": gemma3, "smollm3": smollm3, "mixtral": mixtral}
OF_TEXT = r".*language_model.*\.(q_proj|down_proj)"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "images": ("gemma3", {"r": 2, "target_modules": OF_TEXT}),
    "images, saved": (
        "gemma3",
        {"r": 2, "target_modules": OF_TEXT, "modules_to_save": ["language_model.norm"]},
    ),
    "images, patterns": (
        "gemma3",
        {
            "r": 2,
            "target_modules": r"model\.language_model\.layers\.[02]\..*_proj",
            "rank_pattern": {r"language_model\.layers\.2\.self_attn\.v_proj": 4},
        },
    ),
    "saved router": (
        "mixtral",
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["gate"]},
    ),
    "some layers without rotary": (
        "smollm3",
        {"r": 3, "target_modules": ["q_proj", "k_proj", "o_proj", "up_proj"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_parity_adapters_of_a_family_both_ways(name: str, tmp_path: Path) -> None:
    family, options = CASES[name]
    base = BASES[family](tmp_path / "base")
    theirs = peft_model(base, options)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = hf_logits(theirs)
    plain = hf_logits(transformers.AutoModelForCausalLM.from_pretrained(base))
    assert np.abs(expected - plain).max() > 1e-2
    config = ModelConfig(path=str(base), adapter=str(tmp_path / "theirs"))
    decoder = build_model(resolve_model(config))
    assert difference(our_logits(decoder), expected) < LOGITS
    export_adapter(decoder, tmp_path / "ours", base=str(base))
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(base)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "ours")
    assert difference(our_logits(decoder), hf_logits(again)) < LOGITS


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head", "embed_tokens"]])
def test_parity_new_adapters_of_the_text_model_leave_the_images_out(
    targets: Any, tmp_path: Path
) -> None:
    base = gemma3(tmp_path / "base")
    config = ModelConfig(path=str(base), lora_r=2, lora_target_modules=targets)
    decoder = build_model(resolve_model(config))
    adapter = decoder.layers.q_proj.adapter
    assert adapter is not None
    adapter.b[...] = adapter.b[...] + 0.3
    export_adapter(decoder, tmp_path / "ours", base=str(base))
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert written["target_modules"].startswith(r"model\.language_model\.")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "ours")
    assert not any("vision" in name and "lora" in name for name, _ in loaded.named_parameters())
    assert difference(our_logits(decoder), hf_logits(loaded)) < LOGITS
    again = ModelConfig(path=str(base), adapter=str(tmp_path / "ours"))
    np.testing.assert_array_equal(
        our_logits(build_model(resolve_model(again))), our_logits(decoder)
    )
