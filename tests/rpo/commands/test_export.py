"""Claims about ``rpo export``: it writes exactly the parameters of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from llm.hashing import weights_digest
from llm.hf.io import load_model
from llm.models.lora import trainable_filter
from rpo.cli import main

CONFIG = """
name: tiny
model:
  architecture: {vocab_size: 261, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1,
                 num_attention_heads: 2}
data: {train: rows.jsonl, tokenizer: bytes, max_length: 64}
objective: {method: rpo, beta: 0.1, eta: 1.0}
optimizer: {learning_rate: 0.01}
trainer: {max_steps: 2, save_steps: 1, per_device_train_batch_size: 4}
"""
ADAPTERS = ["--model.lora_r", "2"]
ROWS = [{"prompt": f"say {i}", "chosen": "yes", "rejected": "no"} for i in range(4)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train twice: all parameters, and LoRA adapters only."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "tiny.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("strict"):
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "--out", "full"]) == 0
        assert main(["train", "tiny.yaml", "--out", "adapters", *ADAPTERS]) == 0
    return folder


@pytest.fixture
def folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(runs)
    return runs


def test_roundtrip_exported_parameters_are_those_of_the_end_of_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "full", "--out", "policy"]) == 0
    assert "written to policy: the policy after step 2" in capsys.readouterr().out
    last = json.loads((folder / "full" / "metrics.jsonl").read_text().splitlines()[-1])
    with jax.enable_x64(False):
        decoder = load_model(folder / "policy")
        _, trainable, frozen = nnx.split(decoder, trainable_filter(decoder), ...)
        assert weights_digest((trainable, frozen)) == last["parameters_sha256"]


def test_property_an_earlier_step_and_another_dtype_may_be_exported(folder: Path) -> None:
    assert main(["export", "full", "--out", "earlier", "--step", "1"]) == 0
    assert main(["export", "full", "--out", "later"]) == 0
    assert main(["export", "full", "--out", "narrow", "--dtype", "bfloat16"]) == 0
    with jax.enable_x64(False):
        earlier, later, narrow = (
            np.asarray(load_model(folder / name).embedding[...])
            for name in ("earlier", "later", "narrow")
        )
    assert not np.array_equal(earlier, later)
    # A bfloat16 has eight bits of precision.
    np.testing.assert_allclose(narrow, later, rtol=2.0**-8)
    assert json.loads((folder / "narrow" / "config.json").read_text())["dtype"] == "bfloat16"


def test_roundtrip_adapters_are_merged_into_the_weights(folder: Path) -> None:
    assert main(["export", "adapters", "--out", "merged"]) == 0
    data = ["--tokenizer", "bytes", "--data", "rows.jsonl", "--out"]
    assert main(["score", "--model", "merged", *data, "scores.jsonl"]) == 0
    lines = (folder / "adapters" / "metrics.jsonl").read_text().splitlines()
    before = json.loads(lines[0])["logps/chosen"]
    scores = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    # Two steps of RPO on a handful of rows raise the log-probability.
    assert np.mean([score["chosen_logp"] for score in scores]) > before


BAD = [
    (["absent", "--out", "x"], "absent: no training run is there"),
    (["full", "--out", "full"], "argument --out: full exists already and is not empty"),
    (["full", "--out", "rows.jsonl"], "argument --out: rows.jsonl exists already"),
    (["full", "--out", "x", "--step", "9"], "argument --step: no checkpoint of step 9 is kept"),
    (["full"], "the following arguments are required: --out"),
]


@pytest.mark.parametrize(("argv", "message"), BAD)
def test_raises_one_line_and_writes_nothing(
    argv: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.iterdir())
    assert main(["export", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rpo: error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert sorted(folder.iterdir()) == before
