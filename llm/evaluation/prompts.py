"""Prompts to answer, and files of replies for the judges of AlpacaEval and MT-Bench."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm.data.preferences import Message, Messages, check_row, parse_row
from llm.data.rows import Row, read_json_list, read_rows
from llm.inference.generate import Reply
from rpo_io.digests import sha256_hex

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
    """

    kind: QuestionKind
    prompts: tuple[Messages, ...]
    fields: dict[str, Any]
    where: str


def read_questions(source: str) -> list[Question]:
    """Read the questions of a file or a hub data set.

    Args:
        source: preference rows or rows with ``prompt`` alone; AlpacaEval's rows with
            ``instruction``, as JSON lines or, in a ``.json`` file, as one list; or MT-Bench's rows
            with ``turns``.

    Returns:
        The questions, all of the same kind.

    Raises:
        ValueError: if there are no questions, a row is of no kind, or the kinds differ.
        OSError: if the file cannot be read.
    """
    rows = read_json_list(Path(source)) if _is_json_list(source) else read_rows(source)
    questions = [_parse_question(row, number) for number, row in enumerate(rows)]
    if not questions:
        raise ValueError(f"{source} holds no questions")
    for question in questions:
        if question.kind != questions[0].kind:
            raise ValueError(
                f"{question.where}: this row is of kind {question.kind}, the first of kind "
                f"{questions[0].kind}: put them into separate files"
            )
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


def _is_json_list(source: str) -> bool:
    """Return whether a file is one JSON list, judging by its first character."""
    if not source.endswith(".json") or not Path(source).is_file():
        return False
    with open(source, "rb") as file:
        return file.read(64).decode("utf-8-sig", "replace").lstrip().startswith("[")


def _parse_question(row: Row, number: int) -> Question:
    """Return the question of a row, whose columns decide its kind."""
    fields = row.fields
    if "instruction" in fields:
        prompts = (_user_message(fields["instruction"], "instruction", row.where),)
        return Question("alpaca_eval", prompts, fields, row.where)
    if "turns" in fields:
        if not isinstance(fields["turns"], list) or not fields["turns"]:
            raise ValueError(f"{row.where}: field `turns` must be a list of texts, not empty")
        if not isinstance(fields.get("question_id"), int | str):
            raise ValueError(f"{row.where}: field `question_id` must be a number or text")
        prompts = tuple(
            _user_message(text, f"turns[{index}]", row.where)
            for index, text in enumerate(fields["turns"])
        )
        return Question("mt_bench", prompts, fields, row.where)
    if "chosen" not in fields:
        if "prompt" not in fields:
            raise ValueError(f"{row.where}: field `prompt`, `instruction` or `turns` is missing")
        row = row._replace(fields={"prompt": fields["prompt"], "chosen": "-", "rejected": "+"})
    # The prompt is checked like that of a preference row, with placeholders for the responses.
    chosen, rejected = (Message("assistant", "-"),), (Message("assistant", "+"),)
    parsed = parse_row(row, number)._replace(chosen=chosen, rejected=rejected, baseline=None)
    check_row(parsed)
    return Question("rows", (parsed.prompt,), fields, row.where)


def _user_message(text: Any, name: str, where: str) -> Messages:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: field `{name}` must be text, not empty, got {text!r:.60}")
    return (Message("user", text),)


def _row_record(
    number: int, question: Question, replies: Sequence[Reply], model: str
) -> dict[str, Any]:
    return {
        "row": number,
        "prompt": [
            {"role": message.role, "content": message.content} for message in question.prompts[0]
        ],
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
