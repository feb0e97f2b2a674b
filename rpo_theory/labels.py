"""Labels of contexts and actions: spellings that a reader takes for the same name."""

from __future__ import annotations

import unicodedata

_MAX_SHOWN = 60
# Fillers and variation selectors, such as the one that makes a heart red.
_SELECTORS = (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
_INVISIBLE = frozenset(map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, *_SELECTORS)))


class LabelSpellings:
    """Labels seen so far, which refuses a second spelling of the same name.

    Two labels are the same name if they differ only in spaces, invisible characters, the Unicode
    form or, optionally, upper and lower case.
    """

    def __init__(self, *, fold_case: bool) -> None:
        """Start without labels.

        Args:
            fold_case: whether labels that differ only in case are the same name.
        """
        self._fold_case = fold_case
        self._seen: set[str] = set()
        self._spelling_of: dict[str, tuple[str, str]] = {}

    def check(self, field: str, label: str, where: str) -> None:
        """Record a label, or refuse it.

        Args:
            field: field of the label, for the message.
            label: the label.
            where: where the label stands, for the message about a later one.

        Raises:
            ValueError: if another spelling of the same name was seen.

        Examples:
            >>> names = LabelSpellings(fold_case=True)
            >>> names.check("winner", "green", "line 2")
            >>> names.check("loser", "green", "line 5")
        """
        if label in self._seen:
            return
        key = _key(label, fold_case=self._fold_case)
        other, first = self._spelling_of.setdefault(key, (label, where))
        if other != label:
            raise ValueError(
                f"`{field}` {_quote(label)} differs from {_quote(other)} ({first}) only in "
                f"{_difference(label, other)}: write one name the same way everywhere"
            )
        self._seen.add(label)


def _key(label: str, *, fold_case: bool) -> str:
    """Return a form that all spellings of a name share."""
    # Compatibility forms: full-width letters, ligatures and spaces of all kinds become plain.
    text = unicodedata.normalize("NFKC", label)
    visible = "".join(char for char in text if not _is_invisible(char))
    joined = " ".join(visible.split())
    return unicodedata.normalize("NFKC", joined.casefold()) if fold_case else joined


def _is_invisible(char: str) -> bool:
    category = unicodedata.category(char)
    return category == "Cf" or (category == "Cc" and not char.isspace()) or char in _INVISIBLE


def _difference(label: str, other: str) -> str:
    if "".join(label.split()) == "".join(other.split()):
        return "spaces"
    if label.casefold() == other.casefold():
        return "upper and lower case"
    return "invisible characters or their Unicode form"


def _quote(label: str) -> str:
    quoted = ascii(label)
    return quoted if len(quoted) <= _MAX_SHOWN else quoted[:_MAX_SHOWN] + "..."
