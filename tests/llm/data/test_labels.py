"""Weights, soft labels and votes of rows: read, refused by name, carried to the batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm.data.files import Row
from llm.data.labels import PairLabel, read_label
from llm.data.packing import pack, required_shape
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens, parse_row

READ: list[tuple[dict[str, Any], PairLabel]] = [
    ({}, PairLabel(1.0, 1.0)),
    ({"weight": 2}, PairLabel(2.0, 1.0)),
    ({"label": 0.25}, PairLabel(1.0, 0.25)),
    ({"label": "0.25", "weight": "0"}, PairLabel(0.0, 0.25)),
    ({"label": "harmless"}, PairLabel(1.0, 1.0)),
    ({"label": True, "weight": None}, PairLabel(1.0, 1.0)),
    ({"chosen_votes": 3, "rejected_votes": 1}, PairLabel(4.0, 0.75)),
    ({"chosen_votes": 0, "rejected_votes": 2, "weight": 0.5}, PairLabel(1.0, 0.0)),
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"weight": -1}, r"a:1: field `weight` must be a finite number, at least 0, got -1"),
    ({"weight": float("nan")}, "field `weight` must be a finite number"),
    ({"weight": "heavy"}, "field `weight` must be a finite number, at least 0, got 'heavy'"),
    (
        {"label": 3},
        r"field `label` must be a probability in \[0, 1\], got 3; `data.columns: {label",
    ),
    ({"chosen_votes": 1}, "field `rejected_votes` must be given with the other vote count"),
    ({"chosen_votes": 0, "rejected_votes": 0}, "must not both be 0"),
    ({"chosen_votes": 1, "rejected_votes": 0, "label": 1}, "`label` must not be given with votes"),
]


@pytest.mark.parametrize(("fields", "label"), READ)
def test_roundtrip_labels_of_rows(fields: dict[str, Any], label: PairLabel) -> None:
    assert read_label(fields, "a:1") == label
    texts = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert parse_row(Row({**texts, **fields}, "a:1"), 0).label == label


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_raises_labels_out_of_range(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_label(fields, "a:1")


def test_roundtrip_labels_reach_the_batch_and_the_digest() -> None:
    plain = [PairTokens((1,), (2,), (3,), None, row) for row in range(3)]
    labeled = [plain[0], plain[1]._replace(label=PairLabel(2.0, 0.5)), plain[2]]
    tables = [PairTable.from_pairs(pairs) for pairs in (plain, labeled)]
    assert tables[0].labels is None
    assert tables[0].digest != tables[1].digest
    assert list(tables[1]) == labeled
    shape = required_shape(labeled, layout="shared", roles=2)
    # A part without labels of its own has those of its table: all batches have one structure.
    for part, expected in (([1], [2.0, 1.0]), ([0], [1.0, 1.0])):
        chosen = tables[1].select(np.array(part))
        batch = pack(chosen, layout="shared", roles=2, n_pairs=2, shape=shape)
        assert np.asarray(batch.weights).tolist() == expected
        assert np.asarray(batch.labels).tolist() == [0.5 if part == [1] else 1.0, 1.0]
    batch = pack(tables[0], layout="shared", roles=2, n_pairs=3, shape=shape)
    assert batch.weights is None
    assert batch.labels is None
