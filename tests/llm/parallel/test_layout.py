"""Sharding plans: equal gradients on every mesh, and shards of parameters on each device."""

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
from llm.parallel.layout import ShardingPlan, make_sharding_plan
from llm.parallel.mesh import mesh_sizes

ROUNDING = 1e-12  # float64 sums in another order
N_PAIRS = 16  # of the script
EIGHT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
}
SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def shapes(**changed: Any) -> nnx.State:
    """Return the shapes of the parameters of a tiny decoder."""
    architecture = Architecture(
        **{**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, **changed}
    )
    return nnx.state(nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0))))


def on_eight_devices(*arguments: str) -> list[dict[str, Any]]:
    """Run the script in a process with eight devices; return its cases."""
    script = Path(__file__).with_name("eight_devices.py")
    process = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, **EIGHT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.parametrize(
    "models",
    [
        ["untied"],
        pytest.param(["adapters", "tied", "indivisible vocabulary"], marks=pytest.mark.slow),
        pytest.param(["olmo and granite", "phi and smollm"], marks=pytest.mark.slow),
        pytest.param(["experts", "experts with biases"], marks=pytest.mark.slow),
        pytest.param(["nf4 base with adapters", "int8 base with adapters"], marks=pytest.mark.slow),
    ],
)
def test_gradient_on_eight_devices_equals_that_on_one_device(models: list[str]) -> None:
    cases = on_eight_devices(*models)
    assert len(cases) >= len(models)
    errors = {case["case"]: max(case["gradient"], case["metrics"]) for case in cases}
    assert max(errors.values()) < ROUNDING, errors


@pytest.mark.slow
def test_gradient_of_losses_of_the_whole_batch_and_of_token_statistics_on_eight_devices() -> None:
    (cases,) = on_eight_devices("objectives")
    of_rows = ["kto on unpaired rows", "plackett_luce on ranked rows"]
    assert sorted(cases) == sorted(["aot", "ld_dpo", "wpo", *of_rows])
    errors = {name: max(case["gradient"], case["metrics"]) for name, case in cases.items()}
    assert max(errors.values()) < ROUNDING, errors


@pytest.fixture(scope="module")
def arrays() -> dict[str, Any]:
    """Return how arrays are placed and summed on a mesh of eight devices."""
    (case,) = on_eight_devices("arrays")
    return case


def test_property_a_model_is_read_onto_a_mesh_shard_by_shard_with_the_same_values(
    arrays: dict[str, Any],
) -> None:
    loaded = arrays["loaded"]
    assert loaded["same"]
    assert loaded["same_codes"]  # of a quantized model
    assert loaded["share"] == 1 / 4  # split over fsdp and tensor, replicated along data
    assert loaded["read_at_once"] <= 1 / 4


def test_closed_form_metrics_are_summed_over_pairs_and_returned_for_each_pair(
    arrays: dict[str, Any],
) -> None:
    pairs = np.arange(N_PAIRS)
    assert arrays["measured"]["sum"] == 3.0 * pairs.sum()
    np.testing.assert_array_equal(np.ravel(arrays["measured"]["per_pair"]), 3.0 * pairs)
    assert arrays["measured"]["gradient"] == pairs.sum()
    assert arrays["measured"]["same"]


