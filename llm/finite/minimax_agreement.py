r"""The bridge in small: a transformer trained by the RPO loss becomes the minimax policy.

All responses of a few letters are listed. The trainer's own step minimises the RPO loss on their
token sequences; :mod:`rpo_theory.minimax` solves the max-min problem of the same comparisons
exactly, from win counts alone. A decoder with many more parameters than there are probabilities can
be any policy over them, and becomes the minimax policy to many digits. One whose hidden states have
two dimensions cannot, and stays away from it: the theorem needs all Gibbs policies.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from llm.config import ObjectiveConfig
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.train.step import init_train_state, make_train_step
from rpo_theory import minimax
from rpo_theory.rewards import Unbounded

from .policy_table import (
    Comparisons,
    ResponseSpace,
    all_responses,
    comparison_batch,
    log_policy,
    problem,
)

LETTERS, END, LENGTH = 2, 2, 3
Size = Literal["large", "small"]
SIZES: dict[Size, dict[str, Any]] = {
    "large": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    },
    "small": {
        "hidden_size": 2,
        "intermediate_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    },
}
"""Of decoders: one that can be every policy over the responses, and one that cannot."""
CONFIG = ObjectiveConfig(method="rpo", beta=0.5, eta=0.5)
LABELS = 20
"""Of each pair of responses that is compared."""
LEARNING_RATE = 3e-3


class BridgeCurve(NamedTuple):
    """How a transformer approaches the exact policy.

    Attributes:
        steps: of training.
        variation: largest total variation between its policy and the minimax policy, over prompts.
    """

    steps: Int[np.ndarray, " s"]
    variation: Float[np.ndarray, " s"]


def train_to_minimax(
    size: Size, *, steps: int = 600, every: int = 20, seed: int = 0
) -> BridgeCurve:
    """Train a decoder on sampled preferences, and compare it with the exact policy on the way.

    Args:
        size: of the decoder, see :data:`SIZES`.
        steps: of training, each on all comparisons.
        every: how often the policies are compared.
        seed: of the decoder and of the preferences.

    Returns:
        The curve, from step 0.
    """
    with jax.enable_x64(True):
        return _train(size, steps, every, seed)


def _train(size: Size, steps: int, every: int, seed: int) -> BridgeCurve:
    space = ResponseSpace(
        prompts=((END, 0), (END, 1)),
        responses=all_responses(range(LETTERS), end=END, max_length=LENGTH),
    )
    sizes = Architecture(vocab_size=END + 1, **SIZES[size])
    decoder = Decoder(sizes, rngs=nnx.Rngs(seed), dtype=jnp.float64, param_dtype=jnp.float64)
    graphdef, trainable, frozen = nnx.split(decoder, nnx.Param, ...)
    table = jax.jit(lambda trainable: log_policy(nnx.merge(graphdef, trainable, frozen), space))
    log_reference = np.asarray(table(trainable))
    data = _comparisons(space, seed)
    sides = np.stack([data.winners, data.losers], axis=1)
    reference = log_reference[np.asarray(data.contexts)[:, None], sides]
    batch = comparison_batch(space, data)._replace(reference=reference)
    instance = problem(log_reference, data, beta=CONFIG.beta, eta=CONFIG.eta)
    exact = np.asarray(minimax.solve(instance, Unbounded()).policy)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    step = make_train_step(graphdef, CONFIG, optimizer)
    parts = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch)
    state, curve = init_train_state(trainable, optimizer), []
    for number in range(steps + 1):
        if number % every == 0:
            policy = np.exp(np.asarray(table(state.trainable)))
            curve.append((number, float(np.abs(policy - exact).sum(1).max() / 2)))
        state, _ = step(state, frozen, parts)
    numbers, variation = zip(*curve, strict=True)
    return BridgeCurve(np.array(numbers), np.array(variation))


def _comparisons(space: ResponseSpace, seed: int) -> Comparisons:
    """Labels from Bradley-Terry on a ring of responses with chords, at every prompt."""
    rng = np.random.default_rng(seed)
    n_prompts, n_responses = len(space.prompts), len(space.responses)
    reward = 0.7 * rng.normal(size=(n_prompts, n_responses))
    ring = np.arange(n_responses)
    first = np.tile(ring, 2 * n_prompts)
    second = np.tile(np.concatenate([ring + 1, ring + 4]), n_prompts) % n_responses
    context = np.repeat(np.arange(n_prompts), 2 * n_responses)
    chance = 1 / (1 + np.exp(reward[context, second] - reward[context, first]))
    wins = rng.binomial(LABELS, chance)
    return Comparisons(
        contexts=np.tile(context, 2),
        winners=np.concatenate([first, second]),
        losers=np.concatenate([second, first]),
        counts=np.concatenate([wins, LABELS - wins]).astype(float),
    )
