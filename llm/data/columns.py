"""Columns of data rows: which are read, which are passed over and counted, which are refused.

A column that may hold a part of the conversation is never ignored without being named. Columns
with ids, scores and other metadata are passed over; :meth:`RowRules.notes` lists them once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .column_hints import IGNORE, REST, describe_missing, listed, normal_name, printable

REFERENCE_FIELDS = ("ref_chosen_logps", "ref_rejected_logps", "ref_baseline_logps")
LABEL_FIELDS = ("weight", "label", "chosen_votes", "rejected_votes")
FIELDS = (
    *("prompt", "chosen", "rejected", "baseline", "system", "tools"),
    *REFERENCE_FIELDS,
    *LABEL_FIELDS,
)
"""Names of the columns that a preference row can have."""
UNPAIRED_FIELDS = ("prompt", "completion", "label", "weight", "system", "tools")
"""Names of the columns that an unpaired row can have: one response, and whether it is desirable."""
RANKED_FIELDS = ("prompt", "responses", "scores", "ranks", "weight", "system", "tools")
"""Names of the columns that a ranked row can have: responses, best first or with numbers."""
MESSAGE_PREFIX = "message."
"""Prefix in ``data.columns`` of the name of a field of a message."""

_CONVERSATION_NAMES = (
    "accepted answer answers assistant audio audios background chat completion completions content "
    "context contexts conversation conversations demonstrations developer dialog dialogue "
    "dispreferred document documents examples few_shot function functions generations generation "
    "gold history human image images input inputs instruction instructions knowledge loser message "
    "messages negative other output outputs passage passages persona positive preferred prefix "
    "query question questions replies reply response responses suffix system_message system_prompt "
    "text tool_calls turns user utterance video videos winner chat_template_kwargs"
)
_CONVERSATION = frozenset(_CONVERSATION_NAMES.split())
"""Names of columns that hold a part of a conversation."""
_CONVERSATION_WORD = re.compile(
    r"(?:^|_)(?:audios?|documents?|functions?|histor(?:y|ies)|images?|instructions?|messages?"
    r"|passages?|persona|system|tools?|videos?)(?:_|$)"
)
"""Words in names of further columns that hold a part of a conversation."""
_METADATA = re.compile(
    r"(?:^|_)(?:unnamed:_\d+|ids?|idx|index|uuid|uid|guid|hash|sha\d*|md5|keys?|urls?|uris?|links?"
    r"|sources?|datasets?|origin|subset|split|config|category|categories|domains?|topics?"
    r"|types?|kinds?|tags?|labels?|lang|languages?|locale|country|models?|generators?|annotators?"
    r"|annotations?|authors?|worker|licen[cs]es?|dates?|times?|timestamps?|created|updated|at"
    r"|versions?|scores?|ratings?|rewards?|ranks?|rankings?|margins?|lengths?|len|tokens|counts?"
    r"|num|status|difficulty|quality|toxicity|moderation|metadata|meta|info|agree|agreement|votes?"
    r"|confidence|probability|logps?|logprobs?|feedback|rationales?|critiques?|explanations?"
    r"|comments?|notes?|reviews?|order|ip)$"
)
"""Last words of names of columns that describe a row and are no part of its conversation."""
_CONTROL_NAMES = (
    "channel end_turn loss loss_mask mask masked prefix recipient train trainable weight"
)
_CONTROLS = frozenset(_CONTROL_NAMES.split())
"""Names of fields of a message that other programs train or mask by."""
_WORD = re.compile(r"[!-~]{0,300}")
"""A text without spaces, such as an id, a label or an address."""
_MAX_LAYOUTS = 1000
_MAX_LISTED = 100


class FieldError(ValueError):
    """An error in a field of a row, to which the caller adds the row and the field.

    Args:
        path: path below the field, such as ``[0].content``; may be empty.
        rule: what is required, and what was got.
    """

    def __init__(self, path: str, rule: str) -> None:
        """Store path and rule."""
        super().__init__(f"{path} {rule}")
        self.path: str = path
        self.rule: str = rule


class Columns(NamedTuple):
    """Values of a row by the names that the project knows.

    Attributes:
        fields: values by the names of :data:`FIELDS`.
        repeats: columns that may only repeat a part of the conversation, and are refused if they
            hold anything else.
        lost: columns with other content that is not used, which are refused.
    """

    fields: dict[str, Any]
    repeats: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class _Layout:
    """Treatment of the columns of all rows with the same column names."""

    def __init__(
        self,
        read: tuple[tuple[str, str], ...],
        passed_over: tuple[str, ...],
        by_content: tuple[str, ...],
    ) -> None:
        self.read, self.passed_over, self.by_content = read, passed_over, by_content
        self.is_plain = all(field == column for field, column in read) and not by_content
        self.rows = 0


class RowRules:
    """Rules by which the columns of rows are read, with counts of what they passed over.

    Args:
        columns: name of the column for a field, as in ``{"prompt": "question"}``, or ``ignore`` for
            a column that is passed over; ``*`` stands for all other columns and ``message.NAME``
            for a field of messages.
        raw_text: keep the spaces of texts, because no chat template is applied to them.
        passed_over: further columns that are passed over and listed, if ``columns`` names them not.
        fields: names of the columns that the rows can have.

    Attributes:
        is_unpaired: whether the rows have one response each.
        is_ranked: whether the rows have lists of responses.

    Raises:
        ValueError: if a key is no field and its value is not ``ignore``, two fields name the same
            column, or a required field is ignored.
    """

    def __init__(
        self,
        columns: Mapping[str, str] | None = None,
        *,
        raw_text: bool = False,
        passed_over: Iterable[str] = (),
        fields: Sequence[str] = FIELDS,
    ) -> None:
        """Check the mapping of columns."""
        columns = columns or {}
        check_columns(columns)
        self.raw_text = raw_text
        self.is_unpaired = "completion" in fields
        self.is_ranked = "responses" in fields
        self._column_of = {field: columns.get(field, field) for field in fields}
        ignored = {name for name, value in columns.items() if value == IGNORE}
        self._ignored = frozenset(ignored.union(passed_over) - set(self._column_of.values()))
        self._layouts: dict[tuple[str, ...], _Layout] = {}
        self._passed_over: Counter[str] = Counter()
        self._findings: dict[str, tuple[int, str]] = {}
        named = [name if column == IGNORE else column for name, column in columns.items()]
        self._absent = dict.fromkeys(name for name in named if name != REST)

    def select(self, fields: dict[str, Any], where: str) -> Columns:
        """Select the columns that are read from a row; count those that are passed over.

        Args:
            fields: values by column.
            where: source of the row.

        Returns:
            The selected columns.

        Raises:
            ValueError: if the row has the column of a field twice.
        """
        names = tuple(fields)
        layout = self._layouts.get(names)
        if layout is None:
            layout = self._add_layout(names, where)
        layout.rows += 1
        if layout.is_plain:
            return Columns(fields)
        repeats, lost = [], []
        for name in layout.by_content:
            value = fields[name]
            if _is_empty(value):
                continue
            is_conversation = _is_conversation_name(name)
            if isinstance(value, int | float) or (not is_conversation and _is_metadata(value)):
                self._passed_over[name] += 1
            elif is_conversation and not isinstance(value, bytes):
                repeats.append(name)
            else:
                lost.append(name)
        read = {field: fields[column] for field, column in layout.read}
        return Columns(read, tuple(repeats), tuple(lost))

    def column_of(self, field: str) -> str:
        """Return the name of the column of a field.

        Examples:
            >>> RowRules({"prompt": "question"}).column_of("prompt")
            'question'
        """
        return self._column_of[field]

    def has_field(self, field: str, fields: Mapping[str, Any]) -> bool:
        """Return whether a row has the column of a field.

        Examples:
            >>> RowRules({"prompt": "question"}).has_field("prompt", {"question": "a"})
            True
        """
        return self._column_of[field] in fields

    def pass_over(self, name: str) -> None:
        """Count a row whose column, or field of a message, was passed over.

        Examples:
            >>> rules = RowRules()
            >>> rules.pass_over("id")
            >>> rules.notes()
            ('columns passed over: id (1 row)',)
        """
        self._passed_over[name] += 1

    def find(self, finding: str, where: str) -> None:
        """Count a finding about a row that its reader should know.

        Args:
            finding: noun phrase for such rows.
            where: source of the row.
        """
        count, first = self._findings.get(finding, (0, where))
        self._findings[finding] = count + 1, first

    def message_extra(self, fields: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
        """Select the further fields of a message that a chat template can read.

        Args:
            fields: the fields of the message besides role and content.
            known: names that templates know.

        Returns:
            Fields by name; those without content are left out.

        Raises:
            FieldError: if a field has content that would be lost.

        Examples:
            >>> RowRules().message_extra({"name": "ann", "id": 3}, ["name"])
            {'name': 'ann'}
        """
        extra = {}
        for name, value in fields.items():
            if _is_empty(value):
                continue
            if f"{MESSAGE_PREFIX}{name}" in self._ignored:
                self.pass_over(f"{MESSAGE_PREFIX}{name}")
            elif name in known:
                extra[name] = value
            elif _is_control_name(name) or not (
                _METADATA.search(normal_name(name)) or _is_metadata(value)
            ):
                shown = printable(name)
                raise FieldError(
                    f".{shown}",
                    "is a field that no chat template reads: remove it, or pass it over with "
                    f"`data.columns: {{{MESSAGE_PREFIX}{shown}: {IGNORE}}}`",
                )
            else:
                self.pass_over(f"{MESSAGE_PREFIX}{name}")
        return extra

    def notes(self) -> tuple[str, ...]:
        """Return one sentence for each kind of content that was passed over or changed."""
        counts = Counter(self._passed_over)
        for layout in self._layouts.values():
            counts.update(dict.fromkeys(layout.passed_over, layout.rows))
        lines = []
        if counts:
            entries = [
                f"{printable(name)} ({count:,} {'row' if count == 1 else 'rows'})"
                for name, count in sorted(counts.items())
            ]
            more = f" and {len(entries) - _MAX_LISTED} more" if len(entries) > _MAX_LISTED else ""
            lines.append(f"columns passed over: {', '.join(entries[:_MAX_LISTED])}{more}")
        absent = {name: None for name in self._absent if name not in counts}
        if absent:
            lines.append(f"columns that `data.columns` names and no row has: {listed(absent)}")
        for finding, (count, first) in self._findings.items():
            lines.append(f"{finding}: {count:,} (the first is {first})")
        return tuple(lines)

    def describe_missing(self, field: str, fields: Mapping[str, Any]) -> str:
        """Return the message for a required field that a row lacks, with what to do.

        Examples:
            >>> RowRules().describe_missing("chosen", {"id": 3, "better": "a"})[:46]
            'field `chosen` is missing, got id, better: nam'
        """
        column = self._column_of[field]
        if column != field:
            names = f"column `{printable(column)}`, which `data.columns` names for `{field}`"
            return f"{names}, is missing, got {listed(fields)}"
        return describe_missing(field, fields)

    def _add_layout(self, names: tuple[str, ...], where: str) -> _Layout:
        if len(self._layouts) >= _MAX_LAYOUTS:
            for layout in self._layouts.values():
                self._passed_over.update(dict.fromkeys(layout.passed_over, layout.rows))
            self._layouts.clear()
        for name in names:
            self._absent.pop(name, None)
        read = {column: field for field, column in self._column_of.items() if column != IGNORE}
        kept, passed_over, by_content = [], [], []
        for name in names:
            if name in read:
                kept.append((read[name], name))
            elif name in self._ignored or REST in self._ignored:
                passed_over.append(name)
            elif name in self._column_of and self._column_of[name] in names:
                raise ValueError(
                    f"{where}: column `{name}` is not read, because `data.columns` names "
                    f"`{printable(self._column_of[name])}` for it: rename or remove one of the two"
                )
            elif normal_name(name) not in _CONVERSATION and _METADATA.search(normal_name(name)):
                passed_over.append(name)
            else:
                by_content.append(name)
        layout = _Layout(tuple(kept), tuple(passed_over), tuple(by_content))
        self._layouts[names] = layout
        return layout


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise an error if a mapping of columns contradicts itself.

    Args:
        columns: see :class:`RowRules`.

    Raises:
        ValueError: see :class:`RowRules`.

    Examples:
        >>> check_columns({"prompt": "question", "notes": "ignore"})
    """
    fields_of: dict[str, str] = {}
    for name, column in columns.items():
        if not isinstance(column, str) or not column:
            raise ValueError(f"`data.columns.{printable(name)}` must be a name, got {column!r:.60}")
        if column == IGNORE:
            if name in ("chosen", "rejected"):
                raise ValueError(f"`data.columns.{name}` must be a column: it cannot be ignored")
            continue
        known = dict.fromkeys((*FIELDS, *UNPAIRED_FIELDS, *RANKED_FIELDS))
        if name not in known:
            raise ValueError(
                f"`data.columns.{printable(name)}` must be `{IGNORE}`, or its key one of "
                f"{', '.join(known)}; got `{printable(column)}`"
            )
        if column in fields_of:
            raise ValueError(
                f"`data.columns` must name a column once, got `{printable(column)}` for "
                f"`{fields_of[column]}` and `{name}`"
            )
        fields_of[column] = name


def _is_conversation_name(name: str) -> bool:
    normal = normal_name(name)
    return normal in _CONVERSATION or _CONVERSATION_WORD.search(normal) is not None


def _is_control_name(name: str) -> bool:
    """Return whether a field of a message is read by other programs, or holds another part."""
    normal = normal_name(name)
    if normal in _CONTROLS or normal in _CONVERSATION:
        return True
    return _CONVERSATION_WORD.search(normal) is not None and not _METADATA.search(normal)


def _is_empty(value: Any) -> bool:
    if value is None or (isinstance(value, str) and not value.strip()):
        return True
    if isinstance(value, dict):
        return all(map(_is_empty, value.values()))
    return isinstance(value, list | tuple) and all(map(_is_empty, value))


def _is_metadata(value: Any) -> bool:
    """Return whether a value consists of numbers and single words and is no conversation."""
    if isinstance(value, str):
        return _WORD.fullmatch(value) is not None
    if isinstance(value, dict):
        if {"content", "value", "text"} & value.keys():
            return False
        return all(map(_is_metadata, value.values()))
    if isinstance(value, list | tuple):  # pyarrow reads a map as a list of pairs
        return all(map(_is_metadata, value))
    return not isinstance(value, bytes)
