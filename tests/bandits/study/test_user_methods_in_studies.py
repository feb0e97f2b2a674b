"""Studies of methods of the user's own: fingerprint, continuation, failures, Python objects."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandits.environments.registry import find_environment
from bandits.methods.base import Method
from bandits.methods.method_config import MethodConfig, as_method_config, method_labels
from bandits.methods.registry import METHODS
from bandits.study.config import StudyConfig, resolved_config
from bandits.study.failures import count_failures
from bandits.study.inputs import input_digests
from bandits.study.summary_queries import without_labels
from rpo import api
from rpo.cli import main
from rpo_io.user_modules import add_module_folder

MODULE = """
def uniform(reference):
    return reference


def odd_fails(wins, reference, *, modulus=2):
    if wins[0, 0].sum() % modulus == 1:
        raise RuntimeError("odd")
    return reference
"""


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    (tmp_path / "methods_of_a_study.py").write_text(MODULE)
    (tmp_path / "study.yaml").write_text(
        "name: mine\n"
        "methods: [dpo, methods_of_a_study:uniform, methods_of_a_study:odd_fails]\n"
        "comparisons: [20, 40]\nseeds: 4\ndesign: {actions: [3, 4]}\n"
    )
    return tmp_path / "study.yaml"


def test_roundtrip_a_study_of_ones_methods_reports_failures_and_goes_on(
    configuration: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = api.study(configuration, out=configuration.parent / "out")
    failures = json.loads((result.folder / "summary.json").read_text())["failures"]
    (row,) = failures
    assert (row["label"], row["fits"], row["message"]) == ("odd_fails", 16, "RuntimeError: odd")
    assert f"odd_fails: {row['failed']} of 16 fits gave no policy" in caplog.text
    paired = json.loads((result.folder / "summary.json").read_text())["paired"]
    assert paired["first"] == "dpo"
    pairs = {cell["label"]: 0 for cell in paired["cells"]}
    for cell in paired["cells"]:
        pairs[cell["label"]] += cell["pairs"]
    assert pairs == {"uniform": 16, "odd_fails": 16 - row["failed"]}
    assert "N = 40: gap minus that of dpo, same draws (95 % interval)" in caplog.text
    records = result.records.to_pylist()
    failed = [item for item in records if item["status"] == "FAILED"]
    assert len(failed) == row["failed"] > 0
    for item in failed:
        assert item["method"] == "methods_of_a_study:odd_fails"
        assert (item["gap"], item["kl"], item["message"]) == (None, None, "RuntimeError: odd")
    uniform = [item for item in records if item["label"] == "uniform"]
    assert {item["status"] for item in uniform} == {"SOLVED"}
    assert max(abs(item["gap_reference"]) for item in uniform) < 1e-12
    # The configuration that is written beside the results runs again, and more seeds continue it.
    again = api.study(result.folder / "config.yaml", out=configuration.parent / "again")
    whole = (again.folder / "records.parquet").read_bytes()
    assert whole == (result.folder / "records.parquet").read_bytes()
    more = {"seeds": 6}
    api.study(configuration, more, out=result.folder, resume=True)
    at_once = api.study(configuration, more, out=configuration.parent / "at_once")
    continued = (result.folder / "records.parquet").read_bytes()
    assert continued == (at_once.folder / "records.parquet").read_bytes()


def test_property_what_methods_and_environments_print_stays_out_of_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "printing_methods.py").write_text(
        "def uniform(reference):\n    print('fitting')\n    return reference\n\n\n"
        "def world():\n    print('drawing')\n"
        "    return {'true_reward': [[0.0, 1.0]], 'behavior_policy': [[0.5, 0.5]]}\n"
    )
    path = tmp_path / "study.yaml"
    path.write_text(
        "{name: a, methods: ['printing_methods:uniform'], comparisons: [5], seeds: 1, "
        "environments: ['printing_methods:world']}"
    )
    assert main(["study", str(path), "--json", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["study"] == "a"
    assert {"fitting", "drawing"} <= set(captured.err.splitlines())


def test_property_the_source_of_a_method_is_part_of_the_fingerprint(configuration: Path) -> None:
    add_module_folder(configuration.parent)
    path = configuration.parent / "digested_methods.py"
    path.write_text(MODULE)
    study = StudyConfig(name="a", methods=["digested_methods:uniform"], comparisons=[9], seeds=1)
    before = input_digests(study)
    assert list(before) == ["methods digested_methods:uniform"]
    path.write_text(MODULE + "# changed\n")
    del sys.modules["digested_methods"]
    assert input_digests(study) != before


def test_property_functions_and_records_are_methods_of_a_study() -> None:
    def even(reference, *, power: float = 1.0):
        return reference

    record: Method = METHODS["rpo"]._replace(name="mine", source=even)
    methods = [even, record, "dpo", MethodConfig(method=even, label="b", options={"power": 2})]
    study = StudyConfig(name="a", methods=methods, comparisons=[9], seeds=1)
    assert method_labels(study.method_configs) == ["even", "mine", "dpo", "b"]
    assert study.method_configs[3].options.power == 2.0
    plain = resolved_config(study)["methods"]
    assert [item["method"] for item in plain] == [
        f"{__name__}:even",
        f"{__name__}:mine",
        "dpo",
        f"{__name__}:even",
    ]
    assert plain[3]["options"] == {"power": 2.0}
    assert as_method_config(study.method_configs[0]) is study.method_configs[0]


def test_closed_form_failures_are_counted_over_tables() -> None:
    import pyarrow as pa

    def table(labels: list[str], failed: list[bool]) -> pa.Table:
        status = ["FAILED" if bad else "SOLVED" for bad in failed]
        return pa.table({"label": labels, "status": status, "message": ["no"] * len(labels)})

    tables = [table(["a", "b"], [False, False]), table(["a", "a"], [True, True])]
    assert count_failures(tables) == [{"label": "a", "fits": 3, "failed": 2, "message": "no"}]
    summary = {"label": np.array(["a", "b"]), "gap": np.array([np.nan, 1.0])}
    assert without_labels(summary, ["a"])["gap"].tolist() == [1.0]


def test_roundtrip_votes_a_file_and_a_function_are_values_of_one_axis(tmp_path: Path) -> None:
    (tmp_path / "worlds_of_a_study.py").write_text(
        "def world(seed):\n"
        "    reward = [[0.0, 0.1 * (seed % 7), 1.0]]\n"
        "    return {'true_reward': reward, 'behavior_policy': [[0.2, 0.3, 0.5]]}\n"
    )
    add_module_folder(tmp_path)
    (tmp_path / "v.csv").write_text("winner,loser,count\na,b,30\nb,a,10\nb,c,25\nc,b,15\n")
    table = {"true_reward": [[0.0, 1.0, 0.5]], "behavior_policy": [[0.2, 0.3, 0.5]]}
    reward, behavior = (np.array(value) for value in table.values())
    np.savez(tmp_path / "b.npz", true_reward=reward, behavior_policy=behavior)
    names: list[Any] = [
        f"votes:{tmp_path}/v.csv",
        f"file:{tmp_path}/b.npz",
        "worlds_of_a_study:world",
    ]
    study = StudyConfig(
        name="a", methods=["two_stage"], comparisons=[30], seeds=3, environments=names
    )
    result = api.study(study, out=tmp_path / "out")
    records = result.records.to_pylist()
    assert [row["environment"] for row in records] == [name for name in names for _ in range(3)]
    assert {row["status"] for row in records} == {"SOLVED"}
    assert sorted(input_digests(study)) == sorted(f"environments {name}" for name in names)
    # In Python, a function may stand for itself.
    world = find_environment(names[2]).source
    in_python = StudyConfig(
        name="a", methods=["two_stage"], comparisons=[30], seeds=3, environments=[*names[:2], world]
    )
    assert resolved_config(in_python) == resolved_config(study)
    with pytest.raises(ValueError, match="`environments` must be 'design', 'votes:"):
        StudyConfig(name="a", methods=["rpo"], comparisons=[9], seeds=1, environments=["bandit"])
    with pytest.raises(ValueError, match="`environments` must be a function at the top level of"):
        StudyConfig(
            name="a", methods=["rpo"], comparisons=[9], seeds=1, environments=[lambda seed: {}]
        )
