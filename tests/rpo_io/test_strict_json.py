"""Claims about strict JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpo_io.strict_json import format_document, format_line, null_non_finite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), VALUES))
def test_property_any_document_without_non_finite_numbers_survives_a_roundtrip(
    document: dict[str, object],
) -> None:
    finite = null_non_finite(document)
    assert json.loads(format_document(finite)) == finite
    assert json.loads(format_line(finite)) == finite


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_raises_a_number_that_is_not_finite_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        format_document({"claims": [{"gap": number}]})
    with pytest.raises(ValueError, match="JSON compliant"):
        format_line([number])


def test_closed_form_arrays_become_lists_and_only_non_finite_numbers_become_null() -> None:
    plain = null_non_finite(
        {"a": np.array([[1.0, np.nan]]), "b": np.float64(np.inf), "c": (1, True, "nan")}
    )
    assert plain == {"a": [[1.0, None]], "b": None, "c": [1, True, "nan"]}


def test_golden_records_are_one_per_line_and_other_values_one_per_key() -> None:
    text = format_document({"policy": [[0.5, 0.5]], "claims": [{"holds": True}, {"holds": False}]})
    assert text.splitlines() == [
        "{",
        '  "policy": [[0.5, 0.5]],',
        '  "claims": [',
        '    {"holds": true},',
        '    {"holds": false}',
        "  ]",
        "}",
    ]
