"""Claims about commands that a cluster starts with the same command line on every host."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .cluster_commands import LAUNCHERS, ROOT, cluster, free_port, run_job, start, write_inputs

ROUNDING = 1e-9
SECONDS = 120.0
"""Time after which processes are refused: a few seconds, but not on a busy machine."""
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
WORK = {
    "score": ("--data", "rows.jsonl", "--out", "OUT/scores.jsonl", "--max-length", "16"),
    "generate": ("--data", "rows.jsonl", "--out", "OUT/replies.jsonl", "--max-new-tokens", "5"),
    "evaluate": ("--data", "rows.jsonl", "--out", "OUT/metrics.json", "--reference", "base"),
}
MODEL = ("--model", "policy", "--tokenizer", "bytes", "--dtype", "float64")


def commands(out: str) -> list[tuple[str, ...]]:
    """Return the five commands; all but the first read a policy that one process has trained."""
    work = [(name, *MODEL, *(each.replace("OUT", out) for each in WORK[name])) for name in WORK]
    return [
        ("train", "tiny.yaml", "--out", f"{out}/run"),
        *work,
        ("export", "trained", "--out", f"{out}/export"),
    ]


def run_one(folder: Path, *arguments: str) -> None:
    process = start(arguments, folder, DEVICES)
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 0, messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the results of one process on four devices."""
    folder = tmp_path_factory.mktemp("cluster")
    write_inputs(folder)
    run_one(folder, "train", "tiny.yaml", "--out", "trained", "--trainer.max_steps", "2")
    run_one(folder, "export", "trained", "--out", "policy")
    run_one(folder, "train", "tiny.yaml", "--out", "first", "--trainer.max_steps", "1")
    run_one(folder, "export", "first", "--out", "base")
    (folder / "alone").mkdir()
    for command in commands("alone"):
        run_one(folder, *command)
    return folder


