"""Commands whose configuration, data and models lie in buckets: the same numbers, no litter."""

from __future__ import annotations

import itertools
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pyarrow
import pytest
from flax import nnx
from pyarrow import parquet

from llm.hf.io import export_model
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from rpo.cli import main
from rpo_io import object_stores
from tests.fake_gcs import FakeGcs, Fault
from tests.fake_s3 import FakeS3

SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
}
RUN = """
name: bucket
model: {{path: {root}model}}
data: {{train: [{root}rows.jsonl], eval: "{root}held*.parquet", tokenizer: bytes, max_length: 16}}
objective: {{method: rpo, beta: 0.5, eta: 0.05}}
trainer: {{max_steps: 2, per_device_train_batch_size: 2}}
"""
ROWS = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(4)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, rows and prompts."""
    folder = tmp_path_factory.mktemp("inputs")
    with jax.numpy_dtype_promotion("strict"):
        decoder = Decoder(Architecture(**SIZES, num_attention_heads=2), rngs=nnx.Rngs(0))
        export_model(decoder, folder / "model", max_file_bytes=5000)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    held = [{"prompt": f"h{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(held), folder / "held.parquet")
    return folder


@pytest.fixture(params=["gs", "s3"])
def bucket(request: pytest.FixtureRequest, inputs: Path) -> tuple[str, FakeGcs | FakeS3]:
    """Upload the inputs; return the root of their locations, and the server."""
    server = request.getfixturevalue("gcs" if request.param == "gs" else "s3")
    root = f"{request.param}://bucket/work/"
    for path in inputs.rglob("*"):
        if path.is_file():
            server.write(f"bucket/work/{path.relative_to(inputs)}", path.read_bytes())
    server.write("bucket/work/run.yaml", RUN.format(root=root).encode())
    return root, server


@pytest.fixture
def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give temporary files a folder, which must be empty at the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    yield folder
    assert list(folder.glob("rpo-staged-*")) == []


Call = Callable[..., str]


@pytest.fixture
def ended(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command and returns its exit code and stderr."""

    def call(*arguments: str) -> tuple[int, str]:
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            code = main([str(argument) for argument in arguments])
        return code, capfd.readouterr().err

    return call


@pytest.fixture
def command(ended: Callable[..., tuple[int, str]]) -> Call:
    """Return a function that runs a command, checks its exit code and returns its stderr."""

    def call(*arguments: str, code: int = 0) -> str:
        found, text = ended(*arguments)
        assert found == code, text
        return text

    return call


def digest_of(folder: Path) -> str:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["parameters_sha256"]


@pytest.mark.slow
def test_property_a_run_from_a_bucket_trains_the_same_parameters(
    bucket: Any, inputs: Path, staged: Path, tmp_path: Path, command: Call
) -> None:
    root, _ = bucket
    (tmp_path / "run.yaml").write_text(RUN.format(root=f"file://{inputs}/"))
    command("train", f"file://{tmp_path}/run.yaml", "--out", "local")
    text = command("train", f"{root}run.yaml", "--out", "remote")
    assert digest_of(tmp_path / "remote") == digest_of(tmp_path / "local")
    weights = sum(path.stat().st_size for path in inputs.glob("model/*.safetensors"))
    assert re.search(rf"{root}model: \d files? of .* copied to .*; {weights / 1024:.1f} KiB", text)
    assert f"{root}rows.jsonl: 1 file of " in text
    assert str(staged) not in text.replace(f"copied to {staged}", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("local", "remote", "run.yaml", "temporary")
    ]


