"""Release versions of fingerprints: three numbers, without development suffixes."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from rpo_io.versions import DISTRIBUTION, release_version


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("0.1", "0.1.0"),
        ("1", "1.0.0"),
        ("0.1.0", "0.1.0"),
        ("0.2.3rc1", "0.2.3"),
        ("0.1.dev3+g1a2b3c", "0.1.0"),
        ("0.1.1.dev12+g1a2b3c.d20250101", "0.1.1"),
        ("1.2.3.post1", "1.2.3"),
        ("2!10.20.30.40", "10.20.30"),
    ],
)
def test_closed_form_the_release_has_three_numbers(text: str, release: str) -> None:
    assert release_version(text) == release


def test_closed_form_the_default_is_the_installed_version() -> None:
    assert release_version() == release_version(version(DISTRIBUTION))
    assert re.fullmatch(r"\d+\.\d+\.\d+", release_version())


@pytest.mark.parametrize("text", ["", "main", "v1.0"])
def test_raises_for_a_version_that_does_not_begin_with_a_number(text: str) -> None:
    with pytest.raises(ValueError, match="must begin with a number"):
        release_version(text)
