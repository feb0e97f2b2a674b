"""Claims about merged weights: what rounding loses is counted exactly."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from llm.hf.merging import MergeCounter

BF16 = ml_dtypes.bfloat16


def test_closed_form_of_the_lost_part_of_an_update() -> None:
    """Between 1 and 2, bfloat16 has steps of 1/128."""
    base = np.array([1.0, 1.0, 1.0, 1.0], BF16)
    merged = np.array([1.0, 1.0 + 1 / 512, 1.0 + 1 / 128, 1.0 + 3 / 256], np.float32)
    counter = MergeCounter()
    for part in (slice(0, 2), slice(2, 4)):
        counter.add(base[part], merged[part], merged[part].astype(BF16))
    report = counter.report()
    assert (report.n_changed, report.n_unchanged) == (3, 1)
    assert report.unchanged_share == 1 / 3
    updates = np.array([1 / 512, 1 / 128, 3 / 256])
    lost = np.array([1 / 512, 0, 1 / 256])  # 3/256 is a tie, rounded to even: 4/256
    np.testing.assert_allclose(report.lost_norm, np.linalg.norm(lost) / np.linalg.norm(updates))


def test_limit_without_an_update_nothing_is_lost() -> None:
    weights = np.ones(3, np.float32)
    counter = MergeCounter()
    assert counter.report() == (0, 0, 0.0)
    counter.add(weights, weights, weights)
    assert counter.report().unchanged_share == 0.0
