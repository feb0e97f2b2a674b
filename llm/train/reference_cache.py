"""Reference log-probabilities, computed once and kept on disk with where they came from.

The reference does not change during training, so that running it at every step only costs time and
memory. A cache says what it was made of, and is refused where anything of that has changed: a stale
one would train towards another objective without a sign of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llm.data.pair_table import as_pair_table
from llm.data.preferences import PairTokens
from llm.hashing import weights_digest
from llm.parallel.mesh import on_host
from llm.types import Batch
from rpo_io.digests import sha256_hex
from rpo_theory.types import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What reference log-probabilities depend on.

    Attributes:
        weights: digest of the reference model's parameters (:func:`weights_digest`).
        tokenizer: digest of the tokenizer's files.
        template: digest of the chat template.
        data: digest of the preference data.
        max_length: most tokens of prompt and response.
        max_prompt_length: most tokens of a prompt, or None.
        truncation_mode: how longer ones were cut.
        dtype: dtype that the model computed in.
    """

    weights: str
    tokenizer: str
    template: str
    data: str
    max_length: int
    max_prompt_length: int | None
    truncation_mode: str
    dtype: str


class ReferenceCache(NamedTuple):
    """Log-probabilities by data row.

    Attributes:
        row_ids: numbers of the rows, increasing, shape ``[rows]``.
        log_probs: of chosen, rejected and, if there is one, baseline, nats, shape ``[rows k]``.
    """

    row_ids: Int[np.ndarray, " rows"]
    log_probs: Float[np.ndarray, "rows k"]


def compute_reference(
    log_probs: Callable[[Batch], Float[ArrayLike, "n k"]], batches: Iterable[Batch]
) -> ReferenceCache:
    """Run the reference over all pairs once.

    Args:
        log_probs: log-probabilities of the responses of a batch, jitted.
        batches: batches that hold every row, with or without leading axes.

    Returns:
        The cache, in the dtype of ``log_probs``.

    Raises:
        ValueError: if a log-probability is not finite, or there are no rows.
    """
    found: list[ReferenceCache] = []
    for batch in batches:
        values = on_host(log_probs(batch))
        present = np.ravel(batch.present)
        rows = np.ravel(batch.row_ids)[present].astype(np.int64)
        flat = values.reshape(-1, values.shape[-1])[present]
        sick = ~np.isfinite(flat).all(1)
        if sick.any():
            raise ValueError(
                f"reference log-probabilities of row {rows[sick][0]} must be finite, got "
                f"{flat[sick][0]}: look at that row, or compute with a wider dtype"
            )
        found.append(ReferenceCache(rows, flat))
    if not any(one.row_ids.size for one in found):
        raise ValueError("`batches` must hold at least one pair, got none")
    return merge_caches(*found)


def cache_from_rows(pairs: Sequence[PairTokens], roles: int) -> ReferenceCache | None:
    """Log-probabilities that the data bring along.

    Args:
        pairs: of which some have a ``reference``.
        roles: responses of a pair.

    Returns:
        Those rows, or None if there are none.

    Raises:
        ValueError: a row has them for fewer responses than the batches.
    """
    table = as_pair_table(pairs)
    known = ~np.isnan(table.reference)
    table, counts = table.select(known[:, 0]), known.sum(1)[known[:, 0]]
    short = np.flatnonzero(counts != roles)
    if short.size:
        raise ValueError(
            f"row {table.rows[short[0]]} must have reference log-probabilities of its {roles} "
            f"responses, got {counts[short[0]]}: add ref_baseline_logps, or leave all of them out"
        )
    return (
        merge_caches(ReferenceCache(table.rows, table.reference[:, :roles])) if len(table) else None
    )


def merge_caches(*caches: ReferenceCache) -> ReferenceCache:
    """Caches of different rows as one.

    Args:
        caches: one or more, each of some rows.

    Returns:
        All of them, in order.

    Examples:
        >>> one, two = (ReferenceCache(np.array([row]), np.ones((1, 2))) for row in (5, 3))
        >>> merge_caches(one, two).row_ids.tolist()
        [3, 5]
    """
    rows, values = (np.concatenate(arrays) for arrays in zip(*caches, strict=True))
    order = np.argsort(rows, kind="stable")
    return ReferenceCache(rows[order], values[order])


def save_cache(path: Path, cache: ReferenceCache, provenance: Provenance) -> None:
    """Write a cache whole: to a temporary name, then renamed.

    Args:
        path: file to write, ``.safetensors``.
        cache: the log-probabilities.
        provenance: what they were made of.
    """
    from safetensors.numpy import save as to_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        made_of = json.dumps(dataclasses.asdict(provenance))
        metadata = {"provenance": made_of, "sha256": _seal(made_of, cache)}
        partial.write_bytes(to_bytes(cache._asdict(), metadata))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_cache(path: Path, provenance: Provenance) -> ReferenceCache:
    """Read a cache and refuse it if it was made of anything else.

    Args:
        path: file that :func:`save_cache` wrote.
        provenance: what this run is made of.

    Returns:
        The log-probabilities.

    Raises:
        ValueError: if the file is damaged, or stale: the message names what has changed.
        FileNotFoundError: if there is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            made_of = metadata["provenance"]
            cache = ReferenceCache(file.get_tensor("row_ids"), file.get_tensor("log_probs"))
        if metadata["sha256"] != _seal(made_of, cache):
            raise ValueError("it is not the cache that was written")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a whole cache of reference log-probabilities: delete it"
        ) from error
    recorded = json.loads(made_of)
    wanted = dataclasses.asdict(provenance)
    changed = [name for name, value in wanted.items() if recorded.get(name) != value]
    if changed:
        told = ", ".join(
            f"`{name}` was {recorded.get(name)!r} and is {wanted[name]!r}" for name in changed
        )
        raise ValueError(f"{path}: stale reference log-probabilities ({told}): delete the file")
    return cache


def _seal(made_of: str, cache: ReferenceCache) -> str:
    """Safetensors files have no checksum of their own."""
    return sha256_hex(made_of + weights_digest(cache._asdict()))


def attach_reference(batch: Batch, cache: ReferenceCache) -> Batch:
    """Fill in the reference log-probabilities of a batch by its row ids.

    Args:
        batch: a batch, with or without an accumulation axis.
        cache: the log-probabilities.

    Returns:
        The same batch with ``reference``; 0 for absent pairs.

    Raises:
        ValueError: if a row is not in the cache, or it has another number of responses.

    Examples:
        >>> cache = ReferenceCache(np.array([7]), np.array([[-1.0, -2.0]]))
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([7]))
        >>> attach_reference(batch, cache).reference.tolist()
        [[-1.0, -2.0]]
    """
    rows, present = np.asarray(batch.row_ids), np.asarray(batch.present)
    place = np.minimum(np.searchsorted(cache.row_ids, rows), len(cache.row_ids) - 1)
    missing = present & (cache.row_ids[place] != rows)
    if missing.any():
        raise ValueError(
            f"row {rows[missing][0]} must be in the cache of reference log-probabilities, which "
            f"has {len(cache.row_ids)} other rows: compute it again"
        )
    width, wanted = cache.log_probs.shape[1], batch.lengths.shape[-1]
    if width != wanted:
        raise ValueError(
            f"the cache must have {wanted} responses a pair, got {width}: compute it again"
        )
    return batch._replace(reference=np.where(present[..., None], cache.log_probs[place], 0))
