"""Adapters on any mesh: the losses and the first update of one device, to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "rounding", "agreement"),
    [
        ([], 2.0**-8, 0.97),  # bfloat16 has 8 bits
        (["nf4"], 2.0**-8, 0.97),
        (["float32"], 1e-5, 0.999),
    ],
    ids=["bfloat16", "nf4", "float32"],
)
def test_property_adapters_train_alike_on_every_mesh(
    arguments: list[str], rounding: float, agreement: float
) -> None:
    """Losses at each of ten steps; in bfloat16 the sign of a tiny gradient may differ."""
    script = Path(__file__).with_name("eight_devices_lora.py")
    process = subprocess.run(
        [sys.executable, script, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    one, *meshes = map(json.loads, process.stdout.splitlines())
    assert len(meshes) == 4
    losses = np.array([mesh["losses"] for mesh in meshes])
    assert losses.shape == (4, 10)
    assert one["losses"][-1] < 0.9 * one["losses"][0]  # it trains
    np.testing.assert_allclose(losses, np.tile(one["losses"], (4, 1)), rtol=rounding)
    assert min(mesh["sign_agreement"] for mesh in meshes) >= agreement
