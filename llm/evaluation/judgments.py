"""Verdicts of a judge on the answers of two models: files of AlpacaEval and of MT-Bench.

A line of MT-Bench holds the verdicts of both orders of the answers, since judges favor the answer
they read first: a model wins the line if it wins in both orders, and two different verdicts make a
tie. Every annotation of AlpacaEval is a question of its own, by its position in the file.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm.data.rows import Row, read_json_list, read_rows

JudgmentKind = Literal["alpaca_eval", "mt_bench"]
"""Benchmark whose judge wrote a file."""
MT_BENCH_PREFERENCES: dict[str, float | None] = {
    "model_1": 1.0,
    "model_2": 0.0,
    "tie": 0.5,
    "error": None,
}
"""Preference for ``model_1`` by the winner that MT-Bench's files name."""
KNOWN_FIELDS: dict[JudgmentKind, tuple[str, ...]] = {
    "alpaca_eval": (
        *("instruction", "output_1", "output_2", "generator_1", "generator_2", "preference"),
        *("index", "annotator", "dataset", "datasplit", "raw_completion", "glm_preference"),
        *("price_per_example", "time_per_example"),
    ),
    "mt_bench": (
        *("question_id", "model_1", "model_2", "g1_winner", "g2_winner", "turn", "judge"),
        *("g1_user_prompt", "g1_judgment", "g2_user_prompt", "g2_judgment", "tstamp"),
    ),
}
"""Fields that the benchmarks write; others are reported, since nothing reads them."""


class Verdict(NamedTuple):
    """Verdict of the judge on two answers that it read in one order.

    Attributes:
        question: the question; the same text in both orders of a line of MT-Bench. A question
            that is repeated for the same two models has its occurrence in the text.
        first: name of the model whose answer was read first.
        second: name of the other model.
        preference: preference for the first answer, from 0 to 1; 0.5 is a tie, and None means
            that the judge gave no verdict.
        where: source of the verdict, ``file:line``.
    """

    question: str
    first: str
    second: str
    preference: float | None
    where: str


class WinCounts(NamedTuple):
    """Numbers of questions that a model wins, ties and loses against another one.

    Attributes:
        wins: questions won in every order that was judged.
        ties: questions that neither model wins.
        losses: questions lost in every order that was judged.
        disagreements: ties in which the two orders have different outcomes.
        both_orders: questions that were judged in both orders.
        errors: questions that are left out because the judge gave no verdict.
    """

    wins: int
    ties: int
    losses: int
    disagreements: int
    both_orders: int
    errors: int

    def win_rate(self) -> float:
        """Return the share of questions won; a tie counts one half, and nan means no question.

        Examples:
            >>> WinCounts(2, 1, 1, 0, 4, 0).win_rate()
            0.625
        """
        judged = self.wins + self.ties + self.losses
        return (self.wins + self.ties / 2) / judged if judged else float("nan")


class JudgmentFile(NamedTuple):
    """Content of a file of judgments.

    Attributes:
        kind: benchmark whose judge wrote the file.
        rows: rows of the file.
        verdicts: verdicts of the rows, in order: one per row of AlpacaEval, two per row of
            MT-Bench.
        repeated: rows whose question occurs earlier for the same two models. They count again.
        passed_over: names of fields that nothing reads, sorted.
    """

    kind: JudgmentKind
    rows: list[Row]
    verdicts: list[Verdict]
    repeated: int
    passed_over: list[str]


def read_judgments(path: Path) -> list[Verdict]:
    """Read the verdicts of a judge.

    Args:
        path: a ``.json`` file holds one list, a ``.jsonl`` file one object per line. AlpacaEval's
            annotations have a ``preference`` between 1 for the answer of ``generator_1`` and 2 for
            that of ``generator_2``, with 1.5 or 0 for a tie. MT-Bench's pair judgments have
            ``g1_winner`` (``model_1`` read first) and ``g2_winner`` (``model_2`` read first).

    Returns:
        One verdict per annotation of AlpacaEval, or two per row of MT-Bench.

    Raises:
        ValueError: if the file is of another kind or empty, or a field is invalid; the message
            gives line and field.
        OSError: if the file cannot be read.
    """
    return read_judgment_file(path).verdicts


def read_judgment_file(path: Path) -> JudgmentFile:
    """Read a file of judgments with its rows, and what was noticed.

    Args:
        path: see :func:`read_judgments`.

    Returns:
        The content.

    Raises:
        ValueError: see :func:`read_judgments`.
        OSError: if the file cannot be read.
    """
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(
            f"{path} must be AlpacaEval's .json or MT-Bench's .jsonl, got `{path.suffix}`"
        )
    if path.is_dir():
        raise ValueError(f"{path} must be a file of judgments, got a folder")
    is_list = path.suffix == ".json"
    rows = list(read_json_list(path, allow_nan=True) if is_list else read_rows(path))
    if not rows:
        raise ValueError(f"{path} holds no judgments")
    kind = _kind(rows[0], path)
    occurrences: Counter[tuple[Any, ...]] = Counter()
    verdicts: list[Verdict] = []
    for row in rows:
        if _kind(row, path) != kind:
            raise ValueError(
                f"{row.where}: this row is of {_kind(row, path)}, the first of {kind}: put them "
                "into separate files"
            )
        read = _mt_bench_verdicts(row) if kind == "mt_bench" else [_alpaca_eval_verdict(row)]
        key = (read[0].question, *sorted(read[0][1:3]))
        occurrences[key] += 1
        if occurrences[key] > 1:
            name = f"{read[0].question} (occurrence {occurrences[key]})"
            read = [verdict._replace(question=name) for verdict in read]
        verdicts += read
    fields = {name for row in rows for name in row.fields}
    return JudgmentFile(
        kind,
        rows,
        verdicts,
        len(rows) - len(occurrences),
        sorted(fields.difference(KNOWN_FIELDS[kind])),
    )


