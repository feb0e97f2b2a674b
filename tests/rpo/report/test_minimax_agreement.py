"""The bridge: a trained transformer *is* the minimax policy of the theory, to many digits.

A small vocabulary, all responses of up to three tokens listed, and preferences sampled from a
known reward. On one side a decoder is trained on token sequences by the trainer's own step; on the
other :mod:`rpo_theory.minimax` solves the max-min problem of the same data exactly, from win counts
alone. Every policy over the responses is in reach of a large enough decoder, so that the
adversary's class is that of all rewards.

Prompts begin with the end token, which no response continues after: a decoder with rotary positions
and nothing else averages equal tokens to the same vector however many there are, and could not tell
``0 0`` from ``0 0 0``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.optimize
from flax import nnx
from jax.flatten_util import ravel_pytree

from llm.config import ObjectiveConfig
from llm.finite.policy_table import (
    Comparisons,
    ResponseSpace,
    all_responses,
    comparison_batch,
    log_policy,
    make_problem,
)
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.train.step import gradients, init_train_state, make_train_step
from llm.types import Batch
from rpo_theory import minimax, policy_loss
from rpo_theory.objectives import minimax_objective
from rpo_theory.rewards import Unbounded
from rpo_theory.types import Problem, Solution, Status

IDENTITY = 1e-10  # the bar is 1e-8; float64 sums over a thousand pairs give about 1e-14
VARIATION = 1e-4  # the bar of the project; measured 5e-6
VALUE = 1e-6  # nats, likewise; measured 1e-11
VISIBLE = 1e-2  # nats; four orders of magnitude above what a large enough decoder reaches
LETTERS, END, LENGTH = 4, 4, 3
SPACE = ResponseSpace(
    prompts=((END, 0), (END, 1), (END, 2)),
    responses=all_responses(range(LETTERS), end=END, max_length=LENGTH),
)
PROMPTS, RESPONSES = len(SPACE.prompts), len(SPACE.responses)
CONFIG = ObjectiveConfig(method="rpo", beta=0.5, eta=0.5)
# Under ten thousand parameters SciPy's BLAS starts no threads, which on a busy machine cost more
# than all the training.
LARGE = Architecture(
    vocab_size=5, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
)
SMALL = Architecture(
    vocab_size=5, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1
)


def sampled_comparisons() -> Comparisons:
    """Twenty labels from Bradley-Terry for each edge of a ring with chords, at every prompt."""
    rng = np.random.default_rng(0)
    reward = 0.7 * rng.normal(size=(PROMPTS, RESPONSES))
    ring = np.arange(RESPONSES)
    first = np.tile(ring, 2 * PROMPTS)
    second = np.tile(np.concatenate([ring + 1, ring + 13]), PROMPTS) % RESPONSES
    context = np.repeat(np.arange(PROMPTS), 2 * RESPONSES)
    chance = 1 / (1 + np.exp(reward[context, second] - reward[context, first]))
    wins = rng.binomial(20, chance)
    return Comparisons(
        contexts=np.tile(context, 2),
        winners=np.concatenate([first, second]),
        losers=np.concatenate([second, first]),
        counts=np.concatenate([wins, 20 - wins]).astype(float),
    )


def decoder(architecture: Architecture, seed: int) -> Decoder:
    rngs = nnx.Rngs(seed)
    return Decoder(architecture, rngs=rngs, dtype=jnp.float64, param_dtype=jnp.float64)


class Bridge(NamedTuple):
    """The same data on both sides; the reference is the large decoder before training."""

    log_reference: np.ndarray
    batches: Batch
    instance: Problem
    exact: Solution


def bridge(comparisons: Comparisons) -> Bridge:
    trainer = training(LARGE)
    log_reference = np.asarray(trainer.table(trainer.start))
    sides = np.stack([comparisons.winners, comparisons.losers], axis=1)
    batch = comparison_batch(SPACE, comparisons)._replace(
        reference=log_reference[np.asarray(comparisons.contexts)[:, None], sides]
    )
    batches = jax.tree.map(lambda leaf: leaf[None], batch)
    instance = make_problem(log_reference, comparisons, beta=CONFIG.beta, eta=CONFIG.eta)
    return Bridge(log_reference, batches, instance, minimax.solve(instance, Unbounded()))


@functools.cache
def every_response_wins() -> Bridge:
    return bridge(sampled_comparisons())


class Training(NamedTuple):
    """The trainer's step for one architecture, and its gradient as a function of one vector."""

    start: np.ndarray
    by_adam: Callable[[Batch, int], tuple[np.ndarray, dict[str, float]]]
    slope: Callable[..., tuple[jax.Array, jax.Array]]
    table: Callable[..., jax.Array]


@functools.cache
def training(architecture: Architecture) -> Training:
    graphdef, initial, frozen = nnx.split(decoder(architecture, seed=1), nnx.Param, ...)
    flat, unravel = ravel_pytree(initial)
    start, optimizer = np.asarray(flat), optax.adam(3e-3)
    step = make_train_step(graphdef, CONFIG, optimizer)

    def by_adam(batches: Batch, n_steps: int) -> tuple[np.ndarray, dict[str, float]]:
        state, first = init_train_state(unravel(jnp.asarray(start)), optimizer), None
        for _ in range(n_steps):
            state, result = step(state, frozen, batches)
            first = first or {name: float(value) for name, value in result.metrics.items()}
        return np.asarray(ravel_pytree(state.trainable)[0]), first or {}

    @jax.jit
    def slope(flat: jax.Array, batches: Batch) -> tuple[jax.Array, jax.Array]:
        grads, result = gradients(graphdef, unravel(flat), frozen, batches, CONFIG)
        return result.metrics["loss"], ravel_pytree(grads)[0]

    @jax.jit
    def table(flat: jax.Array) -> jax.Array:
        return log_policy(nnx.merge(graphdef, unravel(flat), frozen), SPACE)

    return Training(start, by_adam, slope, table)


