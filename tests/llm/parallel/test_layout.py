"""Claims about meshes: the same gradient on any of them, and each device holds its share only."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.parallel.layout import Layout, make_layout, mesh_sizes

ROUNDING = 1e-12  # float64 sums in another order
N_PAIRS = 16  # of the script
EIGHT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
}
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def shapes(**changed: Any) -> nnx.State:
    """Parameters of a tiny decoder."""
    architecture = Architecture(
        **{**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, **changed}
    )
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


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """What becomes of arrays on a mesh of eight devices."""
    (case,) = on_eight_devices("arrays")
    return case


def test_property_a_model_is_read_onto_a_mesh_share_by_share_with_the_same_values(
    arrays: dict[str, Any],
) -> None:
    made = arrays["made"]
    assert made["same"]
    assert made["share"] == 1 / 4  # along fsdp and tensor, beside a copy along data
    assert made["read_at_once"] <= 1 / 4


def test_closed_form_what_is_measured_is_summed_over_pairs_and_told_of_each(
    arrays: dict[str, Any],
) -> None:
    pairs = np.arange(N_PAIRS)
    assert arrays["measured"]["total"] == 3.0 * pairs.sum()
    np.testing.assert_array_equal(np.ravel(arrays["measured"]["each"]), 3.0 * pairs)
    assert arrays["measured"]["slope"] == pairs.sum()
    assert arrays["measured"]["same"]


def test_closed_form_arrays_lie_where_the_layout_wants_them_and_come_back_whole(
    arrays: dict[str, Any],
) -> None:
    where = arrays["where"]
    assert where["sizes"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert where["splits"] == ["(('tensor', 'fsdp'), None)", "(None, 'fsdp', 'tensor')", "()"]
    assert where["shares"] == [[8, 16], [2, 8, 12], [3]]
    assert where["one"] == where["splits"][1]
    assert where["on_host"]


def test_closed_form_devices_hold_their_share_of_every_large_parameter() -> None:
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    parameters = shapes()
    layout = make_layout(sizes, parameters, head_counts=(4, 2), hidden_size=16)
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
        make_layout(sizes, shapes(), head_counts=(4, 2), hidden_size=16)
    odd = shapes(intermediate_size=22, num_key_value_heads=4)
    with pytest.raises(
        ValueError, match=r"must divide axis 1 of layers\.down_proj\.kernel.*of 22, got 4"
    ):
        make_layout(sizes, odd, head_counts=(4, 4), hidden_size=16)


def test_closed_form_what_does_not_divide_along_fsdp_lies_on_every_device() -> None:
    sizes = {"data": 1, "fsdp": 8, "tensor": 1}
    layout = make_layout(
        sizes, shapes(vocab_size=33, hidden_size=12, head_dim=4), head_counts=(4, 2), hidden_size=12
    )
    assert layout.split_of(("embedding",)) == (None, None)
    assert layout.split_of(("layers", "gate_proj", "kernel")) == (None, None, "tensor")
    assert layout.split_of(("layers", "down_proj", "kernel")) == (None, "tensor", None)


def on_named_axes(function: Callable[..., Any], *arguments: Any) -> Any:
    """A function on devices along ``tensor`` and ``fsdp``, which vmap's named axes stand for."""
    on_all = jax.vmap(jax.vmap(function, axis_name="fsdp"), axis_name="tensor")
    return jax.jit(on_all)(*arguments)


def cut(leaf: np.ndarray, spec: Any, sizes: dict[str, int]) -> np.ndarray:
    """Shares of an array by its split, ``[tensor, fsdp, ...]``, the slower axis first."""
    shares = []
    for tensor in range(sizes["tensor"]):
        for fsdp in range(sizes["fsdp"]):
            place, share = {"tensor": tensor, "fsdp": fsdp}, leaf
            for axis, over in enumerate(spec):
                for name in () if over is None else (over,) if isinstance(over, str) else over:
                    share = np.split(share, sizes[name], axis)[place[name]]
            shares.append(share)
    return np.stack(shares).reshape(sizes["tensor"], sizes["fsdp"], *shares[0].shape)


