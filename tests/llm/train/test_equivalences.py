"""Equivalent ways to compute a step: equal losses and gradients.

The decoder has every switch that could make a difference (grouped heads, a window in one of two
layers, soft caps, tied embeddings). The pairs have uneven lengths, one has its own baseline, and
the batch has an absent pair. Float64 shows differences that float32 would hide; the last test
combines all routes in float32.
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
from llm.evaluation.metrics import compute_metric_sums
from llm.models import logprobs
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.logprobs import response_log_probs
from llm.models.lora import add_lora
from llm.parallel.mesh import single_device
from llm.train.objective import loss_share, normalizers
from llm.train.step import StepResult, gradients
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
DEVICES = single_device()


def compile_step() -> Any:
    """Return the jitted gradient, to be traced anew."""
    return jax.jit(
        lambda graphdef, trainable, frozen, batches: gradients(
            graphdef, trainable, frozen, batches, CONFIG, devices=DEVICES
        ),
        static_argnums=0,
        compiler_options={"xla_backend_optimization_level": 0},  # compiling is the cost here
    )


run = compile_step()
log_probs = jax.jit(
    lambda graphdef, state, batch: response_log_probs(nnx.merge(graphdef, state), batch)
)


def decoder(seed: int = 0, **options: Any) -> Decoder:
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64} | options
    return Decoder(ARCHITECTURE, rngs=nnx.Rngs(seed), **options)


@functools.cache
def pairs() -> tuple[PairTokens, ...]:
    """Return three pairs, for a batch of four."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, VOCABULARY, length).tolist())

    sizes = [(5, 6, 3, None), (2, 1, 7, 4), (3, 4, 4, None)]
    return tuple(
        PairTokens(tokens(p), tokens(c), tokens(r), None if b is None else tokens(b), row)
        for row, (p, c, r, b) in enumerate(sizes)
    )


def packed(parts: int, layout: PackingMode = "shared") -> Batch:
    """Return the pairs in equal parts, all of the same shape."""
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
    return DEVICES.assign(jax.tree.map(lambda *leaves: np.stack(leaves), *batches))


@functools.cache
def cached_reference() -> np.ndarray:
    whole = jax.tree.map(lambda leaf: leaf[0, 0], packed(1))
    return np.asarray(log_probs(*nnx.split(decoder(seed=1)), whole))


def with_reference(batches: Batch) -> Batch:
    return batches._replace(reference=cached_reference().reshape(batches.lengths.shape))


@functools.cache
def batches_of(parts: int, layout: PackingMode = "shared") -> Batch:
    return with_reference(packed(parts, layout))


def by_name(gradient: nnx.State) -> dict[str, np.ndarray]:
    leaves = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(gradient)}
    return {name: np.asarray(leaf[...]) for name, leaf in leaves.items()}


def result_of(
    model: Decoder, batches: Batch, run: Any = run
) -> tuple[dict[str, np.ndarray], StepResult]:
    """Return the gradient by parameter names, and the measurements."""
    gradient, result = run(*nnx.split(model, nnx.Param, ...), batches)
    return by_name(gradient), result


@functools.cache
def plain() -> tuple[dict[str, np.ndarray], StepResult]:
    return result_of(decoder(), batches_of(1))


def assert_same(
    got: tuple[dict[str, np.ndarray], StepResult],
    wanted: tuple[dict[str, np.ndarray], StepResult],
    tolerance: float = EXACT,
) -> None:
    """Compare every gradient relative to its norm, and every metric."""
    assert got[0].keys() == wanted[0].keys()
    for name, leaf in wanted[0].items():
        norm = np.linalg.norm(leaf)
        assert norm > 0, name
        assert np.linalg.norm(got[0][name] - leaf) <= tolerance * norm, name
    for name, value in wanted[1].metrics.items():
        assert float(got[1].metrics[name]) == pytest.approx(float(value), rel=tolerance), name


@pytest.mark.parametrize("parts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_property_accumulated_parts_equal_the_whole_batch(parts: int) -> None:
    """Lengths are uneven, and the last part may have no pair at all."""
    assert_same(result_of(decoder(), batches_of(parts)), plain())


def test_property_shared_prompts_equal_separate_sequences() -> None:
    assert_same(result_of(decoder(), batches_of(1, "separate")), plain())


def test_property_remat_changes_nothing() -> None:
    assert_same(result_of(decoder(remat="dots"), batches_of(1)), plain())


def test_property_scanned_layers_equal_unrolled_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain()

    def unrolled_scan(body: Any, carry: Any, xs: Any) -> tuple[Any, None]:
        for i in range(len(jax.tree.leaves(xs)[0])):
            carry, _ = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        return carry, None

    monkeypatch.setattr(jax.lax, "scan", unrolled_scan)
    assert_same(result_of(decoder(), batches_of(1), compile_step()), expected)


def test_property_cached_reference_log_probs_equal_those_of_a_reference_in_the_step() -> None:
    graphdef, trainable, frozen = nnx.split(decoder(), nnx.Param, ...)
    batch = jax.tree.map(lambda leaf: leaf[0, 0], packed(1))

    def loss(trainable: nnx.State) -> jax.Array:
        policy = response_log_probs(nnx.merge(graphdef, trainable, frozen), batch)
        reference = response_log_probs(decoder(seed=1), batch)
        sums = compute_metric_sums(CONFIG, policy, reference, batch)
        return loss_share(CONFIG, sums, normalizers(CONFIG, batch))

    value, gradient = jax.jit(jax.value_and_grad(loss))(trainable)
    expected, result = plain()
    assert float(value) == pytest.approx(float(result.metrics["loss"]), rel=EXACT)
    assert_same((by_name(gradient), result), (expected, result))


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
    """For W + 2 A B with B = 0 the gradient of B is 2 A' dL/dW, and that of A is 0."""
    grads, _ = adapted()
    model = add_lora(decoder(), rank=3, alpha=6.0, rngs=nnx.Rngs(2))
    state = {"/".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(model))}
    names = [name.removesuffix("/adapter/b") for name in grads if name.endswith("/adapter/b")]
    assert len(names) == 7
    for name in names:
        a, d_kernel = np.asarray(state[f"{name}/adapter/a"][...]), grads[f"{name}/kernel"]
        wanted = 2.0 * np.swapaxes(a, -1, -2) @ d_kernel
        np.testing.assert_allclose(
            grads[f"{name}/adapter/b"], wanted, rtol=0, atol=EXACT * np.abs(wanted).max()
        )
        np.testing.assert_array_equal(grads[f"{name}/adapter/a"], 0.0)


def test_property_single_precision_by_another_route_keeps_to_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four parts, a prompt for each response, full remat, and the head in chunks."""
    monkeypatch.setattr(logprobs, "CHUNK_ENTRIES", 8 * VOCABULARY)
    model = decoder(dtype=jnp.float32, remat="full")
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), nnx.state(model))
    nnx.update(model, jax.tree.map(jnp.asarray, narrow))
    batches = batches_of(4, "separate")
    batches = batches._replace(reference=np.asarray(batches.reference, np.float32))
    with jax.default_matmul_precision("highest"):
        grads, result = result_of(model, batches, compile_step())
    assert all(leaf.dtype == np.float32 for leaf in grads.values())
    assert_same((grads, result), plain(), SINGLE)
