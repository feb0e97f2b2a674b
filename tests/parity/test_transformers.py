"""Claims about logits, exports and generation, against transformers (extra ``parity``)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from llm.hf.io import export_model, load_model
from llm.inference.generate import GenerationConfig, generate_tokens
from llm.models.decoder import Decoder
from llm.types import Rows

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
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
    # Larger than the default, so that every part of the model affects the logits.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA_3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0},
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.3, 2.0, 2.5],
    "long_factor": [1.0, 3.0, 5.0, 7.0],
}
# The sequences have 24 tokens: more than a pretraining of 16, fewer than one of 32.
SHORT_LENGTH, LONG_LENGTH = ({"original_max_position_embeddings": n} for n in (32, 16))
PARTIAL = {
    **LONG,
    "short_factor": [1.0, 1.3, 2.0],
    "long_factor": [1.0, 3.0, 5.0],
    "partial_rotary_factor": 0.75,
}
OLMO_3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
    "full_attention": YARN,
}
MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 0.5,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GPT_OSS = {"num_local_experts": 4, "head_dim": 8, "sliding_window": 5}
UNSCALED = {"rope_type": "default", "rope_theta": 100.0}
BIASES = {"attention_bias": True, "mlp_bias": True}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "llama 2": ("Llama", {}),
    "llama 3": ("Llama", {"rope_parameters": LLAMA_3, "attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 6}),
    "mistral, no window": ("Mistral", {"sliding_window": None}),
    "qwen 2": ("Qwen2", {}),
    "qwen 2, window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen 3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "gemma 1": ("Gemma", {"head_dim": 16}),
    "gemma 2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 7, **CAPS},
    ),
    "gemma 3": (
        "Gemma3Text",
        {
            "head_dim": 16,
            "sliding_window": 5,
            "query_pre_attn_scalar": 7,
            "layer_types": LAYERS,
            "rope_parameters": GEMMA_3_ROPE,
        },
    ),
    "llama, linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "llama, dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, exact yarn": ("Llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "llama, short": ("Llama", {"rope_parameters": {**LONG, **SHORT_LENGTH}}),
    "llama, long": ("Llama", {"rope_parameters": {**LONG, **LONG_LENGTH, "factor": 3.0}}),
    "ministral 3": (
        "Ministral3",
        {
            "head_dim": 8,
            "sliding_window": 5,
            "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.4, "mscale": 0.5},
        },
    ),
    "ministral 3, defaults": ("Ministral3", {"head_dim": 8}),
    "olmo 2": ("Olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "olmo 3": ("Olmo3", {"sliding_window": 5, "layer_types": LAYERS}),
    "olmo 3, yarn": (
        "Olmo3",
        {"sliding_window": 5, "layer_types": LAYERS, "rope_parameters": OLMO_3_ROPE},
    ),
    "phi 3": ("Phi3", {"sliding_window": 5}),
    "phi 3, short": ("Phi3", {"rope_parameters": LONG, **SHORT_LENGTH}),
    "phi 3, long": ("Phi3", {"rope_parameters": LONG, **LONG_LENGTH}),
    "phi 4": ("Phi3", {"rope_parameters": PARTIAL, **LONG_LENGTH, "tie_word_embeddings": True}),
    "phi 4, unscaled": (
        "Phi3",
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
    ),
    "smollm 3": ("SmolLM3", {**BIASES, "no_rope_layer_interval": 2}),
    "smollm 3, window": (
        "SmolLM3",
        {"use_sliding_window": True, "sliding_window": 5, "no_rope_layers": [0, 1, 0]},
    ),
    "granite 3": ("Granite", {**BIASES, **MULTIPLIERS}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": 5}),
    "qwen 3, experts": ("Qwen3Moe", {**EXPERTS, "head_dim": 8, "attention_bias": True}),
    "qwen 3, experts and window": (
        "Qwen3Moe",
        {**EXPERTS, "norm_topk_prob": True, "use_sliding_window": True, "sliding_window": 5},
    ),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "attention_bias": True}),
    "gpt-oss": ("GptOss", {**GPT_OSS, "num_experts_per_tok": 2}),
    "gpt-oss, unscaled": (
        "GptOss",
        {**GPT_OSS, "num_experts_per_tok": 3, "swiglu_limit": 0.5, "rope_parameters": UNSCALED},
    ),
}


@pytest.fixture(params=FAMILIES)
def hf_model(request: pytest.FixtureRequest, tmp_path: Path):
    """Return a random model of a family and the folder that transformers saved it in."""
    name, options = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        **{**SIZES, **options, "attn_implementation": "eager"}
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if (
                "norm" in key or "bias" in key or "sinks" in key
            ):  # the initial ones and zeros would hide errors
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "hf")
    return model, tmp_path / "hf"


def test_parity_of_logits_of_random_models(hf_model) -> None:
    model, folder = hf_model
    decoder = load_model(folder)
    assert np.abs(_logits(decoder, _tokens()) - _hf_logits(model)).max() < LOGITS


def test_parity_of_an_export_loaded_by_transformers(hf_model, tmp_path: Path) -> None:
    model, folder = hf_model
    export_model(load_model(folder), tmp_path / "ours")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert np.abs(_hf_logits(loaded.eval()) - _hf_logits(model)).max() < LOGITS


def test_roundtrip_tensors_of_our_export_are_byte_identical(hf_model, tmp_path: Path) -> None:
    _, folder = hf_model
    export_model(load_model(folder), tmp_path / "ours")
    # The headers differ: ours also holds a digest of every tensor.
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "ours", folder))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].tobytes() == tensor.tobytes()


def test_parity_of_greedy_decoding_of_random_models(hf_model) -> None:
    """Compare 20 prompts of different lengths, both sides with a key-value cache."""
    model, folder = hf_model
    rng = np.random.default_rng(7)
    prompts = [rng.integers(3, VOCABULARY, rng.integers(1, 9)).tolist() for _ in range(20)]
    decoder = load_model(folder)
    decoder.max_length = 16  # that of the longest reply, with its prompt
    replies = _greedy(decoder, prompts, n_new=8)
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert reply[: len(expected)] == expected


def test_parity_of_greedy_decoding_of_a_real_model() -> None:
    """Compare 20 prompts in float32, both sides with a key-value cache."""
    folder = Path(os.environ.get("RPO_SMOLLM2", ""))
    if not (folder / "config.json").exists():
        pytest.skip("needs RPO_SMOLLM2, the folder of a converted SmolLM2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    decoder = load_model(folder)
    prompts = [_prompt(tokenizer, subject) for subject in SUBJECTS]
    replies = _greedy(decoder, prompts, n_new=N_NEW)
    for prompt, reply in zip(prompts, replies, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=N_NEW, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert reply[: len(expected)] == expected


N_NEW = 32
SUBJECTS = [
    *("the moon", "bread", "chess", "a glacier", "the violin", "prime numbers", "bees", "tea"),
    *("the tides", "paper", "volcanoes", "the heart", "maps", "silk", "comets", "salt"),
    *("clocks", "coral reefs", "glass", "the alphabet"),
]


def _prompt(tokenizer, subject: str) -> list[int]:
    message = {"role": "user", "content": f"Tell me something about {subject}."}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _greedy(decoder: Decoder, prompts: list[list[int]], *, n_new: int) -> list[list[int]]:
    """Decode prompts of different lengths greedily in one batch."""
    config = GenerationConfig(max_new_tokens=n_new)
    replies = generate_tokens(decoder, prompts, config, end_ids=(), batch_size=len(prompts))
    return [list(reply.tokens) for reply in replies]


def _tokens() -> np.ndarray:
    return np.random.default_rng(3).integers(3, VOCABULARY, (2, N_TOKENS)).astype(np.int32)


def _logits(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    columns = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    rows = Rows(tokens, columns, np.ones_like(tokens), np.zeros_like(tokens))
    head = decoder.head()
    logits = np.asarray(decoder.hidden_states(rows) @ head.weight.T, np.float64)
    return logits if head.soft_cap is None else head.soft_cap * np.tanh(logits / head.soft_cap)


def _hf_logits(model) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(_tokens())).logits.numpy().astype(np.float64)
