"""Results that are equal to the last bit in every process and every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpo.cli import main

PROBLEM = {
    "context_weights": [0.4, 0.6],
    "reference_policy": [[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]],
    "baseline_policy": "chosen",
    "comparisons": [[0, 0, 1, 5], [0, 1, 0, 2], [0, 1, 2, 3], [1, 2, 0, 4], [1, 0, 1, 1.5]],
    "beta": 0.3,
    "eta": 0.02,
    "reward_class": {"kind": "tabular", "max": 2.0},
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("maximin", "policy")]


@pytest.mark.parametrize("formulation", ["minimax", *SLOW])
def test_property_a_problem_has_the_same_answer_in_every_process(
    formulation: str, tmp_path: Path
) -> None:
    (tmp_path / "problem.json").write_text(json.dumps(PROBLEM))
    command = [sys.executable, "-m", "rpo", "solve", "problem.json", "--formulation", formulation]
    both = [
        subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The compilation cache is in HOME: each process compiles for itself.
            env=os.environ | {"HOME": str(tmp_path / name), "JAX_COMPILATION_CACHE_DIR": ""},
        )
        for name in ("one", "two")
    ]
    one, two = (process.communicate()[0] for process in both)
    assert json.loads(one)["status"] == "solved"
    assert one == two


@pytest.mark.slow
def test_property_verification_measures_the_same_numbers_twice(tmp_path: Path) -> None:
    documents = []
    for name in ("one", "two"):
        assert main(["verify", "--instances", "6", "--out", str(tmp_path / name)]) == 0
        written = json.loads((tmp_path / name / "verify.json").read_text())
        for instance in written["instances"]:
            del instance["seconds"]
        documents.append(written)
    assert documents[0] == documents[1]
