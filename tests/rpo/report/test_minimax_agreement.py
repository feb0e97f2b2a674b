"""Minimax agreement: a trained transformer is the minimax policy of the theory.

All responses of up to three tokens are listed, and preferences are sampled from a known reward. A
decoder is trained on token sequences by the trainer's step; :mod:`rpo_theory.minimax` solves the
max-min problem of the same data exactly, from win counts. A large enough decoder can represent
every policy over the responses, so the adversary's class is that of all rewards.

Prompts begin with the end token, after which no response continues. Attention averages equal tokens
to the same vector for any number of them: without another token in front, a decoder with rotary
positions could not distinguish ``0 0`` from ``0 0 0``.
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
from llm.parallel.mesh import single_device
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
DEVICES = single_device()
# Under ten thousand parameters SciPy's BLAS starts no threads, which on a busy machine cost more
# than all the training.
LARGE = Architecture(
    vocab_size=5, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
)
SMALL = Architecture(
    vocab_size=5, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1
)


def sample_comparisons() -> Comparisons:
    """Sample twenty Bradley-Terry labels for each edge of a ring with chords, at every prompt."""
    rng = np.random.default_rng(0)
    reward = 0.7 * rng.normal(size=(PROMPTS, RESPONSES))
    ring = np.arange(RESPONSES)
    first = np.tile(ring, 2 * PROMPTS)
    second = np.tile(np.concatenate([ring + 1, ring + 13]), PROMPTS) % RESPONSES
    context = np.repeat(np.arange(PROMPTS), 2 * RESPONSES)
    first_wins = 1 / (1 + np.exp(reward[context, second] - reward[context, first]))
    wins = rng.binomial(20, first_wins)
    return Comparisons(
        contexts=np.tile(context, 2),
        winners=np.concatenate([first, second]),
        losers=np.concatenate([second, first]),
        counts=np.concatenate([wins, 20 - wins]).astype(float),
    )


def decoder(architecture: Architecture, seed: int) -> Decoder:
    rngs = nnx.Rngs(seed)
    return Decoder(architecture, rngs=rngs, dtype=jnp.float64, param_dtype=jnp.float64)


class Agreement(NamedTuple):
    """The same data for trainer and theory; the reference is the large decoder before training."""

    log_reference: np.ndarray
    batches: Batch
    problem: Problem
    exact: Solution


def make_agreement(comparisons: Comparisons) -> Agreement:
    trainer = training(LARGE)
    log_reference = np.asarray(trainer.table(trainer.start))
    pairs = np.stack([comparisons.winners, comparisons.losers], axis=1)
    batch = comparison_batch(SPACE, comparisons)._replace(
        reference=log_reference[np.asarray(comparisons.contexts)[:, None], pairs]
    )
    batches = DEVICES.assign(jax.tree.map(lambda leaf: leaf[None], batch))
    problem = make_problem(log_reference, comparisons, beta=CONFIG.beta, eta=CONFIG.eta)
    return Agreement(log_reference, batches, problem, minimax.solve(problem, Unbounded()))


@functools.cache
def every_response_wins() -> Agreement:
    return make_agreement(sample_comparisons())


class Training(NamedTuple):
    """The trainer's step for one architecture, and its gradient as a function of one vector."""

    start: np.ndarray
    by_adam: Callable[[Batch, int], tuple[np.ndarray, dict[str, float]]]
    loss_and_gradient: Callable[..., tuple[jax.Array, jax.Array]]
    table: Callable[..., jax.Array]


@functools.cache
def training(architecture: Architecture) -> Training:
    graphdef, initial, frozen = nnx.split(decoder(architecture, seed=1), nnx.Param, ...)
    flat, unravel = ravel_pytree(initial)
    start, optimizer = np.asarray(flat), optax.adam(3e-3)
    step = make_train_step(graphdef, CONFIG, optimizer, devices=DEVICES)

    def by_adam(batches: Batch, n_steps: int) -> tuple[np.ndarray, dict[str, float]]:
        state, first = init_train_state(unravel(jnp.asarray(start)), optimizer), None
        state = DEVICES.put(state)
        for _ in range(n_steps):
            state, result = step(state, frozen, batches)
            first = first or {name: float(value) for name, value in result.metrics.items()}
        return np.asarray(ravel_pytree(state.trainable)[0]), first or {}

    @jax.jit
    def loss_and_gradient(flat: jax.Array, batches: Batch) -> tuple[jax.Array, jax.Array]:
        grads, result = gradients(graphdef, unravel(flat), frozen, batches, CONFIG, devices=DEVICES)
        return result.metrics["loss"], ravel_pytree(grads)[0]

    @jax.jit
    def table(flat: jax.Array) -> jax.Array:
        return log_policy(nnx.merge(graphdef, unravel(flat), frozen), SPACE)

    return Training(start, by_adam, loss_and_gradient, table)


def by_quasi_newton(
    trainer: Training, batches: Batch, start: np.ndarray, max_steps: int
) -> np.ndarray:
    """Minimize by L-BFGS on the trainer's gradient, to the precision of float64."""
    result = scipy.optimize.minimize(
        lambda flat: [np.asarray(leaf) for leaf in trainer.loss_and_gradient(flat, batches)],
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_steps, "maxcor": 50, "ftol": 1e-12, "gtol": 1e-9},
    )
    return result.x


