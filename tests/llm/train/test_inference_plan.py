"""Plans of scoring and generation, and the compiler of slices that are not present."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from llm.config import MeshConfig, ModelConfig
from llm.hf.factory import resolve_model
from llm.train.inference_plan import plan_inference
from llm.train.tpu_compiler import compile_program, tpu_devices

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
needs_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `tpu`"
)


def test_raises_for_what_cannot_be_compiled() -> None:
    model = resolve_model(ModelConfig(architecture=SIZES))
    numbers = {"rows_per_device": 1, "prompt_tokens": 8, "response_tokens": 8}
    with pytest.raises(ValueError, match="a slice of v4, v5e, v5p, v6e, got h100:8"):
        plan_inference(model, MeshConfig(), "h100:8", "score", **numbers)


def test_closed_form_a_program_that_fits_has_a_peak() -> None:
    compiled = compile_program(jax.jit(jnp.square).lower(jnp.ones(1024, jnp.float32)))
    assert compiled.program is not None
    assert compiled.peak_bytes is not None
    assert compiled.peak_bytes >= 4096


@needs_tpu
@pytest.mark.slow
@pytest.mark.parametrize("workload", ["score", "generate"])
def test_golden_a_small_batch_is_compiled_for_a_slice(workload: str) -> None:
    assert len(tpu_devices("v5e:4x4")) == 16
    model = resolve_model(ModelConfig(architecture=SIZES, dtype="bfloat16"))
    plan = plan_inference(
        model,
        MeshConfig(fsdp=8, tensor=2),
        "v5e:4x4",
        workload,  # pyright: ignore[reportArgumentType]
        rows_per_device=4,
        prompt_tokens=128,
        response_tokens=128,
    )
    assert plan.fits
    assert plan.peak_bytes_per_device is not None
    held = plan.parameter_bytes_per_device + plan.cache_bytes_per_device
    assert held < plan.peak_bytes_per_device < 2**30
    slots = 0 if workload == "score" else 2 * 2 * 4 * 256 * 1 * 64 * 2
    assert plan.cache_bytes_per_device == slots
