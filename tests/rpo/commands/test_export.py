"""Claims about ``rpo export``: it writes exactly the parameters of the checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from llm.config import DataConfig, ModelConfig, TrainConfig
from llm.hashing import weights_digest
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import load_model, stored_dtype
from llm.models.lora import trainable_filter
from llm.train.policy import load_policy
from rpo.cli import main
from rpo.runtime.export_sources import find_export_base

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
RUN = TrainConfig(name="a", model=ModelConfig(architecture={}), data=DataConfig(train="rows.jsonl"))
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
    printed = capsys.readouterr().out
    size = (folder / "policy" / "model.safetensors").stat().st_size
    assert re.search(
        r"^written to policy: the policy after step 2 \(float32, [\d.]+ kB\)$", printed, re.M
    )
    n_kilobytes = float(printed.split("float32, ")[1].split(" kB")[0])
    assert n_kilobytes * 1e3 == pytest.approx(size, rel=0.2)  # the file also has a header
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


def test_closed_form_an_export_has_the_dtype_of_the_base_unless_asked(folder: Path) -> None:
    for name in ("bfloat16", "float32"):
        assert main(["export", "full", "--out", f"base-{name}", "--dtype", name]) == 0
        based = ModelConfig(path=f"base-{name}", param_dtype="float64")
        base = find_export_base(replace(RUN, model=based))
        assert base is not None
        assert stored_dtype(base) == name
    assert find_export_base(RUN) is None
    assert find_export_base(replace(RUN, model=ModelConfig(path="out/gone"))) is None


def test_closed_form_the_part_of_an_update_that_rounding_loses_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "adapters", "--out", "rounded", "--dtype", "bfloat16", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    narrow = load_file(folder / "rounded" / "model.safetensors")
    assert result["bytes"] == sum(tensor.nbytes for tensor in narrow.values())
    assert main(["export", "adapters", "--out", "unrounded"]) == 0
    assert "changed weights" not in capsys.readouterr().out
    wide = load_file(folder / "unrounded" / "model.safetensors")
    for name, tensor in wide.items():  # rounded once
        np.testing.assert_array_equal(narrow[name], tensor.astype(ml_dtypes.bfloat16))
    assert result["rounding"]["changed"] == 4 * 8 * 8 + 3 * 8 * 8
    assert 0 < result["rounding"]["unchanged_share"] < 1
    assert 0 < result["rounding"]["lost_norm"] < 1


def test_raises_for_a_moved_tokenizer_and_takes_another_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = folder / "full" / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("tokenizer: bytes", "tokenizer: out/moved"))
    try:
        assert main(["export", "full", "--out", "moved"]) == 2
        expected = "`data.tokenizer` of the run, which names its tokenizer: out/moved"
        assert expected in capsys.readouterr().err
        assert not (folder / "moved").exists()
        assert main(["export", "full", "--out", "moved", "--tokenizer", "bytes"]) == 0
    finally:
        config.write_text(before)


BAD = [
    (["absent", "--out", "x"], "absent: no training run is there"),
    (["full/checkpoints/2", "--out", "x"], "type `rpo export full --step 2 --out POLICY`"),
    (["full/checkpoints", "--out", "x"], "type `rpo export full --out POLICY`"),
    (["full", "--out", "full"], "full exists already and is not empty: choose another --out"),
    (["full", "--out", "rows.jsonl"], "argument --out: rows.jsonl exists already"),
    (["full", "--out", "x", "--step", "9"], "no checkpoint of step 9 is kept; the kept steps are "),
    (["full", "--adapter", "--out", "x"], "argument --adapter: full trained all parameters"),
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


def test_roundtrip_an_exported_adapter_continues_and_scores_as_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "full", "--out", "base"]) == 0
    data = ["--tokenizer", "bytes", "--data", "rows.jsonl", "--out"]
    based = ["--model.architecture", "null", "--model.path", "base"]
    options = ["--model.lora_r", "2", "--model.lora_dropout", "0.5", "--model.use_rslora", "true"]
    options += ["--model.lora_modules_to_save", "[lm_head]"]
    assert main(["train", "tiny.yaml", "--out", "first", *based, *options]) == 0
    capsys.readouterr()
    assert main(["export", "first", "--adapter", "--out", "published"]) == 0
    assert "written to published: the adapter after step 2 (float32, " in capsys.readouterr().out
    assert main(["score", "--model", "published", *data, "published.jsonl"]) == 0
    # The policy of the run is the start, so that its first step reports the same scores.
    continued = ["--model.architecture", "null", "--model.adapter", "published"]
    assert main(["train", "tiny.yaml", "--out", "second", *continued]) == 0
    scores = [json.loads(line) for line in (folder / "published.jsonl").read_text().splitlines()]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        first = load_policy(folder / "first").decoder
        start = build_model(resolve_model(ModelConfig(adapter="published")))
        for ours, theirs in zip(*map(leaves_of, (first, start)), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    again = ["export", "second", "--adapter", "--out", "again", "--step", "1"]
    assert main(again) == 0
    document = json.loads((folder / "again" / "adapter_config.json").read_text())
    assert (document["r"], document["use_rslora"], document["lora_dropout"]) == (2, True, 0.5)
    assert document["base_model_name_or_path"] == "base"
    assert (
        main(["train", "tiny.yaml", "--out", "whole", *continued, "--model.merge_adapter", "true"])
        == 0
    )
    cache = load_file(folder / "whole" / "reference.safetensors")
    expected = [[score["chosen_logp"], score["rejected_logp"]] for score in scores]
    np.testing.assert_allclose(cache["log_probs"], expected, rtol=1e-5)


def leaves_of(decoder: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(decoder))]
