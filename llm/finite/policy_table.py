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

from llm.models.logprobs import response_log_probs
from llm.models.protocol import LanguageModel
from llm.types import Batch, Branch, Completions, Rows
from rpo_theory.preference import win_counts
from rpo_theory.types import ArrayLike, Problem

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
    """Batch of weighted pairs that share their rows: no sequence is read twice.

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
    first = np.asarray(comparisons.contexts)[:, None] * len(space.responses)
    pairs = first + np.stack([np.asarray(role) for role in roles], axis=1)
    return _batch(space, pairs, counts=np.asarray(comparisons.counts))


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


def _batch(space: ResponseSpace, pairs: Int[np.ndarray, "n k"], counts: np.ndarray) -> Batch:
    """Batch whose responses are ``context * a + action``."""
    n_responses = len(space.responses)
    reads, read_of = _reads(space.responses)
    rows = _rows(space.prompts, reads)
    place, target, owner = [], [], []
    for response, index in enumerate(pairs.reshape(-1).tolist()):
        context, action = divmod(index, n_responses)
        tokens, row = space.responses[action], context * len(reads) + read_of[action]
        first = row * rows.tokens.shape[1] + len(space.prompts[context]) - 1
        place.extend(range(first, first + len(tokens)))
        target.extend(tokens)
        owner.extend([response] * len(tokens))
    lengths = np.array([len(tokens) for tokens in space.responses])
    return Batch(
        rows=rows,
        completions=Completions(*(np.array(leaf, np.int32) for leaf in (place, target, owner))),
        lengths=lengths[pairs % n_responses],
        present=np.ones(len(pairs), bool),
        row_ids=np.arange(len(pairs)),
        weights=counts,
    )


def _reads(responses: tuple[Tokens, ...]) -> tuple[list[Tokens], list[int]]:
    """What must be read to predict every token of all responses, and which of them each needs.

    The last token of a response predicts nothing, and what begins another need not be read alone.
    """
    needed = {response[:-1] for response in responses}
    begun = {read[:length] for read in needed for length in range(len(read))}
    longest = sorted(needed - begun)
    read_of = [
        next(i for i, read in enumerate(longest) if read[: len(response) - 1] == response[:-1])
        for response in responses
    ]
    return longest, read_of


def _rows(prompts: tuple[Tokens, ...], reads: list[Tokens]) -> Rows:
    """Every read after every prompt, one a row: row ``context * len(reads) + read``."""
    sequences = [(prompt, read) for prompt in prompts for read in reads]
    shape = (len(sequences), max(len(prompt) + len(read) for prompt, read in sequences))
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    branches = np.full(shape, Branch.PROMPT, np.int32)
    for row, (prompt, read) in enumerate(sequences):
        end = len(prompt) + len(read)
        tokens[row, :end] = (*prompt, *read)
        segments[row, :end] = 1
        branches[row, len(prompt) : end] = Branch.CHOSEN
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return Rows(tokens, positions, segments, branches)
