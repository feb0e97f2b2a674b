r"""Policy tables: language models over a finite set of responses, for the exact theory.

If the vocabulary is small and responses are short, all responses can be listed, and a language
model is a table :math:`\pi(a|x)`. The same comparisons then give a batch for the trainer and a
:class:`rpo_theory.types.Problem` for the exact solvers, and the objectives of both are equal at any
parameters. If response :math:`a` won :math:`W_a` of :math:`N` comparisons and the chosen responses
are the baseline, the trained policy satisfies :math:`\pi(a|x) \le (1+1/\eta) W_a/N`: the
log-probability of a response that never wins has no finite optimum.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from llm.models.logprobs import response_log_probs
from llm.models.protocol import LanguageModel
from llm.types import Batch, Branch, Completions, Rows
from rpo_theory.preference import win_counts
from rpo_theory.types import ArrayLike, Problem

Tokens = tuple[int, ...]


class ResponseSpace(NamedTuple):
    """Prompts, and the responses that each of them can have.

    Attributes:
        prompts: token ids of each prompt, at least one.
        responses: token ids of each response, at least one.
    """

    prompts: tuple[Tokens, ...]
    responses: tuple[Tokens, ...]


class Comparisons(NamedTuple):
    """Distinct comparisons of a finite space, with the number of times that each occurred.

    Attributes:
        contexts: index of the prompt, shape ``[n]``.
        winners: index of the preferred response, shape ``[n]``.
        losers: index of the other response, shape ``[n]``.
        counts: number of occurrences; fractions are expected numbers, shape ``[n]``.
        baselines: index of the response in the SFT term, the winner if None, shape ``[n]``.
    """

    contexts: Int[ArrayLike, " n"]
    winners: Int[ArrayLike, " n"]
    losers: Int[ArrayLike, " n"]
    counts: Float[ArrayLike, " n"]
    baselines: Int[ArrayLike, " n"] | None = None


def all_responses(alphabet: Sequence[int], *, end: int, max_length: int) -> tuple[Tokens, ...]:
    """Return every response that ends with ``end`` or is truncated at ``max_length`` tokens.

    Under a model whose vocabulary is the alphabet and ``end``, their probabilities sum to one.

    Args:
        alphabet: ids of all tokens except the end token.
        end: id of the end token.
        max_length: largest number of tokens, including the end token.

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
    r"""Return a model's log-probability of every response to every prompt.

    Args:
        model: a language model whose vocabulary contains the tokens of the space.
        space: prompts and responses.

    Returns:
        :math:`\log\pi(a|x)` in nats.
    """
    contexts, responses = len(space.prompts), len(space.responses)
    every_response = np.arange(contexts * responses).reshape(contexts, responses)
    batch = _make_batch(space, every_response, counts=np.ones(contexts))
    return response_log_probs(model, batch)


@partial(jax.jit, static_argnames=("graphdef", "space"))
def _log_policy_of_split(
    graphdef: nnx.GraphDef[Any], space: ResponseSpace, trainable: Any, frozen: Any
) -> Float[Array, "x a"]:
    """Return :func:`log_policy` of a model in pieces; models of one structure share the program."""
    return log_policy(nnx.merge(graphdef, trainable, frozen), space)


