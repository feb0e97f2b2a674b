"""Schedules, decay masks and trackers against Transformers, tensorboardX and wandb."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
import time
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
import pytest

from llm.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerName,
    TrainConfig,
    TrainerConfig,
)
from llm.hf.io import read_architecture
from llm.hf.names import tensor_mappings
from llm.train.optimizer import decay_mask
from llm.train.schedules import learning_rate_schedule, warmup_steps
from llm.train.tracking import make_tracker

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.parametrize("kind", get_args(SchedulerName))
@pytest.mark.parametrize("num_steps", [1, 2, 7, 25, 30, 100])
def test_parity_every_rate_of_every_schedule(kind: Any, num_steps: int) -> None:
    for ratio in (0.0, 0.03, 0.1, 0.5, 0.999):
        config = OptimizerConfig(
            learning_rate=3e-4, lr_scheduler_type=kind, warmup_ratio=ratio, weight_decay=0.1
        )
        arguments = transformers.TrainingArguments(warmup_steps=ratio, output_dir="unused")
        warmup = arguments.get_warmup_steps(num_steps)
        if kind != "constant":
            assert warmup_steps(config, num_steps) == warmup
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
        more = None
        if kind == "warmup_stable_decay":
            decay = math.ceil(num_steps * config.decay_ratio)
            more = {"num_decay_steps": max(min(decay, num_steps - warmup), 1)}
        scheduler = transformers.get_scheduler(kind, optimizer, warmup, num_steps, more)
        expected = []
        for _ in range(num_steps):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        schedule = learning_rate_schedule(config, num_steps)
        rates = [float(np.asarray(schedule(step))) for step in range(num_steps)]
        # To 1e-12 of the peak: near its end the cosine is a difference of nearly equal numbers.
        np.testing.assert_allclose(rates, expected, rtol=1e-12, atol=1e-12 * 3e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_parity_the_parameters_that_decay_are_those_of_the_trainer(
    family: str, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.for_model(family, **SIZES, **FAMILIES[family])
    model = transformers.AutoModelForCausalLM.from_config(config)
    decaying = set(transformers.Trainer.get_decay_parameter_names(None, model))
    every = {name for name, _ in model.named_parameters()}
    config.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    seen = set()
    for mapping in tensor_mappings(architecture):
        tree: Any = jnp.zeros(1)
        for name in reversed(mapping.path):
            tree = {name: tree}
        mask = decay_mask(tree)
        for name in mapping.path:
            mask = mask[name]
        for name in mapping.names(architecture.num_hidden_layers):
            assert mask == (name in decaying), name
            seen.add(name)
    assert seen >= every


def run_config(*report_to: Any) -> TrainConfig:
    return TrainConfig(
        name="tiny",
        model=ModelConfig(path="model"),
        data=DataConfig(train="rows.jsonl"),
        trainer=TrainerConfig(report_to=list(report_to)),
    )


def logged_twice(folder: Path, name: Any) -> None:
    """Log eight steps, drop the tracker as a killed process does, and resume after the fifth."""
    for first, last in ((0, 8), (5, 10)):
        time.sleep(1.1)  # the names of the files of events have seconds
        tracker = make_tracker(folder / "metrics.jsonl", run_config(name))
        tracker.start(first)
        for step in range(first + 1, last + 1):
            tracker.log(step, {"loss": float(step)})
    tracker.finish({"event": "finished"})


def test_roundtrip_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="needs the extra `parity`")
    from tensorboardX.proto import event_pb2  # pyright: ignore[reportMissingImports]

    logged_twice(tmp_path, "tensorboard")
    shown: dict[int, float] = {}
    texts = []
    files = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    for path in files:
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.session_log.status == event_pb2.SessionLog.START:
                # TensorBoard purges the events of this step and of later ones.
                shown = {step: value for step, value in shown.items() if step < event.step}
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in shown
                    shown[event.step] = value.simple_value
                else:
                    texts.append(value.tensor.string_val[0])
    assert shown == {step: float(step) for step in range(1, 11)}
    expected = dataclasses.asdict(run_config("tensorboard"))
    assert [json.loads(text) for text in texts] == [expected] * 2


def test_roundtrip_weights_and_biases_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs the extra `parity`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    made = []
    init = wandb.init

    def recorded(**options: Any) -> Any:
        for run in made:
            run.finish(exit_code=1)  # as the process that was killed
        made.append(init(**options))
        return made[-1]

    monkeypatch.setattr(wandb, "init", recorded)
    logged_twice(tmp_path, "wandb")
    first, second = made
    assert first.id == second.id == (tmp_path / "wandb_id").read_text()
    assert second.config["optimizer"]["learning_rate"] == 5e-7
    assert second.config["trainer"]["report_to"] == ["wandb"]
    assert any(path.name.startswith("offline-run-") for path in (tmp_path / "wandb").iterdir())
