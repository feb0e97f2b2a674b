"""Pairs of token sequences to rows: each response with its prompt, or the prompt written once.

The last token of a response predicts nothing and no other token attends to it, so that it is not
processed at all: a pair costs its prompt and its responses less one token each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from llm.types import Batch, Bounds, Branch, Completions, Rows

from .pair_table import as_pair_table
from .preferences import PairTokens

PackingMode = Literal["separate", "shared"]
TOKEN_MULTIPLE = 32
"""A batch of one row is padded to multiples of so many tokens, at least; one of many, whose longest
differs more from step to step, to multiples of twice as many."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Static sizes of a batch.

    Attributes:
        rows: number of rows.
        row_tokens: tokens in a row.
        completions: completion tokens.
        longest: tokens of the longest prompt with a response.
    """

    rows: int
    row_tokens: int
    completions: int
    longest: int


def n_roles(pairs: Sequence[PairTokens]) -> int:
    """Responses of a pair in a batch: 3 where some pair has a baseline of its own, otherwise 2.

    Args:
        pairs: the pairs.

    Returns:
        2 or 3.

    Examples:
        >>> pair = PairTokens((1,), (2,), (3,), None, 0)
        >>> n_roles([pair]), n_roles([pair, pair._replace(baseline=(4,))])
        (2, 3)
    """
    return 3 if as_pair_table(pairs).lengths[:, -1].any() else 2


def packed_token_counts(
    pairs: Sequence[PairTokens], *, layout: PackingMode, roles: int
) -> Int[np.ndarray, " n"]:
    """Positions that each pair takes.

    Args:
        pairs: the pairs.
        layout: where their prompts are written.
        roles: responses of a pair, see :func:`n_roles`.

    Returns:
        Tokens of each.

    Examples:
        >>> pair = PairTokens((1, 2, 3), (4, 5), (6,), None, 0)
        >>> packed_token_counts([pair], layout="shared", roles=2).tolist()
        [4]
        >>> packed_token_counts([pair], layout="separate", roles=2).tolist()
        [7]
    """
    prompts, branches = _lengths(pairs, roles)
    return (branches - 1).sum(1) + prompts * (roles if layout == "separate" else 1)


def responses_by_role(pair: PairTokens, roles: int) -> list[tuple[int, ...]]:
    """Responses of a pair by role; a pair without a baseline of its own repeats the chosen one.

    Args:
        pair: the pair.
        roles: how many, see :func:`n_roles`.

    Returns:
        Chosen, rejected and, of three, baseline.
    """
    every = [pair.chosen, pair.rejected]
    if roles == 3:
        every.append(pair.chosen if pair.baseline is None else pair.baseline)
    return every


def required_shape(pairs: Sequence[PairTokens], *, layout: PackingMode, roles: int) -> BatchShape:
    """Sizes that a batch needs, before any rounding to common ones.

    Args:
        pairs: the pairs of a batch.
        layout: one sequence a row, or all pairs in one row, each with its prompt once.
        roles: responses of a pair.

    Returns:
        The sizes.
    """
    prompts, branches = _lengths(pairs, roles)
    longest = int((prompts + branches.max(1)).max()) - 1
    rows, tokens = len(pairs) * roles, longest
    if layout == "shared":
        rows, tokens = 1, int(packed_token_counts(pairs, layout=layout, roles=roles).sum())
    return BatchShape(
        rows=rows, row_tokens=tokens, completions=int(branches.sum()), longest=longest
    )


def _lengths(
    pairs: Sequence[PairTokens], roles: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n roles"]]:
    """Tokens of prompts, and of responses by role."""
    lengths = as_pair_table(pairs).lengths.astype(np.int64)
    prompts, chosen, rejected, baseline = lengths.T
    every = [chosen, rejected, np.where(baseline, baseline, chosen)]
    return prompts, np.stack(every[:roles], axis=1)


def round_up_shape(shape: BatchShape, *, steps: int = 64) -> BatchShape:
    """A shape of a coarser grid, so that few are compiled.

    Args:
        shape: the least that will do.
        steps: sizes between a power of two and the next.

    Returns:
        A shape that is at most ``1 + 1/steps`` times as large, or larger by :data:`TOKEN_MULTIPLE`.

    Examples:
        >>> round_up_shape(BatchShape(rows=1, row_tokens=530, completions=65, longest=101))
        BatchShape(rows=1, row_tokens=544, completions=96, longest=128)
    """

    def up(size: int) -> int:
        least = TOKEN_MULTIPLE if shape.rows == 1 else 2 * TOKEN_MULTIPLE
        grain = max(least, 2 ** math.floor(math.log2(max(size, 1))) // steps)
        return -(-size // grain) * grain

    return BatchShape(
        rows=shape.rows,
        row_tokens=up(shape.row_tokens),
        completions=up(shape.completions),
        longest=up(shape.longest),
    )


def pack(
    pairs: Sequence[PairTokens],
    *,
    layout: PackingMode,
    roles: int,
    n_pairs: int,
    shape: BatchShape,
) -> Batch:
    """Write pairs into rows of a fixed shape.

    Args:
        pairs: at most ``n_pairs``.
        layout: ``separate`` puts every prompt with one response in a row of its own; ``shared``
            puts prompt, chosen, rejected (and baseline) of all pairs one after another.
        roles: responses of a pair, see :func:`n_roles`.
        n_pairs: pairs of the batch; those that are missing are absent.
        shape: sizes that hold them, of :func:`required_shape` or larger.

    Returns:
        The batch, as NumPy arrays; padding has segment 0.

    Raises:
        ValueError: something does not fit.

    Examples:
        >>> pair = PairTokens((1, 2), (3, 4), (5,), None, 0)
        >>> shape = BatchShape(rows=1, row_tokens=4, completions=3, longest=3)
        >>> pack([pair], layout="shared", roles=2, n_pairs=1, shape=shape).rows.tokens.tolist()
        [[1, 2, 3, 0]]
    """
    least = required_shape(pairs, layout=layout, roles=roles) if pairs else shape
    too_many = layout == "separate" and n_pairs * roles > shape.rows
    if (
        len(pairs) > n_pairs
        or too_many
        or least.row_tokens > shape.row_tokens
        or least.completions > shape.completions
        or least.longest > shape.longest
    ):
        raise ValueError(f"`shape` must hold {len(pairs)} pairs that need {least}, got {shape}")
    rows = np.zeros((4, shape.rows, shape.row_tokens), np.int32)
    completions = np.zeros((3, shape.completions), np.int32)
    completions[2] = n_pairs * roles  # padding belongs to no response
    lengths = np.zeros((n_pairs, roles), np.int32)
    filled = 0
    for piece in _pieces(pairs, layout, roles):
        column = piece.column
        _write(rows, piece, column, piece.prompt, Branch.PROMPT, position=0)
        column += len(piece.prompt)
        before = piece.row * shape.row_tokens + column - 1  # the prompt's last token
        for role, response in piece.responses.items():
            branch = Branch(role + 1)
            _write(rows, piece, column, response[:-1], branch, position=len(piece.prompt))
            span = slice(filled, filled + len(response))
            completions[0, span] = (
                piece.row * shape.row_tokens + column - 1 + np.arange(len(response))
            )
            completions[0, filled] = before
            completions[1, span] = response
            completions[2, span] = piece.pair * roles + role
            lengths[piece.pair, role] = len(response)
            filled += len(response)
            column += len(response) - 1
    ids = np.full(n_pairs, -1, np.int32)
    ids[: len(pairs)] = [pair.row for pair in pairs]
    segments = n_pairs if layout == "shared" else 1
    read = Rows(rows[0], rows[1], rows[2], rows[3], Bounds(roles, segments, shape.longest))
    return Batch(read, Completions(*completions), lengths, ids >= 0, ids)


class _Piece(NamedTuple):
    """A prompt with responses that follow it, at a place in a row."""

    row: int
    column: int
    pair: int
    segment: int
    prompt: tuple[int, ...]
    responses: dict[int, tuple[int, ...]]


def _pieces(pairs: Sequence[PairTokens], layout: PackingMode, roles: int) -> Iterator[_Piece]:
    column, sizes = 0, packed_token_counts(pairs, layout=layout, roles=roles).tolist()
    for number, pair in enumerate(pairs):
        every = dict(enumerate(responses_by_role(pair, roles)))
        if layout == "shared":
            yield _Piece(0, column, number, number + 1, pair.prompt, every)
            column += sizes[number]
        else:
            for role, response in every.items():
                yield _Piece(number * roles + role, 0, number, 1, pair.prompt, {role: response})


def _write(
    rows: np.ndarray,
    piece: _Piece,
    column: int,
    tokens: tuple[int, ...],
    branch: Branch,
    *,
    position: int,
) -> None:
    """Write tokens of one branch, with where they are read and whom they belong to."""
    span = slice(column, column + len(tokens))
    rows[0, piece.row, span] = tokens
    rows[1, piece.row, span] = position + np.arange(len(tokens))
    rows[2, piece.row, span] = piece.segment
    rows[3, piece.row, span] = branch