def test_closed_form_arrays_are_sharded_by_the_plan_and_copied_to_the_host(
    arrays: dict[str, Any],
) -> None:
    placed = arrays["placed"]
    assert placed["sizes"] == {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
    assert placed["splits"] == ["(('tensor', 'fsdp'), None)", "(None, 'fsdp', 'tensor')", "()"]
    assert placed["shards"] == [[8, 16], [2, 8, 12], [3]]
    assert placed["kernel_split"] == placed["splits"][1]
    assert placed["on_host"]


def test_closed_form_each_device_holds_a_shard_of_every_large_parameter() -> None:
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    parameters = shapes()
    plan = make_sharding_plan(sizes, parameters, head_counts=(4, 2), hidden_size=16)
    on_device, n_parameters = 0, 0
    specs = jax.tree.leaves(plan.partition_specs(parameters), is_leaf=lambda leaf: leaf is None)
    for leaf, spec in zip(jax.tree.leaves(parameters), specs, strict=True):
        names = jax.tree.leaves(tuple(spec))
        parts = int(np.prod([sizes[name] for name in names]))
        assert parts == (4 if leaf.ndim == 3 or leaf.shape == (32, 16) else 1)
        on_device += leaf.size // parts
        n_parameters += leaf.size
    norms = 16 * (2 * 2 + 1)
    assert on_device == norms + (n_parameters - norms) // 4


def test_closed_form_fsdp_takes_the_devices_that_remain() -> None:
    def sizes(data: int | None, fsdp: int | None, tensor: int) -> list[int]:
        return list(mesh_sizes(data=data, fsdp=fsdp, tensor=tensor, devices=8).values())

    assert sizes(None, None, 1) == [1, 8, 1, 1]
    assert sizes(2, None, 2) == [2, 2, 1, 2]
    assert sizes(8, 1, 1) == [8, 1, 1, 1]
    with_experts = mesh_sizes(data=None, fsdp=None, tensor=2, expert=2, devices=8)
    assert list(with_experts.values()) == [1, 2, 2, 2]


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(3, None, 1), (None, 4, 1), (1, 1, 16)])
def test_raises_if_a_mesh_does_not_use_all_devices(
    data: int | None, fsdp: int | None, tensor: int
) -> None:
    with pytest.raises(ValueError, match="`mesh` must use all 8 devices, got data"):
        mesh_sizes(data=data, fsdp=fsdp, tensor=tensor, devices=8)


def test_raises_if_the_tensor_axis_does_not_divide_heads_or_hidden_units() -> None:
    sizes = {"data": 1, "fsdp": 1, "tensor": 4}
    with pytest.raises(ValueError, match=r"`mesh.tensor` must divide the 2 heads, got 4"):
        make_sharding_plan(sizes, shapes(), head_counts=(4, 2), hidden_size=16)
    odd = shapes(intermediate_size=22, num_key_value_heads=4)
    with pytest.raises(
        ValueError, match=r"must divide axis 1 of layers\.down_proj\.kernel.* is 22, got 4"
    ):
        make_sharding_plan(sizes, odd, head_counts=(4, 4), hidden_size=16)


def test_raises_if_the_expert_axis_does_not_divide_the_experts_or_there_are_none() -> None:
    sizes = {"data": 1, "fsdp": 1, "expert": 4, "tensor": 1}
    three = shapes(num_experts=6, num_experts_per_tok=2)
    with pytest.raises(ValueError, match=r"`mesh.expert` must divide axis 1 of layers\.experts"):
        make_sharding_plan(sizes, three, head_counts=(4, 2), hidden_size=16)
    with pytest.raises(ValueError, match=r"`mesh\.expert` must be 1 for a model without experts"):
        make_sharding_plan(sizes, shapes(), head_counts=(4, 2), hidden_size=16)


def test_closed_form_parameters_that_fsdp_does_not_divide_are_replicated() -> None:
    sizes = {"data": 1, "fsdp": 8, "tensor": 1}
    plan = make_sharding_plan(
        sizes, shapes(vocab_size=33, hidden_size=12, head_dim=4), head_counts=(4, 2), hidden_size=12
    )
    assert plan.split_of(("embedding",)) == (None, None)
    assert plan.split_of(("layers", "gate_proj", "kernel")) == (None, None, "tensor")
    assert plan.split_of(("layers", "down_proj", "kernel")) == (None, "tensor", None)


