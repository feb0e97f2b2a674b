"""``rpo train`` on several devices and processes: the same run as on one, also after a move."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROUNDING = 1e-9  # relative: float64 sums in another order, amplified by the division in Adam
CONFIG = """
name: tiny
model:
  architecture:
    vocab_size: 264
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 4
  dtype: float64
  param_dtype: float64
data: {train: rows.jsonl, eval_rows: 8, max_length: 16}
objective: {beta: 0.5, eta: 0.1}
optimizer: {learning_rate: 1.0e-2}
trainer: {max_steps: 6, eval_steps: 6, save_steps: 3}
"""
ONE = ["--trainer.per_device_train_batch_size", "8"]
EIGHT = ["--trainer.per_device_train_batch_size", "1"]
KEPT = ["--trainer.save_total_limit", "99999"]
MIXED = ["--trainer.per_device_train_batch_size", "2", "--mesh.data", "2", "--mesh.tensor", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    replies = ["yes", "no", "maybe", "never", "now"]
    with (folder / "rows.jsonl").open("w") as file:
        for row in range(32):
            chosen, rejected = rng.choice(replies, 2, replace=False)
            fields = {"prompt": f"q{row % 4}", "chosen": str(chosen), "rejected": str(rejected)}
            file.write(json.dumps(fields) + "\n")
    (folder / "tiny.yaml").write_text(CONFIG)
    finish(train(folder, "one", *ONE))
    return folder


def train(folder: Path, out: str, *arguments: str, devices: int = 1) -> subprocess.Popen[str]:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "rpo", "train", "tiny.yaml", "--out", out, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr


def trained(folder: Path, out: str) -> list[np.ndarray]:
    """Return the arrays of the last checkpoint: parameters and moments of the optimizer."""
    path = folder / out / "checkpoints" / "6" / "state"
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    metadata: Any = checkpointer.metadata(path)
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(metadata.item_metadata.tree)
    )
    state = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def metrics(folder: Path, out: str, *, perf: bool = True) -> list[dict[str, float]]:
    lines = (folder / out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines if '"event"' not in line]
    return [{k: v for k, v in row.items() if perf or not k.startswith("perf/")} for row in rows]


def finished(folder: Path, out: str) -> str:
    """Return the digest of the parameters at the end of a run."""
    lines = (folder / out / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["parameters_sha256"]


def assert_same_run(
    folder: Path, out: str, *, one: str = "one", rounding: float = ROUNDING
) -> None:
    for expected, actual in zip(trained(folder, one), trained(folder, out), strict=True):
        largest = max(np.abs(expected).max(), 1e-9)
        np.testing.assert_allclose(actual, expected, atol=rounding * largest, rtol=0)
    for expected, actual in zip(metrics(folder, one), metrics(folder, out), strict=True):
        for name in (name for name in expected if not name.startswith("perf/")):
            value = pytest.approx(expected[name], rel=rounding, abs=rounding)
            assert actual[name] == value, name


@pytest.mark.slow
@pytest.mark.parametrize(("out", "mesh"), [("eight", EIGHT), ("mixed", MIXED)])
def test_property_eight_devices_train_as_one_does(folder: Path, out: str, mesh: list[str]) -> None:
    finish(train(folder, out, *mesh, devices=8))
    assert_same_run(folder, out)


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["0.0", "0.6"])
def test_property_a_moving_reference_is_the_same_on_eight_devices(folder: Path, decay: str) -> None:
    """Sharded adapters are merged into sharded weights for the average."""
    moving = ["--model.reference_refresh_steps", "2", "--model.reference_decay", decay]
    if decay != "0.0":
        moving += ["--model.lora_r", "2", "--model.lora_target_modules", "[q_proj, embed_tokens]"]
    finish(train(folder, f"one{decay}", *ONE, *moving))
    finish(train(folder, f"mixed{decay}", *MIXED, *moving, devices=8))
    assert_same_run(folder, f"mixed{decay}", one=f"one{decay}")


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor", "lion", "muon"])
def test_property_every_optimizer_trains_alike_on_eight_devices_and_after_a_stop(
    folder: Path, optim: str
) -> None:
    chosen = ["--optimizer.optim", optim, "--optimizer.learning_rate", "1e-3"]
    chosen += ["--optimizer.lr_scheduler_type", "constant"]  # the same for 3 steps and for 6
    one, stopped = f"{optim}_one", f"{optim}_stopped"
    finish(train(folder, one, *ONE, *chosen))
    finish(train(folder, f"{optim}_eight", *MIXED, *chosen, devices=8))
    # The moments of 8 bits are computed in float32 and have scales of float32.
    rounding = 1e-6 if optim == "adamw_8bit" else ROUNDING
    assert_same_run(folder, f"{optim}_eight", one=one, rounding=rounding)
    finish(train(folder, stopped, *ONE, *chosen, "--trainer.max_steps", "3"))
    finish(train(folder, stopped, *ONE, *chosen, "--resume"))
    assert finished(folder, stopped) == finished(folder, one)


def two_processes(folder: Path, out: str, *arguments: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = [*EIGHT, *arguments, "--coordinator-address", address, "--num-processes", "2"]
    return [
        train(folder, out, *together, "--process-id", str(number), devices=4) for number in range(2)
    ]


def wait_for(path: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_property_two_processes_of_four_devices_train_as_one_device_does(folder: Path) -> None:
    """The mesh is that of eight devices of one process."""
    for process in two_processes(folder, "two"):
        finish(process)
    assert_same_run(folder, "two")


@pytest.mark.slow
def test_property_killed_processes_resume_bit_by_bit_and_on_other_devices_to_rounding(
    folder: Path,
) -> None:
    longer = ["--trainer.max_steps", "60", "--trainer.save_steps", "5", *KEPT]
    for process in two_processes(folder, "whole", *longer):
        finish(process)
    killed = two_processes(folder, "killed", *longer)
    wait_for(folder / "killed" / "checkpoints" / "10")
    for process in killed:
        process.kill()
    for process in killed:
        process.communicate()
    assert not (folder / "killed" / "checkpoints" / "60").exists()
    shutil.copytree(folder / "killed", folder / "moved_on")
    for process in two_processes(folder, "killed", *longer, "--resume"):
        finish(process)
    finish(train(folder, "moved_on", *EIGHT, *longer, "--resume", devices=8))
    assert metrics(folder, "killed", perf=False) == metrics(folder, "whole", perf=False)
    assert finished(folder, "killed") == finished(folder, "whole")
    for expected, actual in zip(metrics(folder, "whole"), metrics(folder, "moved_on"), strict=True):
        name = "loss" if "loss" in expected else "eval_loss"
        assert actual[name] == pytest.approx(expected[name], rel=ROUNDING)


@pytest.mark.slow
def test_raises_a_lost_process_is_reported_by_the_others_and_checkpoints_stay_complete(
    folder: Path,
) -> None:
    longer = ["--trainer.max_steps", "100000", "--trainer.save_steps", "5", *KEPT]
    first, second = two_processes(folder, "lost", *longer)
    wait_for(folder / "lost" / "checkpoints" / "10")
    second.kill()
    second.communicate()
    _, stderr = first.communicate(timeout=200)
    assert first.returncode != 0
    start = "rpo: error: a process of this"
    (message,) = [line for line in stderr.splitlines() if line.startswith(start)]
    step = int(re.search(r"from the checkpoint of step (\d+)", message)[1])  # type: ignore
    process = train(folder, "lost", *ONE, *longer, "--trainer.save_steps", "1", "--resume")
    wait_for(folder / "lost" / "checkpoints" / str(step + 1))
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_property_a_run_resumes_on_other_devices(folder: Path) -> None:
    finish(train(folder, "moved", *EIGHT, "--trainer.save_total_limit", "9", devices=8))
    moved = folder / "moved"
    for path in (moved / "checkpoints" / "6").rglob("*"):
        path.chmod(0o755)
    subprocess.run(["rm", "-r", moved / "checkpoints" / "6"], check=True)
    finish(train(folder, "moved", *ONE, "--resume"))
    assert_same_run(folder, "moved")


ON_A_MESH = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from llm.train.stochastic_rounding import stochastic_round

values = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
whole = np.asarray(jax.jit(stochastic_round)(values, jax.random.key(3)))
for spec in (("a", "b"), ("b", "a"), (("a", "b"), None), (None, "a")):
    for sizes in ((2, 4), (8, 1)):
        mesh = Mesh(np.reshape(jax.devices(), sizes), ("a", "b"))
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        rounding = jax.jit(stochastic_round, out_shardings=sharding)
        sharded = rounding(jax.device_put(values, sharding), jax.random.key(3))
        assert len(sharded.addressable_shards) == 8
        np.testing.assert_array_equal(np.asarray(sharded), whole)
"""


