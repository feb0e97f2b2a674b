"""Adapters: their output, their parameters, and merging them into the weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import LoraConfig
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import (
    SavedParam,
    adapted_paths,
    add_lora,
    apply_lora,
    has_dropout,
    has_lora,
    mark_saved,
    merge_lora,
    merged_kernel,
    start_dropout,
    table_shapes,
    trainable_filter,
)
from llm.models.projections import PROJECTIONS, Adapter, Projection
from llm.parallel.layout import SINGLE_DEVICE
from llm.types import Rows

SAME_SUMS = 1e-12  # the same sums in another order, hidden states of order 1, float64
COLUMNS = np.arange(5)[None]
ROWS = Rows(COLUMNS, COLUMNS, np.ones_like(COLUMNS), np.zeros_like(COLUMNS))
SMALL = Architecture(
    vocab_size=7,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    qkv_bias=True,
)


@pytest.fixture
def decoder() -> Decoder:
    dtypes = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    abstract = nnx.eval_shape(lambda: Decoder(SMALL, rngs=nnx.Rngs(0), **dtypes))
    graphdef, shapes = nnx.split(abstract)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape)), shapes)
    return nnx.merge(graphdef, state)


def read(decoder: Decoder) -> np.ndarray:
    """Return the hidden states of rows."""
    graphdef, state = nnx.split(decoder)
    hidden = jax.jit(lambda state: nnx.merge(graphdef, state).hidden_states(ROWS))
    return np.asarray(hidden(state))


def test_property_new_adapters_do_not_change_the_model(decoder: Decoder) -> None:
    before = read(decoder)
    add_lora(decoder, rank=2, alpha=4.0, rngs=nnx.Rngs(1))
    np.testing.assert_allclose(read(decoder), before, rtol=0, atol=SAME_SUMS)


def test_closed_form_output_of_a_projection_with_adapter(decoder: Decoder) -> None:
    """Queries of layer 1; the bias is added once."""
    add_lora(decoder, rank=2, alpha=6.0, target_modules=["q_proj"], rngs=nnx.Rngs(1))
    _randomize_adapters(decoder)
    adapter = decoder.layers.q_proj.adapter
    assert adapter is not None
    kernel, a, b = decoder.layers.q_proj.kernel[1], adapter.a[1], adapter.b[1]
    x = np.random.default_rng(0).normal(size=(1, 5, 8))
    graphdef, state = nnx.split(decoder.layers.q_proj)
    layer = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[1], state))
    bias = decoder.layers.q_proj.bias
    assert bias is not None
    expected = x @ kernel + bias[1] + 3.0 * (x @ a) @ b
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, rtol=0, atol=SAME_SUMS)


def test_parity_merged_weights_give_the_same_hidden_states(decoder: Decoder) -> None:
    plain = read(decoder)
    add_lora(decoder, rank=3, alpha=2.0, rngs=nnx.Rngs(1))
    _randomize_adapters(decoder)
    adapted = read(decoder)
    assert np.abs(adapted - plain).max() > 0.1
    merged_layer = merged_kernel(decoder.layers.down_proj, layer=1)
    merge_lora(decoder)
    np.testing.assert_allclose(merged_layer, decoder.layers.down_proj.kernel[1], rtol=SAME_SUMS)
    assert not has_lora(decoder)
    np.testing.assert_allclose(read(decoder), adapted, rtol=0, atol=SAME_SUMS)


def test_closed_form_narrow_adapters_are_merged_in_float32_and_rounded_once() -> None:
    projection = Projection((2,), 8, 6, bias=False, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    options = {"scale": 0.75, "rngs": nnx.Rngs(1), "param_dtype": jnp.bfloat16}
    adapter = projection.adapter = Adapter((2,), 8, 6, 3, **options)
    drawn = np.random.default_rng(0).normal(size=(2, 3, 6))
    adapter.b[...] = jnp.asarray(drawn, jnp.bfloat16)
    kernel, a, b = (
        np.asarray(x[...], np.float64) for x in (projection.kernel, adapter.a, adapter.b)
    )
    merged = merged_kernel(projection)
    assert merged.dtype == jnp.float32
    np.testing.assert_allclose(merged, kernel + 0.75 * a @ b, rtol=0, atol=1e-6)
    # The product alone, rounded to bfloat16, would be off by up to 2^-9 of its size.
    np.testing.assert_array_equal(merged_kernel(projection, layer=1), merged[1])


def test_gradient_of_the_split_model_is_that_of_adapters_only(decoder: Decoder) -> None:
    names = ["v_proj", "down_proj"]
    add_lora(decoder, rank=2, alpha=2.0, target_modules=names, rngs=nnx.Rngs(1))
    _randomize_adapters(decoder)
    graphdef, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)
    paths = {path for path, _ in nnx.to_flat_state(trainable)}
    expected = {
        ("layers", name, "adapter", part) for name in ("v_proj", "down_proj") for part in ("a", "b")
    }
    assert paths == expected

    def first_feature(trainable: Any) -> jax.Array:
        return nnx.merge(graphdef, trainable, frozen).hidden_states(ROWS)[0, -1, 0]

    for gradient in jax.tree.leaves(jax.jit(jax.grad(first_feature))(trainable)):
        assert np.abs(gradient).max() > 0


def test_closed_form_adapters_are_trained_if_there_are_any(decoder: Decoder) -> None:
    assert trainable_filter(decoder) is nnx.Param
    add_lora(decoder, rank=1, alpha=1.0, target_modules=["o_proj"], rngs=nnx.Rngs(1))
    assert trainable_filter(decoder) == (nnx.LoRAParam, SavedParam)
    adapter = decoder.layers.o_proj.adapter
    assert adapter is not None
    assert adapter.a.shape == (2, 8, 1)
    assert adapter.b.shape == (2, 1, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "`r` must be a whole number from 1 .*, got 0"),
        ({"alpha": 0.0}, r"`lora_alpha` must be positive and finite, got 0\.0"),
        ({"target_modules": ["c_attn"]}, "`target_modules` must be .*q_proj.*got 'c_attn'"),
        ({"target_modules": []}, "`target_modules` must name at least one module, got none"),
    ],
)
def test_raises_for_invalid_adapters(
    decoder: Decoder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        add_lora(decoder, **({"rank": 2, "alpha": 2.0, "rngs": nnx.Rngs(1)} | options))


def test_raises_if_the_model_has_adapters_already(decoder: Decoder) -> None:
    add_lora(decoder, rank=1, alpha=1.0, rngs=nnx.Rngs(1))
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(decoder, rank=1, alpha=1.0, rngs=nnx.Rngs(1))


def test_closed_form_saved_parameters_are_trained_too(decoder: Decoder) -> None:
    config = LoraConfig(r=2, target_modules=("q_proj",), layers_to_transform=(1,))
    mark_saved(apply_lora(decoder, config, rngs=nnx.Rngs(1)), [("norm", "weight"), ("embedding",)])
    paths = {path for path, _ in nnx.to_flat_state(nnx.state(decoder, trainable_filter(decoder)))}
    adapter = {("layers", "q_proj", "adapter", part) for part in ("a", "b")}
    assert paths == adapter | {("norm", "weight"), ("embedding",)}


def test_gradient_of_a_layer_without_an_adapter_is_zero(decoder: Decoder) -> None:
    config = LoraConfig(
        r=3,
        target_modules=("q_proj",),
        layers_to_transform=(1,),
        rank_pattern=((r"layers\.1\.self_attn\.q_proj", 2), ("q_proj", 4)),
    )
    apply_lora(decoder, config, rngs=nnx.Rngs(1))
    assert decoder.layers.q_proj.adapter is not None
    decoder.layers.q_proj.adapter.b[1] = 0.5 * jnp.ones((2, 8))
    graphdef, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)

    def first_feature(trainable: Any) -> jax.Array:
        return nnx.merge(graphdef, trainable, frozen).hidden_states(ROWS)[0, -1, 0]

    for gradient in jax.tree.leaves(jax.jit(jax.grad(first_feature))(trainable)):
        assert gradient.shape[1:] in ((8, 2), (2, 8))
        assert not gradient[0].any()
        assert np.abs(gradient[1]).max() > 0


def test_closed_form_adapters_of_the_embedding_and_the_head(decoder: Decoder) -> None:
    config = LoraConfig(r=2, lora_alpha=6.0, target_modules=("embed_tokens", "lm_head"))
    before = np.asarray(decoder.embedding[...]), np.asarray(decoder.head().weight)
    apply_lora(decoder, config, rngs=nnx.Rngs(1))
    _randomize_adapters(decoder)
    assert table_shapes(config) == dict.fromkeys(("embedding", "output"), (2, 6.0, 3.0))
    assert table_shapes(LoraConfig()) == {}
    expected = []
    for weight, adapter in zip(
        before, (decoder.embedding_adapter, decoder.output_adapter), strict=True
    ):
        assert adapter is not None
        expected.append(weight + 3.0 * np.asarray(adapter.a[...]) @ np.asarray(adapter.b[...]))
    np.testing.assert_allclose(decoder.table("embedding"), expected[0], rtol=0, atol=SAME_SUMS)
    np.testing.assert_allclose(decoder.head().weight, expected[1], rtol=0, atol=SAME_SUMS)
    hidden = read(decoder)
    assert adapted_paths(decoder) == [("embedding",), ("output",)]
    merge_lora(decoder)
    assert not has_lora(decoder)
    assert adapted_paths(decoder) == []
    np.testing.assert_allclose(decoder.embedding[...], expected[0], rtol=0, atol=SAME_SUMS)
    np.testing.assert_allclose(decoder.head().weight, expected[1], rtol=0, atol=SAME_SUMS)
    np.testing.assert_allclose(read(decoder), hidden, rtol=0, atol=SAME_SUMS)


def test_property_dropout_is_deterministic_unbiased_and_of_training_only() -> None:
    options = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64, "scale": 1.0, "dropout": 0.25}
    adapter = Adapter((), 400, 400, 400, **options)
    adapter.a[...] = adapter.b[...] = jnp.eye(400)  # the output is the input, masked and rescaled
    x = jnp.ones((1, 50, 400))
    np.testing.assert_array_equal(adapter(x), x)
    adapter.dropout_key = jax.random.key(1)
    masked = np.asarray(adapter(x))
    np.testing.assert_allclose(np.unique(masked), [0.0, 1.0 / 0.75], rtol=1e-15)
    assert abs(masked.mean() - 1.0) < 5 * np.sqrt(0.25 / 0.75 / x.size)  # five standard deviations
    np.testing.assert_array_equal(adapter(x), masked)
    adapter.dropout_key = jax.random.key(2)
    assert (np.asarray(adapter(x)) != masked).any()


def test_property_layers_and_projections_have_different_masks(decoder: Decoder) -> None:
    config = LoraConfig(r=2, lora_dropout=0.5)
    apply_lora(decoder, config, rngs=nnx.Rngs(1))
    _randomize_adapters(decoder)
    assert has_dropout(decoder)
    keys = []
    for layer in range(2):
        decoder.layers.start_dropout(jax.random.fold_in(jax.random.key(0), layer), SINGLE_DEVICE)
        for name in PROJECTIONS:
            adapter = getattr(decoder.layers, name).adapter
            keys.append(tuple(jax.random.key_data(adapter.dropout_key).tolist()))
            adapter.dropout_key = None
    assert len(set(keys)) == 14
    plain = read(decoder)
    graphdef, state = nnx.split(decoder)

    def dropped(seed: int) -> np.ndarray:
        model = nnx.merge(graphdef, state)
        start_dropout(model, jax.random.key(seed))
        return np.asarray(model.hidden_states(ROWS))

    np.testing.assert_array_equal(dropped(0), dropped(0))
    assert np.abs(dropped(0) - dropped(1)).max() > 0.01
    assert np.abs(dropped(0) - plain).max() > 0.01
    start_dropout(object(), jax.random.key(0))  # a model without adapters stays as it is


def test_property_layers_of_experts_have_adapters_of_the_attention_only() -> None:
    experts = dataclasses.replace(SMALL, num_experts=4, num_experts_per_tok=2)
    decoder = nnx.eval_shape(
        lambda: apply_lora(
            Decoder(experts, rngs=nnx.Rngs(0)), LoraConfig(lora_dropout=0.5), rngs=nnx.Rngs(1)
        )
    )
    decoder.layers.start_dropout(jax.random.key(0), SINGLE_DEVICE)
    paths = {path[1] for path, _ in nnx.to_flat_state(nnx.state(decoder, nnx.LoRAParam))}
    assert paths == {"q_proj", "k_proj", "v_proj", "o_proj"}


def _randomize_adapters(decoder: Decoder) -> None:
    rng = np.random.default_rng(3)
    adapters = nnx.state(decoder, nnx.LoRAParam)
    nnx.update(decoder, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), adapters))