def comparison_batch(space: ResponseSpace, comparisons: Comparisons) -> Batch:
    """Return a batch of weighted pairs that share their rows: no sequence is read twice.

    Args:
        space: prompts and responses.
        comparisons: comparisons of these responses.

    Returns:
        One batch of all comparisons, without axes of parts and shards.

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
    return _make_batch(space, pairs, counts=np.asarray(comparisons.counts))


def make_problem(
    log_reference: Float[ArrayLike, "x a"], comparisons: Comparisons, *, beta: float, eta: float
) -> Problem:
    r"""Return the max-min problem whose minimax policy minimizes the trainer's objective.

    Contexts have the weights of the prompts in the data. The baseline policy is the empirical
    distribution of each prompt's baseline responses, by default the winners. Both follow from the
    trainer's mean over pairs.

    Args:
        log_reference: log-probabilities of the reference model, see :func:`log_policy`.
        comparisons: the data, with at least one comparison of each prompt.
        beta: weight :math:`\beta` of the KL term, greater than 0.
        eta: weight :math:`\eta` of the adversarial term, at least 0.

    Returns:
        The problem, in the dtype of ``log_reference``.

    Raises:
        ValueError: if a prompt has no comparisons.

    Examples:
        >>> i = np.array([0])
        >>> data = Comparisons(i, i, i + 1, np.array([2.0]))
        >>> problem = make_problem(np.log(np.full((1, 2), 0.5)), data, beta=0.1, eta=1.0)
        >>> problem.baseline_policy.tolist()
        [[1.0, 0.0]]
    """
    log_reference = np.asarray(log_reference)
    n_contexts, n_actions = log_reference.shape
    contexts, winners, losers, counts = map(np.asarray, comparisons[:4])
    baselines = winners if comparisons.baselines is None else np.asarray(comparisons.baselines)
    baseline_counts = np.zeros((n_contexts, n_actions), log_reference.dtype)
    np.add.at(baseline_counts, (contexts, baselines), counts)
    context_counts = baseline_counts.sum(axis=1)
    if not (context_counts > 0).all():
        raise ValueError(
            f"`comparisons` must cover every prompt, got none of prompt {np.argmin(context_counts)}"
        )
    return Problem(
        context_weights=context_counts / context_counts.sum(),
        reference_policy=np.exp(log_reference),
        baseline_policy=baseline_counts / context_counts[:, None],
        wins=np.asarray(win_counts(contexts, winners, losers, counts, shape=baseline_counts.shape)),
        beta=np.asarray(beta, log_reference.dtype),
        eta=np.asarray(eta, log_reference.dtype),
    )


def _make_batch(space: ResponseSpace, pairs: Int[np.ndarray, "n k"], counts: np.ndarray) -> Batch:
    """Return a batch of pairs of responses, each numbered ``context * a + action``."""
    n_responses = len(space.responses)
    reads, read_of = _find_reads(space.responses)
    rows = _make_rows(space.prompts, reads)
    flat_index, target, owner = [], [], []
    for response, index in enumerate(pairs.reshape(-1).tolist()):
        context, action = divmod(index, n_responses)
        tokens, row = space.responses[action], context * len(reads) + read_of[action]
        first = row * rows.tokens.shape[1] + len(space.prompts[context]) - 1
        flat_index.extend(range(first, first + len(tokens)))
        target.extend(tokens)
        owner.extend([response] * len(tokens))
    lengths = np.array([len(tokens) for tokens in space.responses])
    return Batch(
        rows=rows,
        completions=Completions(
            *(np.array(leaf, np.int32) for leaf in (flat_index, target, owner))
        ),
        lengths=lengths[pairs % n_responses],
        present=np.ones(len(pairs), bool),
        row_ids=np.arange(len(pairs)),
        weights=counts,
    )


def _find_reads(responses: tuple[Tokens, ...]) -> tuple[list[Tokens], list[int]]:
    """Return the token sequences to read, and the index of the one that predicts each response.

    The last token of a response predicts nothing, and a prefix of another sequence is not read by
    itself.
    """
    needed = {response[:-1] for response in responses}
    prefixes = {read[:length] for read in needed for length in range(len(read))}
    longest = sorted(needed - prefixes)
    read_of = [
        next(i for i, read in enumerate(longest) if read[: len(response) - 1] == response[:-1])
        for response in responses
    ]
    return longest, read_of


def _make_rows(prompts: tuple[Tokens, ...], reads: list[Tokens]) -> Rows:
    """Return one row for each prompt and read: row ``context * len(reads) + read``."""
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
