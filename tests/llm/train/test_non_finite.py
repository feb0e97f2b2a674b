"""Claims about numbers that are not finite: the error names step, rows and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from llm.train.checkpoint import Checkpoints
from llm.train.non_finite import (
    NAMED_ROWS,
    NonFiniteError,
    last_good,
    not_finite,
    refuse_what_is_not_finite,
    rows_of,
)
from llm.types import Batch


def batch_of(rows: list[int]) -> Batch:
    ids, nothing = np.asarray(rows), None
    return Batch(nothing, nothing, np.ones((len(rows), 2), int), ids >= 0, ids)  # type: ignore[arg-type]


BATCH = batch_of([30, 12, -1, 21])


@pytest.fixture
def checkpoints(tmp_path: Path) -> Iterator[Checkpoints]:
    with Checkpoints(tmp_path / "checkpoints", 2, "a1") as made:
        yield made


def test_closed_form_rows_are_named_in_order_once_by_their_numbers_in_their_file() -> None:
    assert rows_of(BATCH, np.array([True, True, False, False])) == "rows 12, 30"
    assert rows_of(BATCH, BATCH.present, 10) == "rows 2, 11, 20"
    assert rows_of(batch_of([7, 7, 8]), np.array([True, True, False])) == "rows 7"


def test_limit_of_very_many_rows_the_first_are_named_and_the_others_counted() -> None:
    many = batch_of(list(range(NAMED_ROWS + 3)))
    first = ", ".join(str(row) for row in range(NAMED_ROWS))
    assert rows_of(many, many.present) == f"rows {first} and 3 more"
    enough = batch_of(list(range(NAMED_ROWS)))
    assert rows_of(enough, enough.present) == f"rows {first}"


def test_roundtrip_the_last_good_checkpoint_is_the_last_that_was_saved(
    checkpoints: Checkpoints,
) -> None:
    assert last_good(checkpoints) == "no checkpoint yet"
    for step in (4, 9):
        checkpoints.save(step, {"x": jnp.ones(1)}, {})
    assert last_good(checkpoints) == "the last good checkpoint is step 9"


def test_closed_form_steps_are_counted_from_one_and_sums_have_the_rows_of_the_step(
    checkpoints: Checkpoints,
) -> None:
    of_rows = not_finite("rows 12", BATCH, 0, checkpoints)
    assert str(of_rows) == "step 1: not finite in rows 12; no checkpoint yet"
    of_all = not_finite("`loss`", BATCH, 6, checkpoints)
    assert str(of_all) == (
        "step 7: not finite in `loss` of the step on rows 12, 21, 30; no checkpoint yet"
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_raises_pairs_are_named_before_metrics_and_a_finite_step_passes(
    wrong: float, checkpoints: Checkpoints
) -> None:
    clean, flags = np.zeros(4, bool), np.array([False, True, False, False])
    refuse_what_is_not_finite({"loss": 1.0, "grad_norm": 0.0}, clean, BATCH, 0, checkpoints)
    measured = {"loss": 1.0, "grad_norm": wrong, "other": wrong}
    with pytest.raises(NonFiniteError, match=r"^step 3: not finite in rows 12; no checkpoint yet$"):
        refuse_what_is_not_finite(measured, flags, BATCH, 2, checkpoints)
    with pytest.raises(NonFiniteError, match="in `grad_norm` of the step on rows 12, 21, 30;"):
        refuse_what_is_not_finite(measured, clean, BATCH, 2, checkpoints)
