"""Quantized matrices: levels, codes against NumPy, and gradients of adapters beside them."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from llm.models.architecture import Architecture
from llm.models.base_weights import compress_base_weights
from llm.models.decoder import Decoder
from llm.models.lora import add_lora, mark_saved, merge_lora, trainable_filter
from llm.models.projections import PROJECTIONS
from llm.models.quantization import (
    NF4_LEVELS,
    QuantizedKernel,
    block_size,
    dequantize,
    kernel_shape,
    quantize,
)
from llm.types import Rows

SAME_GRADIENT = 1e-10  # float64, relative to the largest entry
COLUMNS = np.arange(6)[None]
ROWS = Rows(COLUMNS, COLUMNS, np.ones_like(COLUMNS), np.zeros_like(COLUMNS))
SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}


def test_closed_form_nf4_levels_are_quantiles_of_the_normal_distribution() -> None:
    """Appendix E of the paper: 8 quantiles of each sign between the tail 0.9677 and the median."""
    tail = 0.5 * (1 - 1 / 32 + 1 - 1 / 30)
    positive = norm.ppf(np.linspace(tail, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(tail, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, [0.0], negative])) / positive.max()
    np.testing.assert_allclose(NF4_LEVELS, levels, rtol=0, atol=1e-6)  # a float32 table


def nearest_levels(kernel: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the nearest level of each weight, and the weight that it stands for."""
    n_inputs, n_outputs = kernel.shape
    size = max(n for n in range(2, 65, 2) if n_inputs % n == 0)
    indices, values = np.zeros(kernel.shape, int), np.zeros_like(kernel)
    for output in range(n_outputs):
        for start in range(0, n_inputs, size):
            block = kernel[start : start + size, output]
            scale = np.abs(block).max()
            distances = np.abs(block[:, None] - scale * levels)
            best = distances.argmin(axis=1) if scale else np.full(size, np.abs(levels).argmin())
            indices[start : start + size, output] = best
            values[start : start + size, output] = scale * levels[best]
    return indices, values


@pytest.mark.parametrize("n_inputs", [128, 96, 10, 2])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_parity_codes_and_weights_equal_those_of_numpy(kind: Any, n_inputs: int) -> None:
    rng = np.random.default_rng(n_inputs)
    kernel = rng.normal(size=(2, n_inputs, 5)) * 10.0 ** rng.integers(-20, 20, (2, 1, 5))
    kernel[1, :, 2] = 0.0  # no scale to divide by
    codes, scale = jax.jit(quantize, static_argnums=1)(jnp.asarray(kernel), kind)
    levels = np.array(NF4_LEVELS) if kind == "nf4" else np.arange(-127, 128) / 127
    n_blocks = n_inputs // block_size(n_inputs)
    assert codes.shape == (2, n_inputs if kind == "int8" else n_inputs // 2, 5)
    assert scale.shape == (2, n_blocks, 5)
    assert kernel_shape(codes) == kernel.shape
    for layer in range(2):
        indices, values = nearest_levels(kernel[layer], levels)
        found = np.asarray(dequantize(codes[layer], scale[layer]))
        np.testing.assert_allclose(found, values, rtol=1e-14, atol=0)
        packed = np.asarray(codes[layer])
        if kind == "int8":
            np.testing.assert_array_equal(packed, indices - 127)
        else:  # the halves of a block
            low, high = np.split(indices.reshape(n_blocks, -1, 5), 2, axis=1)
            np.testing.assert_array_equal(packed, (low + 16 * high).reshape(-1, 5))


@pytest.mark.parametrize(("kind", "bound"), [("int8", 1 / 254), ("nf4", 0.16)])
def test_extreme_the_error_is_at_most_half_a_step_of_the_block(kind: Any, bound: float) -> None:
    """Half the widest step of nf4 is that below -0.696."""
    kernel = jax.random.normal(jax.random.key(0), (128, 64), jnp.float32)
    error = jnp.abs(QuantizedKernel(kernel, kind)[...] - kernel).reshape(2, 64, 64).max(axis=1)
    scale = jnp.abs(kernel).reshape(2, 64, 64).max(axis=1)
    assert float((error / scale).max()) <= bound


def test_roundtrip_dequantized_weights_keep_their_codes() -> None:
    kernel = jax.random.normal(jax.random.key(1), (3, 64, 8), jnp.float32)
    for kind in ("int8", "nf4"):
        first = QuantizedKernel(kernel, kind)
        again = QuantizedKernel(first[...], kind)
        np.testing.assert_array_equal(again.codes[...], first.codes[...])
        np.testing.assert_array_equal(first[1], first[...][1])


def test_raises_for_a_matrix_with_an_odd_number_of_inputs() -> None:
    with pytest.raises(ValueError, match="even number of inputs, got 7"):
        block_size(7)


def make_decoder(**changed: Any) -> Decoder:
    """Return a decoder with adapters, in float64."""
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    decoder = Decoder(Architecture(**{**SIZES, **changed}), rngs=nnx.Rngs(0), **dtypes)
    add_lora(decoder, rank=2, alpha=4.0, rngs=nnx.Rngs(1))
    adapters = nnx.state(decoder, nnx.LoRAParam)
    nnx.update(decoder, jax.tree.map(lambda leaf: leaf + 0.1, adapters))
    return decoder


def adapter_gradient(decoder: Decoder) -> Any:
    """Return hidden states and the gradient of a sum of them with respect to the adapters."""
    graphdef, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)
    weights = np.random.default_rng(3).normal(size=(1, 6, 16))

    def loss(trainable: Any, frozen: Any) -> Any:
        hidden = nnx.merge(graphdef, trainable, frozen).hidden_states(ROWS)
        return jnp.sum(hidden * weights), hidden

    return jax.jit(jax.grad(loss, has_aux=True))(trainable, frozen)


