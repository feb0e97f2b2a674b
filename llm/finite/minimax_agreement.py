r"""Minimax agreement at small scale: a transformer trained by the RPO loss is the minimax policy.

All responses of up to three letters are listed. The trainer's own step minimizes the RPO loss on
their token sequences, and :mod:`rpo_theory.minimax` solves the max-min problem of the same
comparisons exactly, from win counts. A decoder with many more parameters than there are
probabilities can be any policy over the responses, and converges to the minimax policy. A decoder
with two-dimensional hidden states cannot, and does not converge: the theorem needs all Gibbs
policies.
"""

from __future__ import annotations

from functools import lru_cache
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
from llm.parallel.mesh import Devices, single_device
from llm.train.step import GraphDef, TrainStep, init_train_state, make_train_step
from rpo_theory import minimax
from rpo_theory.rewards import Unbounded

from .policy_table import (
    Comparisons,
    ResponseSpace,
    _log_policy_of_split,
    all_responses,
    comparison_batch,
    make_problem,
)

LETTERS, END, LENGTH = 2, 2, 3
DecoderSize = Literal["large", "small"]
DECODER_SIZES: dict[DecoderSize, dict[str, Any]] = {
    "large": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "small": {
        "hidden_size": 2,
        "intermediate_size": 2,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    },
}
"""Sizes of a decoder that can be every policy over the responses, and of one that cannot."""
CONFIG = ObjectiveConfig(method="rpo", beta=0.5, eta=0.5)
LABELS_PER_PAIR = 20
LEARNING_RATE = 3e-3


class AgreementCurve(NamedTuple):
    """Distance of a transformer from the exact minimax policy during training.

    Attributes:
        steps: training steps, shape ``[s]``.
        variation: total variation between the two policies, the largest over prompts, in [0, 1],
            shape ``[s]``.
    """

    steps: Int[np.ndarray, " s"]
    variation: Float[np.ndarray, " s"]


def train_to_minimax(
    size: DecoderSize, *, steps: int = 600, measure_every: int = 20, seed: int = 0
) -> AgreementCurve:
    """Train a decoder on sampled preferences, and compare it with the exact minimax policy.

    Args:
        size: size of the decoder, a key of :data:`DECODER_SIZES`.
        steps: number of training steps, each on all comparisons.
        measure_every: number of steps between two comparisons of the policies.
        seed: seed of the decoder and of the preferences.

    Returns:
        The curve, from step 0.
    """
    with jax.enable_x64(True):
        return _train(size, steps, measure_every, seed)


def _train(size: DecoderSize, steps: int, measure_every: int, seed: int) -> AgreementCurve:
    space = ResponseSpace(
        prompts=((END, 0), (END, 1)),
        responses=all_responses(range(LETTERS), end=END, max_length=LENGTH),
    )
    architecture = Architecture(vocab_size=END + 1, **DECODER_SIZES[size])
    decoder = Decoder(architecture, rngs=nnx.Rngs(seed), dtype=jnp.float64, param_dtype=jnp.float64)
    graphdef, trainable, frozen = nnx.split(decoder, nnx.Param, ...)
    optimizer, devices, step = _training(graphdef, steps)
    # Without their placement, the programs would be compiled again for the state after a step.
    state = devices.put(init_train_state(trainable, optimizer))
    log_reference = np.asarray(_log_policy_of_split(graphdef, space, state.trainable, frozen))
    data = _sample_comparisons(space, seed)
    pairs = np.stack([data.winners, data.losers], axis=1)
    reference = log_reference[np.asarray(data.contexts)[:, None], pairs]
    batch = comparison_batch(space, data)._replace(reference=reference)
    problem = make_problem(log_reference, data, beta=CONFIG.beta, eta=CONFIG.eta)
    exact = np.asarray(minimax.solve(problem, Unbounded()).policy)
    batches = devices.assign(jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch))
    points = []
    for number in range(steps + 1):
        if number % measure_every == 0:
            policy = np.exp(_log_policy_of_split(graphdef, space, state.trainable, frozen))
            points.append((number, float(np.abs(policy - exact).sum(1).max() / 2)))
        state, _ = step(state, frozen, batches)
    numbers, variation = zip(*points, strict=True)
    return AgreementCurve(np.array(numbers), np.array(variation))


@lru_cache(maxsize=2)
def _training(
    graphdef: GraphDef, steps: int
) -> tuple[optax.GradientTransformation, Devices, TrainStep]:
    """Return optimizer, device and training step; the seeds of one size share the program."""
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    devices = single_device()
    return optimizer, devices, make_train_step(graphdef, CONFIG, optimizer, devices=devices)


def _sample_comparisons(space: ResponseSpace, seed: int) -> Comparisons:
    """Sample Bradley-Terry labels for the edges of a ring of responses with chords."""
    rng = np.random.default_rng(seed)
    n_prompts, n_responses = len(space.prompts), len(space.responses)
    reward = 0.7 * rng.normal(size=(n_prompts, n_responses))
    ring = np.arange(n_responses)
    first = np.tile(ring, 2 * n_prompts)
    second = np.tile(np.concatenate([ring + 1, ring + 4]), n_prompts) % n_responses
    context = np.repeat(np.arange(n_prompts), 2 * n_responses)
    first_wins = 1 / (1 + np.exp(reward[context, second] - reward[context, first]))
    wins = rng.binomial(LABELS_PER_PAIR, first_wins)
    return Comparisons(
        contexts=np.tile(context, 2),
        winners=np.concatenate([first, second]),
        losers=np.concatenate([second, first]),
        counts=np.concatenate([wins, LABELS_PER_PAIR - wins]).astype(float),
    )
