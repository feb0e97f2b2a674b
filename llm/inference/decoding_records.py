"""Inputs and results of the decoding of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax import Array
from jaxtyping import Bool, Int

NO_TOKEN = -1
"""Marks padding, in positions and in generated tokens."""
NO_STEP = -1
"""Marks rows whose logits were finite at every step."""


class DecodingNumbers(NamedTuple):
    """Numbers of a generation that need no other program.

    Attributes:
        end_tokens: ids of the tokens that end a row.
        seed: seed of the draws.
        temperature: see :class:`llm.inference.sampling.GenerationConfig`, as the next four.
        top_p: see there.
        top_k: see there.
        min_p: see there.
        repetition_penalty: see there.
    """

    end_tokens: Any
    seed: Any
    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any
    repetition_penalty: Any


class PromptRows(NamedTuple):
    """Prompts of a batch.

    Attributes:
        tokens: token ids, padded at the end, ``[r T]``.
        lengths: number of tokens of each prompt; 0 for a row that only fills the batch.
        indices: indices of the prompts among all prompts.
    """

    tokens: Any
    lengths: Any
    indices: Any


class DecodedRows(NamedTuple):
    """Result of a batch.

    Attributes:
        tokens: generated tokens, padded with :data:`NO_TOKEN`.
        finished: rows that generated an end token.
        failed: first step at which the logits of a row were not finite, or :data:`NO_STEP`.
    """

    tokens: Int[Array, "r new"]
    finished: Bool[Array, " r"]
    failed: Int[Array, " r"]


class DecodingOptions(NamedTuple):
    """Options of a generation that are compiled into its programs.

    Attributes:
        max_new_tokens: largest number of tokens of a reply.
        greedy: whether the most likely token is always taken.
        penalized: whether earlier tokens become less likely.
    """

    max_new_tokens: int
    greedy: bool
    penalized: bool