def by_quasi_newton(
    trainer: Training, batches: Batch, start: np.ndarray, max_steps: int
) -> np.ndarray:
    """L-BFGS on the trainer's gradient, down to where float64 ends."""
    found = scipy.optimize.minimize(
        lambda flat: [np.asarray(leaf) for leaf in trainer.slope(flat, batches)],
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_steps, "maxcor": 50, "ftol": 1e-12, "gtol": 1e-9},
    )
    return found.x


@functools.cache
def trained() -> np.ndarray:
    """Parameters of the large decoder after training on data in which every response wins."""
    trainer, batches = training(LARGE), every_response_wins().batches
    near, _ = trainer.by_adam(batches, 200)
    return by_quasi_newton(trainer, batches, near, max_steps=1000)


def value_of(trainer: Training, sides: Bridge, flat: np.ndarray) -> float:
    """F at the implicit reward of a decoder's policy, from the theory's code."""
    reward = CONFIG.beta * (np.asarray(trainer.table(flat)) - sides.log_reference)
    return float(minimax_objective(sides.instance, jnp.asarray(reward)))


def variation(trainer: Training, sides: Bridge, flat: np.ndarray) -> np.ndarray:
    """Total variation from the exact minimax policy, prompt by prompt."""
    policy = np.exp(np.asarray(trainer.table(flat)))
    return 0.5 * np.abs(policy - np.asarray(sides.exact.policy)).sum(axis=1)


def test_theorem_the_trained_transformer_is_the_minimax_policy() -> None:
    sides, trainer, flat = every_response_wins(), training(LARGE), trained()
    assert Status(int(sides.exact.status)) is Status.SOLVED
    assert variation(trainer, sides, trainer.start).min() > 0.1
    assert variation(trainer, sides, flat).max() <= VARIATION
    above = value_of(trainer, sides, flat) - float(sides.exact.objective)
    assert -IDENTITY <= above <= VALUE


def test_property_the_trainers_objective_is_the_theorys_at_any_parameters() -> None:
    """And nowhere is it below the exact minimax value."""
    sides, trainer = every_response_wins(), training(LARGE)
    rng = np.random.default_rng(2)
    random = [trainer.start + scale * rng.normal(size=trainer.start.size) for scale in (0.1, 1.0)]
    constant = CONFIG.sft_weight * np.vdot(
        np.asarray(sides.instance.context_weights)[:, None] * sides.instance.baseline_policy,
        sides.log_reference,
    )
    for flat in (trainer.start, *random, trained()):
        loss = float(trainer.slope(flat, sides.batches)[0])
        reward = CONFIG.beta * (np.asarray(trainer.table(flat)) - sides.log_reference)
        theory = float(policy_loss.loss(sides.instance, jnp.asarray(reward)))
        assert abs(loss - theory) <= IDENTITY
        value = value_of(trainer, sides, flat)
        assert abs(loss + constant - value) <= IDENTITY
        assert value >= float(sides.exact.objective) - IDENTITY


def test_closed_form_the_first_step_starts_from_log_two_and_the_likelihood() -> None:
    sides = every_response_wins()
    _, first = training(LARGE).by_adam(sides.batches, 1)
    likelihood = CONFIG.sft_weight * first["loss/sft"]
    assert abs(first["loss"] - CONFIG.preference_at_reference - likelihood) <= IDENTITY
    assert abs(first["theory/adversarial_value"] - np.log(2.0)) <= IDENTITY


def test_limit_a_transformer_too_small_stays_visibly_above_the_minimax_value() -> None:
    """Logits of rank two, where the table asks for four."""
    sides, trainer = every_response_wins(), training(SMALL)
    flat = by_quasi_newton(trainer, sides.batches, trainer.start, max_steps=100)
    assert value_of(trainer, sides, flat) > float(sides.exact.objective) + VISIBLE
    assert variation(trainer, sides, flat).min() > 0.1


def test_limit_a_response_that_never_wins_is_driven_out_and_has_no_optimum() -> None:
    """Identity S3: its probability is at most (1 + 1/eta) of its share of the wins, which is 0.

    The solver says so and gives the limit. Training goes towards it for as long as it is let: the
    probability goes on falling, and the value with it, always above, but slowly, for what is left
    to gain goes like the probability to the power of beta.
    """
    data = sampled_comparisons()
    silenced = (np.asarray(data.contexts) == 0) & (np.asarray(data.winners) == RESPONSES - 1)
    sides = bridge(data._replace(counts=np.where(silenced, 0.0, data.counts)))
    assert Status(int(sides.exact.status)) is Status.NOT_ATTAINED
    assert np.asarray(sides.exact.policy)[0, -1] == 0.0

    trainer, limit = training(LARGE), float(sides.exact.objective)
    flats = [trained()]
    for _ in range(2):
        flats.append(by_quasi_newton(trainer, sides.batches, flats[-1], max_steps=40))
    chances = [float(np.exp(np.asarray(trainer.table(flat))[0, -1])) for flat in flats]
    above = [value_of(trainer, sides, flat) - limit for flat in flats]
    assert chances[0] > 10 * chances[1] > 20 * chances[2] > 0
    assert above[0] > 2 * above[1] > 3 * above[2] > 0
    wins = np.asarray(sides.instance.wins)
    share = wins.sum(axis=2) / wins.sum(axis=(1, 2))[:, None]
    assert (np.asarray(sides.exact.policy) <= (1 + 1 / CONFIG.eta) * share + IDENTITY).all()
