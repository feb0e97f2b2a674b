"""SHA-256 digests of texts, bytes and files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_hex(content: bytes | str) -> str:
    """Return the SHA-256 digest of bytes or of a text in UTF-8.

    Args:
        content: bytes, or a text that is encoded in UTF-8.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> sha256_hex("")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_chunks(chunks: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 digest of concatenated chunks, with one chunk in memory at a time.

    Args:
        chunks: bytes, or views of contiguous bytes.

    Returns:
        64 hexadecimal digits.

    Examples:
        >>> sha256_of_chunks([b"a", b"b"]) == sha256_hex("ab")
        True
    """
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 digest of a file, read in blocks.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