@pytest.mark.parametrize(
    ("kind", "changed"), [("nf4", {}), pytest.param("int8", EXPERTS, marks=pytest.mark.slow)]
)
def test_gradient_of_adapters_is_that_beside_a_dense_base_of_the_same_weights(
    kind: Any, changed: dict[str, Any]
) -> None:
    quantized = compress_base_weights(make_decoder(**changed), quantization=kind)
    dense = make_decoder(**changed)
    for part in ("layers", "layers.experts") if changed else ("layers",):
        source, target = operator.attrgetter(part)(quantized), operator.attrgetter(part)(dense)
        for name in PROJECTIONS:
            if getattr(source, name, None) is not None:
                getattr(target, name).kernel[...] = getattr(source, name).kernel[...]
    assert isinstance(quantized.layers.q_proj.kernel, QuantizedKernel)
    if changed:
        assert isinstance(quantized.layers.experts.up_proj.kernel, QuantizedKernel)
        assert isinstance(quantized.layers.router.kernel, nnx.Param)
    (gradient, hidden), (expected, same) = map(adapter_gradient, (quantized, dense))
    np.testing.assert_allclose(hidden, same, rtol=SAME_GRADIENT)
    for found, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert np.abs(found - leaf).max() <= SAME_GRADIENT * np.abs(leaf).max()


def test_property_adapters_and_saved_modules_keep_their_dtype_and_are_not_quantized() -> None:
    decoder = make_decoder()
    mark_saved(decoder, [("layers", "up_proj", "kernel"), ("norm", "weight")])
    compress_base_weights(decoder, dtype=jnp.bfloat16, quantization="nf4")
    trained = nnx.state(decoder, trainable_filter(decoder))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(trained)} == {"float64"}
    assert decoder.layers.up_proj.kernel.shape == (2, 16, 24)
    assert decoder.embedding.dtype == decoder.layers.mlp_norm.weight.dtype == jnp.bfloat16
    assert decoder.layers.q_proj.kernel.codes.dtype == jnp.uint8


def test_closed_form_merging_adds_the_adapter_to_the_dequantized_weights() -> None:
    decoder = compress_base_weights(make_decoder(), quantization="int8")
    projection = decoder.layers.q_proj
    adapter, base = projection.adapter, projection.kernel[...]
    product = jnp.einsum("lir,lro,l->lio", adapter.a[...], adapter.b[...], adapter.scale[...])
    merge_lora(decoder)
    np.testing.assert_allclose(decoder.layers.q_proj.kernel[...], base + product, rtol=1e-12)