@pytest.mark.slow
def test_property_bfloat16_weights_are_rounded_alike_on_every_mesh(folder: Path) -> None:
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, "-c", ON_A_MESH], env={**os.environ, **flags}, check=True)
    low = ["--model.dtype", "float32", "--model.param_dtype", "bfloat16", *KEPT]
    finish(train(folder, "low_one", *ONE, *low))
    finish(train(folder, "low_eight", *EIGHT, *low, devices=8))
    shutil.rmtree(folder / "low_eight" / "checkpoints" / "6")
    finish(train(folder, "low_eight", *EIGHT, *low, "--resume", devices=8))
    for one, eight in zip(metrics(folder, "low_one"), metrics(folder, "low_eight"), strict=True):
        if "loss" in one:  # gradients differ by rounding, and so do a few rounded weights
            assert eight["loss"] == pytest.approx(one["loss"], rel=0.02)
            assert 0 < eight["params/moved_share"] <= 1 or eight["learning_rate"] == 0


def test_raises_a_mesh_of_another_number_of_devices_is_refused_in_one_line(folder: Path) -> None:
    process = train(folder, "bad", "--mesh.fsdp", "3", devices=8)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith(
        "rpo: error: `mesh` must use all 8 devices, got data 1"
    )
    assert not (folder / "bad" / "metrics.jsonl").exists()
