"""The same step by different routes: none of them may change the loss or its gradient.

A decoder with every switch that could make a difference (grouped heads, a window in one of two
layers, soft caps, tied embeddings) on pairs of uneven lengths, one with a baseline of its own, in a
batch with a pair missing. Float64 shows disagreements that single precision would hide; the last
test takes the longest detour in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.data.packing import BatchShape, PackingMode, pack, required_shape
from llm.data.preferences import PairTokens
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.logprobs import response_log_probs
from llm.models.lora import add_lora
from llm.train.step import Reference, StepResult, gradients
from llm.types import Batch

EXACT = 1e-10  # float64, relative to the gradient's norm, through two layers
SINGLE = 1e-5  # the bar of the project in float32; measured 1e-6
VOCABULARY, PAIRS, ROLES = 11, 4, 3
ARCHITECTURE = Architecture(
    vocab_size=VOCABULARY,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    tie_word_embeddings=True,
    qk_norm=True,
    post_norms=True,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=4.0,
    sliding_window=4,
    local_layers=(True, False),
)
CONFIG = ObjectiveConfig(beta=0.3, eta=0.7, sft_reduction="pooled_mean")
run = jax.jit(
    gradients,
    static_argnames=("config", "chunk_size"),
    compiler_options={"xla_backend_optimization_level": 0},  # compiling is the cost here
)
log_probs = jax.jit(
    lambda graphdef, state, batch: response_log_probs(nnx.merge(graphdef, state), batch)
)


def decoder(seed: int = 0, **options: Any) -> Decoder:
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64} | options
    return Decoder(ARCHITECTURE, rngs=nnx.Rngs(seed), **options)


@functools.cache
def pairs() -> tuple[PairTokens, ...]:
    """Three, for a batch of four."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, length).tolist())

    sizes = [(5, 6, 3, None), (2, 1, 7, 4), (3, 4, 4, None)]
    return tuple(
        PairTokens(tokens(p), tokens(c), tokens(r), None if b is None else tokens(b), row)
        for row, (p, c, r, b) in enumerate(sizes)
    )


def packed(parts: int, layout: PackingMode = "shared") -> Batch:
    """The pairs in equal parts, every part of the same shape."""
    size = PAIRS // parts
    groups = [pairs()[start : start + size] for start in range(0, PAIRS, size)]
    least = [required_shape(group, layout=layout, roles=ROLES) for group in groups if group]
    shape = BatchShape(
        rows=size * ROLES if layout == "separate" else 1,
        row_tokens=3 + max(each.row_tokens for each in least),
        completions=3 + max(each.completions for each in least),
        longest=3 + max(each.longest for each in least),
    )
    options = {"roles": ROLES, "n_pairs": size, "shape": shape}
    batches = [pack(group, layout=layout, **options) for group in groups]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


@functools.cache
def cached_reference() -> np.ndarray:
    whole = jax.tree.map(lambda leaf: leaf[0], packed(1))
    return np.asarray(log_probs(*nnx.split(decoder(seed=1)), whole))


def with_reference(batches: Batch) -> Batch:
    return batches._replace(reference=cached_reference().reshape(batches.lengths.shape))


@functools.cache
def batches_of(parts: int, layout: PackingMode = "shared") -> Batch:
    return with_reference(packed(parts, layout))


def result_of(
    model: Decoder, batches: Batch, **options: Any
) -> tuple[dict[str, np.ndarray], StepResult]:
    """Gradient by the name of its parameter, and measurements."""
    graphdef, trainable, frozen = nnx.split(model, nnx.Param, ...)
    grads, result = run(graphdef, trainable, frozen, batches, CONFIG, **options)
    named = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(grads)}
    return {name: np.asarray(leaf[...]) for name, leaf in named.items()}, result


@functools.cache
def plain() -> tuple[dict[str, np.ndarray], StepResult]:
    return result_of(decoder(), batches_of(1))


