"""Commands on a mesh of eight devices, in one process and in two: the results of one device."""

from __future__ import annotations

import filecmp
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rpo.cli import main

ROOT = Path(__file__).resolve().parents[2]
FLOAT64, FLOAT32 = 1e-9, 1e-5  # relative
CONFIG = """
name: tiny
model:
  architecture: {vocab_size: 264, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
                 num_attention_heads: 4, num_key_value_heads: 2}
data: {train: rows.jsonl, max_length: 32, tokenizer: bytes}
objective: {beta: 0.5, eta: 0.1}
optimizer: {learning_rate: 1.0e-2}
trainer: {max_steps: 2, save_steps: 1, per_device_train_batch_size: 4}
"""
MESH = ["--mesh.fsdp", "4", "--mesh.tensor", "2"]
REWARD = "def length(prompt, reply):\n    return len(reply)\n"
SCRIPT = """
import json, sys
from rpo.cli import main
commands = json.loads(sys.argv[1])
sys.exit(max([main(arguments) for arguments in commands]))
"""
TWO = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two runs on one device; give the results of all commands on one device."""
    folder = tmp_path_factory.mktemp("mesh")
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for _ in range(20):
            texts = ["".join(rng.choice(list("abcde"), rng.integers(1, 7))) for _ in range(3)]
            names = ("prompt", "chosen", "rejected")
            file.write(json.dumps(dict(zip(names, texts, strict=True))) + "\n")
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "length.py").write_text(REWARD)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("strict"):
        patch.chdir(folder)
        assert main(["train", "tiny.yaml", "--out", "run"]) == 0
        lora = ["--model.lora_r", "2", "--trainer.save_total_limit", "1"]
        assert main(["train", "tiny.yaml", "--out", "lora", *lora]) == 0
        for arguments in commands("one"):
            assert main(arguments) == 0
    return folder


def commands(name: str) -> list[list[str]]:
    """Return command lines that write files whose names end with ``name``."""
    data, wide = ["--data", "rows.jsonl"], ["--dtype", "float64"]
    reward = ["--reward", "length.py:length", "--prompts", "4", "--max-new-tokens", "4"]
    generate = ["generate", *data, "--max-new-tokens", "6", "--name", "tiny", *wide]
    evaluate = ["evaluate", *data, "--reference", "run/checkpoints/1", *reward, *wide]
    score = ["score", *data, "--out"]
    return [
        [*score, f"wide-{name}.jsonl", "--model", "run", *wide],
        [*score, f"narrow-{name}.jsonl", "--model", "run/checkpoints/1"],
        [*score, f"lora-{name}.jsonl", "--model", "lora", *wide],
        [*generate, "--out", f"replies-{name}.jsonl", "--model", "run"],
        [*evaluate, "--out", f"metrics-{name}.json", "--model", "run"],
        ["export", "run", "--out", f"policy-{name}"],
        ["export", "lora", "--out", f"merged-{name}"],
        ["export", "lora", "--adapter", "--out", f"adapter-{name}"],
    ]


def run_processes(folder: Path, script: str, n_processes: int, lines: list[list[str]]) -> None:
    """Run commands in one process of eight devices, or in two of four."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={8 // n_processes}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, json.dumps(lines), address, str(index)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(n_processes)
    ]
    for process in processes:
        _, messages = process.communicate(timeout=300)
        assert process.returncode == 0, messages


def numbers(path: Path) -> np.ndarray:
    """Return the log-probabilities of a file of scores."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return np.array([[row["chosen_logp"], row["rejected_logp"]] for row in rows])


def assert_same_results(folder: Path, name: str) -> None:
    """Compare the files of a mesh with those of one device."""
    for kind, bound in (("wide", FLOAT64), ("narrow", FLOAT32), ("lora", FLOAT64)):
        one, many = (numbers(folder / f"{kind}-{each}.jsonl") for each in ("one", name))
        np.testing.assert_allclose(many, one, rtol=bound, atol=0)
    one, many = (folder / f"replies-{each}.jsonl" for each in ("one", name))
    assert many.read_bytes() == one.read_bytes()
    metrics: list[dict[str, Any]] = [
        json.loads((folder / f"metrics-{each}.json").read_text()) for each in ("one", name)
    ]
    for key in ("rewards/margins", "win_rate", "reward/model"):
        assert metrics[1][key] == pytest.approx(metrics[0][key], rel=FLOAT64)
    for kind in ("policy", "merged", "adapter"):
        left, right = folder / f"{kind}-one", folder / f"{kind}-{name}"
        files = sorted(path.name for path in left.iterdir())
        assert files == sorted(path.name for path in right.iterdir())
        assert filecmp.cmpfiles(left, right, files, shallow=False)[0] == files


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_parity_commands_on_eight_devices_give_the_results_of_one(
    folder: Path, n_processes: int
) -> None:
    name = f"mesh{n_processes}"
    lines = [[*arguments, *MESH] for arguments in commands(name)]
    script = SCRIPT if n_processes == 1 else TWO + SCRIPT
    run_processes(folder, script, n_processes, lines)
    assert_same_results(folder, name)


@pytest.mark.slow
def test_raises_before_work_for_a_mesh_that_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for command in commands("never")[3:6]:
        assert main([*command, "--mesh.tensor", "2"]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert "`mesh` must use all 1 devices, got data 1 x fsdp 1 x tensor 2 = 2" in message
    assert not list(folder.glob("*never*"))
