"""Packing of tokenized pairs into rows of a fixed shape.

Every response is packed with its own copy of the prompt (``separate``), or all pairs of a batch are
packed into one row with each prompt written once (``shared``). The last token of a response
predicts nothing, and no other token attends to it, so it is left out of the rows. Each response of
``n`` tokens therefore takes ``n - 1`` tokens of a row. Tokens of a response that are not scored,
such as a message of the user between two of the assistant, are in the row but no completions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from llm.types import Batch, Bounds, Branch, Completions, Role, Rows

from .pair_table import as_pair_table
from .preferences import PairTokens, ScoredTokens

PackingMode = Literal["separate", "shared"]
"""``separate``: one prompt and one response per row. ``shared``: all pairs in one row."""

TOKEN_MULTIPLE = 32
"""A batch of one row is padded to a multiple of this many tokens. A batch of several rows, whose
longest row varies more from step to step, is padded to a multiple of twice as many."""


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """Static sizes of a batch.

    Attributes:
        rows: number of rows.
        row_tokens: tokens in a row.
        completions: scored tokens of all responses.
        longest: tokens of the longest prompt with one of its responses.
    """

    rows: int
    row_tokens: int
    completions: int
    longest: int


def count_roles(pairs: Sequence[PairTokens]) -> int:
    """Return the number of responses per pair in a batch.

    Args:
        pairs: tokenized pairs.

    Returns:
        3 if some pair has a baseline response besides the chosen one, otherwise 2; the largest
        number of responses of ranked rows.

    Examples:
        >>> pair = PairTokens((1,), (2,), (3,), None, 0)
        >>> count_roles([pair]), count_roles([pair, pair._replace(baseline=(4,))])
        (2, 3)
    """
    table = as_pair_table(pairs)
    if table.is_ranked:
        return int(np.count_nonzero(table.lengths[:, 1:], axis=1).max(initial=2))
    return 3 if table.has_baselines else 2


def packed_token_counts(
    pairs: Sequence[PairTokens], *, layout: PackingMode, roles: int
) -> Int[np.ndarray, " n"]:
    """Return the number of tokens that each pair occupies in packed rows.

    Args:
        pairs: tokenized pairs.
        layout: whether the responses of a pair share one copy of the prompt.
        roles: number of responses per pair, see :func:`count_roles`.

    Returns:
        Token counts, shape ``[n]``.

    Examples:
        >>> pair = PairTokens((1, 2, 3), (4, 5), (6,), None, 0)
        >>> packed_token_counts([pair], layout="shared", roles=2).tolist()
        [4]
        >>> packed_token_counts([pair], layout="separate", roles=2).tolist()
        [7]
    """
    prompts, responses = _lengths(pairs, roles)
    copies = np.count_nonzero(responses, axis=1) if layout == "separate" else 1
    return np.maximum(responses - 1, 0).sum(1) + prompts * copies


def responses_by_role(pair: PairTokens, roles: int) -> list[tuple[int, ...]]:
    """Return the responses of a pair in the order of :class:`llm.types.Role`.

    Args:
        pair: a tokenized pair.
        roles: number of responses, see :func:`count_roles`.

    Returns:
        The chosen and the rejected response; with three roles also the baseline response, which is
        the chosen one if the pair has none. The responses of a ranked row, from best to worst.

    Examples:
        >>> responses_by_role(PairTokens((1,), (2,), (3,), None, 0), 3)
        [(2,), (3,), (2,)]
    """
    if pair.others is not None:
        return list(pair.responses)
    responses = [pair.chosen, pair.rejected]
    if roles == len(Role):
        responses.append(pair.chosen if pair.baseline is None else pair.baseline)
    return responses


def _scored_by_role(pair: PairTokens, roles: int) -> list[ScoredTokens | None]:
    """Return which tokens of each response are scored; None for all of them."""
    if pair.others is not None:
        return list(pair.scored or [None] * len(pair.responses))
    chosen, rejected, baseline = pair.scored or (None, None, None)
    return [chosen, rejected, chosen if pair.baseline is None else baseline][:roles]


def required_shape(pairs: Sequence[PairTokens], *, layout: PackingMode, roles: int) -> BatchShape:
    """Return the smallest shape that holds the pairs of a batch.

    Args:
        pairs: tokenized pairs, at least one.
        layout: how they are packed.
        roles: number of responses per pair, see :func:`count_roles`.

    Returns:
        The shape, without the rounding of :func:`round_up_shape`.
    """
    prompts, responses = _lengths(pairs, roles)
    longest = int((prompts + responses.max(1)).max()) - 1
    table = as_pair_table(pairs)
    scored = _by_role(table.scored_lengths, roles, is_ranked=table.is_ranked)
    rows, tokens = len(pairs) * roles, longest
    if layout == "shared":
        rows, tokens = 1, int(packed_token_counts(pairs, layout=layout, roles=roles).sum())
    return BatchShape(rows=rows, row_tokens=tokens, completions=int(scored.sum()), longest=longest)


def _lengths(
    pairs: Sequence[PairTokens], roles: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, "n roles"]]:
    """Return the lengths of the prompts, and of the responses by role."""
    table = as_pair_table(pairs)
    responses = _by_role(table.lengths[:, 1:], roles, is_ranked=table.is_ranked)
    return table.lengths[:, 0].astype(np.int64), responses


def _by_role(
    lengths: Int[np.ndarray, "n k"], roles: int, *, is_ranked: bool
) -> Int[np.ndarray, "n roles"]:
    """Return lengths of responses by role; a missing baseline response is the chosen one.

    A response that a ranked row lacks has the length 0.
    """
    if is_ranked:
        lengths = lengths[:, :roles].astype(np.int64)
        return np.pad(lengths, ((0, 0), (0, roles - lengths.shape[1])))
    chosen, rejected, baseline = lengths.astype(np.int64).T
    return np.stack([chosen, rejected, np.where(baseline, baseline, chosen)][:roles], axis=1)


def round_up_shape(shape: BatchShape, *, steps: int = 64) -> BatchShape:
    """Round a shape up to a coarser grid, so that few shapes are compiled.

    Args:
        shape: the smallest shape that suffices.
        steps: number of grid sizes between a power of two and the next one.

    Returns:
        A shape that is at most ``1 + 1/steps`` times as large, or larger by a few multiples of
        :data:`TOKEN_MULTIPLE` if the shape is small.

    Examples:
        >>> round_up_shape(BatchShape(rows=1, row_tokens=530, completions=65, longest=101))
        BatchShape(rows=1, row_tokens=544, completions=96, longest=128)
    """

    def round_up(size: int) -> int:
        least = TOKEN_MULTIPLE if shape.rows == 1 else 2 * TOKEN_MULTIPLE
        grain = max(least, 2 ** math.floor(math.log2(max(size, 1))) // steps)
        return -(-size // grain) * grain

    return BatchShape(
        rows=shape.rows,
        row_tokens=round_up(shape.row_tokens),
        completions=round_up(shape.completions),
        longest=round_up(shape.longest),
    )


def pack(
    pairs: Sequence[PairTokens],
    *,
    layout: PackingMode,
    roles: int,
    n_pairs: int,
    shape: BatchShape,
) -> Batch:
    """Pack pairs into a batch of a fixed shape.

    Args:
        pairs: at most ``n_pairs`` tokenized pairs.
        layout: ``separate`` writes every prompt with one response into a row of its own;
            ``shared`` writes the prompt and the responses of all pairs into one row.
        roles: number of responses per pair, see :func:`count_roles`.
        n_pairs: number of pairs of the batch; missing pairs are marked absent.
        shape: a shape that holds them, see :func:`required_shape`.

    Returns:
        The batch as NumPy arrays; padding has segment 0.

    Raises:
        ValueError: if the pairs do not fit into the shape.

    Examples:
        >>> pair = PairTokens((1, 2), (3, 4), (5,), None, 0)
        >>> shape = BatchShape(rows=1, row_tokens=4, completions=3, longest=3)
        >>> pack([pair], layout="shared", roles=2, n_pairs=1, shape=shape).rows.tokens.tolist()
        [[1, 2, 3, 0]]
    """
    required = required_shape(pairs, layout=layout, roles=roles) if pairs else shape
    too_few_rows = layout == "separate" and n_pairs * roles > shape.rows
    if (
        len(pairs) > n_pairs
        or too_few_rows
        or required.row_tokens > shape.row_tokens
        or required.completions > shape.completions
        or required.longest > shape.longest
    ):
        raise ValueError(f"`shape` must hold {len(pairs)} pairs that need {required}, got {shape}")
    rows = np.zeros((4, shape.rows, shape.row_tokens), np.int32)
    completions = np.zeros((3, shape.completions), np.int32)
    completions[2] = n_pairs * roles  # padding belongs to no response
    lengths = np.zeros((n_pairs, roles), np.int32)
    filled = 0
    for piece in _pieces(pairs, layout, roles):
        column = piece.column
        _write(rows, piece, column, piece.prompt, Branch.PROMPT, position=0)
        column += len(piece.prompt)
        prompt_end = piece.row * shape.row_tokens + column - 1
        for role, (response, scored) in piece.responses.items():
            _write(rows, piece, column, response[:-1], 1 + role, position=len(piece.prompt))
            predecessors = piece.row * shape.row_tokens + column - 1 + np.arange(len(response))
            predecessors[0] = prompt_end
            kept = slice(None) if scored is None else np.flatnonzero(scored)
            count = len(response) if scored is None else sum(scored)
            span = slice(filled, filled + count)
            completions[0, span] = predecessors[kept]
            completions[1, span] = np.asarray(response)[kept]
            completions[2, span] = piece.pair * roles + role
            lengths[piece.pair, role] = count
            filled += count
            column += len(response) - 1
    row_ids = np.full(n_pairs, -1, np.int32)
    row_ids[: len(pairs)] = [pair.row for pair in pairs]
    segments = n_pairs if layout == "shared" else 1
    packed = Rows(rows[0], rows[1], rows[2], rows[3], Bounds(roles, segments, shape.longest))
    batch = Batch(packed, Completions(*completions), lengths, row_ids >= 0, row_ids)
    table = as_pair_table(pairs)
    labels, desirable = table.labels, table.desirable
    if table.is_ranked:
        batch = batch._replace(ranked=lengths > 0)
    if desirable is not None:
        batch = batch._replace(desirable=np.pad(desirable, (0, n_pairs - len(pairs))))
    if labels is None:
        return batch
    padded = np.ones((n_pairs, 2))
    padded[: len(pairs)] = labels
    soft = None if table.is_ranked else padded[:, 1]
    return batch._replace(weights=padded[:, 0], labels=soft)


class _Piece(NamedTuple):
    """A prompt and the responses that follow it, from one column of one row on."""

    row: int
    column: int
    pair: int
    segment: int
    prompt: tuple[int, ...]
    responses: dict[int, tuple[tuple[int, ...], ScoredTokens | None]]


def _pieces(pairs: Sequence[PairTokens], layout: PackingMode, roles: int) -> Iterator[_Piece]:
    column, counts = 0, packed_token_counts(pairs, layout=layout, roles=roles).tolist()
    for number, pair in enumerate(pairs):
        scored = _scored_by_role(pair, roles)
        by_role = zip(responses_by_role(pair, roles), scored, strict=True)
        responses = dict(enumerate(by_role))
        if layout == "shared":
            yield _Piece(0, column, number, number + 1, pair.prompt, responses)
            column += counts[number]
        else:
            for role, response in responses.items():
                yield _Piece(number * roles + role, 0, number, 1, pair.prompt, {role: response})


def _write(
    rows: np.ndarray,
    piece: _Piece,
    column: int,
    tokens: tuple[int, ...],
    branch: int,
    *,
    position: int,
) -> None:
    """Write the tokens of one branch with their positions, segment and branch."""
    span = slice(column, column + len(tokens))
    rows[0, piece.row, span] = tokens
    rows[1, piece.row, span] = position + np.arange(len(tokens))
    rows[2, piece.row, span] = piece.segment
    rows[3, piece.row, span] = branch
