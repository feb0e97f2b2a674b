"""Memory plans: bytes counted by hand, unknown slices, and plans of the TPU compiler."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from llm.config import DataConfig, MeshConfig, ModelConfig, TrainConfig, TrainerConfig
from llm.hf.factory import resolve_model
from llm.train.memory_plan import largest_fitting_plan, make_plan
from llm.train.planned_step import PlannedStep, count_parameters, estimate_peak_bytes
from llm.train.topology import GPU_MEMORY
from llm.train.tpu_compiler import GIB

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
}
TPU = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`: the TPU's compiler"
)
SHAPES = Path(__file__).resolve().parents[3] / "configs" / "shapes"


def config(pairs: int = 2, mesh: MeshConfig | None = None, **model: Any) -> TrainConfig:
    architecture = {**SIZES, "num_attention_heads": 2, "head_dim": 128}
    asked: dict[str, Any] = {"architecture": architecture, "dtype": "bfloat16", "remat": "full"}
    return TrainConfig(
        name="plan",
        model=ModelConfig(**{**asked, **model}),
        data=DataConfig(train="rows.jsonl", max_length=256, max_prompt_length=128),
        trainer=TrainerConfig(per_device_train_batch_size=pairs),
        mesh=mesh or MeshConfig(),
    )


def test_closed_form_parameters_moments_tokens_and_work_are_counted() -> None:
    plan = make_plan(config(), "h100:8")
    kernels = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    norms = (2 * 2 + 1) * 256
    shared = kernels + 2 * 512 * 256  # input and output embedding, split over all devices
    assert plan.parameter_bytes_per_device == 4 * (shared // 8 + norms)
    assert 0 <= plan.optimizer_bytes_per_device - 2 * plan.parameter_bytes_per_device <= 64
    assert plan.tokens_per_step == 8 * 2 * (128 + 2 * 128)
    assert plan.flops_per_step == 6 * 16 * (384 * (kernels + norms) + 256 * 512 * 256)
    assert (plan.compiled, plan.fits, plan.devices) == (False, True, 8)
    assert plan.limit_bytes_per_device == int(GPU_MEMORY["h100"] * GIB)


def test_property_estimates_grow_with_pairs_and_shrink_with_remat_and_adapters() -> None:
    def peak(pairs: int, **model: Any) -> int:
        found = make_plan(config(pairs, **model), "h100:1").peak_bytes_per_device
        assert found is not None
        return found

    assert peak(4) < peak(8) < peak(16)
    assert peak(64) < peak(64, remat="dots") < peak(64, remat="none")
    assert peak(2, lora_r=4) < peak(2)


def test_closed_form_the_search_ends_when_one_more_pair_does_not_fit() -> None:
    large = config(path=str(SHAPES / "llama_3_8b"), architecture=None)
    best = largest_fitting_plan(large, "a100-40:8")
    assert best is not None
    assert best.fits
    more = config(best.pairs_per_device + 1, path=str(SHAPES / "llama_3_8b"), architecture=None)
    assert best.pairs_per_device == 64 or not make_plan(more, "a100-40:8").fits
    assert largest_fitting_plan(large, "l40s:1") is None


def test_closed_form_the_search_over_lengths_ends_within_a_sixteenth() -> None:
    large = config(8, path=str(SHAPES / "llama_3_8b"), architecture=None, lora_r=4)
    best = largest_fitting_plan(large, "l40s:2", quantity="max_length")
    assert best is not None
    assert best.fits
    assert (best.pairs_per_device, best.hosts, best.accelerator_type) == (8, 1, None)
    assert best.max_length % 128 == 0
    longer = dataclasses.replace(large.data, max_length=best.max_length * 17 // 16)
    assert not make_plan(dataclasses.replace(large, data=longer), "l40s:2").fits


def test_closed_form_the_data_axis_goes_across_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)  # estimates are enough
    plan = make_plan(config(), "v6e-8", slices=2)
    assert (plan.devices, plan.slices, plan.hosts, plan.pairs_per_step) == (16, 2, 2, 32)
    one = make_plan(config(), "v6e-8")
    assert plan.parameter_bytes_per_device == one.parameter_bytes_per_device
    with pytest.raises(ValueError, match=r"`mesh\.data` must be a multiple of the 2 slices"):
        make_plan(config(mesh=MeshConfig(data=1)), "v6e-8", slices=2)


@pytest.mark.parametrize(("kind", "bits"), [("int8", 8.5), ("nf4", 4.5)])
def test_closed_form_a_quantized_base_counts_its_codes_and_scales(kind: str, bits: float) -> None:
    adapted: dict[str, Any] = {"lora_r": 4, "base_dtype": "bfloat16"}
    quantized = planned_step(config(quantization=kind, **adapted), 1)
    dense = planned_step(config(**adapted), 1)
    kernels = 2 * (4 * 256 * 256 + 3 * 256 * 512)
    saved = dense.bytes_of(dense.frozen) - quantized.bytes_of(quantized.frozen)
    assert saved == kernels * (16 - bits) / 8
    assert count_parameters(quantized.frozen) == count_parameters(dense.frozen)
    assert quantized.flops(10, 3) == dense.flops(10, 3)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v99:4x4", "must be one of v4:AxBxC"),
        ("v5e", "must be one of"),
        ("v5e:4x", "must be one of"),
        ("h100:3", "`mesh` must use all 3 devices"),
    ],
)
def test_raises_for_unknown_slices_and_meshes_that_leave_devices_idle(
    topology: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(config(mesh=MeshConfig(data=2, fsdp=1)), topology)


@TPU
def test_golden_a_small_step_is_compiled_for_a_tpu_slice_with_its_kernel() -> None:
    with jax.numpy_dtype_promotion("standard"):  # Pallas' kernel needs it
        plan = make_plan(config(), "v5e:2x2")
    assert (plan.compiled, plan.fits, plan.devices) == (True, True, 4)
    assert plan.peak_bytes_per_device is not None
    held = plan.parameter_bytes_per_device + plan.optimizer_bytes_per_device
    assert held < plan.peak_bytes_per_device < 64 * held
    assert plan.collective_bytes_per_device


@TPU
def test_raises_a_slice_that_the_compiler_does_not_know() -> None:
    with pytest.raises(ValueError, match="the TPU compiler rejects v5e:3x5"):
        make_plan(config(), "v5e:3x5")


def planned_step(run: TrainConfig, n_devices: int) -> PlannedStep:
    return PlannedStep(run, resolve_model(run.model), n_devices)


def test_closed_form_a_step_as_shapes_counts_devices_bytes_and_work() -> None:
    step = planned_step(config(mesh=MeshConfig(data=2, fsdp=4, tensor=2)), 16)
    assert step.n_devices == 16
    kernel = jax.ShapeDtypeStruct((2, 256, 512), jnp.bfloat16)
    assert step.bytes_of({"layers": {"up_proj": {"kernel": kernel}}}) == 2 * 2 * 256 * 512 // (
        4 * 2
    )
    norm = jax.ShapeDtypeStruct((256,), jnp.float32)
    assert step.bytes_of({"norm": {"weight": norm}}) == 4 * 256
    layers = 2 * (4 * 256 * 256 + 3 * 256 * 512) + (2 * 2 + 1) * 256
    assert step.flops(10, 3) == 6 * (10 * layers + 3 * 512 * 256)
    assert step.flops(10, 0) == 60 * layers


def test_closed_form_a_token_is_served_by_its_experts_only() -> None:
    run = config()
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
    experts |= {"model_type": "mixtral"}
    model = dataclasses.replace(
        run.model, architecture={**(run.model.architecture or {}), **experts}
    )
    step = planned_step(dataclasses.replace(run, model=model, mesh=MeshConfig(expert=4)), 4)
    layers = 2 * (4 * 256 * 256 + 8 * 256 + 2 * 3 * 256 * 512) + (2 * 2 + 1) * 256
    assert step.flops(10, 0) == 60 * layers
    kernel = jax.ShapeDtypeStruct((2, 8, 256, 512), jnp.float32)
    tree = {"layers": {"experts": {"up_proj": {"kernel": kernel}}}}
    assert step.bytes_of(tree) == 4 * 2 * 8 * 256 * 512 // 4


def test_closed_form_the_peak_holds_parameters_moments_gradients_a_layer_and_logits() -> None:
    step = planned_step(config(dtype="float32", remat="full"), 1)
    held = step.bytes_of((step.trainable, step.state.optimizer_state))
    gradients = step.bytes_of(step.trainable)
    of_layer = 10 * 4 * (6 * 256 + 2 * (2 + 2 * 2) * 128 + 4 * 512)
    kept = 10 * 4 * 2 * 256
    peak = estimate_peak_bytes(step, 10, 3)
    assert peak == held + gradients + of_layer + kept + 3 * 4 * 3 * 512