def on_named_axes(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function over ``tensor`` and ``fsdp``, which are named axes of ``vmap`` here."""
    on_all = jax.vmap(jax.vmap(function, axis_name="fsdp"), axis_name="tensor")
    return jax.jit(on_all)(*arguments)


def split_array(leaf: np.ndarray, spec: Any, sizes: dict[str, int]) -> np.ndarray:
    """Return the shards of an array by its split, ``[tensor, fsdp, ...]``."""
    shards = []
    for tensor in range(sizes["tensor"]):
        for fsdp in range(sizes["fsdp"]):
            coordinates, shard = {"tensor": tensor, "fsdp": fsdp}, leaf
            for axis, over in enumerate(spec):
                for name in () if over is None else (over,) if isinstance(over, str) else over:
                    shard = np.split(shard, sizes[name], axis)[coordinates[name]]
            shards.append(shard)
    return np.stack(shards).reshape(sizes["tensor"], sizes["fsdp"], *shards[0].shape)


ON_FOUR = {"data": 1, "fsdp": 2, "tensor": 2}
RNG = np.random.default_rng(0)


def plan_on_four(**changed: Any) -> ShardingPlan:
    return make_sharding_plan(ON_FOUR, shapes(**changed), head_counts=(4, 2), hidden_size=16)


def test_closed_form_fsdp_gather_leaves_the_shards_along_tensor() -> None:
    plan = plan_on_four()
    whole = {
        "up_proj": {"kernel": RNG.normal(size=(16, 24))},
        "down_proj": {"kernel": RNG.normal(size=(24, 16))},
        "mlp_norm": {"weight": RNG.normal(size=16)},
    }

    def shards(name: str, kind: str) -> np.ndarray:
        return split_array(whole[name][kind], plan.split_of(("layers", name, kind))[1:], ON_FOUR)

    slices = {name: {kind: shards(name, kind) for kind in of} for name, of in whole.items()}
    gathered = on_named_axes(lambda slices: plan.fsdp_gather(slices, jnp.float32), slices)
    for tensor in range(2):
        for fsdp in range(2):
            local = jax.tree.map(lambda leaf, at=(tensor, fsdp): np.asarray(leaf[at]), gathered)
            half = slice(12 * tensor, 12 * tensor + 12)
            up, down = whole["up_proj"]["kernel"][:, half], whole["down_proj"]["kernel"][half]
            np.testing.assert_array_equal(local["up_proj"]["kernel"], up.astype(np.float32))
            np.testing.assert_array_equal(local["down_proj"]["kernel"], down.astype(np.float32))
            np.testing.assert_array_equal(local["mlp_norm"]["weight"], whole["mlp_norm"]["weight"])


@pytest.mark.parametrize("vocab_size", [32, 33])
def test_closed_form_embed_looks_tokens_up_in_all_vocabulary_shards(vocab_size: int) -> None:
    plan = plan_on_four(vocab_size=vocab_size)
    table = RNG.normal(size=(vocab_size, 16))
    tokens = np.broadcast_to(RNG.integers(0, vocab_size, (1, 2, 3, 5)), (2, 2, 3, 5))
    shard = split_array(table, plan.split_of(("embedding",)), ON_FOUR)
    assert shard.shape[2] == (8 if vocab_size == 32 else 33)
    embedded = on_named_axes(lambda t, ids: plan.embed(t, ids, jnp.float64), shard, tokens)
    np.testing.assert_array_equal(embedded, table[tokens])


def test_gradient_of_tp_broadcast_is_summed_and_that_of_tp_reduce_is_copied() -> None:
    plan = plan_on_four()
    x, weight = RNG.normal(size=(2, 2, 2, 3))

    def value_and_gradient(collective: Callable[..., Any]) -> Any:
        def loss(x: Any, weight: Any) -> Any:
            return jnp.vdot(weight, collective(x))

        return on_named_axes(lambda x, w: (collective(x), jax.grad(loss)(x, w)), x, weight)

    def sum_over_tensor(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values.sum(axis=0), values.shape)

    value, gradient = value_and_gradient(plan.tp_broadcast)
    np.testing.assert_array_equal(value, x)
    np.testing.assert_allclose(gradient, sum_over_tensor(weight), rtol=1e-14)
    value, gradient = value_and_gradient(plan.tp_reduce)
    np.testing.assert_allclose(value, sum_over_tensor(x), rtol=1e-14)
    np.testing.assert_array_equal(gradient, weight)


def test_closed_form_gradients_are_summed_over_devices_with_the_same_shard_only() -> None:
    plan = dataclasses.replace(plan_on_four(), data=3)
    gradients = {
        "embedding": RNG.normal(size=(3, 2, 1, 8, 16)),
        "norm": {"weight": RNG.normal(size=(3, 2, 1, 16))},
    }
    on_all = plan.reduce_gradients
    for axis in ("expert", "fsdp", "data"):
        on_all = jax.vmap(on_all, axis_name=axis)
    reduced = jax.jit(on_all)(gradients)
    split = gradients["embedding"].sum(axis=0)
    whole = gradients["norm"]["weight"].sum(axis=(0, 1, 2))
    expected = {"embedding": split, "norm": {"weight": whole}}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-13),
        reduced,
        expected,
    )


def test_closed_form_the_vocabulary_is_split_over_the_axes_of_its_first_dimension() -> None:
    plan = plan_on_four()
    split = plan.split_of(("embedding",))
    assert plan.vocab_axes("embedding") == split[0] != ()
    assert ShardingPlan().vocab_axes("embedding") == ()
