r"""Overoptimization toy: a tiny problem whose true reward is known, for DPO and RPO.

Responses are strings of up to three letters. All of them are listed, so that the expected true
reward of a policy is an exact sum. Common responses are compared often; some bad responses were
compared once and won. The reference policy is the decoder before training, which is nearly uniform.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from llm.config import ObjectiveConfig
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.mesh import single_device
from llm.train.step import init_train_state, make_train_step

from .policy_table import (
    Comparisons,
    ResponseSpace,
    _log_policy_of_split,
    all_responses,
    comparison_batch,
)

LETTERS, END, LENGTH = 4, 4, 3
COMMON = 12
"""Responses of each prompt that are compared with each other."""
LUCKY = 6
"""Bad responses of each prompt that won their only comparison."""
ARCHITECTURE = Architecture(
    vocab_size=5, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
)
LEARNING_RATE = 3e-3


class ToyProblem(NamedTuple):
    """A problem with two prompts, a known reward and sampled comparisons.

    Attributes:
        space: prompts and responses.
        reward: true reward, in [0, 1], shape ``[x a]``.
        comparisons: the data.
    """

    space: ResponseSpace
    reward: Float[np.ndarray, "x a"]
    comparisons: Comparisons


class TrainingCurve(NamedTuple):
    """Measurements of a policy during training.

    Attributes:
        steps: training steps, shape ``[k]``.
        chosen: mean log-probability of the chosen responses in nats, shape ``[k]``.
        true_reward: expected true reward of the policy, in [0, 1], shape ``[k]``.
    """

    steps: Int[np.ndarray, " k"]
    chosen: Float[np.ndarray, " k"]
    true_reward: Float[np.ndarray, " k"]


def make_toy_problem(seed: int, *, comparisons: int = 2000) -> ToyProblem:
    """Draw a toy problem.

    Args:
        seed: seed of the reward and the labels.
        comparisons: number of labels of common responses, for each prompt.

    Returns:
        The problem.

    Examples:
        >>> problem = make_toy_problem(0)
        >>> len(problem.space.responses), problem.reward.shape
        (85, (2, 85))
    """
    rng = np.random.default_rng(seed)
    responses = all_responses(range(LETTERS), end=END, max_length=LENGTH)
    space = ResponseSpace(prompts=((END, 0), (END, 1)), responses=responses)
    reward = 0.15 * rng.random((len(space.prompts), len(responses)))
    rows = []
    for context in range(len(space.prompts)):
        compared = rng.permutation(len(responses))[: COMMON + LUCKY]
        common, lucky = compared[:COMMON], compared[COMMON:]
        reward[context, common] = rng.uniform(0.4, 1.0, COMMON)
        for _ in range(comparisons):
            first, second = rng.choice(common, 2, replace=False)
            margin = 4.0 * (reward[context, first] - reward[context, second])
            wins = rng.random() < 1.0 / (1.0 + np.exp(-margin))
            rows.append((context, first, second) if wins else (context, second, first))
        rows += [(context, bad, rng.choice(common)) for bad in lucky]
    distinct, counts = np.unique(np.array(rows), axis=0, return_counts=True)
    contexts, winners, losers = distinct.T
    data = Comparisons(contexts, winners, losers, counts.astype(np.float64))
    return ToyProblem(space, reward, data)


def train_on_toy_problem(
    toy: ToyProblem, objective: ObjectiveConfig, *, steps: int, measure_every: int, seed: int = 0
) -> TrainingCurve:
    """Train a decoder on a toy problem by the trainer's own step.

    Args:
        toy: the problem.
        objective: the loss.
        steps: number of steps of Adam, each on all data.
        measure_every: number of steps between two measurements.
        seed: seed of the decoder, which is the reference as well.

    Returns:
        The curve; its first point is before training.
    """
    decoder = Decoder(ARCHITECTURE, rngs=nnx.Rngs(seed))
    graphdef, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)
    devices = single_device()
    optimizer = optax.adam(LEARNING_RATE)
    # Without their placement, the programs would be compiled again for the state after a step.
    state = devices.put(init_train_state(trainable, optimizer))
    data = toy.comparisons
    reference = np.asarray(_log_policy_of_split(graphdef, toy.space, state.trainable, frozen))
    contexts = np.asarray(data.contexts)
    pairs = np.stack([data.winners, data.losers], axis=1)
    batch = comparison_batch(toy.space, data)._replace(
        reference=reference[contexts[:, None], pairs],
        weights=np.asarray(data.counts, np.float32),
    )
    batches = devices.put_batches(
        devices.assign(jax.tree.map(lambda leaf: np.asarray(leaf)[None], batch))
    )
    step = make_train_step(graphdef, objective, optimizer, devices=devices)
    weights = data.counts / data.counts.sum()
    points = []
    for number in range(steps + 1):
        if number % measure_every == 0:
            table = _log_policy_of_split(graphdef, toy.space, state.trainable, frozen)
            log_probs = np.asarray(table, np.float64)
            chosen = weights @ log_probs[contexts, data.winners]
            true_reward = np.mean(np.sum(np.exp(log_probs) * toy.reward, axis=1))
            points.append((number, chosen, true_reward))
        if number < steps:
            state, _ = step(state, frozen, batches)
    numbers, chosen, true_reward = zip(*points, strict=True)
    return TrainingCurve(np.array(numbers), np.array(chosen), np.array(true_reward))
