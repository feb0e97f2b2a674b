"""Claims about output folders: one process at a time, and the dead keep nobody out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpo.cli import main
from rpo_io.folders import folder_lock

HOLD = """
import sys, time
from pathlib import Path
from rpo_io.folders import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
STUDY = "name: small\nmethods: [{method: rpo}]\ncomparisons: [100]\nseeds: 2\n"
RUN = """
name: tiny
model: {architecture: {vocab_size: 261, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1,
  num_attention_heads: 2}}
data: {train: rows.jsonl, tokenizer: bytes, max_length: 16}
trainer: {max_steps: 2, per_device_train_batch_size: 2}
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that works in the folder ``out``."""
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "q", "chosen": "yes", "rejected": "no"}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 4)
    (tmp_path / "train.yaml").write_text(RUN)
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


@pytest.mark.parametrize("command", ["train", "study"])
def test_raises_a_second_process_is_refused_until_the_first_is_killed(
    command: str,
    folder: Path,
    holder: subprocess.Popen[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [command, f"{command}.yaml", "--out", "out", "--resume"]
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("rpo: error: out: another process uses this folder: wait until it ends")
    assert [path.name for path in (folder / "out").iterdir()] == [".lock"]
    holder.kill()
    holder.wait()
    assert main(arguments) == 0


def test_property_a_folder_may_be_locked_again_when_it_was_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            folder_lock(tmp_path),
            pytest.raises(ValueError, match="another process"),
            folder_lock(tmp_path),
        ):
            pass
