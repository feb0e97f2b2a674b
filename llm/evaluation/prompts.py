"""Prompts to answer, and files of replies for the judges of AlpacaEval and MT-Bench."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from llm.data.column_hints import unused
from llm.data.columns import FIELDS, FieldError, RowRules
from llm.data.messages import parse_conversation
from llm.data.preferences import Message, Messages, check_row, parse_with_rules
from llm.data.rows import Row, read_rows
from llm.data.sources import Source, shown_source
from llm.inference.generate import Reply
from rpo_io.digests import sha256_hex

_ANSWERS = frozenset(
    (
        *("answer", "answers", "completion", "completions", "output", "outputs"),
        *("reference", "references", "response", "responses"),
    )
)
"""Columns with answers of others, which a question does not need."""

_logger = logging.getLogger(__name__)

QuestionKind = Literal["rows", "alpaca_eval", "mt_bench"]
"""Kind of file that questions are read from and replies are written for."""


class Question(NamedTuple):
    """A question to a model, of one or several turns.

    Attributes:
        kind: kind of the file that the question was read from.
        prompts: messages before each reply of the model: the conversation before the first one
            and, for MT-Bench, the user's message after each reply.
        fields: fields of the row.
        where: source of the row, ``file:line``.
        tools: tools that the model may call, a JSON list; empty if there are none.
    """

    kind: QuestionKind
    prompts: tuple[Messages, ...]
    fields: dict[str, Any]
    where: str
    tools: str = ""


def read_questions(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    notes: list[str] | None = None,
) -> list[Question]:
    """Read the questions of files or of a hub data set.

    Args:
        source: preference rows or rows with ``prompt`` and optionally ``system`` and ``tools``;
            AlpacaEval's rows with ``instruction``; or MT-Bench's rows with ``turns``. In the
            formats of :func:`llm.data.rows.read_rows`.
        columns: see :func:`llm.data.preferences.stream_preferences`.
        notes: a list to which one sentence is added for everything that was passed over; None logs
            the sentences.

    Returns:
        The questions, all of the same kind.

    Raises:
        ValueError: if there are no questions, a row is of no kind or has content that is not used,
            or the kinds differ.
        OSError: if the file cannot be read.
    """
    rules = RowRules(columns, passed_over=_ANSWERS)
    questions = [
        _parse_question(row, number, rules) for number, row in enumerate(read_rows(source))
    ]
    if not questions:
        raise ValueError(f"{shown_source(source)} holds no questions")
    for question in questions:
        if question.kind != questions[0].kind:
            raise ValueError(
                f"{question.where}: this row is of kind {question.kind}, the first of kind "
                f"{questions[0].kind}: put them into separate files"
            )
    if notes is not None:
        notes += rules.notes()
    else:
        for note in rules.notes():
            _logger.info("%s: %s", shown_source(source), note)
    return questions


def format_answers(
    questions: Sequence[Question], answers: Sequence[Sequence[Reply]], model: str
) -> bytes:
    """Format the replies to questions as a file that the judge of their kind reads.

    Args:
        questions: questions of the same kind.
        answers: replies to each question, one per turn.
        model: name of the model in the file.

    Returns:
        For AlpacaEval a JSON list with ``instruction``, ``output`` and ``generator``; for MT-Bench
        JSON lines with ``question_id``, ``model_id`` and ``choices``; otherwise JSON lines with
        ``row``, ``prompt``, ``reply``, ``finished`` and ``tokens``. In UTF-8.

    Examples:
        >>> question = Question("alpaca_eval", ((),), {"instruction": "Hi"}, "f:1")
        >>> json.loads(format_answers([question], [[Reply("Hello", True, 2)]], "mine"))[0]["output"]
        'Hello'
    """
    formats = {
        "rows": _row_record,
        "alpaca_eval": _alpaca_eval_record,
        "mt_bench": _mt_bench_record,
    }
    records = [
        formats[question.kind](number, question, replies, model)
        for number, (question, replies) in enumerate(zip(questions, answers, strict=True))
    ]
    if questions and questions[0].kind == "alpaca_eval":
        return (json.dumps(records, ensure_ascii=False, indent=2) + "\n").encode()
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return "".join(lines).encode()


def _parse_question(row: Row, number: int, rules: RowRules) -> Question:
    """Return the question of a row, whose columns decide its kind."""
    fields = row.fields
    if rules.has_field("chosen", fields):
        return _row_question(row, number, rules)
    if rules.has_field("prompt", fields):
        # The prompt is checked like that of a preference row, with placeholders for the responses.
        placeholders = {rules.column_of("chosen"): "-", rules.column_of("rejected"): "+"}
        return _row_question(row._replace(fields={**fields, **placeholders}), number, rules)
    kind = next((name for name in ("instruction", "turns") if name in fields), None)
    if kind is None:
        raise ValueError(f"{row.where}: field `prompt`, `instruction` or `turns` is missing")
    others = {name: value for name, value in fields.items() if name != kind}
    _, repeats, lost = rules.select(others, row.where)
    of_rows = [name for name in FIELDS if rules.has_field(name, others)]
    refused = [name for name in (*repeats, *of_rows) if others.get(name) not in (None, "", [])]
    if refused or lost:
        raise ValueError(f"{row.where}: {unused([*refused, *lost])}")
    if kind == "instruction":
        prompts = (_user_message(fields["instruction"], "instruction", row.where),)
        return Question("alpaca_eval", prompts, fields, row.where)
    if not isinstance(fields["turns"], list) or not fields["turns"]:
        raise ValueError(f"{row.where}: field `turns` must be a list of texts, not empty")
    if not isinstance(fields.get("question_id"), int | str):
        raise ValueError(f"{row.where}: field `question_id` must be a number or text")
    prompts = tuple(
        _user_message(text, f"turns[{index}]", row.where)
        for index, text in enumerate(fields["turns"])
    )
    return Question("mt_bench", prompts, fields, row.where)


def _row_question(row: Row, number: int, rules: RowRules) -> Question:
    """Return the question of a preference row; its responses are not checked."""
    parsed = parse_with_rules(row, number, rules)
    check_row(
        parsed._replace(
            chosen=(Message("assistant", "-"),),
            rejected=(Message("assistant", "+"),),
            baseline=None,
        )
    )
    return Question("rows", (parsed.prompt,), row.fields, row.where, parsed.tools)


def _user_message(text: Any, name: str, where: str) -> Messages:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: field `{name}` must be text, not empty, got {text!r:.60}")
    try:
        return parse_conversation(text, RowRules(), role="user")
    except FieldError as error:
        raise ValueError(f"{where}: field `{name}{error.path}` {error.rule}") from error


def _row_record(
    number: int, question: Question, replies: Sequence[Reply], model: str
) -> dict[str, Any]:
    return {
        "row": number,
        "prompt": [message.to_dict() for message in question.prompts[0]],
        "reply": replies[0].text,
        "finished": replies[0].finished,
        "tokens": replies[0].tokens,
        "generator": model,
    }


def _alpaca_eval_record(
    number: int, question: Question, replies: Sequence[Reply], model: str
) -> dict[str, Any]:
    del number
    kept = {name: question.fields[name] for name in ("dataset",) if name in question.fields}
    instruction = question.fields["instruction"]
    return {"instruction": instruction, "output": replies[0].text, "generator": model} | kept


def _mt_bench_record(
    number: int, question: Question, replies: Sequence[Reply], model: str
) -> dict[str, Any]:
    del number
    question_id = question.fields["question_id"]
    texts = [reply.text for reply in replies]
    return {
        "question_id": question_id,
        "answer_id": sha256_hex(json.dumps([question_id, model, texts]))[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": texts}],
    }
