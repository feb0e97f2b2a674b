"""Claims about ``rpo study --part`` and ``--merge``: shares of jobs, joined to the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from rpo.cli import main

STUDY = """
name: shared
methods: [behavior_cloning]
environments: [design]
comparisons: [20, 40]
seeds: 5
design: {actions: 3, target_coverage: 2.0, reward_max: 2.0}
quick: {seeds: 3}
"""

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "howto" / "run_on_a_cluster.md"
N_JOBS = 5


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 2)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


def run(*arguments: str | Path) -> None:
    assert main(["study", *map(str, arguments)]) == 0


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main(["study", *map(str, arguments)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("rpo: error: ")
    assert message.count("\n") == 1
    return message


def digests(folder: Path) -> dict[str, str]:
    names = ("records.parquet", "summary.json", "config.yaml")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_roundtrip_shares_of_jobs_merge_to_the_bytes_of_one_run(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, out = tmp_path / "one", tmp_path / "jobs"
    run(study, "--out", one)
    for job in ("1/3", "3/3"):
        run(study, "--part", job, "--out", out)
    before = sorted(path for path in out.rglob("*"))
    message = refused(capsys, study, "--merge", "--out", out)
    assert "part 000001 is missing, of the job 2/3: run rpo study" in message
    assert f"{study} --part 2/3 --out {out}\n" in message
    assert [path for path in before if not path.exists()] == []  # nothing is lost
    stored = out / "part-1-of-3" / "parts" / "000000.parquet"
    time = stored.stat().st_mtime_ns
    (out / "part-1-of-3" / "parts" / "000003.parquet").unlink()  # as if the job had been killed
    run(study, "--part", "1/3", "--out", out)
    assert stored.stat().st_mtime_ns == time
    run(study, "--part", "2/3", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("bandits.study.run.run_part", None)  # a merge computes no part
        run(study, "--merge", "--out", out)
    assert digests(out) == digests(one)
    assert not list(out.glob("part*"))
    run(study, "--merge", "--out", out)  # the merge can be repeated
    run(study, "--part", "2/3", "--out", out)  # and a job that is too late does no harm
    assert digests(out) == digests(one)
    assert not list(out.glob("part*"))


def test_roundtrip_more_jobs_than_parts_share_the_draws(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 20_000)
    one, out = tmp_path / "one", tmp_path / "jobs"
    run(study, "--out", one)
    for job in ("1/4", "2/4", "4/4"):
        run(study, "--part", job, "--out", out)
    stored = [path.name for path in (out / "part-2-of-4" / "parts_pieces").glob("*.parquet")]
    assert stored == ["000001.parquet"]
    message = refused(capsys, study, "--merge", "--out", out)
    assert "a piece of part 000000 is missing, of the job 3/4: run rpo study" in message
    run(study, "--part", "3/4", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("bandits.study.run.run_part", None)
        run(study, "--merge", "--out", out)
    assert digests(out) == digests(one)
    assert not list(out.glob("part*"))
    timings = [pq.read_table(folder / "seconds.parquet") for folder in (one, out)]
    assert timings[0].drop(["seconds"]).equals(timings[1].drop(["seconds"]))
    # There are ten draws.
    run(study, "--part", "11/12", "--out", tmp_path / "other")
    message = "the study has too few draws: only the first 10 of the 12 jobs have work"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_roundtrip_jobs_share_the_new_seeds_of_a_finished_study(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 20_000)
    out, seven = tmp_path / "jobs", [study, "--seeds", "7"]
    run(study, "--out", out)
    for job in ("1/3", "2/3", "3/3"):
        run(*seven, "--part", job, "--out", out)
    run(*seven, "--merge", "--out", out)
    run(*seven, "--out", tmp_path / "seven")
    assert digests(out) == digests(tmp_path / "seven")
    assert not list(out.glob("part*"))


def test_roundtrip_jobs_continue_a_finished_study_for_more_seeds(
    study: Path, tmp_path: Path
) -> None:
    one, out = tmp_path / "one", tmp_path / "jobs"
    four = [study, "--quick", "--quick.seeds", "4"]
    run(*four, "--out", one)
    run(study, "--quick", "--out", out)
    for job in ("1/2", "2/2"):
        run(*four, "--part", job, "--out", out)
    run(*four, "--merge", "--out", out)
    assert digests(out) == digests(one)


def test_raises_one_line_for_shares_that_cannot_be_merged(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "jobs"
    for share in ("0/5", "6/5", "1", "1/0", "a/b"):
        assert "--part: must be K/N" in refused(capsys, study, "--part", share, "--out", out)
    assert "--merge: not allowed with argument --part" in refused(
        capsys, study, "--part", "1/2", "--merge", "--out", out
    )
    assert "--part: must be K/N" in refused(capsys, study, "--part", "3/2", "--dry-run")
    for option in (["--table"], ["--format", "pdf"], ["--width", "neurips"]):
        message = refused(capsys, study, "--part", "1/2", "--out", out, *option)
        assert "not allowed with argument --part: give it with --merge" in message
    message = refused(capsys, study, "--merge", "--out", out)
    assert "holds no parts to merge: compute them with --part K/N" in message
    assert not out.exists()
    quick = [study, "--quick", "--out", out]
    run(*quick, "--part", "1/2")
    for change, difference in (
        (["--delta", "0.1"], "`delta` was 0.05, is 0.1"),
        (["--quick.seeds", "4"], "`seeds` was 3, is 4"),
    ):
        message = refused(capsys, *quick, *change, "--part", "1/2")
        assert f"results of another study ({difference}" in message
        other = tmp_path / "other"
        run(study, "--quick", "--out", other, *change, "--part", "2/2")
        shutil.copytree(other / "part-2-of-2", out / "part-2-of-2")
        message = refused(capsys, *quick, *change, "--merge")
        assert (
            f"part-1-of-2/parts/000000.parquet: results of another study ({difference}" in message
        )
        shutil.rmtree(out / "part-2-of-2")
        shutil.rmtree(other)
    damaged = out / "part-1-of-2" / "parts" / "000000.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert "000000.parquet is damaged" in refused(capsys, *quick, "--merge")


def test_raises_folders_of_others_are_refused(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    for option in (["--part", "1/2"], ["--merge"]):
        message = refused(capsys, study, *option, "--out", tmp_path / "home")
        assert "holds files that rpo study did not write (thesis.tex)" in message
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def run_scripts(folder: Path, program: str) -> str:
    """Run the scripts of the page as Slurm would, with a program of the name ``rpo``."""
    blocks = re.findall(r'^```bash title="(\w+\.sh)"\n(.*?)^```$', PAGE.read_text(), re.S | re.M)
    assert [name for name, _ in blocks] == ["study_jobs.sh", "study_merge.sh"]
    assert f"#SBATCH --array=1-{N_JOBS}\n" in blocks[0][1]
    (folder / "bin").mkdir()
    (folder / "bin" / "rpo").write_text(f"#!/bin/bash\n{program}\n")
    (folder / "bin" / "rpo").chmod(0o755)

    def run_script(text: str, variables: Mapping[str, str]) -> str:
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, **variables}
        command = ["bash", "-c", text]
        return subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    jobs, merge = (text for _, text in blocks)
    shown = [
        run_script(jobs, {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": str(N_JOBS)})
        for k in range(1, N_JOBS + 1)
    ]
    # One job again, alone in its array, as the page says.
    again = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1", "JOBS": str(N_JOBS)}
    return "".join([*shown, run_script(jobs, again), run_script(merge, {})])


def test_roundtrip_the_commands_of_the_slurm_scripts_leave_the_bytes_of_one_run(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = run_scripts(tmp_path, 'echo "$@"').splitlines()
    assert len(commands) == N_JOBS + 2
    for command in commands:
        assert main(shlex.split(command)) == 0
    run(study, "--out", tmp_path / "one")
    assert digests(tmp_path / "out" / "study") == digests(tmp_path / "one")


def test_closed_form_the_kubernetes_jobs_of_the_page_are_consistent() -> None:
    examples = PAGE.parents[2] / "examples"
    (shares,), (service, group) = (
        list(yaml.safe_load_all((examples / f"kubernetes_{name}.yaml").read_text()))
        for name in ("shares", "group")
    )
    for job in (shares, group):
        assert job["spec"]["completionMode"] == "Indexed"
        assert job["spec"]["completions"] == job["spec"]["parallelism"]
    # The shares of the pods are all shares.
    (script,) = shares["spec"]["template"]["spec"]["containers"][0]["args"]
    n_jobs = shares["spec"]["completions"]
    command = ["bash", "-c", f"echo {script}"]
    parts = [
        subprocess.run(
            command, env={"JOB_COMPLETION_INDEX": str(index)}, capture_output=True, check=True
        ).stdout.split()[4]
        for index in range(n_jobs)
    ]
    assert parts == [f"{job}/{n_jobs}".encode() for job in range(1, n_jobs + 1)]
    # The pods of the group are those that the headless service names.
    pod = group["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[command.index("--num-processes") + 1] == str(group["spec"]["completions"])
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": group["metadata"]["name"]}


@pytest.mark.slow
def test_roundtrip_the_slurm_scripts_run_as_processes(tmp_path: Path) -> None:
    # A part for each number of actions.
    text = STUDY.replace("actions: 3", "actions: [3, 4, 5, 6, 7]")
    (tmp_path / "study.yaml").write_text(text)
    run_scripts(tmp_path, f'PYTHONPATH={ROOT} exec {sys.executable} -m rpo "$@"')
    run(tmp_path / "study.yaml", "--out", tmp_path / "one")
    assert digests(tmp_path / "out" / "study") == digests(tmp_path / "one")