def count_wins(verdicts: Sequence[Verdict], model: str, opponent: str) -> WinCounts:
    """Count the questions that a model wins, ties and loses against another one.

    Args:
        verdicts: verdicts of the judge; those on other pairs of models are ignored.
        model: name of the model.
        opponent: name of the other model.

    Returns:
        The counts. Within an order, the mean of repeated verdicts decides.

    Raises:
        ValueError: if no verdict compares the two models.

    Examples:
        >>> verdicts = [Verdict("q", "a", "b", 1.0, "f:1"), Verdict("q", "b", "a", 1.0, "f:2")]
        >>> count_wins(verdicts, "a", "b").disagreements
        1
    """
    preferences: dict[str, dict[bool, list[float]]] = {}  # by question and by "model read first"
    failed = set()
    for verdict in verdicts:
        if {verdict.first, verdict.second} != {model, opponent}:
            continue
        read_first = verdict.first == model
        order = preferences.setdefault(verdict.question, {}).setdefault(read_first, [])
        if verdict.preference is None:
            failed.add(verdict.question)
        else:
            order.append(verdict.preference if read_first else 1.0 - verdict.preference)
    if not preferences:
        names = sorted({name for verdict in verdicts for name in verdict[1:3]})
        raise ValueError(
            f"no judgment compares `{model}` and `{opponent}`; the judged models are: "
            f"{', '.join(names)}"
        )
    judged = [list(orders.values()) for name, orders in preferences.items() if name not in failed]
    signs = [[_sign(order) for order in orders] for orders in judged]
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
    """Return 1 for a win, -1 for a loss and 0 for a tie, by the mean preference."""
    mean = sum(preferences) / len(preferences)
    return (mean > 0.5) - (mean < 0.5)


def _kind(row: Row, path: Path) -> JudgmentKind:
    """Return the kind of a row, by its fields or else by the name of the file."""
    if "g1_winner" in row.fields or "g2_winner" in row.fields:
        return "mt_bench"
    if "preference" in row.fields or "generator_1" in row.fields:
        return "alpaca_eval"
    if {"model", "score"} <= row.fields.keys():
        raise ValueError(
            f"{row.where}: a score of a single answer does not compare two models: give the pair "
            "judgments of MT-Bench (model_judgment/gpt-4_pair.jsonl)"
        )
    return "mt_bench" if path.suffix == ".jsonl" else "alpaca_eval"


def _mt_bench_verdicts(row: Row) -> list[Verdict]:
    """Return the verdicts of the two orders on a line of MT-Bench."""
    names = [_text(row, name) for name in ("model_1", "model_2")]
    _check_names(row, names, ("model_1", "model_2"))
    for name in ("question_id", "turn"):
        value = _field(row, name) if name == "question_id" else row.fields.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(
                f"{row.where}: field `{name}` must be a number or text, got {reprlib.repr(value)}"
            )
    question = f"{row.fields['question_id']}, turn {row.fields.get('turn', 1)}"
    verdicts = []
    for name, swapped in (("g1_winner", False), ("g2_winner", True)):
        winner = _text(row, name)
        if winner not in MT_BENCH_PREFERENCES:
            allowed = ", ".join(MT_BENCH_PREFERENCES)
            raise ValueError(
                f"{row.where}: field `{name}` must be {allowed}, got {reprlib.repr(winner)}"
            )
        preference = MT_BENCH_PREFERENCES[winner]
        if swapped:
            preference = None if preference is None else 1.0 - preference
            verdicts.append(Verdict(question, names[1], names[0], preference, row.where))
        else:
            verdicts.append(Verdict(question, names[0], names[1], preference, row.where))
    return verdicts


def _alpaca_eval_verdict(row: Row) -> Verdict:
    """Return the verdict of an annotation of AlpacaEval."""
    names = [_text(row, name) for name in ("generator_1", "generator_2")]
    _check_names(row, names, ("generator_1", "generator_2"))
    value = row.fields.get("preference")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and value != value):  # NaN: the judge failed
        preference = None
    elif is_number and value == 0:
        preference = 0.5
    elif is_number and 1 <= value <= 2:
        preference = 2.0 - value
    else:
        raise ValueError(
            f"{row.where}: field `preference` must be 0, null or a number from 1 to 2, got "
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
