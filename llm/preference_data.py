"""Preference rows from files: every mistake is an error that names file, line and field.

A row has ``prompt``, ``chosen`` and ``rejected``, as strings or as lists of messages
``{"role", "content"}``. Without a prompt the two conversations' common beginning is it, message by
message: tokens would often find another boundary. A ``baseline`` is a response of its own for the
SFT term.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("prompt", "chosen", "rejected", "baseline")
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
ROLES = ("system", "user", "assistant", "tool")


class Message(NamedTuple):
    """A turn of a conversation."""

    role: str
    content: str


Messages = tuple[Message, ...]


class PreferenceRow(NamedTuple):
    """A prompt and the responses that were compared.

    Attributes:
        prompt: the conversation so far.
        chosen: the response that won, one message or more.
        rejected: the one that lost.
        baseline: another response for the SFT term; None for the chosen one.
        row: number in the file, from 0.
        where: file and line, for errors.
    """

    prompt: Messages
    chosen: Messages
    rejected: Messages
    baseline: Messages | None
    row: int
    where: str


class PairTokens(NamedTuple):
    """A row as tokens.

    Attributes:
        prompt: token ids.
        chosen: of the response, its end token among them.
        rejected: likewise.
        baseline: likewise, or None for the chosen one.
        row: number of the row.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    baseline: tuple[int, ...] | None
    row: int


def read_preferences(source: str | Path) -> list[PreferenceRow]:
    """Read all rows of a file, or of a data set on the Hugging Face hub.

    Args:
        source: a file ending in .jsonl, .jsonl.gz or .parquet, or ``owner/name[:file]`` on the hub.

    Returns:
        The rows.

    Raises:
        ValueError: a mistake in a row, a damaged file, an unknown kind of file, or no row at all.
        OSError: the file cannot be read.
    """
    path = _find(str(source))
    rows = [
        parse_row(fields, row=number, where=f"{path}:{line}")
        for number, (line, fields) in enumerate(_fields(path))
    ]
    if not rows:
        raise ValueError(f"{path}: there is no row in it")
    return rows


def parse_row(fields: Any, *, row: int, where: str) -> PreferenceRow:
    """Check a row and give it its parts.

    Args:
        fields: what was read.
        row: its number.
        where: file and line.

    Returns:
        The row.

    Raises:
        ValueError: a column is missing, or is not what it must be.

    Examples:
        >>> fields = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}
        >>> parse_row(fields, row=0, where="a.jsonl:1").chosen
        (Message(role='assistant', content='4'),)
    """
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where}: a row must be an object, got {type(fields).__name__}")
    parts: dict[str, Messages] = {}
    for name in COLUMNS:
        if fields.get(name) is not None:
            role = "user" if name == "prompt" else "assistant"
            parts[name] = _messages(fields[name], role, f"{where}: `{name}`")
    for name in ("chosen", "rejected"):
        if name not in parts:
            raise ValueError(f"{where}: column `{name}` is missing")
    if "prompt" not in parts:
        parts = _with_implicit_prompt(parts, where)
    _check_turns(parts, where)
    if parts["chosen"] == parts["rejected"]:
        raise ValueError(f"{where}: `chosen` and `rejected` must differ, they are the same")
    return PreferenceRow(
        parts["prompt"], parts["chosen"], parts["rejected"], parts.get("baseline"), row, where
    )


def _messages(value: Any, role: str, where: str) -> Messages:
    if isinstance(value, str):
        value = [{"role": role, "content": value}]
    if not isinstance(value, list | tuple) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise ValueError(f"{where} must be a text or a list of messages, got {kind}")
    found = []
    for place, message in enumerate(value):
        named = f"{where} message {place + 1}"
        if not isinstance(message, Mapping):
            raise ValueError(f"{named} must be an object, got {type(message).__name__}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"{named}: `{key}` must be a text, got {message.get(key)!r:.40}")
        if message["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise ValueError(f"{named}: `role` must be one of {known}, got {message['role']!r:.40}")
        if not message["content"].strip():
            raise ValueError(f"{named}: `content` must not be empty")
        found.append(Message(message["role"], message["content"]))
    return tuple(found)


def _with_implicit_prompt(parts: dict[str, Messages], where: str) -> dict[str, Messages]:
    """Take the messages that the two conversations begin with for the prompt."""
    one, other = parts["chosen"], parts["rejected"]
    shared = 0
    while shared < min(len(one), len(other)) - 1 and one[shared] == other[shared]:
        shared += 1
    if shared == 0:
        raise ValueError(
            f"{where}: column `prompt` is missing, and `chosen` and `rejected` do not begin with "
            "the same message"
        )
    split = {name: parts[name][shared:] for name in ("chosen", "rejected")}
    if "baseline" in parts:
        if parts["baseline"][:shared] != one[:shared]:
            raise ValueError(
                f"{where}: `baseline` must begin like `chosen` where `prompt` is missing"
            )
        split["baseline"] = parts["baseline"][shared:]
    return {"prompt": one[:shared], **split}


def _check_turns(parts: Mapping[str, Messages], where: str) -> None:
    """A prompt ends before the assistant speaks; user and assistant take turns."""
    for name, messages in parts.items():
        if not messages:
            raise ValueError(f"{where}: `{name}` must have at least one message")
        turns = [message.role for message in messages if message.role in ("user", "assistant")]
        if name != "prompt" and messages[0].role != "assistant":
            raise ValueError(
                f"{where}: `{name}` must begin with the assistant, got {messages[0].role}"
            )
        twice = [
            role for role, following in zip(turns, turns[1:], strict=False) if role == following
        ]
        if twice:
            raise ValueError(
                f"{where}: `{name}`: user and assistant must take turns, got {twice[0]} twice"
            )
    if parts["prompt"][-1].role == "assistant":
        raise ValueError(f"{where}: `prompt` must not end with the assistant")


def _find(source: str) -> Path:
    """A local file, or one of a data set on the hub."""
    path = Path(source)
    named = source.count("/") == 1 and not source.startswith((".", "/"))
    if path.exists() or not named or (source.lower().endswith(SUFFIXES) and ":" not in source):
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, file = source.partition(":")
    try:
        return Path(hf_hub_download(name, file or "train.jsonl", repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{source}: neither a file nor a data set that the hub can be asked for: "
            f"{type(error).__name__}"
        ) from error


def _fields(path: Path) -> Iterable[tuple[int, Any]]:
    """What each row holds, with its line from 1."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _from_parquet(path)
    if name.endswith(SUFFIXES):
        return _from_json_lines(path)
    raise ValueError(f"{path}: must end in .jsonl, .jsonl.gz or .parquet")


def _from_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    opened = gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")
    with opened as file:
        line = 0
        while True:
            try:
                content = file.readline()
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path}:{line + 1}: the compressed file is damaged") from error
            if not content:
                return
            line += 1
            if content.strip():
                yield line, _json(content, f"{path}:{line}")


def _json(content: bytes, where: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} (column {error.colno})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not text in UTF-8") from error
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{where}: not JSON that can be read: {error!s:.80}") from error


def _from_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        line = 0
        for batch in file.iter_batches(columns=names):
            for fields in batch.to_pylist():
                line += 1
                yield line, fields
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a Parquet file that can be read: {error!s:.120}") from error
