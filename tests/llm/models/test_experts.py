"""Mixtures of experts against a loop over tokens and experts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.models import layers
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder, Remat
from llm.models.experts import (
    Experts,
    Router,
    RouterSums,
    Routing,
    response_counts,
    router_loss,
    router_sums,
)
from llm.models.logprobs import response_log_probs
from llm.models.token_statistics import hidden_states_and_router_loss, response_statistics
from llm.parallel.layout import SINGLE_DEVICE
from llm.types import Batch, Completions, Rows

ROUNDING = 1e-12  # relative, float64
N_TOKENS, WIDTH, UNITS, EXPERTS = 7, 4, 6, 5
SIZES: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": WIDTH,
    "intermediate_size": UNITS,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
}


def first_layer(module: nnx.Module) -> Any:
    """Return a stacked module with random parameters of its first layer."""
    graphdef, state = nnx.split(module)
    rng = np.random.default_rng(3)
    return nnx.merge(
        graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape))[0], state)
    )


def make(**options: Any) -> tuple[Router, Experts, jax.Array]:
    """Return a router, its experts and tokens."""
    a = Architecture(**SIZES, **options)
    settings: dict[str, Any] = {"rngs": nnx.Rngs(0), "param_dtype": jnp.float64}
    router, experts = first_layer(Router(a, **settings)), first_layer(Experts(a, **settings))
    return router, experts, jnp.asarray(np.random.default_rng(4).normal(size=(N_TOKENS, WIDTH)))


def dense(router: Router, experts: Experts, x: jax.Array) -> jax.Array:
    """Apply every expert to every token, and mix those that the router chooses."""
    a = experts.architecture
    logits = x @ router.kernel[...] + (0 if router.bias is None else router.bias[...])
    probabilities = jnp.exp(logits) / jnp.exp(logits).sum(axis=1, keepdims=True)
    rank = jnp.argsort(jnp.argsort(-probabilities, axis=1), axis=1)
    weights = jnp.where(rank < a.num_experts_per_tok, probabilities, 0)
    if a.norm_topk_prob:
        weights = weights / weights.sum(axis=1, keepdims=True)
    mixed = jnp.zeros_like(x)
    for e in range(EXPERTS):

        def project(name: str, x: jax.Array, e: int = e) -> jax.Array:
            projection = getattr(experts, name)
            bias = 0 if projection.bias is None else projection.bias[...][e]
            return x @ projection.kernel[...][e] + bias

        gate, up = project("gate_proj", x), project("up_proj", x)
        if a.swiglu_limit is None:
            hidden = gate / (1 + jnp.exp(-gate)) * up
        else:
            gate, up = jnp.minimum(gate, a.swiglu_limit), jnp.clip(up, -a.swiglu_limit, 1.5)
            hidden = (up + 1) * gate / (1 + jnp.exp(-a.swiglu_alpha * gate))
        mixed += weights[:, e : e + 1] * project("down_proj", hidden)
    return mixed


@pytest.mark.parametrize(
    "options",
    [{}, {"norm_topk_prob": True, "expert_bias": True, "swiglu_limit": 1.5, "swiglu_alpha": 2.0}],
)
def test_gradient_of_sorted_tokens_is_that_of_all_experts_on_all_tokens(
    options: dict[str, Any],
) -> None:
    router, experts, x = make(**options)
    modules = nnx.split((router, experts))

    def routed(state: Any, x: jax.Array) -> jax.Array:
        router, experts = nnx.merge(modules[0], state)
        return jnp.sum(jnp.sin(experts(x, router(x), SINGLE_DEVICE)))

    def plain(state: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(dense(*nnx.merge(modules[0], state), x)))

    found, expected = (jax.value_and_grad(f, (0, 1))(modules[1], x) for f in (routed, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING)


def test_closed_form_tokens_of_a_shared_prompt_count_once_for_each_response() -> None:
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    branches = np.array([[0, 1, 2, 3, 0, 0, 2, 0], [0, 0, 0, 0, 0, 0, 0, 0]])
    rows = Rows(segments, segments, segments, branches)
    counts = response_counts(rows)
    assert counts.tolist() == [[3, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0, 0]]


def test_property_packing_and_shared_prompts_leave_the_loss_of_the_router() -> None:
    """One row of two pairs with shared prompts against five rows of one response each."""
    rng = np.random.default_rng(5)
    a = Architecture(**SIZES, router_aux_loss_coef=0.1)
    decoder = Decoder(a, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)
    tokens, rows = rng.integers(0, 11, 12), []
    prompts, responses = ([0, 1, 2], [7, 8]), (([3, 4], [5, 6]), ([9], [10, 11]))
    for prompt, pair in zip(prompts, responses, strict=True):
        rows += [prompt + response for response in pair]
    padded = np.zeros((4, 5), int)
    filled = np.array([[column < len(row) for column in range(5)] for row in rows])
    padded[filled] = tokens[[index for row in rows for index in row]]
    columns = np.broadcast_to(np.arange(5), padded.shape)
    separate = Rows(padded, columns, filled.astype(int), np.zeros_like(padded))
    packed = Rows(
        tokens[None],
        np.array([[0, 1, 2, 3, 4, 3, 4, 0, 1, 2, 2, 3]]),
        np.array([[1] * 7 + [2] * 5]),
        np.array([[0, 0, 0, 1, 1, 2, 2, 0, 0, 1, 2, 2]]),
    )
    hidden, loss = decoder.read(packed, with_router_loss=True)
    unpacked, expected = decoder.read(separate, with_router_loss=True)
    assert loss is not None
    assert expected is not None
    np.testing.assert_allclose(loss, expected, rtol=ROUNDING)
    at = np.array([index for row in rows for index in row])
    np.testing.assert_allclose(hidden[0, at], unpacked[filled], rtol=1e-11, atol=1e-11)
    assert decoder.read(packed)[1] is None


def test_gradient_does_not_depend_on_what_is_recomputed_or_on_chunks_of_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "MLP_CHUNK", 2)
    ones = np.ones((1, 6), int)
    rows = Rows(np.arange(6)[None], np.arange(6)[None], ones, np.array([[0, 0, 1, 1, 2, 2]]))

    def gradient(remat: Remat) -> Any:
        a = Architecture(**SIZES, expert_bias=True)
        options: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        graphdef, state = nnx.split(Decoder(a, rngs=nnx.Rngs(0), remat=remat, **options))

        def loss(state: nnx.State) -> jax.Array:
            hidden, router = nnx.merge(graphdef, state).read(rows, with_router_loss=True)
            assert router is not None
            return jnp.sum(jnp.sin(hidden)) + router

        return jax.jit(jax.value_and_grad(loss))(state)

    whole, chunked = gradient("none"), gradient("full")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_closed_form_the_loss_of_the_router_is_measured_if_the_model_asks_for_it() -> None:
    ones = np.ones((1, 4), int)
    rows = Rows(3 * ones, np.arange(4)[None], ones, np.array([[0, 0, 1, 2]]))
    scored = Completions(np.array([1]), np.array([3]), np.array([0]))
    batch = Batch(rows, scored, np.array([[1, 0]]), np.array([True]), np.array([0]))
    for asked in (False, True):
        a = Architecture(**SIZES, router_aux_loss_coef=0.1, output_router_logits=asked)
        decoder = Decoder(a, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64)
        expected = decoder.read(rows, with_router_loss=True)[1] if asked else None
        hidden, loss = hidden_states_and_router_loss(decoder, rows)
        assert loss == expected
        np.testing.assert_array_equal(hidden, decoder.hidden_states(rows))
        measured = response_statistics(decoder, batch, ObjectiveConfig())
        assert measured.router_loss == expected
        np.testing.assert_array_equal(measured.log_probs, response_log_probs(decoder, batch))


def test_closed_form_the_loss_of_the_router_is_least_for_even_loads() -> None:
    even = RouterSums(jnp.full(4, 6.0), jnp.full(4, 3.0), jnp.array(12.0))
    assert float(router_loss(even, SINGLE_DEVICE)) == pytest.approx(2.0)  # experts per token
    one = RouterSums(jnp.array([12.0, 0, 0, 0]), jnp.array([12.0, 0, 0, 0]), jnp.array(12.0))
    assert float(router_loss(one, SINGLE_DEVICE)) == pytest.approx(4.0)
    probabilities = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    routing = Routing(probabilities, jnp.array([[0], [2]]), jnp.ones((2, 1)))
    sums = router_sums(routing, jnp.array([2.0, 1.0]))
    assert (sums.counts.tolist(), float(sums.tokens)) == ([2.0, 0.0, 1.0], 3.0)
    np.testing.assert_allclose(sums.probabilities, [1.1, 0.8, 1.1])
    counts = jax.grad(lambda p: router_sums(Routing(p, *routing[1:]), jnp.ones(2)).counts.sum())
    assert not np.asarray(counts(probabilities)).any()


def test_raises_for_experts_that_cannot_be() -> None:
    for options, message in (
        ({"num_experts_per_tok": 6}, "`num_experts_per_tok` must be from 1 to `num_experts` 5"),
        ({"num_experts": 0}, "`num_experts_per_tok` must be from 0 to `num_experts` 0, got 2"),
        ({"mlp_bias": True}, "`mlp_bias` has no effect with experts"),
        ({"router_aux_loss_coef": -1.0}, "`num_experts` and `router_aux_loss_coef` must be 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Architecture(**{**SIZES, **options})
    dense = Architecture(**{**SIZES, "num_experts": 0, "num_experts_per_tok": 0})
    zeros = np.zeros((1, 2), int)
    rows = Rows(zeros, zeros, zeros, zeros)
    with pytest.raises(ValueError, match="`with_router_loss` must be False"):
        Decoder(dense, rngs=nnx.Rngs(0)).read(rows, with_router_loss=True)
