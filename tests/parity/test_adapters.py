"""Claims about adapters: PEFT reads what this package writes, and the other way round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from llm.config import ModelConfig
from llm.hf.adapters import export_adapter
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.models.decoder import Decoder
from llm.types import Rows

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
peft = pytest.importorskip("peft", reason="needs peft")
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
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
PATTERN = r"model\.layers\.[02]\..*\.(q|up)_proj"
CASES: dict[str, dict[str, Any]] = {
    "list": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "all-linear": {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.1},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["o_proj"]},
    "regex": {"r": 2, "target_modules": PATTERN},
    "layers": {"r": 2, "target_modules": ["k_proj", "up_proj"], "layers_to_transform": [2, 0]},
    "patterns": {
        "r": 2,
        "target_modules": ["q_proj", "v_proj", "gate_proj"],
        "rank_pattern": {"v_proj": 4, r"layers\.1\.self_attn\.q_proj": 1},
        "alpha_pattern": {"layers.2.mlp.gate_proj": 3},
        "use_rslora": True,
    },
    "saved": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "lora_dropout": 0.1},
    "head": {"r": 3, "target_modules": ["embed_tokens", "lm_head"], "use_rslora": True},
    "saved norms": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm", "v_proj"]},
}
TIED: dict[str, dict[str, Any]] = {
    "embed": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "adapted embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "adapted head": {"target_modules": ["q_proj", "lm_head"]},
}


def tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(3, 61, (2, 24)).astype(np.int32)


def our_logits(decoder: Decoder) -> np.ndarray:
    ids = tokens()
    columns = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    rows = Rows(ids, columns, np.ones_like(ids), np.zeros_like(ids))
    head, hidden = decoder.head(), decoder.hidden_states(rows)
    return np.stack([np.asarray(head.logits(row), np.float64) for row in hidden])


def hf_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens().astype(np.int64))).logits.double().numpy()


def base_folder(folder: Path, **options: Any) -> Path:
    architecture = SIZES | options
    decoder = build_model(resolve_model(ModelConfig(architecture=architecture, seed=5)))
    export_model(decoder, folder)
    return folder


def peft_model(base: Path, options: dict[str, Any]) -> Any:
    """Return a PEFT model whose trained parameters are all random."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return adapted


def contents(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    with safe_open(folder / "adapter_model.safetensors", framework="np") as file:
        return {
            name: (
                (part := file.get_slice(name)).get_dtype(),
                part.get_shape(),
                file.get_tensor(name).tobytes(),
            )
            for name in sorted(file.keys())
        }


def fields(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "adapter_config.json").read_text())
    targets = document["target_modules"]
    if isinstance(targets, list):  # PEFT writes a set in any order, or every module by its name
        document["target_modules"] = sorted({name.rpartition(".")[2] for name in targets})
    for name in ("modules_to_save", "layers_to_transform"):
        if document[name] is not None:
            document[name] = sorted(document[name])
    return document


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize("name", CASES)
def test_parity_logits_files_and_fields_both_ways(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    theirs = peft_model(base, CASES[name])
    theirs.save_pretrained(tmp_path / "theirs")
    expected = hf_logits(theirs)
    assert (
        np.abs(expected - hf_logits(transformers.AutoModelForCausalLM.from_pretrained(base))).max()
        > 1e-2
    )
    config = ModelConfig(path=str(base), adapter=str(tmp_path / "theirs"))
    decoder = build_model(resolve_model(config))
    assert difference(our_logits(decoder), expected) < LOGITS
    export_adapter(decoder, tmp_path / "ours", base=str(base))
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert fields(tmp_path / "ours") == fields(tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(base)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "ours")
    assert difference(our_logits(decoder), hf_logits(again)) < LOGITS
    merged = ModelConfig(path=str(base), adapter=str(tmp_path / "ours"), merge_adapter=True)
    assert difference(our_logits(build_model(resolve_model(merged))), expected) < LOGITS


@pytest.mark.parametrize("name", TIED)
def test_parity_saved_embeddings_of_a_tied_model(name: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base", tie_word_embeddings=True)
    options = {"r": 2, "target_modules": ["q_proj"]} | TIED[name]
    theirs = peft_model(base, options)
    theirs.save_pretrained(tmp_path / "theirs")
    config = ModelConfig(path=str(base), adapter=str(tmp_path / "theirs"))
    decoder = build_model(resolve_model(config))
    expected = hf_logits(theirs)
    assert difference(our_logits(decoder), expected) < LOGITS
    export_adapter(decoder, tmp_path / "ours", base=str(base))
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    again = transformers.AutoModelForCausalLM.from_pretrained(base)
    again = peft.PeftModel.from_pretrained(again, tmp_path / "ours")
    assert difference(our_logits(decoder), hf_logits(again)) < LOGITS
    export_model(decoder, tmp_path / "whole")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert difference(hf_logits(whole), expected) < LOGITS
