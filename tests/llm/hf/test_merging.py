"""Claims about merged weights: what rounding loses is counted exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from llm.hf.io import export_model, load_model
from llm.hf.merging import MergeCounter
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder

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


def test_closed_form_a_narrow_export_is_compared_with_its_base(tmp_path: Path) -> None:
    """A change of 1/512 at 1 is lost in bfloat16, one of 1/128 is not."""
    sizes: dict[str, Any] = {"vocab_size": 5, "hidden_size": 4, "intermediate_size": 6}
    small = Architecture(**sizes, num_hidden_layers=1, num_attention_heads=2)
    decoder = Decoder(small, rngs=nnx.Rngs(0), param_dtype=jnp.float32)
    export_model(decoder, tmp_path / "base", dtype="bfloat16")
    trained = load_model(tmp_path / "base")
    trained.norm.weight[...] += jnp.asarray([0.0, 1 / 512, 1 / 128, 1 / 512], jnp.float32)
    options: dict[str, Any] = {"base_folder": tmp_path / "base"}
    report = export_model(trained, tmp_path / "narrow", dtype="bfloat16", **options)
    assert report.rounding is not None
    assert (report.rounding.n_changed, report.rounding.n_unchanged) == (3, 2)
    assert export_model(trained, tmp_path / "wide", **options).rounding is None


def test_limit_without_an_update_nothing_is_lost() -> None:
    weights = np.ones(3, np.float32)
    counter = MergeCounter()
    assert counter.report() == (0, 0, 0.0)
    counter.add(weights, weights, weights)
    assert counter.report().unchanged_share == 0.0
