"""Claims about ``rpo study``: figures, resuming, devices, processes and mistakes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bandits.methods.method_config import MethodConfig
from bandits.study.config import StudyConfig
from bandits.study.summary_queries import display_name
from rpo.api.studies import _load_study
from rpo.cli import main

SMALL = """
name: small
methods:
  - {method: rpo, options: {baseline: given}}
  - {method: dpo}
comparisons: [100, 1000]
seeds: 200
design: {actions: 6, rare: 2, rare_comparisons: 1.0, target_coverage: [1.5, 3.0], reward_max: 2.0}
quick: {seeds: 3}
"""


def config(folder: Path, text: str = SMALL) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_property_quick_without_quick_sizes_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    fields = {"name": "a", "methods": [MethodConfig(method="dpo")], "comparisons": [9], "seeds": 1}
    with caplog.at_level("INFO", logger="rpo"):
        _load_study(StudyConfig(**fields), None, quick=True)
    assert caplog.messages == ["a: --quick has no effect: the study has no key `quick`"]


def rpo(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rpo", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages
    return messages


def sha256(folder: Path) -> str:
    return hashlib.sha256((folder / "records.parquet").read_bytes()).hexdigest()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["study", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rpo: error: ")
    assert message.count("\n") == 1
    return message


def test_closed_form_a_study_leaves_records_figures_summary_and_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["study", str(config(tmp_path)), "--quick", "--out", str(out)]) == 0
    assert "mean gap (95 % interval)" in capsys.readouterr().err
    names = {path.name for path in out.iterdir()}
    assert {"records.parquet", "seconds.parquet", "summary.json", "config.yaml"} <= names
    for kind in ("phase_coverage", "bound_against_gap"):
        assert (out / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (out / f"{kind}.svg").read_bytes()
    cells = json.loads((out / "summary.json").read_text())["cells"]
    assert len(cells) == 2 * 2 * 2
    assert all(cell["gap_low"] <= cell["gap"] <= cell["gap_high"] for cell in cells)
    assert all(cell["seeds"] == 3 for cell in cells)
    before = sha256(out)
    arguments = ["study", str(config(tmp_path)), "--quick", "--out", str(out), "--resume"]
    assert main(arguments) == 0
    assert sha256(out) == before
    paper = ["--format", "pdf,png", "--width", "icml-column", "--table"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("rpo.jobs.studies.run_parts")  # figures are drawn again, and nothing is run
        drawn: dict[str, bytes] = {}
        for _ in range(2):
            assert main(arguments + paper) == 0
            drawn = {path.name: path.read_bytes() for path in out.iterdir()}
            assert drawn["phase_coverage.pdf"].startswith(b"%PDF")
            for file in ("table.tex", "captions.json"):
                assert "Means over 3 seeds per method and setting" in drawn[file].decode()
                assert "Means over 3 pairs of fits per method" in drawn[file].decode()
            # All formats have the differences on the same draws.
            paired = json.loads(drawn["summary.json"])["paired"]
            names = f" − {display_name(paired['first'])}"
            assert all(names in drawn[f"table.{end}"].decode() for end in ("csv", "md"))
            first = repr(paired["cells"][0]["difference"])
            assert first in drawn["table.csv"].decode()
    assert sha256(out) == before
    assert all(path.read_bytes() == drawn[path.name] for path in out.iterdir())


@pytest.mark.slow
def test_property_devices_processes_and_shares_leave_the_same_bytes(tmp_path: Path) -> None:
    text = SMALL.replace("seeds: 200", "seeds: 100")
    # A part for each number of actions.
    path = config(tmp_path, text.replace("actions: 6", "actions: [5, 6, 7, 8, 9]"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    eight = "--xla_force_host_platform_device_count=8"
    finished(rpo("study", path, "--out", tmp_path / "one"))
    finished(rpo("study", path, "--out", tmp_path / "devices", XLA_FLAGS=eight))
    together = [
        "--out",
        tmp_path / "processes",
        "--coordinator-address",
        address,
        "--num-processes",
        "2",
    ]
    processes = [rpo("study", path, *together, "--process-id", str(k)) for k in range(2)]
    for process in processes:
        finished(process)
    assert sha256(tmp_path / "one") == sha256(tmp_path / "devices")
    jobs = ["study", str(path), "--out", str(tmp_path / "jobs")]
    for job in range(1, 6):
        assert main([*jobs, "--part", f"{job}/5"]) == 0
    assert main([*jobs, "--merge"]) == 0
    assert sha256(tmp_path / "one") == sha256(tmp_path / "processes")
    assert sha256(tmp_path / "one") == sha256(tmp_path / "jobs")


def test_raises_one_line_that_names_the_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = config(tmp_path)
    out = tmp_path / "out"
    assert "`seeds`" in refused(capsys, good, "--out", out, "--seeds", "0")
    assert "unknown key" in refused(capsys, good, "--out", out, "--sedes", "3")
    assert "nothing.yaml: No such file" in refused(capsys, tmp_path / "nothing.yaml")
    assert "--coordinator-address" in refused(capsys, good, "--num-processes", "2")
    assert "--process-id" in refused(capsys, good, "--process-id", "1")
    assert "one or more of pdf, png, svg" in refused(capsys, good, "--out", out, "--format", "gif")
    assert "`width` must be a number" in refused(capsys, good, "--out", out, "--width", "wide")
    assert "`style` must be a Matplot" in refused(capsys, good, "--out", out, "--style", "no.style")
    assert not out.exists()
    text = SMALL.replace("{method: dpo}", "{method: dpop}").replace("[1.5, 3.0]", "2.0")
    bad = config(tmp_path, text + "environments: ['named:ghost_arm']\n")
    assert "must be TabularBox or LinearBall for dpop" in refused(capsys, bad, "--out", out)


def test_raises_results_of_another_study_or_damaged_ones_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = config(tmp_path), tmp_path / "out"
    assert main(["study", str(good), "--quick", "--out", str(out)]) == 0
    capsys.readouterr()
    message = refused(capsys, good, "--quick", "--out", out)
    assert "continue with --resume" in message
    message = refused(
        capsys, good, "--quick", "--out", out, "--resume", "--seeds", "4", "--delta", "0.1"
    )
    assert "another study (`delta` was 0.05, is 0.1)" in message
    records = out / "records.parquet"
    records.write_bytes(records.read_bytes()[:-20])
    message = refused(capsys, good, "--quick", "--out", out, "--resume")
    assert "records.parquet is damaged or missing" in message


def test_roundtrip_a_finished_study_continues_for_more_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, whole, more = config(tmp_path), tmp_path / "whole", tmp_path / "more"
    four = ["--quick", "--quick.seeds", "4"]  # the quick sizes have 3 seeds
    assert main(["study", str(good), *four, "--out", str(whole)]) == 0
    assert main(["study", str(good), "--quick", "--out", str(more)]) == 0
    capsys.readouterr()
    assert main(["study", str(good), *four, "--out", str(more), "--resume"]) == 0
    assert "continuing from 3 to 4 seeds: only the new ones are run" in capsys.readouterr().err
    assert sha256(more) == sha256(whole)
    assert json.loads((more / "summary.json").read_text())["cells"][0]["seeds"] == 4
    message = refused(capsys, good, "--quick", "--out", more, "--resume")
    assert "`seeds` was 4, is 3, and a study continues only for more seeds" in message


def test_raises_one_line_on_a_full_disk_and_resumes_with_free_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [config(tmp_path), "--quick", "--out", tmp_path / "out", "--resume"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as of a write: it names no file

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        message = refused(capsys, *arguments)
    file = tmp_path / "out" / "parts" / "000000.seconds.sha256"  # the first file that is flushed
    assert message == f"rpo: error: {file}: No space left on device\n"
    assert main(["study", *map(str, arguments)]) == 0


def test_closed_form_a_dry_run_prints_an_estimate_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["study", str(config(tmp_path)), "--dry-run", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    first = shown.err.splitlines()[0]
    line = r"small: about \d+ s and \d+ MiB for 1,600 fits \(estimated from [\d,]+ trial fits\)"
    assert re.fullmatch(line, first)
    assert json.loads(shown.out)["seeds"] == 200
    assert not out.exists()