@functools.cache
def trained() -> np.ndarray:
    """Return the large decoder's parameters after training on data in which every response wins."""
    trainer, batches = training(LARGE), every_response_wins().batches
    near, _ = trainer.by_adam(batches, 200)
    return by_quasi_newton(trainer, batches, near, max_steps=1000)


def value_of(trainer: Training, agreement: Agreement, flat: np.ndarray) -> float:
    """Return the minimax objective at the implicit reward of a decoder's policy."""
    reward = CONFIG.beta * (np.asarray(trainer.table(flat)) - agreement.log_reference)
    return float(minimax_objective(agreement.problem, jnp.asarray(reward)))


def variation(trainer: Training, agreement: Agreement, flat: np.ndarray) -> np.ndarray:
    """Return the total variation from the exact minimax policy, by prompt."""
    policy = np.exp(np.asarray(trainer.table(flat)))
    return 0.5 * np.abs(policy - np.asarray(agreement.exact.policy)).sum(axis=1)


def test_theorem_the_trained_transformer_is_the_minimax_policy() -> None:
    agreement, trainer, flat = every_response_wins(), training(LARGE), trained()
    assert Status(int(agreement.exact.status)) is Status.SOLVED
    assert variation(trainer, agreement, trainer.start).min() > 0.1
    assert variation(trainer, agreement, flat).max() <= VARIATION
    above = value_of(trainer, agreement, flat) - float(agreement.exact.objective)
    assert -IDENTITY <= above <= VALUE


def test_property_objectives_of_trainer_and_theory_are_equal_at_any_parameters() -> None:
    """Neither is below the exact minimax value."""
    agreement, trainer = every_response_wins(), training(LARGE)
    rng = np.random.default_rng(2)
    random = [trainer.start + scale * rng.normal(size=trainer.start.size) for scale in (0.1, 1.0)]
    constant = CONFIG.sft_weight * np.vdot(
        np.asarray(agreement.problem.context_weights)[:, None] * agreement.problem.baseline_policy,
        agreement.log_reference,
    )
    for flat in (trainer.start, *random, trained()):
        loss = float(trainer.loss_and_gradient(flat, agreement.batches)[0])
        reward = CONFIG.beta * (np.asarray(trainer.table(flat)) - agreement.log_reference)
        theory = float(policy_loss.loss(agreement.problem, jnp.asarray(reward)))
        assert abs(loss - theory) <= IDENTITY
        value = value_of(trainer, agreement, flat)
        assert abs(loss + constant - value) <= IDENTITY
        assert value >= float(agreement.exact.objective) - IDENTITY


def test_closed_form_the_first_step_starts_from_log_two_and_the_likelihood() -> None:
    agreement = every_response_wins()
    _, first = training(LARGE).by_adam(agreement.batches, 1)
    likelihood = CONFIG.sft_weight * first["loss/sft"]
    assert CONFIG.preference_at_reference == np.log(2.0)
    assert abs(first["loss"] - np.log(2.0) - likelihood) <= IDENTITY
    assert abs(first["theory/adversarial_value"] - np.log(2.0)) <= IDENTITY


def test_limit_a_too_small_transformer_stays_above_the_minimax_value() -> None:
    """Its logits have rank two, those of the minimax policy have rank four."""
    agreement, trainer = every_response_wins(), training(SMALL)
    flat = by_quasi_newton(trainer, agreement.batches, trainer.start, max_steps=100)
    assert value_of(trainer, agreement, flat) > float(agreement.exact.objective) + VISIBLE
    assert variation(trainer, agreement, flat).min() > 0.1


def test_limit_a_response_that_never_wins_has_no_finite_optimum() -> None:
    """Identity S3: its probability is at most (1 + 1/eta) times its share of the wins, which is 0.

    The solver reports the limit as not attained. Training approaches it for as long as it runs:
    probability and value decrease, the value stays above the limit, and convergence is slow because
    the remaining gain is proportional to the probability to the power of beta.
    """
    data = sample_comparisons()
    never_wins = (np.asarray(data.contexts) == 0) & (np.asarray(data.winners) == RESPONSES - 1)
    agreement = make_agreement(data._replace(counts=np.where(never_wins, 0.0, data.counts)))
    assert Status(int(agreement.exact.status)) is Status.NOT_ATTAINED
    assert np.asarray(agreement.exact.policy)[0, -1] == 0.0

    trainer, limit = training(LARGE), float(agreement.exact.objective)
    flats = [trained()]
    for _ in range(2):
        flats.append(by_quasi_newton(trainer, agreement.batches, flats[-1], max_steps=40))
    probabilities = [float(np.exp(np.asarray(trainer.table(flat))[0, -1])) for flat in flats]
    above = [value_of(trainer, agreement, flat) - limit for flat in flats]
    assert probabilities[0] > 10 * probabilities[1] > 20 * probabilities[2] > 0
    assert above[0] > 2 * above[1] > 3 * above[2] > 0
    wins = np.asarray(agreement.problem.wins)
    share = wins.sum(axis=2) / wins.sum(axis=(1, 2))[:, None]
    assert (np.asarray(agreement.exact.policy) <= (1 + 1 / CONFIG.eta) * share + IDENTITY).all()
