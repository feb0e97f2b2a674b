"""Claims about ``rpo train``: its files, how it is stopped, and that it resumes bit by bit."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rpo.cli import main

CONFIG = """
name: stopped
model:
  architecture: {vocab_size: 261, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1,
                 num_attention_heads: 2}
data: {train: rows.jsonl, tokenizer: bytes, max_length: 16}
objective: {method: rpo, beta: 0.5, eta: 0.05}
optimizer: {learning_rate: 1.0e-2}
trainer: {max_steps: 40, save_steps: 4, per_device_train_batch_size: 3}
"""
ROWS = 20  # an epoch is 20 / 3 steps: every checkpoint here but those of whole epochs is inside one
STEPS = 40
PATIENCE = 240  # seconds until a process must have made its first steps, on a busy machine
EVERY_RUN_DIFFERS = ("perf/tokens_per_second",)
CHANGES = {
    "--objective.eta": "0.1",
    "--objective.tau": "0.3",
    "--trainer.max_steps": "2",
    "--trainer.seed": "7",
    "--data.template_date": "2026-01-01",
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration with its data, and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp("run")
    replies = ("yes", "no", "maybe", "never")
    rows = [
        {"prompt": f"q{i % 5}", "chosen": replies[i % 4], "rejected": replies[(i + 1 + i % 3) % 4]}
        for i in range(ROWS)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "stopped.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "stopped.yaml", "--out", "whole"]) == 0
    return folder


@pytest.fixture
def folder(started: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(started)
    return started


def train(folder: Path, out: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rpo", "train", "stopped.yaml", "--out", out, *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Wait, and refuse a traceback."""
    _, messages = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in messages, messages
    return process.returncode


def metrics(folder: Path, out: str) -> list[dict[str, Any]]:
    """Return the complete lines; the last line may be partly written."""
    path = folder / out / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [
        {name: value for name, value in line.items() if name not in EVERY_RUN_DIFFERS}
        for line in lines
    ]


def stopped(folder: Path, out: str, kind: signal.Signals, after: int, *arguments: str) -> int:
    """Send a signal to a process that has logged a number of steps; return its exit code."""
    process = train(folder, out, *arguments)
    end = time.monotonic() + PATIENCE
    while not any(line["step"] >= after for line in metrics(folder, out)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.005)
    process.send_signal(kind)
    code = finish(process)
    assert metrics(folder, out)[-1]["step"] < STEPS  # it was stopped before the end
    return code


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_roundtrip_a_process_killed_and_later_asked_to_stop_ends_with_the_bits_of_a_whole_run(
    folder: Path,
) -> None:
    # The checkpoint of step 4 is complete when that of step 8 is begun.
    assert stopped(folder, "cut", signal.SIGKILL, 9) == -signal.SIGKILL
    assert stopped(folder, "cut", signal.SIGTERM, 18, "--resume") == 128 + signal.SIGTERM
    last = metrics(folder, "cut")[-1]["step"]
    saved = [int(path.name) for path in (folder / "cut" / "checkpoints").iterdir()]
    assert max(saved) == last  # the state of the last logged step
    assert finish(train(folder, "cut", "--resume")) == 0
    whole, again = metrics(folder, "whole"), metrics(folder, "cut")
    assert [line["step"] for line in whole] == [*range(1, STEPS + 1), STEPS]
    assert len(whole[-1]["parameters_sha256"]) == 64
    assert again == whole


def test_raises_rather_than_overwriting_another_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    assert main(["train", "stopped.yaml", "--out", "whole"]) == 2
    messages = capsys.readouterr().err.splitlines()
    assert messages[-1].startswith(
        "rpo: error: whole: a run is there already: continue with --resume"
    )
    assert contents(folder) == before


def test_property_a_dry_run_prints_the_configuration_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    overrides = [word for change in CHANGES.items() for word in change]
    assert main(["train", "stopped.yaml", "--dry-run", *overrides]) == 0
    assert contents(folder) == before
    out, err = capsys.readouterr()
    shown = json.loads(out)
    first, sizes, *_ = err.splitlines()
    verdict = r"fits: about \d+ s and \d+ KiB of [\d.]+ GiB per device on 1 CPU device \("
    assert re.match(verdict, first)
    assert sizes.startswith(f"{ROWS} pairs, 3 per step; 2 steps of about ")
    assert "`objective.tau` 0.3 has no effect: method 'rpo' trains without it\n" in err
    assert "`data.template_date` '2026-01-01' has no effect: the chat template reads no" in err
    assert shown["objective"]["eta"] == 0.1
    assert shown["optimizer"]["lr_scheduler_type"] == "cosine"  # by default
    # What is shown is what is trained.
    assert main(["train", "stopped.yaml", "--out", "changed", *overrides]) == 0
    written = yaml.safe_load((folder / "changed" / "config.yaml").read_text())
    assert written == shown
    for name, value in CHANGES.items():
        section, key = name.removeprefix("--").split(".")
        assert str(written[section][key]) == value


BAD = [
    *(
        ([f"--trainer.{key}", "2147483647"], f"`trainer.{key}` must be at most 1,024 for 20 train")
        for key in ("per_device_train_batch_size", "gradient_accumulation_steps")
    ),
    (["--data.max_length", "2147483647"], "`data.max_length` must be at most 2048"),
    (["--model.lora_r", "2147483647"], "`model.lora_r` must be at most 65536"),
    (
        ["--model.lora_target_modules", "q_proj"],
        "`model.lora_target_modules` must be all-linear, a list of",
    ),
    (
        ["--model.lora_r", "2", "--model.lora_target_modules", "[qproj]"],
        "all-linear, a list of q_p",
    ),
    (["--trainer.report_to", "[none]"], "'tensorboard', 'wandb'"),
    (["--optimizer.lr_scheduler_type", "polynomial"], "'cosine', 'linear', 'constant'"),
    (["--objective.zeta", "0.1"], "objective.zeta"),
    (["--speed", "9"], "speed"),
    (["--objective.eta", "much"], "objective.eta"),
    (["--trainer.max_steps", "2.5"], "trainer.max_steps"),
    (["--trainer.max_steps", "0"], "trainer.max_steps"),
    (["--data.on_error", "ignore"], "data.on_error"),
    (["--objective.eta"], "objective.eta"),
    (["--model.architecture.num_attention_heads", "8"], "`head_dim` must be even"),
    (["--model.architecture.speed", "3"], "`model.architecture`"),
    (["--data.eval_rows", "20"], "`data.eval_rows` must leave rows to train on, got 20 of 20"),
    (["--name", "../elsewhere"], "`name` must consist of letters"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_raises_one_line_on_a_wrong_override_and_writes_nothing(
    overrides: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    assert main(["train", "stopped.yaml", "--out", "wrong", *overrides]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rpo: error: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert contents(folder) == before
