r"""A language model as a table over a finite set of responses: the bridge to the exact theory.

If the vocabulary is small and responses are short, all of them can be listed, and a language model
*is* a table :math:`\pi(a|x)`. The same comparisons then give a batch for the trainer and a
:class:`rpo_theory.types.Problem` for the exact solvers, and the trainer's objective must equal the
theory's at any parameters. With ``W`` the counts of a response's wins among ``N`` comparisons and
the chosen responses as baseline, the trained policy obeys :math:`\pi(a|x) \le (1+1/\eta) W_a/N`: a
response that never wins has no finite optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Int

from rpo_theory.preference import win_counts
from rpo_theory.types import ArrayLike, Problem

from .batches import Batch, Branch, Completions, Rows
from .protocol import LanguageModel
from .sequence_logprobs import response_log_probs

Tokens = tuple[int, ...]


class ResponseSpace(NamedTuple):
    """Prompts, and the responses that every one of them can have.

    Attributes:
        prompts: token ids of each, one or more.
        responses: token ids of each, one or more.
    """

    prompts: tuple[Tokens, ...]
    responses: tuple[Tokens, ...]


class Comparisons(NamedTuple):
    """Distinct comparisons of a finite space, each with how often it occurred.

    Attributes:
        contexts: index of the prompt, shape ``[n]``.
        winners: index of the preferred response, shape ``[n]``.
        losers: index of the other one, shape ``[n]``.
        counts: how often; fractions are expected counts, shape ``[n]``.
        baselines: index of the response of the SFT term; the winner if None, shape ``[n]``.
    """

    contexts: Int[ArrayLike, " n"]
    winners: Int[ArrayLike, " n"]
    losers: Int[ArrayLike, " n"]
    counts: Float[ArrayLike, " n"]
    baselines: Int[ArrayLike, " n"] | None = None


def all_responses(alphabet: Sequence[int], *, end: int, max_length: int) -> tuple[Tokens, ...]:
    """Every response that ends with ``end`` or is cut at ``max_length`` tokens.

    A model whose vocabulary is the alphabet and ``end`` gives them total probability one.

    Args:
        alphabet: ids of all tokens but the end token.
        end: id of the end token.
        max_length: most tokens, the end token among them.

    Returns:
        The responses, shorter ones first.

    Examples:
        >>> all_responses([0], end=9, max_length=2)
        ((9,), (0, 9), (0, 0))
    """
    ended = (
        (*letters, end)
        for length in range(max_length)
        for letters in itertools.product(alphabet, repeat=length)
    )
    return (*ended, *itertools.product(alphabet, repeat=max_length))


def log_policy(model: LanguageModel, space: ResponseSpace) -> Float[Array, "x a"]:
    r"""Table of a model's log-probabilities.

    Args:
        model: the language model.
        space: its prompts and responses.

    Returns:
        :math:`\log\pi(a|x)`, nats.
    """
    contexts, responses = len(space.prompts), len(space.responses)
    everything = np.arange(contexts * responses).reshape(contexts, responses)
    batch = _batch(space, everything, counts=np.ones(contexts))
    return response_log_probs(model, batch)


def comparison_batch(space: ResponseSpace, comparisons: Comparisons) -> Batch:
    """Batch of weighted pairs, in which every distinct sequence is read once.

    Args:
        space: prompts and responses.
        comparisons: the data.

    Returns:
        One batch of all comparisons, without an accumulation axis.

    Examples:
        >>> space = ResponseSpace(prompts=((0,),), responses=((1, 2), (2,)))
        >>> zero, one = np.array([0]), np.array([1])
        >>> batch = comparison_batch(space, Comparisons(zero, one, zero, np.array([3.0])))
        >>> batch.lengths.tolist(), batch.weights.tolist()
        ([[1, 2]], [3.0])
    """
    roles = [comparisons.winners, comparisons.losers]
    if comparisons.baselines is not None:
        roles.append(comparisons.baselines)
    rows = [np.asarray(comparisons.contexts) * len(space.responses) + role for role in roles]
    return _batch(space, np.stack(rows, axis=1), counts=np.asarray(comparisons.counts))


def problem(
    log_reference: Float[ArrayLike, "x a"], comparisons: Comparisons, *, beta: float, eta: float
) -> Problem:
    r"""The max-min problem whose minimax policy the trainer looks for.

    Prompts weigh as in the data, and the baseline policy is the law of the baseline responses (the
    winners, unless given) of each prompt: what the mean over pairs of the trainer amounts to.

    Args:
        log_reference: table of the reference model, see :func:`log_policy`.
        comparisons: the data; every prompt must occur.
        beta: :math:`\beta`.
        eta: :math:`\eta`.

    Returns:
        The instance.

    Raises:
        ValueError: if a prompt has no comparisons.

    Examples:
        >>> i = np.array([0])
        >>> data = Comparisons(i, i, i + 1, np.array([2.0]))
        >>> problem(np.log(np.full((1, 2), 0.5)), data, beta=0.1, eta=1.0).baseline_policy.tolist()
        [[1.0, 0.0]]
    """
    log_reference = np.asarray(log_reference)
    n_contexts, n_actions = log_reference.shape
    contexts, winners, losers, counts = map(np.asarray, comparisons[:4])
    baselines = winners if comparisons.baselines is None else np.asarray(comparisons.baselines)
    drawn = np.zeros((n_contexts, n_actions), log_reference.dtype)
    np.add.at(drawn, (contexts, baselines), counts)
    share = drawn.sum(axis=1)
    if not (share > 0).all():
        raise ValueError(f"`comparisons` must have every prompt, got none of {np.argmin(share)}")
    return Problem(
        context_weights=share / share.sum(),
        reference_policy=np.exp(log_reference),
        baseline_policy=drawn / share[:, None],
        wins=np.asarray(win_counts(contexts, winners, losers, counts, shape=drawn.shape)),
        beta=np.asarray(beta, log_reference.dtype),
        eta=np.asarray(eta, log_reference.dtype),
    )


def _batch(space: ResponseSpace, rows: Int[np.ndarray, "n k"], counts: np.ndarray) -> Batch:
    """Batch whose responses are those of the given rows of :func:`_rows`."""
    n_responses, width = len(space.responses), _width(space)
    place, target, owner = [], [], []
    for response, row in enumerate(rows.reshape(-1).tolist()):
        context, action = divmod(row, n_responses)
        tokens = space.responses[action]
        first = row * width + len(space.prompts[context]) - 1
        place.extend(range(first, first + len(tokens)))
        target.extend(tokens)
        owner.extend([response] * len(tokens))
    lengths = np.array([len(tokens) for tokens in space.responses])
    return Batch(
        rows=_rows(space),
        completions=Completions(*(np.array(leaf, np.int32) for leaf in (place, target, owner))),
        lengths=lengths[rows % n_responses],
        present=np.ones(len(rows), bool),
        row_ids=np.arange(len(rows)),
        weights=counts,
    )


def _rows(space: ResponseSpace) -> Rows:
    """Every response after every prompt, one a row: row ``context * a + action``."""
    shape = (len(space.prompts) * len(space.responses), _width(space))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    branches = np.full(shape, Branch.PROMPT, np.int32)
    for row, (prompt, response) in enumerate(itertools.product(*space)):
        end = len(prompt) + len(response)
        tokens[row, :end] = (*prompt, *response)
        segments[row, :end] = 1
        branches[row, len(prompt) : end] = Branch.CHOSEN
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return Rows(tokens, positions, segments, branches)


def _width(space: ResponseSpace) -> int:
    return max(map(len, space.prompts)) + max(map(len, space.responses))
