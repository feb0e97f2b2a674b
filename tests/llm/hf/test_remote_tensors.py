"""Tensors in a bucket are those that safetensors reads, and only the bytes of a slice travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm.hf import remote_tensors
from llm.hf.remote_tensors import RemoteTensors
from llm.hf.safetensors import SafetensorsReader, write_safetensors_file
from rpo_io import object_stores
from rpo_io.locations import Location, parse_location
from rpo_io.object_stores import list_objects, stat_object
from rpo_io.staging import stage_folder
from tests.fake_gcs import FakeGcs, Fault

RNG = np.random.default_rng(0)
TENSORS: dict[str, Any] = {
    "matrix": RNG.normal(size=(7, 6)).astype(np.float32),
    "half": RNG.normal(size=(3, 2, 5)).astype(ml_dtypes.bfloat16),
    "vector": RNG.normal(size=9),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "ids": np.arange(5, dtype=np.int64),
}
PARTS = [
    *((slice(None), slice(None)), (slice(2, 5), slice(None)), (slice(None), slice(1, 3))),
    *((slice(6, 7), slice(0, 1)), (slice(3, 3), slice(None))),
]


@pytest.fixture
def file(gcs: FakeGcs, tmp_path: Path) -> Path:
    """Upload one file of tensors; return the local one."""
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    gcs.write("bucket/m/model.safetensors", path.read_bytes())
    return path


def remote() -> RemoteTensors:
    return RemoteTensors(stat_object(Location("gs", "bucket/m/model.safetensors")))


def test_parity_tensors_and_slices_are_those_of_the_safetensors_library(
    file: Path, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with safe_open(file, framework="np") as local, remote() as tensors:
        assert tensors.keys() == sorted(local.keys())
        assert tensors.metadata() == local.metadata() == {"format": "pt"}
        for name in TENSORS:
            ours, theirs = tensors.get_slice(name), local.get_slice(name)
            assert ours.get_dtype() == theirs.get_dtype()
            assert ours.get_shape() == theirs.get_shape()
            read = tensors.get_tensor(name)
            assert read.dtype == TENSORS[name].dtype
            np.testing.assert_array_equal(read, TENSORS[name], strict=True)
        for block in (10**6, 50):  # all rows in one block, and two rows in a block
            monkeypatch.setattr(remote_tensors, "BLOCK_BYTES", block)
            for part in PARTS:
                found = tensors.get_slice("matrix")[part]
                np.testing.assert_array_equal(found, TENSORS["matrix"][part], strict=True)


def test_closed_form_only_the_rows_of_a_slice_are_read(
    file: Path, gcs: FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = object_stores.read_range
    monkeypatch.setattr(
        object_stores, "read_range", lambda source, a, b: sizes.append(b - a) or read(source, a, b)
    )
    tensors = remote()
    tensors.get_slice("matrix")[2:5, :]
    assert sum(sizes) == 3 * 6 * 4  # rows, columns, bytes


def test_raises_for_headers_that_do_not_fit_the_file(file: Path, gcs: FakeGcs) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])

    def with_header(changed: Any) -> bytes:
        text = json.dumps(changed).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    matrix = header["matrix"]
    negative = {**matrix, "data_offsets": [-4, 164]}
    wrong = [
        *(b"", content[:7], content[: 8 + length - 1], content[:-1], content + b"x"),
        *((2**62).to_bytes(8, "little"), with_header([]), with_header({"matrix": 1})),
        with_header(header | {"matrix": {**matrix, "shape": [7, 7]}}),
        with_header(header | {"matrix": negative}),
        with_header({name: fields for name, fields in header.items() if name != "ids"}),
    ]
    for damaged in wrong:
        gcs.write("bucket/m/model.safetensors", damaged)
        with pytest.raises(SafetensorError):
            remote()
        file.write_bytes(damaged)
        with pytest.raises((SafetensorError, OSError)):
            safe_open(file, framework="np")


def test_raises_when_the_file_is_replaced_or_a_tensor_is_damaged(
    gcs: FakeGcs, tmp_path: Path
) -> None:
    write_safetensors_file(tmp_path / "model.safetensors", {"a": TENSORS["matrix"]})
    gcs.write("bucket/m/model.safetensors", (tmp_path / "model.safetensors").read_bytes())
    folder = parse_location("gs://bucket/m")
    with SafetensorsReader(stage_folder(folder, [], list_objects(folder))) as reader:
        assert (reader.read("a", (7, 6)) == TENSORS["matrix"]).all()
        gcs.faults = lambda request: Fault("flipped") if request.is_media else None
        with pytest.raises(ValueError, match=r"is damaged: tensor a is not the one"):
            reader.read("a", (7, 6))
        gcs.faults = None
        gcs.write("bucket/m/model.safetensors", b"other")
        with pytest.raises(ValueError, match=r"model\.safetensors was changed by another process"):
            reader.read("a", (7, 6))
