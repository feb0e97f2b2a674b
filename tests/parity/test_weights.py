"""Claims about weights: prefixes, text parts and adapters, as transformers and PEFT load them."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from llm.config import ModelConfig
from llm.hf.factory import resolve_model
from llm.hf.families import FAMILIES
from llm.hf.io import export_model, load_model, model_notes
from llm.models.decoder import Decoder
from llm.models.lora import add_lora
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
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}


def _tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(3, 61, (2, 24)).astype(np.int32)


def _logits(decoder: Decoder, tokens: np.ndarray | None = None) -> np.ndarray:
    tokens = (_tokens() if tokens is None else tokens).astype(np.int32)
    columns = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    rows = Rows(tokens, columns, np.ones_like(tokens), np.zeros_like(tokens))
    head, hidden = decoder.head(), decoder.hidden_states(rows)
    return np.stack([np.asarray(head.logits(row), np.float64) for row in hidden])


def _hf_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(_tokens())).logits.numpy().astype(np.float64)


def test_parity_of_the_weights_of_a_base_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GemmaConfig(**SIZES)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "base")
    assert "embed_tokens.weight" in load_file(tmp_path / "base" / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert np.abs(_logits(load_model(tmp_path / "base")) - _hf_logits(model)).max() < LOGITS


def test_parity_of_the_text_part_of_gemma_3_with_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config={**SIZES, "sliding_window": 5, "layer_types": ["sliding_attention"] * 2},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=60,
        boi_token_index=59,
        eoi_token_index=58,
        eos_token_id=[1, 7],
    )
    model = transformers.AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path / "images")
    tokens = torch.tensor(np.minimum(_tokens(), 57))
    decoder = load_model(tmp_path / "images")
    assert decoder.architecture.eos_token_id == (1, 7)
    assert any("tensors of the image model" in note for note in model_notes(tmp_path / "images"))
    export_model(decoder, tmp_path / "text")
    text = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "text").eval()
    with torch.no_grad():
        expected, found = model.eval()(input_ids=tokens).logits, text(input_ids=tokens).logits
    assert float((expected - found).abs().max()) < LOGITS
    assert np.abs(_logits(decoder) - _hf_logits(text)).max() < LOGITS


def test_parity_of_the_family_of_the_how_to_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    example = Path(__file__).parents[2] / "examples" / "seed_oss.py"
    family = runpy.run_path(str(example))["FAMILY"]
    monkeypatch.setitem(FAMILIES, "seed_oss", family)
    config = transformers.SeedOssConfig(**SIZES, attention_out_bias=True, mlp_bias=True)
    names = {field.name: field.default for field in dataclasses.fields(config)}
    for key, default in family.keys.items():
        assert names.get(key, default) == default or key == "rope_theta", key
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "hf")
    decoder = load_model(tmp_path / "hf")
    assert np.abs(_logits(decoder) - _hf_logits(model)).max() < LOGITS
    export_model(decoder, tmp_path / "ours")
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert np.abs(_hf_logits(exported) - _hf_logits(model)).max() < LOGITS


VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
PIXTRAL = {"vision_config": {"model_type": "pixtral", "head_dim": 4, **VISION}}
MISTRAL = {"model_type": "mistral", "sliding_window": None, **SIZES}
MINISTRAL = {"model_type": "ministral3", "pad_token_id": 0, **SIZES}
UNTIED = {"tie_word_embeddings": False}
MULTIMODAL = {
    "gemma3": (
        "Gemma3",
        {"text_config": {**SIZES, "sliding_window": 5}, "vision_config": VISION}
        | {"mm_tokens_per_image": 4, "boi_token_index": 59, "eoi_token_index": 58},
    ),
    "mistral small": (
        "Mistral3",
        {"text_config": MISTRAL, **PIXTRAL, "tie_word_embeddings": False},
    ),
    "mistral small, tied": ("Mistral3", {"text_config": MISTRAL, **PIXTRAL}),
    "ministral": ("Mistral3", {"text_config": MINISTRAL, **PIXTRAL, **UNTIED}),
}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_roundtrip_of_a_folder_with_images_is_byte_identical(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    kind, options = MULTIMODAL[name]
    config = getattr(transformers, f"{kind}Config")(**options, image_token_index=60)
    model = transformers.AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path / "hf")
    tokens = torch.tensor(_tokens()) % 57
    with torch.no_grad():
        expected = model(input_ids=tokens).logits.numpy()
    decoder = load_model(tmp_path / "hf")
    assert np.abs(_logits(decoder, tokens.numpy()) - expected).max() < LOGITS
    export_model(decoder, tmp_path / "ours", base_folder=tmp_path / "hf")
    ours, theirs = (load_file(tmp_path / x / "model.safetensors") for x in ("ours", "hf"))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].tobytes() == tensor.tobytes() for key, tensor in theirs.items())
    ours, theirs = (json.loads((tmp_path / x / "config.json").read_text()) for x in ("ours", "hf"))
    assert ours == theirs
    loaded, report = transformers.AutoModelForImageTextToText.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        assert np.abs(loaded.eval()(input_ids=tokens).logits.numpy() - expected).max() < LOGITS


def test_parity_of_an_exported_architecture_of_a_configuration(tmp_path: Path) -> None:
    """What can be trained from random parameters can be exported with the same logits."""
    sizes = {key: value for key, value in SIZES.items() if key != "initializer_range"}
    gemma = {"norm_plus_one": True, "scaled_embeddings": True, "tie_word_embeddings": True}
    gemma |= {"hidden_act": "gelu_pytorch_tanh", "model_type": "gemma3_text", "post_norms": True}
    local = {"local_layers": [True, False], "sliding_window": 5}
    llama_3 = {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 16}
    for number, options in enumerate(
        (
            {"rope_scaling": llama_3, "mlp_bias": True, "eos_token_id": [1, 2]},
            {"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 8}, "pad_token_id": 0},
            {"model_type": "ministral", **local},
            {"model_type": "qwen3", "qk_norm": True, **local, "rope_theta": 50},
            {
                "model_type": "qwen2",
                "qkv_bias": True,
                "local_layers": [True, True],
                "sliding_window": 3,
            },
            {**gemma, "qk_norm": True, **local},
        )
    ):
        model = resolve_model(ModelConfig(architecture={**sizes, **options}))
        decoder = Decoder(model.architecture, rngs=nnx.Rngs(0))
        export_model(decoder, tmp_path / str(number))
        exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        assert np.abs(_logits(decoder) - _hf_logits(exported)).max() < LOGITS


def test_parity_of_merged_adapters_with_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    decoder = Decoder(
        resolve_model(
            ModelConfig(architecture={k: v for k, v in SIZES.items() if k != "initializer_range"})
        ).architecture,
        rngs=nnx.Rngs(0),
    )
    export_model(decoder, tmp_path / "base")
    names = ["q_proj", "v_proj", "down_proj"]
    add_lora(decoder, rank=3, alpha=6.0, target_modules=names, rngs=nnx.Rngs(1))
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(r=3, lora_alpha=6.0, target_modules=names)
    adapted = peft.get_peft_model(base, settings)
    rng = np.random.default_rng(0)
    for name in names:
        adapter = getattr(decoder.layers, name).adapter
        adapter.b[...] = jnp.asarray(rng.normal(size=adapter.b[...].shape), jnp.float32)
        for layer, block in enumerate(adapted.base_model.model.model.layers):
            part = block.mlp if name == "down_proj" else block.self_attn
            target = getattr(part, name)
            with torch.no_grad():
                target.lora_A["default"].weight.copy_(torch.tensor(np.array(adapter.a[layer]).T))
                target.lora_B["default"].weight.copy_(torch.tensor(np.array(adapter.b[layer]).T))
    report = export_model(decoder, tmp_path / "merged")
    assert report.rounding is not None
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = _hf_logits(adapted)
    assert np.abs(_hf_logits(ours) - expected).max() < LOGITS * max(1, np.abs(expected).max())
    adapted.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"]
    with pytest.raises(ValueError, match=r"is a PEFT adapter of .*base, not a model"):
        load_model(tmp_path / "adapter")
