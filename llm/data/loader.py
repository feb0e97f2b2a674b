"""The order of training: which pairs make which step, and their batches, a step at a time.

What a step holds is a function of the data, the seed and the step's number alone. So the state of
the pipeline is one number, and a run that is resumed reads exactly what it would have read. Grain
prepares batches ahead of the step in threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import grain
import jax
import numpy as np

from llm.types import Batch

from .packing import (
    BatchShape,
    PackingMode,
    n_roles,
    pack,
    packed_token_counts,
    required_shape,
    round_up_shape,
)
from .pair_table import PairTable, as_pair_table
from .preferences import PairTokens

BALANCING_WINDOW = 64
"""Steps over which pairs are dealt out so that all have nearly the same number of tokens."""


@dataclass(frozen=True)
class BatchSampler:
    """Steps of training over a data set.

    Attributes:
        pairs: the data.
        layout: of the rows.
        pairs_per_microbatch: pairs of a part of a step.
        accumulation: parts of a step.
        seed: of the order; None keeps the data's own, without dealing out.
        roles: responses of a pair; None for as many as the pairs have.
    """

    pairs: Sequence[PairTokens]
    layout: PackingMode
    pairs_per_microbatch: int
    accumulation: int = 1
    seed: int | None = 0
    roles: int | None = None

    @property
    def pairs_per_step(self) -> int:
        """Pairs of a step.

        Examples:
            >>> BatchSampler((), "shared", pairs_per_microbatch=4, accumulation_steps=3).pairs_per_step
            12
        """
        return self.pairs_per_microbatch * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        """Steps that use every pair once; the last may be short."""
        return -(-len(self.pairs) // self.pairs_per_step)

    @cached_property
    def n_roles(self) -> int:
        """Responses of a pair."""
        return n_roles(self.pairs) if self.roles is None else self.roles

    def pair_indices(self, step: int) -> np.ndarray:
        """Places of a step's pairs in the data.

        Args:
            step: from 0 on, over all epochs.

        Returns:
            Places, at most :attr:`pairs_per_step` of them.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        return self._steps(epoch)[place]

    def batch(self, step: int) -> Batch:
        """The batch of a step, its parts along the leading axis of every array.

        Args:
            step: from 0 on, over all epochs.

        Returns:
            NumPy arrays; all parts of a step have one shape, of few that occur at all.
        """
        parts = [self._table.select(part) for part in self._parts(self.pair_indices(step))]
        tokens = max(self._least(part).row_tokens for part in parts if part)
        shape = round_up_shape(
            BatchShape(
                rows=1 if self.layout == "shared" else self.pairs_per_microbatch * self.n_roles,
                row_tokens=tokens,
                completions=self._completions(step // self.steps_per_epoch),
                longest=self._longest,
            )
        )
        packed = [
            pack(
                part,
                layout=self.layout,
                roles=self.n_roles,
                n_pairs=self.pairs_per_microbatch,
                shape=shape,
            )
            for part in parts
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)

    @cached_property
    def _table(self) -> PairTable:
        return as_pair_table(self.pairs)

    @cached_property
    def _sizes(self) -> np.ndarray:
        return packed_token_counts(self._table, layout=self.layout, roles=self.n_roles)

    def _parts(self, places: np.ndarray) -> list[np.ndarray]:
        """Places of a step's parts, of nearly equal numbers of tokens where pairs are dealt out."""
        parts = [places[part :: self.accumulation] for part in range(self.accumulation)]
        if self.seed is None or self.accumulation == 1:
            return parts
        return self._dealt(places, np.array([len(part) for part in parts]))

    def _least(self, pairs: PairTable) -> BatchShape:
        return required_shape(pairs, layout=self.layout, roles=self.n_roles)

    def _completions(self, epoch: int) -> int:
        """One number for an epoch: two sizes that vary would multiply the shapes to compile."""
        if epoch not in self._most:
            self._most.clear()
            parts = (part for step in self._steps(epoch) for part in self._parts(step))
            tables = (self._table.select(part) for part in parts if part.size)
            self._most[epoch] = max(self._least(table).completions for table in tables)
        return self._most[epoch]

    @cached_property
    def _longest(self) -> int:
        return self._least(self._table).longest

    @cached_property
    def _most(self) -> dict[int, int]:
        return {}

    @cached_property
    def _orders(self) -> dict[int, list[np.ndarray]]:
        return {}

    def _steps(self, epoch: int) -> list[np.ndarray]:
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = self._order(epoch)
        return self._orders[epoch]

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Steps of an epoch: shuffled, then dealt out within windows."""
        order = np.arange(len(self.pairs))
        if self.seed is None:
            return [
                order[start : start + self.pairs_per_step]
                for start in range(0, len(order), self.pairs_per_step)
            ]
        order = np.random.default_rng([self.seed, epoch]).permutation(order)
        window = BALANCING_WINDOW * self.pairs_per_step
        steps = []
        for start in range(0, len(order), window):
            places = order[start : start + window]
            room = np.full(-(-len(places) // self.pairs_per_step), self.pairs_per_step)
            room[-1] -= np.sum(room) - len(places)
            steps += self._dealt(places, room)
        return steps

    def _dealt(self, places: np.ndarray, room: np.ndarray) -> list[np.ndarray]:
        """Deal the longest pairs first, each to the hand that has the fewest tokens and room."""
        sizes = self._sizes[places]
        room, tokens = room.copy(), np.zeros(len(room))
        hands: list[list[int]] = [[] for _ in room]
        for one in np.argsort(-sizes, kind="stable"):
            hand = int(np.argmin(np.where(room > 0, tokens, np.inf)))
            hands[hand].append(int(places[one]))
            tokens[hand] += sizes[one]
            room[hand] -= 1
        return [np.array(hand, dtype=int) for hand in hands]


def iterate_batches(sampler: BatchSampler, first: int, last: int) -> Iterator[tuple[int, Batch]]:
    """Batches of consecutive steps, prepared ahead in threads.

    Args:
        sampler: the steps.
        first: the first step.
        last: one past the last.

    Yields:
        The number of a step and its batch.
    """
    if first >= last:
        return
    steps = grain.MapDataset.range(first, last).map(lambda step: (int(step), sampler.batch(step)))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    yield from steps.to_iter_dataset(options)
