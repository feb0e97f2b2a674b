"""The auxiliary loss of a router in the objective and in the metrics of a step."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.data.loader import BatchSampler
from llm.data.preferences import PairTokens
from llm.evaluation.metrics import finalize_metrics
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.parallel.mesh import single_device
from llm.train.step import gradients, make_evaluation_step

EXACT = 1e-12  # relative, float64
COEFFICIENT = 0.3
MIXTURE = Architecture(
    vocab_size=11,
    hidden_size=4,
    intermediate_size=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_experts=3,
    num_experts_per_tok=1,
    router_aux_loss_coef=COEFFICIENT,
    output_router_logits=True,
)
DEVICES = single_device()
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PAIRS = [PairTokens((1, 2), (3, 4 + row), (5,), None, row) for row in range(4)]


def decoder(**changes: Any) -> Decoder:
    float64: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    return Decoder(replace(MIXTURE, **changes), rngs=nnx.Rngs(0), **float64)


def batches(parts: int) -> Any:
    sampler = BatchSampler(PAIRS, "shared", len(PAIRS) // parts, accumulation_steps=parts)
    batch = DEVICES.assign(sampler.batch(0))
    return batch._replace(reference=np.full(batch.lengths.shape, -7.0))


def router_loss(graphdef: nnx.GraphDef, state: nnx.State, batch: Any) -> jax.Array:
    """Return the mean over the parts of the loss of the router, read from the model itself."""
    model = nnx.merge(graphdef, state)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i, 0], batch.rows) for i in range(len(batch[2]))]
    return sum(model.read(each, with_router_loss=True)[1] for each in rows) / len(rows)


@pytest.mark.parametrize("method", ["rpo", pytest.param("aot", marks=pytest.mark.slow)])
def test_gradient_adds_the_mean_loss_of_the_router_and_logs_it(method: Any) -> None:
    config, batch, nothing = ObjectiveConfig(method=method), batches(2), nnx.State({})
    found = {}
    for coefficient in (0.0, COEFFICIENT):
        graphdef, state = nnx.split(decoder(router_aux_loss_coef=coefficient))
        step = functools.partial(gradients, graphdef, config=config, devices=DEVICES)
        found[coefficient] = compiled(step)(state, nothing, batch)
    added_loss = jax.value_and_grad(functools.partial(router_loss, graphdef))
    loss, added = compiled(added_loss)(state, batch)
    for result in found.values():
        assert float(result[1].metrics["aux_loss"]) == pytest.approx(float(loss), rel=EXACT)
    without, with_loss = (jax.tree.leaves(found[each][0]) for each in (0.0, COEFFICIENT))
    for plain, more, router in zip(without, with_loss, jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(more, plain + COEFFICIENT * router, rtol=1e-10, atol=EXACT)
    assert float(found[0.0][1].metrics["loss"]) == float(found[COEFFICIENT][1].metrics["loss"])


def test_closed_form_an_evaluation_logs_the_loss_of_the_router_if_the_model_asks_for_it() -> None:
    config, batch = ObjectiveConfig(), batches(1)
    for asked in (False, True):
        graphdef, state = nnx.split(decoder(output_router_logits=asked))
        step = make_evaluation_step(graphdef, config, devices=DEVICES)
        metrics = finalize_metrics(config, step(state, nnx.State({}), batch)[0])
        assert ("aux_loss" in metrics) == asked
    expected = float(compiled(functools.partial(router_loss, graphdef))(state, batch))
    assert float(metrics["aux_loss"]) == pytest.approx(expected, rel=EXACT)
