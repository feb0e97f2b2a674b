"""Log-probabilities of the reference, computed once and stored with their provenance.

The reference does not change during training, so it does not run at every step. A cache records
what its values depend on, and is refused if any of that has changed: with a stale cache the run
would silently optimize another objective.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llm.data.pair_table import as_pair_table
from llm.data.preferences import PairTokens
from llm.hashing import weights_digest
from llm.parallel.mesh import on_host
from llm.types import Batch
from rpo_io.atomic import write_atomic
from rpo_io.bucket_paths import AnyPath
from rpo_io.digests import sha256_hex
from rpo_theory.types import ArrayLike


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Inputs that the log-probabilities of the reference depend on.

    Attributes:
        weights: digest of the parameters of the reference model.
        tokenizer: digest of the files of the tokenizer.
        template: digest of the chat template.
        data: digest of the preference data.
        max_length: largest number of tokens of prompt and response.
        max_prompt_length: largest number of tokens of a prompt, or None.
        truncation_mode: which part of a prompt that is too long stays.
        dtype: dtype of the activations.
        pairs: digest of the tokens of all pairs, which further options decide.
    """

    weights: str
    tokenizer: str
    template: str
    data: str
    max_length: int
    max_prompt_length: int | None
    truncation_mode: str
    dtype: str
    pairs: str = ""


class ReferenceCache(NamedTuple):
    """Log-probabilities of the reference by data row.

    Attributes:
        row_ids: increasing numbers of the rows, shape ``[rows]``.
        log_probs: token sums of chosen, rejected and, if there is one, baseline response, in nats,
            shape ``[rows k]``.
    """

    row_ids: Int[np.ndarray, " rows"]
    log_probs: Float[np.ndarray, "rows k"]


def compute_reference(
    log_probs: Callable[[Batch], Float[ArrayLike, "n k"]], batches: Iterable[Batch]
) -> ReferenceCache:
    """Compute the log-probabilities of all pairs.

    Args:
        log_probs: compiled function from a batch to the log-probabilities of its responses.
        batches: batches that hold every row, with or without leading axes.

    Returns:
        The cache, in the dtype of ``log_probs``.

    Raises:
        ValueError: if a log-probability is not finite, or there are no rows.
    """
    caches: list[ReferenceCache] = []
    for batch in batches:
        values = on_host(log_probs(batch))
        present = np.ravel(batch.present)
        rows = np.ravel(batch.row_ids)[present].astype(np.int64)
        flat = values.reshape(-1, values.shape[-1])[present]
        bad = ~np.isfinite(flat).all(1)
        if bad.any():
            raise ValueError(
                f"reference log-probabilities of row {rows[bad][0]} must be finite, got "
                f"{flat[bad][0]}: look at that row, or compute with a wider dtype"
            )
        caches.append(ReferenceCache(rows, flat))
    if not any(cache.row_ids.size for cache in caches):
        raise ValueError("`batches` must hold at least one pair, got none")
    return merge_caches(*caches)


def cache_from_rows(pairs: Sequence[PairTokens], roles: int) -> ReferenceCache | None:
    """Collect the log-probabilities that the data rows hold.

    Args:
        pairs: pairs, of which some have a ``reference``.
        roles: number of responses of a pair.

    Returns:
        A cache of those rows; None if no row has them.

    Raises:
        ValueError: if a row has them for another number of responses.
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
    """Merge caches of different rows.

    Args:
        caches: one or more caches; no row is in two of them.

    Returns:
        One cache, sorted by row.

    Examples:
        >>> caches = [ReferenceCache(np.array([row]), np.ones((1, 2))) for row in (5, 3)]
        >>> merge_caches(*caches).row_ids.tolist()
        [3, 5]
    """
    rows, values = (np.concatenate(arrays) for arrays in zip(*caches, strict=True))
    order = np.argsort(rows, kind="stable")
    return ReferenceCache(rows[order], values[order])


def save_cache(path: AnyPath, cache: ReferenceCache, provenance: Provenance) -> None:
    """Write a cache to a file that is complete or absent.

    Args:
        path: file to write, ``.safetensors``, local or in a bucket; missing parent folders are
            created.
        cache: the log-probabilities.
        provenance: what they depend on.
    """
    from safetensors.numpy import save as to_bytes

    path.parent.mkdir(parents=True, exist_ok=True)
    recorded = json.dumps(dataclasses.asdict(provenance))
    metadata = {"provenance": recorded, "sha256": _seal(recorded, cache)}
    write_atomic(path, to_bytes(cache._asdict(), metadata))


def load_cache(path: AnyPath, provenance: Provenance) -> ReferenceCache:
    """Read a cache, and check that it is complete and not stale.

    Args:
        path: file that :func:`save_cache` wrote.
        provenance: what the log-probabilities of this run depend on.

    Returns:
        The log-probabilities.

    Raises:
        ValueError: if the file is damaged or stale; the message names what has changed.
        FileNotFoundError: if there is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    content = path.read_bytes()
    try:
        tensors = from_bytes(content)
        metadata = _metadata(content)
        text = metadata["provenance"]
        cache = ReferenceCache(tensors["row_ids"], tensors["log_probs"])
        if metadata["sha256"] != _seal(text, cache):
            raise ValueError("the digest differs")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a complete cache of reference log-probabilities: delete the file"
        ) from error
    recorded = json.loads(text)
    current = dataclasses.asdict(provenance)
    changed = [name for name, value in current.items() if recorded.get(name) != value]
    if changed:
        listed = ", ".join(
            f"`{name}` was {recorded.get(name)!r} and is {current[name]!r}" for name in changed
        )
        raise ValueError(f"{path}: stale reference log-probabilities ({listed}): delete the file")
    return cache


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file: JSON after its length in eight bytes."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]


def _seal(provenance: str, cache: ReferenceCache) -> str:
    """Return the digest of provenance and values; safetensors files have no checksum."""
    return sha256_hex(provenance + weights_digest(cache._asdict()))


def attach_reference(batch: Batch, cache: ReferenceCache) -> Batch:
    """Attach the log-probabilities of the reference to a batch, by its row ids.

    Args:
        batch: a batch, with or without leading axes.
        cache: the log-probabilities.

    Returns:
        The batch with ``reference`` filled in; 0 for absent pairs.

    Raises:
        ValueError: if a row is not in the cache, or the number of responses differs.

    Examples:
        >>> cache = ReferenceCache(np.array([7]), np.array([[-1.0, -2.0]]))
        >>> batch = Batch(None, None, np.ones((1, 2), int), np.array([True]), np.array([7]))
        >>> attach_reference(batch, cache).reference.tolist()
        [[-1.0, -2.0]]
    """
    rows, present = np.asarray(batch.row_ids), np.asarray(batch.present)
    index = np.minimum(np.searchsorted(cache.row_ids, rows), len(cache.row_ids) - 1)
    missing = present & (cache.row_ids[index] != rows)
    if missing.any():
        raise ValueError(
            f"row {rows[missing][0]} must be in the cache of reference log-probabilities, which "
            f"has {len(cache.row_ids)} other rows: compute it again"
        )
    cached_roles, roles = cache.log_probs.shape[1], batch.lengths.shape[-1]
    if cached_roles != roles:
        raise ValueError(
            f"the cache must have {roles} responses per pair, got {cached_roles}: compute it again"
        )
    return batch._replace(reference=np.where(present[..., None], cache.log_probs[index], 0))