def assert_same(
    got: tuple[dict[str, np.ndarray], StepResult],
    wanted: tuple[dict[str, np.ndarray], StepResult],
    tolerance: float = EXACT,
) -> None:
    """Every parameter's gradient relative to its norm, and every metric."""
    assert got[0].keys() == wanted[0].keys()
    for name, leaf in wanted[0].items():
        norm = np.linalg.norm(leaf)
        assert norm > 0, name
        assert np.linalg.norm(got[0][name] - leaf) <= tolerance * norm, name
    for name, value in wanted[1].metrics.items():
        assert float(got[1].metrics[name]) == pytest.approx(float(value), rel=tolerance), name


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_property_accumulation_is_the_whole_batch(parts: int) -> None:
    """Although lengths are uneven and the last part may have no pair at all."""
    assert_same(result_of(decoder(), batches_of(parts)), plain())


def test_property_a_shared_prompt_is_a_prompt_for_each_response() -> None:
    assert_same(result_of(decoder(), batches_of(1, "separate")), plain())


def test_property_computing_again_is_keeping() -> None:
    assert_same(result_of(decoder(remat="dots"), batches_of(1)), plain())


def test_property_layers_in_a_loop_are_layers_one_by_one() -> None:
    assert_same(result_of(decoder(layer_loop="unrolled"), batches_of(1)), plain())


def test_property_a_reference_that_runs_along_is_the_cached_one() -> None:
    graphdef, state = nnx.split(decoder(seed=1))
    got = result_of(decoder(), packed(1), reference=Reference(graphdef, state))
    assert_same(got, plain())


@functools.cache
def adapted() -> tuple[dict[str, np.ndarray], StepResult]:
    model = add_lora(decoder(), rank=3, alpha=6.0, rngs=nnx.Rngs(2))
    return result_of(model, batches_of(1))


def test_property_new_adapters_change_nothing() -> None:
    grads, result = adapted()
    base = {name: leaf for name, leaf in grads.items() if "adapter" not in name}
    measured = {name: value for name, value in result.metrics.items() if name != "grad_norm"}
    assert_same((base, plain()[1]), plain())
    for name, value in measured.items():
        assert float(value) == pytest.approx(float(plain()[1].metrics[name]), rel=EXACT)


def test_gradient_of_new_adapters_follows_from_that_of_the_weights() -> None:
    """For W + 2 A B with B = 0: slope 2 A' dL/dW in B, and none in A."""
    grads, _ = adapted()
    model = add_lora(decoder(), rank=3, alpha=6.0, rngs=nnx.Rngs(2))
    state = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    names = [name.removesuffix("/adapter/b") for name in grads if name.endswith("/adapter/b")]
    assert len(names) == 7
    for name in names:
        down, slope = np.asarray(state[f"{name}/adapter/a"][...]), grads[f"{name}/kernel"]
        wanted = 2.0 * np.swapaxes(down, -1, -2) @ slope
        np.testing.assert_allclose(
            grads[f"{name}/adapter/b"], wanted, rtol=0, atol=EXACT * np.abs(wanted).max()
        )
        np.testing.assert_array_equal(grads[f"{name}/adapter/a"], 0.0)


def test_property_single_precision_by_another_route_keeps_to_the_bar() -> None:
    """Four parts, a prompt for each response, layers computed again, the head in chunks."""
    model = decoder(dtype=jnp.float32, remat="full")
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), nnx.state(model))
    nnx.update(model, jax.tree.map(jnp.asarray, narrow))
    batches = batches_of(4, "separate")
    batches = batches._replace(reference=np.asarray(batches.reference, np.float32))
    with jax.default_matmul_precision("highest"):
        grads, result = result_of(model, batches, chunk_size=8)
    assert all(leaf.dtype == np.float32 for leaf in grads.values())
    assert_same((grads, result), plain(), SINGLE)
