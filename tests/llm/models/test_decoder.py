"""The decoder against NumPy, token by token, with the features of every model family."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.attention.caches import SlotMajorCache
from llm.attention.pages import PAGE
from llm.models import layers
from llm.models.architecture import Architecture, RopeScaling
from llm.models.decoder import Decoder, Remat
from llm.models.layers import MLP_CHUNK, apply_in_chunks
from llm.models.protocol import LanguageModel
from llm.models.rope import rope_frequencies
from llm.models.unrolled import decode_with_pages, init_pages, read_prompts, unroll
from llm.types import Rows

ROUNDING = 1e-11  # relative to hidden states of order 1, float64
SAME_SUMS = 1e-12  # the same sums in another order, relative, float64
SIZES: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,  # large, so that it is seen to count
    "rope_theta": 30.0,
}
GEMMA = {
    "norm_plus_one": True,
    "scaled_embeddings": True,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 6,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"o_proj_bias": True, "mlp_bias": True, "qkv_bias": True, "hidden_act": "gelu"},
    "mistral": {"sliding_window": 2, "local_layers": (True,) * 3},
    "qwen": {
        "qkv_bias": True,
        "qk_norm": True,
        "sliding_window": 3,
        "local_layers": (False, True, True),
    },
    "gemma 1": GEMMA,
    "gemma 2 and 3": {
        **GEMMA,
        "post_norms": True,
        "qk_norm": True,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 3,
        "sliding_window": 2,
        "local_layers": (True, False, True),
        "rope_local_base_freq": 5.0,
    },
    "olmo and granite": {
        "pre_norms": False,
        "post_norms": True,
        "qk_proj_norm": True,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.6,
        "logits_scaling": 2.5,
    },
    "phi, smollm, ministral and gpt-oss": {
        "head_dim": 8,
        "partial_rotary_factor": 0.75,
        "rope_layers": (True, False, True),
        "rope_scaling": RopeScaling(
            rope_type="longrope",
            factor=3.0,
            original_max_position_embeddings=3,
            short_factor=(1.0, 2.0, 3.0),
            long_factor=(2.0, 3.0, 4.0),
            llama_4_scaling_beta=0.7,
        ),
        "attention_sinks": True,
    },
}
# One row: a pair with a shared prompt, then padding with ids and positions out of range.
SEGMENTS = np.array([[1] * 7 + [0] * 2])
BRANCHES = np.array([[0, 0, 0, 1, 1, 2, 2, 0, 0]])
POSITIONS = np.array([[0, 1, 2, 3, 4, 3, 4, 99, -7]])
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2, 10**6, -1]])
ROWS = Rows(TOKENS, POSITIONS, SEGMENTS, BRANCHES)
N_FILLED = 7


def make(family: str, **options: Any) -> Decoder:
    """Return a decoder whose norms and biases are random: ones and zeros would hide mistakes."""
    architecture = Architecture(**{**SIZES, **FAMILIES[family]})
    settings = {"dtype": jnp.float64, "param_dtype": jnp.float64} | options
    abstract = nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0), **settings))
    graphdef, shapes = nnx.split(abstract)
    rng = np.random.default_rng(1)
    state = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)
    return nnx.merge(graphdef, state)


def read(decoder: Decoder, rows: Rows = ROWS) -> np.ndarray:
    """Return the hidden states of rows."""
    graphdef, state = nnx.split(decoder)
    hidden = jax.jit(lambda state, rows: nnx.merge(graphdef, state).hidden_states(rows))
    return np.asarray(hidden(state, rows))


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_form_hidden_states_in_numpy(family: str) -> None:
    decoder = make(family)
    hidden = read(decoder)[0, :N_FILLED]
    for path in ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6]):
        expected = _numpy_hidden(decoder, TOKENS[0, path])
        np.testing.assert_allclose(hidden[path], expected, rtol=ROUNDING, atol=ROUNDING)
    assert isinstance(decoder, LanguageModel)


def test_property_longrope_decides_by_the_length_of_the_run_or_of_the_batch() -> None:
    """A row of two tokens, and one of four: more than the three of the pretraining."""
    decoder = make("phi, smollm, ministral and gpt-oss")
    short, long = (
        Rows(TOKENS[:, :n], np.arange(n)[None], np.ones((1, n), int), np.zeros((1, n), int))
        for n in (2, 4)
    )
    by_itself, beginning = read(decoder, short), read(decoder, long)[:, :2]
    assert np.abs(by_itself - beginning).max() > 1e-3
    decoder.max_length = 4
    np.testing.assert_allclose(read(decoder, short), beginning, rtol=ROUNDING, atol=ROUNDING)
    decoder.max_length = 3
    np.testing.assert_allclose(read(decoder, long)[:, :2], by_itself, rtol=ROUNDING, atol=ROUNDING)


def test_closed_form_heads() -> None:
    tied, untied = make("gemma 2 and 3"), make("llama")
    np.testing.assert_array_equal(tied.head().weight, tied.embedding[...])
    assert tied.head().soft_cap == 2.0
    assert untied.output is not None
    np.testing.assert_array_equal(untied.head().weight, untied.output[...])
    assert untied.head().soft_cap is None


def test_property_padding_is_finite_and_changes_nothing() -> None:
    decoder = make("gemma 2 and 3")
    hidden = read(decoder)
    assert np.isfinite(hidden).all()
    changed = ROWS._replace(tokens=np.where(SEGMENTS > 0, TOKENS, 5))
    np.testing.assert_array_equal(read(decoder, changed), hidden)
    shorter = jax.tree.map(lambda leaf: leaf[:, :N_FILLED], ROWS)
    filled = hidden[:, :N_FILLED]
    np.testing.assert_allclose(read(decoder, shorter), filled, rtol=SAME_SUMS, atol=SAME_SUMS)


@pytest.mark.parametrize(
    "family", ["mistral", "gemma 2 and 3", "phi, smollm, ministral and gpt-oss"]
)
def test_parity_decoding_gives_the_hidden_states_of_whole_rows(family: str) -> None:
    """Two prompts of different lengths, one padded right, one left; then token by token."""
    decoder = make(family)
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 13, (2, 7))
    columns = np.broadcast_to(np.arange(7), tokens.shape)
    ones = np.ones_like(tokens)
    whole = read(decoder, Rows(tokens, columns, ones, 0 * ones))
    prompts = np.array([[*tokens[0, :3], 99], [99, 99, *tokens[1, :2]]])
    positions = np.array([[0, 1, 2, -1], [-1, -1, 0, 1]])
    decode = jax.jit(decoder.decode)
    hidden, cache = decode(prompts, positions, decoder.init_cache(2, 8))
    close: dict[str, Any] = {"rtol": ROUNDING, "atol": ROUNDING}
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden[0, :3], whole[0, :3], **close)
    np.testing.assert_allclose(hidden[1, 2:], whole[1, :2], **close)
    for step in range(3):
        positions = np.array([[3 + step], [2 + step]])
        following = np.take_along_axis(tokens, positions, axis=1)
        hidden, cache = decode(following, positions, cache)
        for row in range(2):
            np.testing.assert_allclose(hidden[row, 0], whole[row, positions[row, 0]], **close)


@pytest.mark.parametrize(
    "family", ["mistral", "gemma 2 and 3", "phi, smollm, ministral and gpt-oss"]
)
def test_parity_packed_prompts_and_pages_give_the_hidden_states_of_a_padded_batch(
    family: str,
) -> None:
    decoder = make(family)
    lengths = np.array([3, 2, 4], np.int32)
    tokens = np.full((3, PAGE), 99)
    tokens[:, :4] = [[5, 2, 7, 99], [3, 1, 99, 99], [8, 4, 6, 2]]
    positions = np.where(np.arange(PAGE) < lengths[:, None], np.arange(PAGE), -1)
    padded, cache = decoder.decode(tokens, positions, decoder.init_cache(3, PAGE + 1))
    unrolled = unroll(decoder)
    packed, prompts = read_prompts(unrolled, tokens, lengths, PAGE + 1, n_packed=12)
    found = packed[: lengths.sum()]
    np.testing.assert_allclose(found, padded[positions >= 0], rtol=ROUNDING, atol=ROUNDING)
    pages = init_pages(unrolled, 3, PAGE + 1, 4)
    for row in range(3):
        pages = pages.admit(prompts, *map(jnp.int32, (row, row, lengths[row])))
    following = np.array([[1], [2], [3]]), lengths[:, None]
    before, _ = decoder.decode(*following, cache)
    after, _ = decode_with_pages(unrolled, *following, pages)
    np.testing.assert_allclose(after, before, rtol=ROUNDING, atol=ROUNDING)


def test_property_every_layer_passes_on_what_the_one_before_it_returned() -> None:
    decoder = make("mistral")

    def attention(queries: Any, keys: Any, values: Any, *, index: Any, carry: Any, **_: Any) -> Any:
        return queries, 10 * carry + index

    tokens = jnp.zeros((1, 2), int)
    parts = attention, jnp.asarray(7), "none", None
    _, carry, sums = decoder.apply_layers(tokens, tokens, 2, *parts)
    assert (int(carry), sums) == (7012, None)


def test_compiles_once_for_all_tokens_and_steps() -> None:
    decoder = make("mistral")
    n_traces = 0

    @jax.jit
    def decode(token: jax.Array, position: jax.Array, cache: SlotMajorCache) -> Any:
        nonlocal n_traces
        n_traces += 1
        return decoder.decode(token, position, cache)

    cache = decoder.init_cache(1, 4)
    for position in range(3):
        _, cache = decode(jnp.array([[position]]), jnp.array([[position]]), cache)
    assert n_traces == 1


def unrolled_scan(body: Any, carry: Any, xs: Any) -> tuple[Any, None]:
    """Run the layers one after another in Python, in place of ``lax.scan``."""
    for i in range(len(jax.tree.leaves(xs)[0])):
        carry, _ = body(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
    return carry, None


def assert_same_gradient(actual: nnx.State, expected: nnx.State) -> None:
    for got, wanted in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = float(np.abs(wanted).max())
        assert scale > 0
        np.testing.assert_allclose(got, wanted, rtol=0, atol=SAME_SUMS * scale)


def test_gradient_does_not_depend_on_remat_nor_on_the_loop_over_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = _gradient(make("gemma 2 and 3"))
    for remat in ("dots", "full"):
        assert_same_gradient(_gradient(make("gemma 2 and 3", remat=remat)), expected)
    monkeypatch.setattr(jax.lax, "scan", unrolled_scan)
    assert_same_gradient(_gradient(make("gemma 2 and 3")), expected)


def test_property_parameters_have_param_dtype_and_hidden_states_have_dtype() -> None:
    """bfloat16 has 8 bits: three layers of hidden states of order 1 differ by a few hundredths."""
    wide, narrow = (
        make("gemma 2 and 3", dtype=dtype, param_dtype=jnp.float32)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    hidden = read(narrow)
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(narrow))} == {jnp.dtype("float32")}
    error = np.abs(hidden.astype(np.float32) - read(wide))[:, :N_FILLED]
    assert error.max() < 0.2
    assert narrow.init_cache(1, 2).keys.dtype == jnp.bfloat16


def test_raises_for_an_unknown_remat_policy() -> None:
    """The type checks of the test run may refuse the name first."""
    with pytest.raises((ValueError, TypeError), match="remat"):
        make("llama", remat="some")


def _gradient(decoder: Decoder) -> nnx.State:
    graphdef, state = nnx.split(decoder)
    direction = jnp.asarray(
        np.random.default_rng(5).normal(size=(1, 9, 8)) * (SEGMENTS > 0)[..., None]
    )

    def project(state: nnx.State) -> jax.Array:
        return jnp.sum(nnx.merge(graphdef, state).hidden_states(ROWS) * direction)

    return jax.jit(jax.grad(project))(state)


def _numpy_hidden(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """One causal sequence: every head of every token by itself, rotations as complex numbers."""
    a = decoder.architecture
    parameters = {
        path: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(nnx.state(decoder))
    }
    x = parameters["embedding",][tokens]
    if a.scaled_embeddings:
        x = x * math.sqrt(a.hidden_size)
    x = x * a.embedding_multiplier
    for layer in range(a.num_hidden_layers):
        p = {path[1:]: leaf[layer] for path, leaf in parameters.items() if path[0] == "layers"}
        added = _numpy_attention(a, p, _numpy_norm(a, p, "input_norm", x), layer)
        x = x + a.residual_multiplier * _numpy_norm(a, p, "post_attention_norm", added)
        normed = _numpy_norm(a, p, "mlp_norm", x)
        gate, up = _numpy_project(p, "gate_proj", normed), _numpy_project(p, "up_proj", normed)
        added = _numpy_project(p, "down_proj", _numpy_activation(a, gate) * up)
        x = x + a.residual_multiplier * _numpy_norm(a, p, "post_mlp_norm", added)
    norm = {("norm", "weight"): parameters["norm", "weight"]}
    return _numpy_norm(a, norm, "norm", x) / a.logits_scaling


def _numpy_attention(a: Architecture, p: dict, x: np.ndarray, layer: int) -> np.ndarray:
    def heads(name: str, norm: str) -> np.ndarray:
        projected = _numpy_norm(a, p, f"{name}_norm", _numpy_project(p, name, x))
        return _numpy_norm(a, p, norm, projected.reshape(len(x), -1, a.head_dim))

    local = bool(a.local_layers) and a.local_layers[layer]
    scaling = a.rope_scaling
    is_long = scaling is not None and len(TOKENS[0, :5]) > scaling.original_max_position_embeddings
    omega = rope_frequencies(a, long=is_long)[1 if local and a.rope_local_base_freq else 0]

    def turned(x: np.ndarray) -> np.ndarray:
        if a.rope_layers and not a.rope_layers[layer]:
            return x
        half = len(omega)
        angle = np.arange(len(x))[:, None, None] * omega
        first, second, rest = np.split(x, (half, 2 * half), axis=-1)
        plane = (first + 1j * second) * np.exp(1j * angle) * (scaling.angle_scale if scaling else 1)
        return np.concatenate([plane.real, plane.imag, rest], axis=-1)

    q, k = turned(heads("q_proj", "q_norm")), turned(heads("k_proj", "k_norm"))
    v = heads("v_proj", "no norm")
    if scaling and scaling.llama_4_scaling_beta:
        periods = np.arange(len(x)) // scaling.original_max_position_embeddings
        q = q * (1 + scaling.llama_4_scaling_beta * np.log(1 + periods))[:, None, None]
    mixed = np.zeros_like(q)
    for t in range(len(x)):
        first = max(0, t - a.sliding_window + 1) if local and a.sliding_window else 0
        for h in range(a.num_attention_heads):
            g = h // (a.num_attention_heads // a.num_key_value_heads)
            scale = a.attention_multiplier or 1 / math.sqrt(a.query_pre_attn_scalar or a.head_dim)
            logits = k[first : t + 1, g] @ q[t, h] * scale
            if a.attn_logit_softcapping:
                logits = a.attn_logit_softcapping * np.tanh(logits / a.attn_logit_softcapping)
            weights = np.exp(logits)
            sink = np.exp(p["sinks",][h]) if a.attention_sinks else 0.0
            mixed[t, h] = weights @ v[first : t + 1, g] / (weights.sum() + sink)
    return _numpy_project(p, "o_proj", mixed.reshape(len(x), -1))


def _numpy_project(p: dict, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[name, "kernel"] + p.get((name, "bias"), 0.0)


def _numpy_norm(a: Architecture, p: dict, name: str, x: np.ndarray) -> np.ndarray:
    if (name, "weight") not in p:
        return x
    weight = p[name, "weight"] + (1 if a.norm_plus_one else 0)
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + a.rms_norm_eps)


def _numpy_activation(a: Architecture, x: np.ndarray) -> np.ndarray:
    if a.hidden_act == "silu":
        return x / (1 + np.exp(-x))
    if a.hidden_act == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def test_gradient_of_a_function_applied_in_chunks_is_that_of_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(4)
    x, kernel = (jnp.asarray(rng.normal(size=size)) for size in ((2, 12, 3), (3, 3)))

    def output_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(apply_in_chunks(lambda chunk: jnp.tanh(chunk @ kernel), x)))

    def gradient(chunk: int) -> tuple[jax.Array, jax.Array]:
        monkeypatch.setattr(layers, "MLP_CHUNK", chunk)
        return jax.grad(output_sum, argnums=(0, 1))(x, kernel)

    for chunk in (5, 1):
        for actual, expected in zip(gradient(chunk), gradient(12), strict=True):
            np.testing.assert_allclose(actual, expected, rtol=SAME_SUMS)


def test_property_full_remat_never_has_the_hidden_units_of_all_tokens_in_memory() -> None:
    architecture = Architecture(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    tokens = np.zeros((1, 2 * MLP_CHUNK), np.int32)
    rows = Rows(tokens, np.arange(2 * MLP_CHUNK, dtype=np.int32)[None], 1 + tokens, tokens)

    def program(remat: Remat) -> str:
        decoder = Decoder(architecture, rngs=nnx.Rngs(0), remat=remat)
        graphdef, state = nnx.split(decoder)

        def output_sum(state: nnx.State) -> jax.Array:
            return jnp.sum(nnx.merge(graphdef, state).hidden_states(rows))

        return str(jax.make_jaxpr(jax.grad(output_sum))(state))

    assert f"{2 * MLP_CHUNK},24]" in program("none")
    assert f"{2 * MLP_CHUNK},24]" not in program("full")