def test_property_scores_and_replies_from_a_bucket_are_those_of_local_files(
    bucket: Any, inputs: Path, staged: Path, tmp_path: Path, command: Call
) -> None:
    root, _ = bucket
    written = {}
    for name, source in (("local", f"{inputs}/"), ("remote", root)):
        options = ["--model", f"{source}model", "--tokenizer", "bytes"]
        options += ["--data", f"{source}rows.jsonl"]
        command("score", *options, "--out", f"{name}.jsonl")
        command("generate", *options, "--out", f"{name}-r.jsonl", "--max-new-tokens", "2")
        written[name] = [(tmp_path / f"{name}{end}.jsonl").read_bytes() for end in ("", "-r")]
    assert written["remote"] == written["local"]


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_raises_in_one_line_before_any_work(
    scheme: str, request: pytest.FixtureRequest, inputs: Path, staged: Path, command: Call
) -> None:
    server = request.getfixturevalue("gcs" if scheme == "gs" else "s3")
    model, out = f"{inputs}/model", ["--tokenizer", "bytes", "--out", "scores.jsonl"]
    cases = [
        ("score", "--model", model, "--data", f"{scheme}://absent/rows.jsonl", *out),
        ("score", "--model", f"{scheme}://absent/model", "--data", f"{inputs}/rows.jsonl", *out),
        ("train", f"{scheme}://absent/run.yaml", "--out", "run"),
    ]
    for case in cases:
        text = command(*case, code=2)
        assert text.count("\n") == 1
        assert f"{scheme}://absent: there is no such bucket" in text
    text = command("train", f"{scheme}://bucket/run.yaml", "--out", "run", code=2)
    assert text == f"rpo: error: {scheme}://bucket/run.yaml does not exist\n"
    text = command("train", "ftp://host/run.yaml", "--out", "run", code=2)
    assert "ftp://host/run.yaml: the scheme must be one of gs://" in text
    server.write("bucket/run.yaml", b"name: a\nmodelx: {}\n")
    text = command("train", f"{scheme}://bucket/run.yaml", "--out", "run", code=2)
    assert text.startswith(f"rpo: error: {scheme}://bucket/run.yaml: unknown key `modelx`")
    server.write("bucket/rows.jsonl", b'{"prompt": "a"}\n')
    bad = f"{scheme}://bucket/rows.jsonl"
    text = command("score", "--model", model, "--data", bad, *out, code=2)
    assert f"rpo: error: {bad}:1: field `chosen` is missing" in text
    assert not Path("run").exists()
    assert not Path("scores.jsonl").exists()


def test_raises_in_one_line_when_the_store_goes_away_while_weights_are_read(
    gcs: FakeGcs,
    inputs: Path,
    staged: Path,
    command: Call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 0.5)
    for path in (inputs / "model").iterdir():
        gcs.write(f"bucket/model/{path.name}", path.read_bytes())
    reads = []

    def hook(request: Any) -> Fault | None:
        if request.is_media and request.name.endswith("safetensors"):
            reads.append(request)
        return Fault("gone") if len(reads) > 6 else None

    gcs.faults = hook
    arguments = ["--data", f"{inputs}/rows.jsonl", "--tokenizer", "bytes", "--out", "s.jsonl"]
    text = command("score", "--model", "gs://bucket/model", *arguments, code=2)
    assert re.search(r"rpo: error: gs://bucket/model/\S+: Google Cloud Storage cannot be", text)
    assert not Path("s.jsonl").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_property_a_hundred_failed_requests_change_no_number(
    bucket: Any, inputs: Path, staged: Path, tmp_path: Path, command: Call
) -> None:
    root, server = bucket
    (tmp_path / "run.yaml").write_text(RUN.format(root=f"{inputs}/"))
    command("train", "run.yaml", "--out", "local")
    draw, injected = random.Random(0), []
    kinds = [
        *(("status", status) for status in (429, 500, 503)),
        *(("truncated", 0), ("short", 0), ("gone", 0), ("slow", 0.1)),
    ]

    def hook(*request: Any) -> Fault | None:
        if draw.random() < 0.4:
            injected.append(draw.choice(kinds))
            return Fault(*injected[-1])
        return None

    server.faults = hook
    for index in itertools.count():
        command("train", f"{root}run.yaml", "--out", f"remote{index}")
        assert digest_of(tmp_path / f"remote{index}") == digest_of(tmp_path / "local")
        if len(injected) >= 100:
            break


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_raises_in_one_line_wherever_the_store_goes_away(
    bucket: Any, staged: Path, tmp_path: Path, ended: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, server = bucket
    monkeypatch.setattr(object_stores, "RETRY_SECONDS", 0.5)
    n_requests = limit = ends = 0

    def hook(*request: Any) -> Fault | None:
        nonlocal n_requests
        n_requests += 1
        return Fault("gone") if n_requests > limit else None

    server.faults = hook
    for limit in range(0, 200, 7):  # read by the hook
        n_requests = 0
        ends, text = ended("train", f"{root}run.yaml", "--out", f"run{limit}")
        if ends == 0:
            break
        assert ends == 2
        *before, error = text.splitlines()
        assert error.startswith(f"rpo: error: {root.removesuffix('/work/')}")
        assert not [line for line in before if "rpo: error" in line or "Traceback" in line]
        assert not (tmp_path / f"run{limit}").exists()
        assert list(staged.glob("rpo-staged-*")) == []
    assert ends == 0
    assert limit > 20
