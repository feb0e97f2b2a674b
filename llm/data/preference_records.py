"""Preference rows as texts and as tokens, and the error of a single row."""

from __future__ import annotations

from typing import NamedTuple

from .labels import PairLabel
from .messages import Messages


class PreferenceRow(NamedTuple):
    """A row of preference data.

    Attributes:
        prompt: messages before the response.
        chosen: the preferred response: one message of the assistant, or several turns that begin
            and end with one; only messages of the assistant are scored.
        rejected: the other response, under the same rule.
        baseline: a response of the baseline policy; None if it is the chosen response.
        row: index of the row in its file, from 0.
        where: source of the row, ``file:line``, for error messages.
        reference: log-probabilities of the responses under the reference policy, nats, in the
            order chosen, rejected, baseline; None if the row has none.
        tools: tools that the assistant may call, for the chat template: a canonical JSON list;
            empty if the row has none.
        label: weight of the row and probability that the chosen response is the better one.
        desirable: for an unpaired row, whether its one response is desirable; it is then both
            ``chosen`` and ``rejected``. None for a pair.
        others: for a ranked row, the responses after the best one, ``chosen``, and the second one,
            ``rejected``, from best to worst.
        ranking: for a ranked row, the index of each response in the column ``responses``, from best
            to worst. None for a pair.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    baseline: Messages | None
    row: int
    where: str
    reference: tuple[float, ...] | None = None
    tools: str = ""
    label: PairLabel = PairLabel()
    desirable: bool | None = None
    others: tuple[Messages, ...] = ()
    ranking: tuple[int, ...] | None = None

    @property
    def responses(self) -> dict[str, Messages]:
        """The responses of the row by the name of their column.

        Examples:
            >>> list(PreferenceRow((), (), (), None, 0, "rows.jsonl:1").responses)
            ['chosen', 'rejected']
        """
        if self.desirable is not None:
            return {"completion": self.chosen}
        if self.ranking is not None:
            names = [f"responses[{index}]" for index in self.ranking]
            return dict(zip(names, (self.chosen, self.rejected, *self.others), strict=True))
        pair = {"chosen": self.chosen, "rejected": self.rejected}
        return pair if self.baseline is None else pair | {"baseline": self.baseline}


ScoredTokens = tuple[bool, ...]
"""Whether each token of a response is scored: True for tokens of the assistant."""


class PairTokens(NamedTuple):
    """A tokenized preference row.

    Attributes:
        prompt: tokens of the prompt with the generation prompt; at least one.
        chosen: tokens of the chosen response; at least one. The end token is included unless the
            response was truncated.
        rejected: tokens of the rejected response, under the same rules.
        baseline: tokens of the baseline response; None if it is the chosen response.
        row: index of the data row.
        reference: reference log-probabilities of the responses, nats; None if the row has none.
        scored: scored tokens of chosen, rejected and baseline response, or of each response of a
            ranked row. An entry is None if all tokens of that response are scored; None if all
            entries are.
        label: weight of the row and probability that the chosen response is the better one.
        desirable: for an unpaired row, whether its response, ``chosen``, is desirable;
            ``rejected`` is then a response to another prompt, or that of the row itself before
            :func:`llm.data.mismatched.with_mismatched_responses`. None for a pair.
        others: for a ranked row, the responses after ``chosen`` and ``rejected``, from best to
            worst. None for a pair.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    baseline: tuple[int, ...] | None
    row: int
    reference: tuple[float, ...] | None = None
    scored: tuple[ScoredTokens | None, ...] | None = None
    label: PairLabel = PairLabel()
    desirable: bool | None = None
    others: tuple[tuple[int, ...], ...] | None = None

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """The responses: chosen, rejected and, if there is one, baseline; or those of a ranking.

        Examples:
            >>> PairTokens((1,), (2,), (3,), None, 0, others=((4, 5),)).responses
            ((2,), (3,), (4, 5))
        """
        pair = self.chosen, self.rejected
        if self.others is not None:
            return (*pair, *self.others)
        return pair if self.baseline is None else (*pair, self.baseline)


class RowError(ValueError):
    """An error in one data row.

    Args:
        reason: short name of the kind of error, by which skipped rows are counted.
        message: full message with file, line and field.
    """

    def __init__(self, reason: str, message: str) -> None:
        """Store the reason."""
        super().__init__(message)
        self.reason = reason
