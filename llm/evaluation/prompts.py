"""Questions to answer, and answers in the files that AlpacaEval and MT-Bench judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm.data.preferences import Message, Messages, check_row, parse_row
from llm.data.rows import Row, read_json_list, read_rows
from llm.inference.generate import Reply

QuestionFormat = Literal["rows", "alpaca_eval", "mt_bench"]


class Question(NamedTuple):
    """What a model is asked.

    Attributes:
        kind: of the file that it comes from, and so of the answer's.
        prompts: the conversation before the first reply, and for MT-Bench what follows each reply.
        fields: of the row.
        where: its place, ``file:line``.
    """

    kind: QuestionFormat
    prompts: tuple[Messages, ...]
    fields: dict[str, Any]
    where: str


def read_questions(source: str) -> list[Question]:
    """Read questions.

    Args:
        source: preference rows or rows with a ``prompt`` alone; AlpacaEval's ``instruction``, as
            JSON lines or, in a ``.json`` file, as one list; or MT-Bench's ``turns``.

    Returns:
        The questions, all of one kind.

    Raises:
        ValueError: none there, several kinds in a file, or a row that is of none.
        OSError: the file cannot be read.
    """
    rows = read_json_list(Path(source)) if _is_list(source) else read_rows(source)
    questions = [_question(row, number) for number, row in enumerate(rows)]
    if not questions:
        raise ValueError(f"{source} holds no questions")
    for question in questions:
        if question.kind != questions[0].kind:
            raise ValueError(
                f"{question.where}: this row is of kind {question.kind}, the first of kind "
                f"{questions[0].kind}: put them into files of their own"
            )
    return questions


def format_answers(
    questions: Sequence[Question], answers: Sequence[Sequence[Reply]], model: str
) -> bytes:
    """Content of a file of answers.

    Args:
        questions: of one kind.
        answers: to each, one a turn.
        model: what judges will call the model.

    Returns:
        For AlpacaEval a JSON list with ``instruction``, ``output`` and ``generator``; for MT-Bench
        JSON lines with ``question_id``, ``model_id`` and ``choices``; otherwise JSON lines with
        ``row``, ``prompt``, ``reply``, ``finished`` and ``tokens``.

    Examples:
        >>> question = Question("alpaca_eval", ((),), {"instruction": "Hi"}, "f:1")
        >>> json.loads(format_answers([question], [[Reply("Hello", True, 2)]], "mine"))[0]["output"]
        'Hello'
    """
    record = {"rows": _row, "alpaca_eval": _alpaca_eval, "mt_bench": _mt_bench}
    records = [
        record[question.kind](number, question, said, model)
        for number, (question, said) in enumerate(zip(questions, answers, strict=True))
    ]
    if questions and questions[0].kind == "alpaca_eval":
        return (json.dumps(records, ensure_ascii=False, indent=2) + "\n").encode()
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    return "".join(lines).encode()


def _is_list(source: str) -> bool:
    """Whether a file is one JSON list, by its first character."""
    if not source.endswith(".json") or not Path(source).is_file():
        return False
    with open(source, "rb") as file:
        return file.read(64).decode("utf-8-sig", "replace").lstrip().startswith("[")


def _question(row: Row, number: int) -> Question:
    fields = row.fields
    if "instruction" in fields:
        prompts = (_user(fields["instruction"], "instruction", row.where),)
        return Question("alpaca_eval", prompts, fields, row.where)
    if "turns" in fields:
        if not isinstance(fields["turns"], list) or not fields["turns"]:
            raise ValueError(f"{row.where}: field `turns` must be a list of texts, not empty")
        if not isinstance(fields.get("question_id"), int | str):
            raise ValueError(f"{row.where}: field `question_id` must be a number or text")
        names = [f"turns[{place}]" for place in range(len(fields["turns"]))]
        prompts = tuple(
            _user(text, name, row.where) for text, name in zip(fields["turns"], names, strict=True)
        )
        return Question("mt_bench", prompts, fields, row.where)
    if "chosen" not in fields:
        if "prompt" not in fields:
            raise ValueError(f"{row.where}: field `prompt`, `instruction` or `turns` is missing")
        row = row._replace(fields={"prompt": fields["prompt"], "chosen": "-", "rejected": "+"})
    # The prompt is checked as that of any preference row; its responses do not matter.
    blank, other = (Message("assistant", "-"),), (Message("assistant", "+"),)
    parsed = parse_row(row, number)._replace(chosen=blank, rejected=other, baseline=None)
    check_row(parsed)
    return Question("rows", (parsed.prompt,), fields, row.where)


def _user(text: Any, name: str, where: str) -> Messages:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: field `{name}` must be text, not empty, got {text!r:.60}")
    return (Message("user", text),)


def _row(number: int, question: Question, said: Sequence[Reply], model: str) -> dict[str, Any]:
    return {
        "row": number,
        "prompt": [message._asdict() for message in question.prompts[0]],
        "reply": said[0].text,
        "finished": said[0].finished,
        "tokens": said[0].tokens,
        "generator": model,
    }


def _alpaca_eval(
    number: int, question: Question, said: Sequence[Reply], model: str
) -> dict[str, Any]:
    del number
    kept = {name: question.fields[name] for name in ("dataset",) if name in question.fields}
    instruction = question.fields["instruction"]
    return {"instruction": instruction, "output": said[0].text, "generator": model} | kept


def _mt_bench(number: int, question: Question, said: Sequence[Reply], model: str) -> dict[str, Any]:
    del number
    identity = question.fields["question_id"]
    texts = [answer.text for answer in said]
    content = json.dumps([identity, model, texts])
    return {
        "question_id": identity,
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": model,
        "choices": [{"index": 0, "turns": texts}],
    }
