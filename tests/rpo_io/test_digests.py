"""Claims about digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rpo_io.digests import sha256_hex, sha256_of_file


def test_parity_digests_are_those_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x00\xff" * 10_000)
    expected = hashlib.sha256(b"\x00\xff" * 10_000).hexdigest()
    assert sha256_of_file(tmp_path / "file") == sha256_hex(b"\x00\xff" * 10_000) == expected
    assert sha256_hex("é") == sha256_hex("é".encode())
