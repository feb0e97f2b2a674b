"""The policy of a run, loaded from its folder: the trained parameters, without the data."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from llm.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParameterGroup,
    TrainConfig,
    TrainerConfig,
)
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.models.architecture import Architecture, RopeScaling
from llm.precision import computing_in
from llm.train.checkpoint import CheckpointRecord
from llm.train.dataset import load_training_data
from llm.train.policy import load_policy, recorded_model, resolve_policy
from llm.train.trainer import Trainer
from tests.llm.train.tiny_runs import TINY


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    with computing_in("float32"):
        export_model(build_model(resolve_model(ModelConfig(architecture=TINY, seed=3))), folder)
    return folder


def trained(folder: Path, optimizer: OptimizerConfig | None = None, **model: Any) -> Trainer:
    rows = folder / "rows.jsonl"
    rows.write_text('{"prompt": "q", "chosen": "yes", "rejected": "no"}\n' * 4)
    config = TrainConfig(
        name="tiny",
        model=ModelConfig(**model),
        data=DataConfig(train=str(rows), tokenizer="bytes", max_length=16),
        objective=ObjectiveConfig(beta=0.5, eta=0.1),
        optimizer=optimizer or OptimizerConfig(),
        trainer=TrainerConfig(max_steps=2, save_steps=1, per_device_train_batch_size=2),
    )
    resolved = resolve_model(config.model)
    trainer = Trainer(config, resolved, load_training_data(config.data, resolved), folder)
    trainer.train()
    rows.unlink()
    return trainer


def leaves(model: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def test_roundtrip_the_policy_needs_neither_data_nor_base_weights(
    base: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    trainer = trained(tmp_path, path=str(copy))
    shutil.rmtree(copy)
    policy = load_policy(tmp_path)
    assert (policy.step, policy.config.path) == (2, str(copy))
    for loaded, expected in zip(leaves(policy.decoder), leaves(trainer.run.model()), strict=True):
        np.testing.assert_array_equal(loaded, expected, strict=True)
    resolved = resolve_policy(tmp_path)
    assert resolved.architecture == policy.decoder.architecture
    earlier = load_policy(tmp_path, 1)
    assert earlier.step == 1
    assert any(map(np.not_equal, leaves(earlier.decoder)[0].flat, leaves(policy.decoder)[0].flat))
    with pytest.raises(ValueError, match="no checkpoint of step 9 is kept"):
        load_policy(tmp_path, 9)


def test_roundtrip_adapters_come_with_the_base_weights_of_the_run(
    base: Path, tmp_path: Path
) -> None:
    group = ParameterGroup(parameters="adapter/b", lr_multiplier=4.0)
    optimizer = OptimizerConfig(optim="lion", groups=[group])  # its state has fewer arrays
    trainer = trained(tmp_path, optimizer, path=str(base), lora_r=2)
    policy = load_policy(tmp_path, mesh=MeshConfig())
    for loaded, expected in zip(leaves(policy.decoder), leaves(trainer.run.model()), strict=True):
        np.testing.assert_array_equal(loaded, expected, strict=True)
    moved, changed = tmp_path / "moved", tmp_path / "changed"
    shutil.copytree(base, moved)
    assert load_policy(tmp_path, base_model=str(moved)).config.path == str(moved)
    with computing_in("float32"):
        export_model(build_model(resolve_model(ModelConfig(architecture=TINY, seed=4))), changed)
    with pytest.raises(ValueError, match="changed: not the base weights that the run was trained"):
        load_policy(tmp_path, base_model=str(changed))


def test_roundtrip_adapters_of_a_quantized_base_are_merged_into_the_weights_before_quantization(
    base: Path, tmp_path: Path
) -> None:
    trainer = trained(tmp_path, path=str(base), lora_r=2, quantization="nf4", base_dtype="bfloat16")
    stored = jax.tree.leaves(trainer.run.state.trainable)
    assert len(stored) == 2 * 7  # the checkpoint has the adapters only
    policy = load_policy(tmp_path, mesh=MeshConfig())
    for loaded, expected in zip(leaves(policy.decoder), leaves(trainer.run.model()), strict=True):
        np.testing.assert_array_equal(loaded, expected, strict=True)
    with computing_in("float32"):
        before = build_model(resolve_model(ModelConfig(path=str(base))))
        for name, folder in (("merged", str(base)), ("quantized", None)):
            export_model(policy.decoder, tmp_path / name, base_folder=folder, dtype="float32")
        merged, quantized = (
            build_model(resolve_model(ModelConfig(path=str(tmp_path / name))))
            for name in ("merged", "quantized")
        )
    projection, kernel = policy.decoder.layers.q_proj, before.layers.q_proj.kernel[...]
    adapter = projection.adapter
    assert adapter is not None
    update = adapter.scale[...] * (adapter.a[...] @ adapter.b[...])
    found = merged.layers.q_proj.kernel[...]
    np.testing.assert_allclose(found, kernel + update, rtol=0, atol=1e-6)
    found = quantized.layers.q_proj.kernel[...]
    np.testing.assert_allclose(found, projection.kernel[...] + update, rtol=0, atol=1e-6)
    assert np.abs(kernel - projection.kernel[...]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor", "lion", "muon"])
def test_roundtrip_the_policy_of_every_optimizer(optim: Any, tmp_path: Path) -> None:
    trainer = trained(tmp_path, OptimizerConfig(optim=optim), architecture=TINY)
    policy = load_policy(tmp_path)
    for loaded, expected in zip(leaves(policy.decoder), leaves(trainer.run.model()), strict=True):
        np.testing.assert_array_equal(loaded, expected, strict=True)


def test_raises_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the run has saved no checkpoint"):
        load_policy(tmp_path)


def test_roundtrip_the_architecture_that_a_checkpoint_records_is_that_of_the_model() -> None:
    scaling = RopeScaling(rope_type="linear", factor=2.0)
    local = {"local_layers": (True,), "sliding_window": 4}
    architecture = Architecture(**TINY, **local, rope_scaling=scaling)
    fields = json.loads(json.dumps(asdict(architecture)))
    record = CheckpointRecord(1, {"model": {"architecture": fields}}, "", {})
    resolved = recorded_model(ModelConfig(architecture=TINY), record)
    assert resolved.architecture == architecture
