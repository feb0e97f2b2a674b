"""Names of slices: chips and hosts behind Google Cloud's names, and names that are refused."""

from __future__ import annotations

import math

import pytest

from llm.train.topology import CUBES, SQUARES, known_topologies, parse_topology


@pytest.mark.parametrize(
    ("name", "shape", "chips", "hosts"),
    [
        ("v5litepod-4", "v5e:2x2", 4, 1),
        ("v5litepod-8", "v5e:2x4", 8, 1),
        ("v5litepod-16", "v5e:4x4", 16, 4),
        ("v5litepod-256", "v5e:16x16", 256, 64),
        ("v6e-1", "v6e:1x1", 1, 1),
        ("v6e-8", "v6e:2x4", 8, 1),
        ("v6e-64", "v6e:8x8", 64, 16),
        ("v5p-8", "v5p:2x2x1", 4, 1),
        ("v5p-128", "v5p:4x4x4", 64, 16),
        ("v4-32", "v4:2x2x4", 16, 4),
    ],
)
def test_closed_form_v4_and_v5p_count_two_cores_of_a_chip(
    name: str, shape: str, chips: int, hosts: int
) -> None:
    topology = parse_topology(name)
    assert (topology.name, topology.devices, topology.hosts) == (shape, chips, hosts)
    assert topology.accelerator_type == name
    assert parse_topology(shape) == topology


def test_property_every_shape_has_its_number_of_chips() -> None:
    for shapes in (SQUARES, CUBES):
        for chips, shape in shapes.items():
            assert math.prod(map(int, shape.split("x"))) == chips


def test_closed_form_slices_multiply_devices_and_hosts() -> None:
    topology = parse_topology("v5litepod-16", slices=3)
    assert (topology.devices, topology.hosts, topology.slices) == (48, 12, 3)
    gpus = parse_topology("h100:12")
    assert (gpus.devices, gpus.hosts, gpus.accelerator_type) == (12, 2, None)
    assert (topology.is_tpu, gpus.is_tpu) == (True, False)
    assert topology.limit_bytes == int(15.75 * 2**30)
    assert parse_topology("v5e:4x2").accelerator_type is None


@pytest.mark.parametrize(
    "name",
    [
        *("v5p-7", "v5p-12", "v4-1", "v5p--8", "v5litepod-3", "v5litepod-016x", "v5e-16"),
        *("v6e-", "v6e-8.0", "v5e:4x4x4", "v5p:4x4", "v5e:0x4", "h100:2x2", ""),
    ],
)
def test_raises_with_the_known_names_of_both_kinds(name: str) -> None:
    with pytest.raises(ValueError, match="must be one of v4:AxBxC") as caught:
        parse_topology(name)
    assert known_topologies() in str(caught.value)
    assert "v5litepod-1|4|8|16" in str(caught.value)


def test_raises_for_slices_of_gpus_and_for_no_slice() -> None:
    with pytest.raises(ValueError, match="`slices` must be 1 for GPUs, got 2"):
        parse_topology("h100:8", slices=2)
    with pytest.raises(ValueError, match="`slices` must be a whole number from 1"):
        parse_topology("v6e-8", slices=0)
