"""Claims about mixtures of experts, against transformers (extra ``parity``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.hf.io import load_model
from llm.hf.names import tensor_mappings
from llm.models.decoder import Decoder
from llm.models.logprobs import token_log_probs
from llm.types import Rows

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

LOSS, GRADIENT = 1e-6, 1e-5  # float32; the gradient relative to the largest entry of a tensor
COEFFICIENT = 0.3
SIZES = {
    "vocab_size": 61,
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
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": COEFFICIENT,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 6, "moe_intermediate_size": 24, "head_dim": 8},
    "Olmoe": {"num_experts": 4},
    "GptOss": {"num_local_experts": 4, "head_dim": 8, "sliding_window": 5},
}
# Two pairs: prompts of 5 and 3 tokens, each with two responses.
PROMPTS, RESPONSES = (5, 3), ((4, 6), (7, 2))
WIDTH = 11


def sequences() -> list[np.ndarray]:
    """Return prompt and response, for each response."""
    rng = np.random.default_rng(3)
    found = []
    for prompt, lengths in zip(PROMPTS, RESPONSES, strict=True):
        tokens = rng.integers(3, 61, prompt)
        found += [np.concatenate([tokens, rng.integers(3, 61, length)]) for length in lengths]
    return found


def packed() -> Rows:
    """Return one row of both pairs with shared prompts."""
    parts: list[tuple[np.ndarray, np.ndarray, int, int]] = []
    for pair, prompt in enumerate(PROMPTS):
        for branch, tokens in enumerate(sequences()[2 * pair : 2 * pair + 2], start=1):
            if branch == 1:
                parts.append((tokens[:prompt], np.arange(prompt), pair + 1, 0))
            parts.append((tokens[prompt:], np.arange(prompt, len(tokens)), pair + 1, branch))
    tokens, positions = (np.concatenate([part[i] for part in parts])[None] for i in (0, 1))
    segments, branches = (
        np.concatenate([np.full(len(part[0]), part[i]) for part in parts])[None] for i in (2, 3)
    )
    tokens, positions, segments, branches = (
        array.astype(np.int32) for array in (tokens, positions, segments, branches)
    )
    return Rows(tokens, positions, segments, branches)


def separate() -> Rows:
    """Return one padded row for each response."""
    tokens = np.zeros((4, WIDTH), np.int32)
    segments = np.zeros((4, WIDTH), np.int32)
    for row, sequence in enumerate(sequences()):
        tokens[row, : len(sequence)] = sequence
        segments[row, : len(sequence)] = 1
    columns = np.broadcast_to(np.arange(WIDTH, dtype=np.int32), tokens.shape)
    return Rows(tokens, columns, segments, np.zeros_like(tokens))


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Decoder]:
    """Return a random model of a family, and the same model as this package reads it."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{request.param}Config")(**SIZES, **FAMILIES[request.param])
    config._attn_implementation = "eager"
    found = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, parameter in found.named_parameters():
            if any(part in key for part in ("norm", "bias", "sinks")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    found.save_pretrained(tmp_path)
    return found, load_model(tmp_path)


def _losses(model: Any) -> tuple[Any, Any]:
    """Return the mean loss of all tokens but the first, and the loss of the router, in torch."""
    rows = separate()
    tokens, mask = torch.tensor(np.asarray(rows.tokens)), torch.tensor(np.asarray(rows.segments))
    labels = torch.where(mask > 0, tokens, -100).long()
    out = model(input_ids=tokens, attention_mask=mask, labels=labels)
    return out.loss, out.aux_loss


def test_parity_of_the_loss_of_the_router_packed_or_not(model: tuple[Any, Decoder]) -> None:
    theirs, ours = model
    with torch.no_grad():
        expected = float(_losses(theirs)[1])
    for rows in (separate(), packed()):
        loss = ours.read(rows, with_router_loss=True)[1]
        assert loss is not None
        assert float(loss) == pytest.approx(expected, rel=LOSS)


def test_parity_of_the_gradient_of_both_losses(model: tuple[Any, Decoder]) -> None:
    theirs, ours = model
    both, _ = _losses(theirs)
    both.backward()
    graphdef, state = nnx.split(ours)
    rows = separate()
    at = np.flatnonzero((rows.segments[:, 1:] > 0).ravel())

    def loss(state: Any) -> jax.Array:
        decoder = nnx.merge(graphdef, state)
        hidden, router = decoder.read(rows, with_router_loss=True)
        assert router is not None
        features = hidden[:, :-1].reshape(-1, hidden.shape[-1])[at]
        targets = jnp.asarray(rows.tokens)[:, 1:].reshape(-1)[at]
        return -jnp.mean(token_log_probs(features, decoder.head(), targets)) + COEFFICIENT * router

    value, gradient = jax.jit(jax.value_and_grad(loss))(state)
    assert float(value) == pytest.approx(float(both.detach()), rel=LOSS)
    found = {path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradient)}
    expected = {name: leaf.grad.numpy() for name, leaf in theirs.named_parameters()}
    n_checked = 0
    for mapping in tensor_mappings(ours.architecture):
        ours_gradient = found[mapping.path]
        for layer in range(3 if mapping.stacked else 1):
            name = mapping.name.format(layer=layer, expert="{expert}")
            theirs_gradient = _theirs(expected, name, mapping, ours_gradient[layer].shape)
            if theirs_gradient is None:
                continue
            mine = ours_gradient[layer] if mapping.stacked else ours_gradient
            scale = max(np.abs(theirs_gradient).max(), 1e-6)
            assert np.abs(mine - theirs_gradient).max() < GRADIENT * scale, mapping.path
            n_checked += 1
    assert n_checked > 30


def _theirs(
    gradients: dict[str, np.ndarray], name: str, mapping: Any, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return the gradient of a parameter of a layer in the layout of this package."""
    gate = "block_sparse_moe"
    name = name.replace(gate, "mlp")
    if "{expert}" not in name:
        gradient = gradients[name]
        if mapping.part is not None:  # gpt-oss: gate and up projections alternate
            return gradient[..., mapping.part.first :: mapping.part.step]
        return gradient.T if mapping.transposed else gradient
    # transformers holds the experts of a layer in one parameter.
    prefix, module = name.split(".experts.")[0], mapping.path[2]
    if module == "down_proj":
        return gradients[f"{prefix}.experts.down_proj"].swapaxes(1, 2)
    fused = gradients[f"{prefix}.experts.gate_up_proj"].swapaxes(1, 2)
    units = fused.shape[-1] // 2
    return fused[..., :units] if module == "gate_proj" else fused[..., units:]
