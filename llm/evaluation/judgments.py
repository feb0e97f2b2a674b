"""Verdicts of a judge on two models' answers: files of AlpacaEval and of MT-Bench's pair mode.

A judge favours the answer that it reads first, so that answers are judged in both orders: a model
wins where both verdicts say so, and two different verdicts are a tie.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm.data.rows import Row, read_json_list, read_rows

MT_BENCH_WINNERS = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5, "error": None}


class Verdict(NamedTuple):
    """What the judge said of two answers in one order.

    Attributes:
        question: what was asked, the same in both orders.
        first: name of the model whose answer was read first.
        second: name of the other.
        preference: for the first, between 0 and 1; 0.5 is a tie, None no verdict.
        where: the file and line that it comes from.
    """

    question: str
    first: str
    second: str
    preference: float | None
    where: str


class WinCounts(NamedTuple):
    """Wins of a model over another.

    Attributes:
        wins: questions won, in both orders where both were judged.
        ties: questions that neither won.
        losses: questions lost.
        disagreements: ties because the two orders name different models.
        both_orders: questions judged in both orders.
        errors: questions left out since the judge gave no verdict.
    """

    wins: int
    ties: int
    losses: int
    disagreements: int
    both_orders: int
    errors: int

    def win_rate(self) -> float:
        """Share of questions won, a tie half; not a number without any.

        Examples:
            >>> WinCounts(2, 1, 1, 0, 4, 0).win_rate()
            0.625
        """
        judged = self.wins + self.ties + self.losses
        return (self.wins + self.ties / 2) / judged if judged else float("nan")


def read_judgments(path: Path) -> list[Verdict]:
    """Read verdicts.

    Args:
        path: ``.json`` is AlpacaEval's list of annotations, with ``preference`` 1 for the answer
            of ``generator_1`` and 2 for that of ``generator_2``, anything between, and 1.5 or 0
            for a tie; ``.jsonl`` has MT-Bench's ``g1_winner`` (``model_1`` read first) and
            ``g2_winner`` (``model_2`` read first) on every line.

    Returns:
        One verdict an annotation of AlpacaEval, two a line of MT-Bench.

    Raises:
        ValueError: the file is of neither kind, empty, or wrong in a line and field.
        OSError: it cannot be read.
    """
    if path.suffix == ".jsonl":
        verdicts = [one for row in read_rows(path) for one in _mt_bench(row)]
    elif path.suffix == ".json":
        verdicts = [_alpaca_eval(row) for row in read_json_list(path)]
    else:
        raise ValueError(
            f"{path} must be AlpacaEval's .json or MT-Bench's .jsonl, got `{path.suffix}`"
        )
    if not verdicts:
        raise ValueError(f"{path} holds no judgments")
    return verdicts


def count_wins(verdicts: Sequence[Verdict], model: str, opponent: str) -> WinCounts:
    """Count the questions that a model wins, ties and loses against another.

    Args:
        verdicts: those on other models are passed over.
        model: its name.
        opponent: the other's.

    Returns:
        The counts. A question is lost, tied or won by the mean of each order's verdicts.

    Raises:
        ValueError: the two were never compared.

    Examples:
        >>> both = [Verdict("q", "a", "b", 1.0, "f:1"), Verdict("q", "b", "a", 1.0, "f:2")]
        >>> count_wins(both, "a", "b").disagreements
        1
    """
    orders: dict[str, dict[bool, list[float]]] = {}
    failed = set()
    for verdict in verdicts:
        if {verdict.first, verdict.second} != {model, opponent}:
            continue
        read_first = verdict.first == model
        order = orders.setdefault(verdict.question, {}).setdefault(read_first, [])
        if verdict.preference is None:
            failed.add(verdict.question)
        else:
            order.append(verdict.preference if read_first else 1.0 - verdict.preference)
    if not orders:
        known = sorted({name for verdict in verdicts for name in verdict[1:3]})
        raise ValueError(
            f"no judgment compares `{model}` and `{opponent}`; judged are: {', '.join(known)}"
        )
    judged = [list(order.values()) for name, order in orders.items() if name not in failed]
    signs = [[_sign(preferences) for preferences in order] for order in judged]
    wins = sum(set(question) == {1} for question in signs)
    losses = sum(set(question) == {-1} for question in signs)
    return WinCounts(
        wins=wins,
        ties=len(signs) - wins - losses,
        losses=losses,
        disagreements=sum(len(set(question)) > 1 for question in signs),
        both_orders=sum(len(question) == 2 for question in signs),
        errors=len(failed),
    )


def _sign(preferences: Sequence[float]) -> int:
    """1 for a win, -1 for a loss, 0 for a tie."""
    mean = sum(preferences) / len(preferences)
    return (mean > 0.5) - (mean < 0.5)


def _mt_bench(row: Row) -> Iterator[Verdict]:
    names = [_text(row, name) for name in ("model_1", "model_2")]
    _check_names(row, names, ("model_1", "model_2"))
    question = f"{_field(row, 'question_id')}, turn {row.fields.get('turn', 1)}"
    for name, swapped in (("g1_winner", False), ("g2_winner", True)):
        winner = _text(row, name)
        if winner not in MT_BENCH_WINNERS:
            allowed = ", ".join(MT_BENCH_WINNERS)
            raise ValueError(
                f"{row.where}: field `{name}` must be {allowed}, got {reprlib.repr(winner)}"
            )
        preference = MT_BENCH_WINNERS[winner]
        if swapped:
            preference = None if preference is None else 1.0 - preference
            yield Verdict(question, names[1], names[0], preference, row.where)
        else:
            yield Verdict(question, names[0], names[1], preference, row.where)


def _alpaca_eval(row: Row) -> Verdict:
    names = [_text(row, name) for name in ("generator_1", "generator_2")]
    _check_names(row, names, ("generator_1", "generator_2"))
    value = _field(row, "preference")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and value != value):  # NaN: the annotator failed
        preference = None
    elif is_number and value == 0:
        preference = 0.5
    elif is_number and 1 <= value <= 2:
        preference = 2.0 - value
    else:
        raise ValueError(
            f"{row.where}: field `preference` must be from 1 to 2, 0 or null, got "
            f"{reprlib.repr(value)}"
        )
    return Verdict(_text(row, "instruction"), names[0], names[1], preference, row.where)


def _check_names(row: Row, names: Sequence[str], fields: Sequence[str]) -> None:
    if names[0] == names[1]:
        raise ValueError(
            f"{row.where}: fields `{fields[0]}` and `{fields[1]}` name the same model, "
            f"{reprlib.repr(names[0])}"
        )


def _field(row: Row, name: str) -> Any:
    if name not in row.fields:
        raise ValueError(f"{row.where}: field `{name}` is missing")
    return row.fields[name]


def _text(row: Row, name: str) -> str:
    value = _field(row, name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{row.where}: field `{name}` must be text, got {reprlib.repr(value)}")
    return value
