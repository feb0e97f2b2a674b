"""Batches of a training run: which pairs each step sees, in which order, packed and prefetched.

The batch of a step is a function of the data, the seed and the step number alone. The state of the
input pipeline is therefore one integer, and a resumed run reads exactly the batches that it would
have read. Grain prepares batches ahead of the training step in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import grain
import jax
import numpy as np
from jaxtyping import Int

from llm.types import Batch

from .mixtures import MixturePart, epoch_indices
from .packing import (
    BatchShape,
    PackingMode,
    count_roles,
    pack,
    packed_token_counts,
    required_shape,
    round_up_shape,
)
from .pair_table import PairTable, as_pair_table
from .preferences import PairTokens

BALANCING_WINDOW = 64
"""Number of consecutive steps whose pairs are distributed so that every step has nearly the same
number of tokens."""


@dataclass(frozen=True)
class BatchSampler:
    """The batches of a data set, by step number.

    An epoch is a random permutation of the pairs. Within windows of :data:`BALANCING_WINDOW` steps
    the pairs are assigned to steps greedily, longest first, to balance the number of tokens.

    Attributes:
        pairs: the tokenized pairs.
        layout: how pairs are packed into rows.
        pairs_per_microbatch: number of pairs that are processed at once.
        accumulation_steps: number of microbatches of a step.
        seed: seed of the order; None keeps the order of the data and balances nothing.
        roles: number of responses per pair; None counts them in the data.
        drop_last: leave out the last step of an epoch if it has fewer pairs than the others.
        mixture: parts of the sources of the pairs in an epoch; empty for every pair once.
        steps: indices of the pairs of each step, the same in every epoch, in an order that differs;
            the last step stays the last one. None assigns the pairs to other steps in each epoch.
    """

    pairs: Sequence[PairTokens]
    layout: PackingMode
    pairs_per_microbatch: int
    accumulation_steps: int = 1
    seed: int | None = 0
    roles: int | None = None
    drop_last: bool = False
    mixture: Sequence[MixturePart] = ()
    steps: Sequence[Int[np.ndarray, " _"]] | None = None

    @property
    def pairs_per_epoch(self) -> int:
        """Number of pairs of an epoch.

        Examples:
            >>> BatchSampler((), "shared", 4, mixture=[MixturePart(0, 9, pairs=5)]).pairs_per_epoch
            5
        """
        return sum(part.pairs for part in self.mixture) if self.mixture else len(self.pairs)

    @property
    def pairs_per_step(self) -> int:
        """Number of pairs of a step.

        Examples:
            >>> sampler = BatchSampler((), "shared", pairs_per_microbatch=4, accumulation_steps=3)
            >>> sampler.pairs_per_step
            12
        """
        return self.pairs_per_microbatch * self.accumulation_steps

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch; the last step may have fewer pairs.

        With :attr:`drop_last` there is no such step.
        """
        if self.drop_last:
            return self.pairs_per_epoch // self.pairs_per_step
        return -(-self.pairs_per_epoch // self.pairs_per_step)

    @cached_property
    def n_roles(self) -> int:
        """Number of responses per pair, 2 or 3."""
        return count_roles(self.pairs) if self.roles is None else self.roles

    def pair_indices(self, step: int) -> Int[np.ndarray, " k"]:
        """Return the indices of a step's pairs in the data.

        Args:
            step: step number, counted from 0 over all epochs.

        Returns:
            Indices, at most :attr:`pairs_per_step` of them.
        """
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return self._epoch_steps(epoch)[step_of_epoch]

    def batch(self, step: int) -> Batch:
        """Return the batch of a step.

        Args:
            step: step number, counted from 0 over all epochs.

        Returns:
            NumPy arrays with a leading axis of :attr:`accumulation_steps` microbatches. All
            microbatches of a step have one shape, and an epoch has few different shapes.
        """
        microbatches = [
            self._table.select(indices) for indices in self._split_step(self.pair_indices(step))
        ]
        tokens = max(self._required_shape(pairs).row_tokens for pairs in microbatches if pairs)
        shape = round_up_shape(
            BatchShape(
                rows=1 if self.layout == "shared" else self.pairs_per_microbatch * self.n_roles,
                row_tokens=tokens,
                completions=self._max_completions(step // self.steps_per_epoch),
                longest=self._longest,
            )
        )
        packed = [
            pack(
                pairs,
                layout=self.layout,
                roles=self.n_roles,
                n_pairs=self.pairs_per_microbatch,
                shape=shape,
            )
            for pairs in microbatches
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *packed)

    @cached_property
    def _table(self) -> PairTable:
        return as_pair_table(self.pairs)

    @cached_property
    def _token_counts(self) -> np.ndarray:
        return packed_token_counts(self._table, layout=self.layout, roles=self.n_roles)

    def _split_step(self, indices: np.ndarray) -> list[np.ndarray]:
        """Split a step's indices into microbatches; with a seed, balance their token counts."""
        n = self.accumulation_steps
        microbatches = [indices[i::n] for i in range(n)]
        if self.seed is None or n == 1:
            return microbatches
        return self._balance(indices, np.array([len(each) for each in microbatches]))

    def _required_shape(self, pairs: PairTable) -> BatchShape:
        return required_shape(pairs, layout=self.layout, roles=self.n_roles)

    def _max_completions(self, epoch: int) -> int:
        """Return one number for all steps of an epoch.

        A second size that varies between steps would multiply the number of compiled shapes.
        """
        if epoch not in self._max_completions_by_epoch:
            self._max_completions_by_epoch.clear()
            microbatches = (
                indices for step in self._epoch_steps(epoch) for indices in self._split_step(step)
            )
            tables = (self._table.select(indices) for indices in microbatches if indices.size)
            self._max_completions_by_epoch[epoch] = max(
                self._required_shape(table).completions for table in tables
            )
        return self._max_completions_by_epoch[epoch]

    @cached_property
    def _longest(self) -> int:
        return self._required_shape(self._table).longest

    # Both caches hold one epoch at a time.
    @cached_property
    def _max_completions_by_epoch(self) -> dict[int, int]:
        return {}

    @cached_property
    def _steps_by_epoch(self) -> dict[int, list[np.ndarray]]:
        return {}

    def _epoch_steps(self, epoch: int) -> list[np.ndarray]:
        if epoch not in self._steps_by_epoch:
            self._steps_by_epoch.clear()
            self._steps_by_epoch[epoch] = self._assign_epoch(epoch)
        return self._steps_by_epoch[epoch]

    def _assign_epoch(self, epoch: int) -> list[np.ndarray]:
        """Shuffle the pairs and assign them to the steps of an epoch, window by window."""
        if self.steps is not None:
            first, last = self.steps[:-1], self.steps[-1:]
            if self.seed is not None:
                order = np.random.default_rng([self.seed, epoch]).permutation(len(first))
                first = [first[index] for index in order]
            return [*first, *last]
        order = np.arange(len(self.pairs))
        if self.mixture:
            order = epoch_indices(self.mixture, self.seed or 0, epoch)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        if self.drop_last:
            order = order[: self.steps_per_epoch * self.pairs_per_step]
        if self.seed is None:
            return [
                order[start : start + self.pairs_per_step]
                for start in range(0, len(order), self.pairs_per_step)
            ]
        window = BALANCING_WINDOW * self.pairs_per_step
        steps = []
        for start in range(0, len(order), window):
            indices = order[start : start + window]
            capacities = np.full(-(-len(indices) // self.pairs_per_step), self.pairs_per_step)
            capacities[-1] -= np.sum(capacities) - len(indices)
            steps += self._balance(indices, capacities)
        return steps

    def _balance(self, indices: np.ndarray, capacities: np.ndarray) -> list[np.ndarray]:
        """Assign pairs to groups, longest first, each to the open group with the fewest tokens.

        Args:
            indices: indices of the pairs.
            capacities: number of pairs of each group; they sum to the number of indices.

        Returns:
            The indices of each group.
        """
        counts = self._token_counts[indices]
        capacities, tokens = capacities.copy(), np.zeros(len(capacities))
        groups: list[list[int]] = [[] for _ in capacities]
        for i in np.argsort(-counts, kind="stable"):
            group = int(np.argmin(np.where(capacities > 0, tokens, np.inf)))
            groups[group].append(int(indices[i]))
            tokens[group] += counts[i]
            capacities[group] -= 1
        return [np.array(group, dtype=int) for group in groups]


def iterate_batches(sampler: BatchSampler, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
    """Iterate over the batches of consecutive steps, which a thread prepares ahead.

    Args:
        sampler: the batches by step number.
        start: first step.
        stop: one past the last step.

    Yields:
        Step numbers and their batches.
    """
    if start >= stop:
        return
    steps = grain.MapDataset.range(start, stop).map(lambda step: (int(step), sampler.batch(step)))
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    yield from steps.to_iter_dataset(options)
