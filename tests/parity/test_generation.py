"""Claims about generation and its settings, against transformers (extra ``parity``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm.hf.generation_config import read_generation_settings
from llm.hf.io import load_model
from llm.inference.generate import GenerationConfig, generate_tokens
from llm.inference.sampling import filter_logits

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

ROUNDING = 1e-6  # float32
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "pad_token_id": 0,
}
PROMPTS = [[1, 5, 9, 14, 3], [1, 8], [1, 30, 31, 32, 33, 34, 35], [1, 60, 59]]


@pytest.mark.parametrize("seed", range(40))
def test_parity_filters_of_logits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(3, 50)).astype(np.float32) * rng.choice([0.5, 2.0, 8.0])
    options = {
        "temperature": float(rng.choice([0.3, 0.7, 1.0, 1.8])),
        "top_k": int(rng.choice([0, 1, 5, 49, 50, 400])),
        "top_p": float(rng.choice([1.0, 0.95, 0.5, 0.05])),
        "min_p": float(rng.choice([0.0, 0.02, 0.3, 1.0])),
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    config = transformers.GenerationConfig(do_sample=True, **options)
    # The first processor of a model that samples is the temperature.
    processors = model._get_logits_processor(
        config, input_ids_seq_length=1, logits_processor=[], device="cpu"
    )
    expected = processors(torch.ones((3, 1), dtype=torch.long), torch.from_numpy(logits)).numpy()
    got = filter_logits(
        jnp.asarray(logits),
        jnp.float32(options["temperature"]),
        jnp.float32(options["top_p"]),
        jnp.int32(options["top_k"]),
        jnp.float32(options["min_p"]),
    )
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected), str(options))
    np.testing.assert_allclose(got, expected, rtol=ROUNDING)


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": [2, 7]},
        {"eos_token_id": 2, "repetition_penalty": 1.3},
        {"repetition_penalty": 0.7, "max_new_tokens": 9},
        {"repetition_penalty": 2.5, "temperature": 0.6, "top_p": 0.9},
        None,
    ],
)
def test_parity_greedy_replies_follow_the_settings_of_the_folder(
    settings: dict[str, Any] | None, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.unlink(missing_ok=True)
    if settings is not None:
        path.write_text(json.dumps({"pad_token_id": 0, **settings}))
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    found = read_generation_settings(tmp_path)
    # Ours end at the tokens of both files; transformers at those of one.
    theirs.generation_config.eos_token_id = sorted(found.end_ids)
    options: dict[str, Any] = {"max_new_tokens": 24, **found.options}
    options = {
        name: value if name in ("max_new_tokens", "top_k") else float(value)
        for name, value in options.items()
    }
    with jax.enable_x64(False):
        ours = generate_tokens(
            load_model(tmp_path), PROMPTS, GenerationConfig(**options), end_ids=found.end_ids
        )
    for prompt, reply in zip(PROMPTS, ours, strict=True):
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor([prompt]), max_new_tokens=options["max_new_tokens"], do_sample=False
            )[0, len(prompt) :].tolist()
        end = bool(expected) and expected[-1] in found.end_ids
        assert list(reply.tokens) == (expected[:-1] if end else expected), settings
        assert reply.finished == end
