"""Claims about meshes: the same gradient on any of them, and each device holds its share only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from llm.architecture import Architecture
from llm.model import Decoder
from llm.sharding import make_layout, mesh_sizes

ROUNDING = 1e-12  # float64 sums in another order
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "width": 16,
    "hidden_units": 24,
    "n_layers": 2,
    "n_heads": 4,
}


def shapes(**changed: Any) -> nnx.State:
    """Parameters of a tiny decoder."""
    architecture = Architecture(**{**SIZES, "n_heads": 4, "n_kv_heads": 2, **changed})
    return nnx.state(nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0))))


def on_eight_devices(*arguments: str) -> list[dict[str, Any]]:
    """What the script says, a line for each case."""
    script = Path(__file__).with_name("eight_devices.py")
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, **EIGHT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "models",
    [
        ["untied"],
        pytest.param(["adapters", "tied", "indivisible vocabulary"], marks=pytest.mark.slow),
    ],
)
def test_gradient_of_meshes_of_eight_devices_is_that_of_one_device(models: list[str]) -> None:
    cases = on_eight_devices(*models)
    assert len(cases) >= len(models)
    off = {case["case"]: max(case["gradient"], case["metrics"]) for case in cases}
    assert max(off.values()) < ROUNDING, off


def test_property_a_model_is_read_onto_a_mesh_share_by_share_with_the_same_values() -> None:
    (made,) = on_eight_devices("made")
    assert made["same"]
    assert made["share"] == 1 / 4  # along fsdp and tensor, beside a copy along data
    assert made["read_at_once"] <= 1 / 4


def test_closed_form_devices_hold_their_share_of_every_large_parameter() -> None:
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    parameters = shapes()
    layout = make_layout(sizes, parameters, head_counts=(4, 2), width=16)
    share, total = 0, 0
    specs = jax.tree.leaves(layout.specs(parameters), is_leaf=lambda leaf: leaf is None)
    for leaf, spec in zip(jax.tree.leaves(parameters), specs, strict=True):
        names = jax.tree.leaves(tuple(spec))
        parts = int(np.prod([sizes[name] for name in names]))
        assert parts == (4 if leaf.ndim == 3 or leaf.shape == (32, 16) else 1)
        share, total = share + leaf.size // parts, total + leaf.size
    norms = 16 * (2 * 2 + 1)
    assert share == norms + (total - norms) // 4


def test_closed_form_a_mesh_takes_all_devices_and_fsdp_those_that_are_left() -> None:
    def sizes(data: int | None, fsdp: int | None, tensor: int) -> list[int]:
        return list(mesh_sizes(data=data, fsdp=fsdp, tensor=tensor, devices=8).values())

    assert sizes(None, None, 1) == [1, 8, 1]
    assert sizes(2, None, 2) == [2, 2, 2]
    assert sizes(8, 1, 1) == [8, 1, 1]


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(3, None, 1), (None, 4, 1), (1, 1, 16)])
def test_raises_a_mesh_of_another_number_of_devices_is_refused(
    data: int | None, fsdp: int | None, tensor: int
) -> None:
    with pytest.raises(ValueError, match="`mesh` must use all 8 devices, got data"):
        mesh_sizes(data=data, fsdp=fsdp, tensor=tensor, devices=8)


def test_raises_a_tensor_axis_that_splits_no_heads_or_units_is_refused() -> None:
    sizes = {"data": 1, "fsdp": 1, "tensor": 4}
    with pytest.raises(ValueError, match=r"`mesh.tensor` must divide the 2 heads, got 4"):
        make_layout(sizes, shapes(), head_counts=(4, 2), width=16)
    odd = shapes(hidden_units=22, n_kv_heads=4)
    with pytest.raises(
        ValueError, match=r"must divide axis 1 of layers\.down\.kernel.*of 22, got 4"
    ):
        make_layout(sizes, odd, head_counts=(4, 4), width=16)


def test_closed_form_what_does_not_divide_along_fsdp_lies_on_every_device() -> None:
    sizes = {"data": 1, "fsdp": 8, "tensor": 1}
    layout = make_layout(
        sizes, shapes(vocab_size=33, width=12, head_size=4), head_counts=(4, 2), width=12
    )
    assert layout.split_of(("embedding",)) == (None, None)
    assert layout.split_of(("layers", "gate", "kernel")) == (None, None, "tensor")
    assert layout.split_of(("layers", "down", "kernel")) == (None, "tensor", None)
