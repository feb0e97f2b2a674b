"""The version of the project, as fingerprints hold it."""

from __future__ import annotations

import re
from importlib.metadata import version

DISTRIBUTION = "rpo-theory"
"""Name of the installed distribution."""


def release_version(text: str | None = None) -> str:
    """Return the release part of a version, padded to three numbers.

    Results of one release are compatible whatever commit they were computed at, so that
    development suffixes and commits are left out.

    Args:
        text: a version as in PEP 440; None for that of the installed package.

    Returns:
        Three numbers with dots between them.

    Raises:
        ValueError: if the version does not begin with a number.

    Examples:
        >>> release_version("0.1.dev3+g1a2b3c"), release_version("1.2.3.post1")
        ('0.1.0', '1.2.3')
    """
    text = version(DISTRIBUTION) if text is None else text
    found = re.match(r"(?:\d+!)?(\d+(?:\.\d+)*)", text)
    if found is None:
        raise ValueError(f"a version must begin with a number, got {text!r}")
    return ".".join([*found[1].split("."), "0", "0"][:3])