def numbers(fields: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a JSON object, but for times."""
    return {
        key: value
        for key, value in fields.items()
        if isinstance(value, float | int) and not key.startswith("perf/")
    }


def read_lines(path: Path) -> list[dict[str, float]]:
    return [numbers(json.loads(line)) for line in path.read_text().splitlines()]


def without_ties(fields: dict[str, float]) -> dict[str, float]:
    """Leave out an accuracy that counts the signs of rounding errors.

    Until the first update, the policy is the reference: all margins are zero but for rounding.
    """
    ties = abs(fields.get("rewards/margins", 1.0)) < ROUNDING
    return {
        key: value for key, value in fields.items() if not (ties and key == "rewards/accuracies")
    }


def check_same_results(one: Path, out: Path) -> None:
    """Check that several processes left the results of one; sums are taken in another order."""
    for name in ("run/metrics.jsonl", "scores.jsonl"):
        for expected, actual in zip(read_lines(one / name), read_lines(out / name), strict=True):
            expected, actual = without_ties(expected), without_ties(actual)
            assert actual == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    expected, actual = (
        numbers(json.loads((each / "metrics.json").read_text())) for each in (one, out)
    )
    assert len(expected) > 10
    assert actual == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
    for name in ("replies.jsonl", "export/model.safetensors", "export/config.json"):
        assert (out / name).read_bytes() == (one / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_roundtrip_one_command_line_in_four_processes_gives_the_results_of_one(
    launcher: str, folder: Path
) -> None:
    out, one = folder / launcher, folder / "alone"
    out.mkdir()
    more = ("--num-processes", "4") if launcher == "kubernetes" else ()
    for command in commands(launcher):
        for code, _, messages in run_job(launcher, [*command, *more], [folder] * 4):
            assert code == 0, messages
    check_same_results(one, out)


@pytest.mark.slow
def test_property_every_launcher_gives_the_same_bits(folder: Path) -> None:
    ran = [folder / launcher for launcher in LAUNCHERS if (folder / launcher).is_dir()]
    assert len(ran) >= 2
    for name in ("scores.jsonl", "metrics.json", "run/metrics.jsonl"):
        texts = set()
        for each in ran:
            text = (each / name).read_text()
            lines = text.splitlines()
            texts.add(json.loads(lines[-1])["parameters_sha256"] if "run" in name else text)
        assert len(texts) == 1


def refused(folders: Sequence[Path], *arguments: str | Path, **options: Any) -> list[str]:
    """Return the last line of every process, after checks of exit codes and time."""
    begin = time.monotonic()
    done = run_job("slurm", arguments, folders, **options)
    assert time.monotonic() - begin < SECONDS
    assert [code for code, _, _ in done] == [2] * len(folders), done
    return [messages.splitlines()[-1] for _, _, messages in done]


def hosts(tmp_path: Path, size: int) -> list[Path]:
    """Return a folder for each host, with equal inputs."""
    folders = [tmp_path / f"host{k}" for k in range(size)]
    for each in folders:
        write_inputs(each)
    return folders


def named(index: int, what: str) -> str:
    return f"process {index} ({socket.gethostname()}) differs from {what}"


def test_raises_for_one_changed_line_of_data_in_every_process(tmp_path: Path) -> None:
    folders = hosts(tmp_path, 2)
    rows = folders[1] / "rows.jsonl"
    rows.write_text(rows.read_text().replace("q3", "q5", 1))
    for message in refused(folders, "train", "tiny.yaml", "--out", tmp_path / "out"):
        assert f"rpo: error: {named(1, 'process 0')}" in message
        assert "in the rows of `data.train` or `data.eval`, the tokens of the training" in message
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("config", "`objective.eta` (0.2, not 0.1)"),
        ("version", "the version of rpo-theory (9.9, not "),
        ("jax", "the version of jax (9.9, not "),
        ("no cache", "reference.safetensors (missing)"),
        ("other cache", "reference.safetensors: start"),
        ("checkpoint", "the last checkpoint (missing)"),
    ],
)
def test_raises_if_a_host_differs_and_names_host_and_difference(
    change: str, what: str, tmp_path: Path
) -> None:
    folders, variables, arguments = hosts(tmp_path, 3), [], ["train", "tiny.yaml"]
    third = folders[2]
    if change == "config":
        (third / "tiny.yaml").write_text((third / "tiny.yaml").read_text().replace(".1}", ".2}"))
    elif change in ("version", "jax"):
        name = "rpo-theory" if change == "version" else "jax"
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(
            "import importlib.metadata as metadata\n"
            "find = metadata.version\n"
            f"metadata.version = lambda name: '9.9' if name == {name!r} else find(name)\n"
        )
        variables = [{}, {}, {"PYTHONPATH": str(tmp_path / "site")}]
    else:
        for each in folders:
            (each / "run" / "checkpoints" / "2").mkdir(parents=True)
            (each / "run" / ".rpo.json").write_text('{"written_by": "rpo train"}')
            (each / "run" / "reference.safetensors").write_bytes(b"cache")
        cache = third / "run" / "reference.safetensors"
        if change == "no cache":
            cache.unlink()
        elif change == "other cache":
            cache.write_bytes(b"other")
        else:
            (third / "run" / "checkpoints" / "2").rmdir()
        arguments += ["--out", "run", "--resume"]
    for message in refused(folders, *arguments, variables=variables):
        assert f"rpo: error: {named(2, 'the other processes')}" in message
        assert what in message


@pytest.mark.slow
@pytest.mark.parametrize("command", ["score", "generate", "evaluate"])
def test_raises_if_a_host_reads_another_file(command: str, tmp_path: Path, folder: Path) -> None:
    folders = hosts(tmp_path, 2)
    for each in folders:
        for name in ("policy", "base"):
            (each / name).symlink_to(folder / name)
    (folders[1] / "rows.jsonl").write_text("{}\n")
    arguments = [each.replace("OUT", str(tmp_path)) for each in WORK[command]]
    for message in refused(folders, command, *MODEL, *arguments):
        other = f"process 0 ({socket.gethostname()})"
        assert f"{named(1, other)} in rows.jsonl: start" in message


@pytest.mark.slow
def test_raises_if_a_host_lacks_a_file_or_does_not_see_the_folder(tmp_path: Path) -> None:
    folders = hosts(tmp_path, 2)
    for message in refused(folders, "train", "tiny.yaml", "--out", "run"):
        assert f"--out: run: process 1 ({socket.gethostname()}) cannot see the files" in message
    (folders[1] / "rows.jsonl").unlink()
    shared = ("--out", tmp_path / "out")
    first, second = refused(folders, "train", "tiny.yaml", *shared)
    assert second.startswith("rpo: error: rows.jsonl does not exist")
    assert f"process 1 ({socket.gethostname()}): rows.jsonl does not exist" in first
    (folders[1] / "tiny.yaml").unlink()
    first, second = refused(folders, "train", "tiny.yaml", *shared)
    assert second == "rpo: error: tiny.yaml: No such file or directory"
    assert f"process 1 ({socket.gethostname()}): tiny.yaml: No such file" in first


@pytest.mark.slow
def test_limit_a_process_that_waits_reports_for_whom_and_ends_within_a_minute(
    tmp_path: Path,
) -> None:
    write_inputs(tmp_path)
    arguments = ("train", "tiny.yaml", "--out", "run")
    with cluster("slurm", 4) as environments:
        waiting = [start(arguments, tmp_path, environments[k]) for k in (0, 2)]
        assert waiting[0].stderr is not None
        first = waiting[0].stderr.readline()
        begin = time.monotonic() - 10.0
        lines = [process.communicate(timeout=90)[1].splitlines()[-1] for process in waiting]
    assert time.monotonic() - begin < 60.0
    assert [process.returncode for process in waiting] == [2, 2]
    assert "(10 s)" in first
    for line in lines:
        assert "not all processes have connected after 45 s: 2 processes: 1, 3 of 4" in line


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("command", ["train", "score"])
def test_raises_an_interrupt_ends_the_wait_of_any_command(command: str, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    arguments = ["train", "tiny.yaml"]
    if command == "score":
        arguments = ["score", "--model", "m", "--data", "rows.jsonl", "--out", "scores.jsonl"]
    with cluster("gke", 2) as environments:
        process = start(arguments, tmp_path, environments[1])
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for process 0")
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        process.communicate(timeout=60)
    assert time.monotonic() - begin < SECONDS
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.slow
def test_limit_a_proxy_does_not_keep_processes_apart(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    proxy = {"http_proxy": "http://127.0.0.1:1"}
    arguments = ("train", "tiny.yaml", "--out", "run", "--trainer.max_steps", "1")
    done = run_job("slurm", arguments, [tmp_path] * 2, variables=[proxy, proxy])
    for code, _, messages in done:
        assert code == 0, messages
        assert messages.startswith("http_proxy is set: processes connect to 127.0.0.1 without")


SCRIPT = """
import sys, jax
jax.distributed.initialize("127.0.0.1:{port}", 2, int(sys.argv[1]))
from rpo import api
run = api.train("tiny.yaml", out="run")
scores = api.score(model="run", data="rows.jsonl", out="s.jsonl", tokenizer="bytes", max_length=16)
print(run.step, scores.n_rows)
"""


@pytest.mark.slow
def test_property_processes_that_the_user_has_connected_are_a_group(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT.format(port=free_port()))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "script.py", str(k)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    for process in processes:
        assert process.communicate(timeout=200)[0].splitlines()[-1] == "4 24"
        assert process.returncode == 0
    scores = list(map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines()))
    assert np.isfinite([score["chosen_logp"] for score in scores]).all()
