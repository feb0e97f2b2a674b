"""Conversion of plain values to the types of configurations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from rpo_io.config_types import (
    ConfigError,
    build,
    convert,
    dotted_keys,
    field_types,
    is_section,
    suggestion,
    to_plain,
    type_of_key,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, kw_only=True)
class Outer:
    size: int
    inner: Inner = field(default_factory=Inner)
    extra: dict[str, Any] = field(default_factory=dict, metadata={"keys_of": Inner})


def test_roundtrip_a_dataclass_as_plain_values() -> None:
    built = build(Outer, {"size": 3, "inner": {"rate": 2}})
    assert built == Outer(size=3, inner=Inner(rate=2.0))
    assert to_plain(built)["inner"] == {"rate": 2.0, "mode": "fast"}
    assert build(Outer, to_plain(built)) == built


def test_closed_form_conversion_of_single_values() -> None:
    assert convert(float, 3, "a") == 3.0
    assert isinstance(convert(float, 3, "a"), float)
    assert convert(list[int] | None, None, "a") is None
    assert convert(list[float], [1, 2.5], "a") == [1.0, 2.5]
    with pytest.raises(ConfigError, match=r"`a\[1\]` must be a whole number, got 2.5"):
        convert(list[int], [1, 2.5], "a")


def test_closed_form_keys_and_their_types() -> None:
    assert list(dotted_keys(Outer)) == [
        *("size", "inner", "inner.rate", "inner.mode"),
        *("extra", "extra.rate", "extra.mode"),
    ]
    assert field_types(Inner)["rate"] is float
    assert is_section(Inner | None)
    assert not is_section(dict[str, Any])
    assert type_of_key(Outer, "inner.rate") is float
    assert type_of_key(Outer, "extra.rate") is Any
    with pytest.raises(ConfigError, match=r"unknown key `inner\.rat`"):
        type_of_key(Outer, "inner.rat")


def test_closed_form_a_similar_key_is_suggested() -> None:
    assert suggestion(Outer, "sizes", "") == ": did you mean `size`?"
    assert suggestion(Inner, "xyz", "inner") == ": the keys are rate, mode"
