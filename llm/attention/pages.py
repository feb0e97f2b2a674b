"""Cache of keys and values in pages, which a CPU reads page by page.

A page holds :data:`PAGE` consecutive positions of one sequence. Attention reads every page once,
in the order of memory, whatever the lengths of the sequences are; the sums of the pages of a
sequence are then added by a product with the matrix of the pages that each sequence holds. A
sequence takes its next page from a stack of free ones, and gives all of them back at its end.

References:
    ``key:kwon:23``
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from llm.precision import accumulation_dtype

from .dispatch import Window
from .logits import apply_soft_cap

PAGE = 32
"""Positions of a page."""


class PageTable(NamedTuple):
    """Which sequence holds which pages; the same for all layers.

    Attributes:
        blocks: page of each block of :data:`PAGE` positions of a sequence.
        row: sequence that holds a page; the number of sequences for a free page.
        first: first position of a page.
        free: the free pages are the first ``n_free`` ones here; the last of them is taken next.
        n_free: number of free pages.
    """

    blocks: Int[Array, "r m"]
    row: Int[Array, " P"]
    first: Int[Array, " P"]
    free: Int[Array, " P"]
    n_free: Int[Array, ""]

    @property
    def n_pages(self) -> int:
        """Number of pages, free ones included."""
        return self.row.shape[0]

    def with_room(self, positions: Int[Array, " r"]) -> PageTable:
        """Give a free page to each sequence whose next token begins one.

        Args:
            positions: positions of the next tokens; negative at padding.

        Returns:
            The table; enough pages must be free.
        """
        begins = (positions >= 0) & (positions % PAGE == 0)
        pages = jnp.where(
            begins, self._next(jnp.cumsum(begins, dtype=self.free.dtype) - 1), self.n_pages
        )
        return self._hold(pages, jnp.arange(len(positions)), positions)

    def take(
        self, row: Int[Array, ""], length: Int[Array, ""]
    ) -> tuple[PageTable, Int[Array, " m"]]:
        """Give free pages to a sequence that holds none.

        Args:
            row: the sequence.
            length: number of its tokens, whose pages must be free.

        Returns:
            The table, and the pages; there are ``ceil(length / PAGE)`` of them.
        """
        block = jnp.arange(self.blocks.shape[1], dtype=self.free.dtype)
        pages = self._next(block)
        held = jnp.where(PAGE * block < length, pages, self.n_pages)
        return self._hold(held, jnp.full_like(held, row), PAGE * block), pages

    def _next(self, rank: Array) -> Array:
        """Return the free page that is taken as number ``rank``, from 0."""
        return self.free[jnp.clip(self.n_free - 1 - rank, 0)]

    def _hold(self, pages: Array, rows: Array, firsts: Array) -> PageTable:
        """Take pages from the stack for rows, which hold positions from ``firsts`` in them."""
        pages, rows, firsts = (each.astype(self.row.dtype) for each in (pages, rows, firsts))
        taken = pages < self.n_pages
        blocks = jnp.where(taken, firsts // PAGE, self.blocks.shape[1])
        return self._replace(
            blocks=self.blocks.at[rows, blocks].set(pages, mode="drop"),
            row=self.row.at[pages].set(rows, mode="drop"),
            first=self.first.at[pages].set(firsts, mode="drop"),
            n_free=self.n_free - jnp.sum(taken, dtype=self.n_free.dtype),
        )

    def release(self, ended: Bool[Array, " r"]) -> PageTable:
        """Return the table in which the pages of the sequences that ended are free."""
        is_free = jnp.append(ended, True)[self.row]
        return self._replace(
            row=jnp.where(is_free, len(ended), self.row),
            free=jnp.argsort(~is_free, stable=True).astype(self.free.dtype),
            n_free=jnp.sum(is_free, dtype=self.n_free.dtype),
        )


class LayerPages(NamedTuple):
    """Keys and values of the tokens read so far, of one layer.

    Attributes:
        keys: keys, with positions on the last axis.
        values: values.
    """

    keys: Float[Array, "*P G K S"]
    values: Float[Array, "*P G S K"]

    def write(self, table: PageTable, positions: Array, keys: Array, values: Array) -> LayerPages:
        """Return the pages with one token of each sequence; that of padding is dropped."""
        at, rows = positions[:, 0], jnp.arange(positions.shape[0])
        block, offset = jnp.maximum(at, 0) // PAGE, at % PAGE
        page = jnp.where(at >= 0, table.blocks[rows, block], table.n_pages)
        return LayerPages(
            self.keys.at[page, :, :, offset].set(keys[:, 0], mode="drop"),
            self.values.at[page, :, offset].set(values[:, 0], mode="drop"),
        )

    def attend(
        self,
        table: PageTable,
        queries: Float[Array, "r 1 H K"],
        positions: Int[Array, "r 1"],
        *,
        window: Window,
        soft_cap: float | None,
        scale: float,
        sinks: Float[Array, " H"] | None = None,
    ) -> Float[Array, "r 1 H K"]:
        """Compute :func:`llm.attention.dispatch.attend_cached` for one token of each sequence."""
        n_rows, _, _, head_size = queries.shape
        n_pages, n_groups, *_ = self.keys.shape
        wide = accumulation_dtype(queries.dtype)
        least = jnp.finfo(wide).min  # and not minus infinity, which would make padding NaN
        keys, values = self.keys.astype(wide), self.values.astype(wide)
        held = table.row == jnp.arange(n_rows, dtype=table.row.dtype)[:, None]
        slots = table.first[:, None] + jnp.arange(PAGE, dtype=table.first.dtype)
        distance = positions.astype(slots.dtype)[table.row] - slots
        seen = (distance >= 0) & (table.row < n_rows)[:, None]
        if window is not None:
            seen &= distance < window
        seen = seen[:, None, None]
        grouped = _copy_to_pages(held, queries.astype(wide).reshape(n_rows, -1))
        grouped = grouped.reshape(n_pages, n_groups, -1, head_size)
        logits = scale * jnp.einsum("pgqk,pgks->pgqs", grouped, keys)
        logits = jnp.where(seen, apply_soft_cap(logits, soft_cap), least)
        of_pages = jnp.max(logits, axis=-1)
        largest = jnp.max(jnp.where(held[:, :, None, None], of_pages, least), axis=1)
        sink = None
        if sinks is not None:  # a key of every query whose value is zero
            sink = sinks.astype(wide).reshape(1, n_groups, -1)
            largest = jnp.maximum(largest, sink)
        weights = jnp.where(seen, jnp.exp(logits - largest[table.row][..., None]), 0)
        denominator = _sum_by_row(held, jnp.sum(weights, axis=-1))
        if sink is not None:
            denominator += jnp.exp(sink - largest)
        mixed = _sum_by_row(held, jnp.einsum("pgqs,pgsk->pgqk", weights, values))
        mixed /= jnp.where(denominator == 0, 1, denominator)[..., None]  # it is 0 at padding
        return mixed.astype(queries.dtype).reshape(queries.shape)


class PagedCache(NamedTuple):
    """Keys and values of the tokens read so far, of all layers.

    Attributes:
        table: the sequences that hold the pages.
        layers: the pages of each layer.
    """

    table: PageTable
    layers: tuple[LayerPages, ...]

    @property
    def n_slots(self) -> int:
        """Number of positions that a sequence may have."""
        return PAGE * self.table.blocks.shape[1]

    def admit(
        self,
        prompts: tuple[LayerPages, ...],
        source: Int[Array, ""],
        row: Int[Array, ""],
        length: Int[Array, ""],
    ) -> PagedCache:
        """Copy a prompt into free pages, which a sequence holds then.

        Args:
            prompts: pages of the prompts that were read, for each layer.
            source: the prompt among them.
            row: the sequence, which holds no pages.
            length: number of tokens of the prompt; its pages must be free.

        Returns:
            The cache.
        """
        table, pages = self.table.take(row, length)

        def copy(i: Array, layers: tuple[LayerPages, ...]) -> Any:
            def with_page(held: Array, prompts: Array) -> Array:
                return held.at[pages[i]].set(prompts[source, i])

            return jax.tree.map(with_page, layers, prompts)

        n_pages = (length + PAGE - 1) // PAGE
        return PagedCache(table, jax.lax.fori_loop(0, n_pages, copy, self.layers))

    def release(self, ended: Bool[Array, " r"]) -> PagedCache:
        """Return the cache in which the pages of the sequences that ended are free."""
        return self._replace(table=self.table.release(ended))

    def grown(self, n_pages: int) -> PagedCache:
        """Return the cache with more free pages."""
        n_rows, more = self.table.blocks.shape[0], n_pages - self.table.n_pages

        def pad(x: Array, value: int = 0) -> Array:
            return jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)], constant_values=value)

        table = self.table._replace(
            row=pad(self.table.row, n_rows), first=pad(self.table.first), free=pad(self.table.free)
        )
        return PagedCache(table.release(jnp.zeros(n_rows, bool)), jax.tree.map(pad, self.layers))


def allocate_pages(
    n_layers: int,
    n_rows: int,
    n_slots: int,
    n_pages: int,
    n_heads: int,
    head_size: int,
    dtype: DTypeLike,
) -> PagedCache:
    """Allocate a cache whose pages are free.

    Args:
        n_layers: number of layers.
        n_rows: number of sequences.
        n_slots: largest number of positions of a sequence.
        n_pages: number of pages.
        n_heads: number of heads of keys and values.
        head_size: size of a head.
        dtype: dtype of keys and values.

    Returns:
        The cache.

    Examples:
        >>> allocate_pages(1, 2, 70, 8, 4, 5, jnp.float32).n_slots
        96
    """
    shape = n_pages, n_heads, head_size, PAGE
    layers = [
        LayerPages(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype).swapaxes(-1, -2))
        for _ in range(n_layers)
    ]
    index = jnp.arange(n_pages, dtype=jnp.int32)
    table = PageTable(
        blocks=jnp.zeros((n_rows, -(-n_slots // PAGE)), jnp.int32),
        row=jnp.full_like(index, n_rows),
        first=jnp.zeros_like(index),
        free=index,
        n_free=jnp.int32(n_pages),
    )
    return PagedCache(table, tuple(layers))


def split_pages(keys: Float[Array, "r T G K"]) -> Float[Array, "r m G K S"]:
    """Split the positions of prompts into pages.

    Args:
        keys: keys, or values, of a layer; the number of tokens is a multiple of :data:`PAGE`.

    Returns:
        The pages, with positions on the last axis.

    Examples:
        >>> split_pages(jnp.zeros((2, 64, 3, 4))).shape
        (2, 2, 3, 4, 32)
    """
    n_rows, _, *rest = keys.shape
    return jnp.moveaxis(keys.reshape(n_rows, -1, PAGE, *rest), 2, -1)


def _copy_to_pages(held: Bool[Array, "r P"], of_rows: Float[Array, "r N"]) -> Float[Array, "P N"]:
    """Copy the numbers of each sequence to the pages that it holds; 0 for a free page.

    A product is much faster than a gather on a CPU; numbers that are not finite become NaN.
    """
    finite = jnp.isfinite(of_rows)
    copies = held.T.astype(of_rows.dtype) @ jnp.where(finite, of_rows, 0)
    broken = jnp.any(held & ~finite.all(axis=-1)[:, None], axis=0)
    return jnp.where(broken[:, None], jnp.nan, copies)


def _sum_by_row(held: Bool[Array, "r P"], parts: Float[Array, "P ..."]) -> Float[Array, "r ..."]:
    """Sum the parts of the pages that each sequence holds.

    Parts that are not finite must not reach other sequences through the zeros of a product.
    """
    flat = parts.reshape(parts.shape[0], -1)
    finite = jnp.isfinite(flat)
    sums = held.astype(flat.dtype) @ jnp.where(finite, flat, 0)
    broken = jnp.any(held & ~finite.all(axis=-1), axis=-1)
    return jnp.where(broken[:, None], jnp.nan, sums).reshape(-1, *parts.shape[1:])
