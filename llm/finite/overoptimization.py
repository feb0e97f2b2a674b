r"""A tiny task whose true reward is known: what DPO and RPO do to a transformer, exactly.

Responses are short strings over a few letters, all of them listed, so that the expected true reward
of a policy is a sum and not an estimate. Common responses are compared often; some bad ones were
compared once and won. The reference is the decoder before training, nearly uniform.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float, Int

from llm.config import ObjectiveConfig
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.train.step import Parameters, init_train_state, make_train_step

from .policy_table import Comparisons, ResponseSpace, all_responses, comparison_batch, log_policy

LETTERS, END, LENGTH = 4, 4, 3
COMMON, LUCKY = 12, 6
"""Responses that are compared with each other, and bad ones that won their only comparison."""
ARCHITECTURE = Architecture(
    vocab_size=5, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
)
LEARNING_RATE = 3e-3


class Task(NamedTuple):
    """Prompts and responses, their true reward, and the data.

    Attributes:
        space: prompts and responses.
        reward: true reward in [0, 1], shape ``[x a]``.
        comparisons: the data.
    """

    space: ResponseSpace
    reward: Float[np.ndarray, "x a"]
    comparisons: Comparisons


class Curve(NamedTuple):
    """What became of a policy while it was trained.

    Attributes:
        steps: of training, shape ``[k]``.
        chosen: mean log-probability of the chosen responses, nats, shape ``[k]``.
        true_reward: expected true reward of the policy, shape ``[k]``.
    """

    steps: Int[np.ndarray, " k"]
    chosen: Float[np.ndarray, " k"]
    true_reward: Float[np.ndarray, " k"]


def make_task(seed: int, *, comparisons: int = 2000) -> Task:
    """Draw the task.

    Args:
        seed: of reward and labels.
        comparisons: labels of common responses, for each prompt.

    Returns:
        The task.

    Examples:
        >>> task = make_task(0)
        >>> len(task.space.responses), task.reward.shape
        (85, (2, 85))
    """
    rng = np.random.default_rng(seed)
    responses = all_responses(range(LETTERS), end=END, max_length=LENGTH)
    space = ResponseSpace(prompts=((END, 0), (END, 1)), responses=responses)
    reward = 0.15 * rng.random((len(space.prompts), len(responses)))
    rows = []
    for context in range(len(space.prompts)):
        chosen = rng.permutation(len(responses))[: COMMON + LUCKY]
        common, lucky = chosen[:COMMON], chosen[COMMON:]
        reward[context, common] = rng.uniform(0.4, 1.0, COMMON)
        for _ in range(comparisons):
            one, other = rng.choice(common, 2, replace=False)
            margin = 4.0 * (reward[context, one] - reward[context, other])
            wins = rng.random() < 1.0 / (1.0 + np.exp(-margin))
            rows.append((context, one, other) if wins else (context, other, one))
        rows += [(context, bad, rng.choice(common)) for bad in lucky]
    distinct, counts = np.unique(np.array(rows), axis=0, return_counts=True)
    context, winner, loser = distinct.T
    return Task(space, reward, Comparisons(context, winner, loser, counts.astype(np.float64)))


def train_curve(
    task: Task, objective: ObjectiveConfig, *, steps: int, every: int, seed: int = 0
) -> Curve:
    """Train a decoder on the task by the trainer's own step.

    Args:
        task: the task.
        objective: what is minimised.
        steps: of Adam, each on all data.
        every: steps between two measurements.
        seed: of the decoder, which also is the reference.

    Returns:
        The curve, its first point before training.
    """
    decoder = Decoder(ARCHITECTURE, rngs=nnx.Rngs(seed))
    graphdef, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)

    @jax.jit
    def table(trainable: Parameters) -> jax.Array:
        return log_policy(nnx.merge(graphdef, trainable, frozen), task.space)

    reference = np.asarray(table(trainable))
    where = np.asarray(task.comparisons.contexts)
    sides = np.stack([task.comparisons.winners, task.comparisons.losers], axis=1)
    batch = comparison_batch(task.space, task.comparisons)
    batch = batch._replace(
        reference=reference[where[:, None], sides],
        weights=np.asarray(task.comparisons.counts, np.float32),
    )
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], batch)
    optimizer = optax.adam(LEARNING_RATE)
    step = make_train_step(graphdef, objective, optimizer)
    state = init_train_state(trainable, optimizer)
    share = task.comparisons.counts / task.comparisons.counts.sum()
    points = []
    for number in range(steps + 1):
        if number % every == 0:
            log_probs = np.asarray(table(state.trainable), np.float64)
            chosen = share @ log_probs[where, task.comparisons.winners]
            gained = np.mean(np.sum(np.exp(log_probs) * task.reward, axis=1))
            points.append((number, chosen, gained))
        if number < steps:
            state, _ = step(state, frozen, batches)
    numbers, chosen, gained = zip(*points, strict=True)
    return Curve(np.array(numbers), np.array(chosen), np.array(gained))