ON_FOUR = {"data": 1, "fsdp": 2, "tensor": 2}
RNG = np.random.default_rng(0)


def layout_on_four(**changed: Any) -> Layout:
    return make_layout(ON_FOUR, shapes(**changed), head_counts=(4, 2), hidden_size=16)


def test_closed_form_a_layers_parameters_are_gathered_but_for_their_share_along_tensor() -> None:
    layout = layout_on_four()
    whole = {
        "up_proj": {"kernel": RNG.normal(size=(16, 24))},
        "down_proj": {"kernel": RNG.normal(size=(24, 16))},
        "mlp_norm": {"weight": RNG.normal(size=16)},
    }

    def shares(name: str, kind: str) -> np.ndarray:
        return cut(whole[name][kind], layout.split_of(("layers", name, kind))[1:], ON_FOUR)

    slices = {name: {kind: shares(name, kind) for kind in of} for name, of in whole.items()}
    found = on_named_axes(lambda slices: layout.gathered(slices, jnp.float32), slices)
    for tensor in range(2):
        for fsdp in range(2):
            mine = jax.tree.map(lambda leaf, at=(tensor, fsdp): np.asarray(leaf[at]), found)
            half = slice(12 * tensor, 12 * tensor + 12)
            up, down = whole["up_proj"]["kernel"][:, half], whole["down_proj"]["kernel"][half]
            np.testing.assert_array_equal(mine["up_proj"]["kernel"], up.astype(np.float32))
            np.testing.assert_array_equal(mine["down_proj"]["kernel"], down.astype(np.float32))
            np.testing.assert_array_equal(mine["mlp_norm"]["weight"], whole["mlp_norm"]["weight"])


@pytest.mark.parametrize("vocab_size", [32, 33])
def test_closed_form_words_are_looked_up_wherever_they_are(vocab_size: int) -> None:
    layout = layout_on_four(vocab_size=vocab_size)
    table = RNG.normal(size=(vocab_size, 16))
    tokens = np.broadcast_to(RNG.integers(0, vocab_size, (1, 2, 3, 5)), (2, 2, 3, 5))
    mine = cut(table, layout.split_of(("embedding",)), ON_FOUR)
    assert mine.shape[2] == (8 if vocab_size == 32 else 33)
    np.testing.assert_array_equal(on_named_axes(layout.embed, mine, tokens), table[tokens])


def test_gradient_what_is_spread_has_the_sum_over_tensor_and_a_total_that_of_each() -> None:
    layout = layout_on_four()
    x, weight = RNG.normal(size=(2, 2, 2, 3))

    def value_and_slope(exchange: Callable[..., Any]) -> Any:
        def loss(x: Any, weight: Any) -> Any:
            return jnp.vdot(weight, exchange(x))

        return on_named_axes(lambda x, w: (exchange(x), jax.grad(loss)(x, w)), x, weight)

    def over_tensor(each: np.ndarray) -> np.ndarray:
        return np.broadcast_to(each.sum(axis=0), each.shape)

    spread, slope = value_and_slope(layout.spread)
    np.testing.assert_array_equal(spread, x)
    np.testing.assert_allclose(slope, over_tensor(weight), rtol=1e-14)
    total, slope = value_and_slope(layout.total)
    np.testing.assert_allclose(total, over_tensor(x), rtol=1e-14)
    np.testing.assert_array_equal(slope, weight)


def test_closed_form_gradients_are_summed_over_devices_with_the_same_share_and_no_others() -> None:
    layout = dataclasses.replace(layout_on_four(), data=3)
    slope = {
        "embedding": RNG.normal(size=(3, 2, 8, 16)),
        "norm": {"weight": RNG.normal(size=(3, 2, 16))},
    }
    on_all = jax.vmap(jax.vmap(layout.reduced, axis_name="fsdp"), axis_name="data")
    found = jax.jit(on_all)(slope)
    split, whole = slope["embedding"].sum(axis=0), slope["norm"]["weight"].sum(axis=(0, 1))
    expected = {"embedding": split, "norm": {"weight": whole}}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-13),
        found,
        expected,
    )
