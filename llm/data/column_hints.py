"""Messages about columns that are missing or not used: what the rows may be, and what to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IGNORE = "ignore"
"""Value in ``data.columns`` for a column that is passed over."""
REST = "*"
"""Key in ``data.columns`` that stands for all columns that are not named."""

_SHOWN = 8
_GUESSES = {
    "prompt": "question instruction query input conversations conversation messages context text",
    "chosen": "preferred accepted winner better positive chosen_response response_chosen good "
    "accepted_response response_j answer_chosen chosen_answer",
    "rejected": "other dispreferred loser worse negative rejected_response response_rejected bad "
    "response_k answer_rejected rejected_answer",
}
"""Names under which other data sets have the required columns."""


def describe_missing(field: str, fields: Mapping[str, Any]) -> str:
    """Describe a required field that is missing, and the kind of rows that these may be.

    Args:
        field: the field.
        fields: values of the row by column.

    Returns:
        The message after the source of the row.

    Examples:
        >>> describe_missing("chosen", {"prompt": "a", "completion": "b", "label": True})[:62]
        'field `chosen` is missing: the row is unpaired (`completion` a'
    """
    start = f"field `{field}` is missing"
    names = {normal_name(name): name for name in fields}
    if {"completion", "label"} <= names.keys():
        return (
            f"{start}: the row is unpaired (`completion` and `label`), but a pair of responses to "
            "one prompt is needed: join a good and a bad completion of each prompt. Only "
            "`objective.method: kto` trains on unpaired rows, if all rows are unpaired"
        )
    if "completion" in names and field == "chosen":
        return (
            f"{start}, and so is `label`, with which the row is unpaired: name the columns of a "
            "pair, or the label with `data.columns: {label: COLUMN}`"
        )
    lists = [
        name
        for name in ("responses", "completions", "answers", "generations", "candidates", "outputs")
        if isinstance(fields.get(names.get(name, name)), list)
    ]
    if lists:
        return (
            f"{start}: `{lists[0]}` is a list of {len(fields[names.get(lists[0], lists[0])])} "
            "responses, but a row has a pair: write a row with `chosen` and `rejected` for each "
            "pair of them that is to be compared, with a `weight` if a ranking is to count once. "
            "Only `objective.method: plackett_luce` trains on lists, if all rows have `responses`, "
            "best first (another column: `data.columns: {responses: COLUMN}`)"
        )
    if field == "prompt" and "\n\nHuman:" in f"{fields.get('chosen')}":
        return (
            f"{start}: one response is a transcript (`Human:`, `Assistant:`), but another is not: "
            "write each as a list of messages with `role` and `content`"
        )
    guesses = {}
    for wanted, known in _GUESSES.items():
        found = [names[name] for name in known.split() if name in names]
        if wanted not in fields and found:
            guesses[wanted] = found[0]
    got = listed(fields)
    if field in guesses:
        pairs = ", ".join(f"{name}: {printable(column)}" for name, column in guesses.items())
        return f"{start}, got {got}: name the columns, as in `data.columns: {{{pairs}}}`"
    if field == "prompt":
        return (
            f"{start}; it may be left out only if `chosen` and `rejected` are lists of messages "
            "that begin with the same messages"
        )
    return f"{start}, got {got}: name its column with `data.columns: {{{field}: COLUMN}}`"


def unused(names: Sequence[str]) -> str:
    """Return the message for columns whose content would be lost, with what to do.

    Examples:
        >>> unused(["hint"])[:44]
        'column `hint` has content that is not used: '
    """
    normal = {name: normal_name(name) for name in names}
    if "chat_template_kwargs" in normal.values():
        return "column `chat_template_kwargs` is not read: set `data.chat_template_kwargs` instead"
    mapped = {}
    for name in names:
        if "system" in normal[name] or normal[name] == "developer":
            mapped["system"] = printable(name)
        elif normal[name] in _GUESSES["prompt"].split():
            mapped["prompt"] = printable(name)
    shown = ", ".join(f"`{printable(name)}`" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    use = ", ".join(f"{field}: {name}" for field, name in mapped.items())
    use = f"name its field (`{use}`) or " if use else ""
    only = printable(names[0]) if names[0] else '""'
    ignored = f"{only}: {IGNORE}" if len(names) == 1 else f'"{REST}": {IGNORE}'
    subject = f"column {shown} has" if len(names) == 1 else f"columns {shown}{more} have"
    rule = "content that is not used: with `data.columns`"
    return f"{subject} {rule}, {use}pass it over (`{ignored}`)"


def listed(fields: Mapping[str, Any]) -> str:
    """Return the first names of the columns of a row on one line.

    Examples:
        >>> listed({"prompt": "a", "hint": "b"})
        'prompt, hint'
    """
    more = f" and {len(fields) - _SHOWN} more" if len(fields) > _SHOWN else ""
    return ", ".join(map(printable, list(fields)[:_SHOWN])) + more or "no column"


def printable(name: object) -> str:
    r"""Return a name as one short line of ASCII.

    Examples:
        >>> printable("a\nb")
        'a\\nb'
    """
    text = ascii(str(name))[1:-1] or "(no name)"
    return text if len(text) <= 60 else text[:60] + "..."


def normal_name(name: str) -> str:
    """Return a name in lower case, with underscores for other separators.

    Examples:
        >>> normal_name("Chosen-Rating")
        'chosen_rating'
    """
    return name.strip().lower().replace("-", "_").replace(" ", "_").replace(".", "_")
