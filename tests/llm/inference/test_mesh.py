"""Scores, replies and memory of models on meshes of eight devices, against one device."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FLOAT64, FLOAT32 = 1e-9, 1e-5  # relative differences of sums in another order
EIGHT = {
    "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
}
BUDGET = 4 * 2**20
"""Bytes of memory of a simulated device."""


def on_eight_devices(*arguments: str) -> dict[str, Any]:
    """Run the script in a process with eight devices; return its case."""
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("eight_devices.py"), *arguments],
        env={**os.environ, **EIGHT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "mesh", "prompts"),
    [
        ("untied", "tensor 2 x fsdp 4", "100"),
        ("tied", "data 2 x fsdp 2 x tensor 2", "20"),
        ("indivisible vocabulary", "tensor 2 x fsdp 4", "20"),
        ("adapters", "tensor 2 x fsdp 4", "20"),
        ("sinks", "data 2 x fsdp 2 x tensor 2", "20"),
        ("experts", "fsdp 2 x expert 2 x tensor 2", "20"),
    ],
)
def test_parity_scores_and_replies_on_eight_devices_and_on_one(
    model: str, mesh: str, prompts: str
) -> None:
    case = on_eight_devices(model, mesh, prompts)
    assert case["score float64"] < FLOAT64
    assert case["score float32"] < FLOAT32
    assert case["greedy"]
    assert case["sampled"]
    # The replies differ, so that a wrong order of rows would be seen.
    assert min(case["greedy replies"], case["sampled replies"]) > 0.6 * int(prompts)


def test_property_a_model_larger_than_a_device_is_loaded_scored_and_sampled() -> None:
    peaks = on_eight_devices("memory")
    assert peaks["parameters"] > 2 * BUDGET
    assert peaks["loaded"] < peaks["parameters"] / 7  # a shard each; norms are whole
    assert peaks["scored"] < BUDGET
    assert peaks["sampled"] < BUDGET
