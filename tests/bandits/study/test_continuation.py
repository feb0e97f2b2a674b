"""A study that is continued for more seeds has the bytes of one planned so from the start."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bandits.environments.base import Instance
from bandits.methods.method_config import method_labels
from bandits.study import run as study_run
from bandits.study.config import (
    MethodConfig,
    StudyConfig,
    expand_weights,
    resolved_config,
)
from bandits.study.continuation import SeedBlock, find_blocks, join_blocks, split_records
from bandits.study.inputs import input_digests
from bandits.study.parts import StudyPart, plan_parts
from bandits.study.record_table import TableBuilder
from bandits.study.records import RecordStore


def study(seeds: int) -> StudyConfig:
    design: dict[str, Any] = {"actions": 4, "rare": 1, "target_coverage": [1.5, 3.0]}
    return StudyConfig(
        name="tiny",
        methods=[
            MethodConfig(method="behavior_cloning"),
            MethodConfig(method="behavior_cloning", label="again"),
        ],
        comparisons=[20, 50],
        seeds=seeds,
        first_seed=3,
        eta=[0.1, "theorem"],
        design=design | {"gaps": "log_uniform", "reference": ["data", "uniform"]},
    )


def run(folder: Path, seeds: int, *, stop_after: int | None = None) -> None:
    """Run a study as the command does, up to a number of parts."""
    config = study(seeds)
    folder.mkdir(exist_ok=True)
    store = RecordStore(folder, resolved_config(config))
    store.check(resume=True)
    earlier = store.earlier_seeds()
    if earlier is not None:
        store.keep_as_block(config, earlier)
    blocks = find_blocks(folder, seeds)
    done = 0
    for part_study, part_store in [
        (block.study(config), store.block(block)) for block in blocks
    ] or [(config, store)]:
        for _ in study_run.run_parts(part_study, part_store, plan_parts(part_study)):
            done += 1
            if done == stop_after:
                return
    if blocks:
        store.merge_blocks(config, blocks)
    else:
        store.merge(len(plan_parts(config)))
    store.drop_parts()


def test_roundtrip_more_seeds_give_the_bytes_of_a_study_planned_so_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 7)
    fits: list[int] = []

    def record(config: StudyConfig, part: StudyPart, instance: Instance) -> Any:
        """Return a table with the draws of a part, without fitting anything."""
        fits.append(part.n_draws)
        rules = [str(pair.eta) for pair in expand_weights(config)]
        tables = []
        for method, rule in itertools.product(range(len(config.methods)), range(len(rules))):
            table = TableBuilder(part.n_draws)
            table.add_strings("label", np.array(method), method_labels(config.method_configs))
            table.add_strings("eta_rule", np.array(rule), rules)
            table.add_numbers("seed", part.seeds[: part.n_draws])
            reward = np.asarray(instance.true_reward).sum(axis=(1, 2))[: part.n_draws]
            table.add_numbers("gap", 10 * method + rule + reward)
            tables.append(table.build())
        return pa.concat_tables(tables), pa.table({"fits": [part.n_draws]})

    monkeypatch.setattr(study_run, "run_part", record)
    run(tmp_path / "whole", 5)
    fits.clear()
    expected = (tmp_path / "whole" / "records.parquet").read_bytes()
    n_scenarios = 2 * 2 * 2
    run(tmp_path / "finished", 2)
    run(tmp_path / "finished", 3)
    run(tmp_path / "finished", 5)
    assert (tmp_path / "finished" / "records.parquet").read_bytes() == expected
    assert sum(fits) == 5 * n_scenarios  # every draw was fitted once
    names = {path.name for path in (tmp_path / "finished").iterdir()}
    assert names == {
        f"{kind}.parquet{end}" for kind in ("records", "seconds") for end in ("", ".sha256")
    }
    fits.clear()
    run(tmp_path / "killed", 2, stop_after=2)
    run(tmp_path / "killed", 3, stop_after=4)
    assert find_blocks(tmp_path / "killed", 4) == [(0, 2), (2, 3), (3, 4)]
    run(tmp_path / "killed", 5)
    assert (tmp_path / "killed" / "records.parquet").read_bytes() == expected
    assert sum(fits) == 5 * n_scenarios


def test_raises_for_fewer_seeds_and_for_a_block_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 7)
    empty = pa.table({"seed": [0.0]})
    monkeypatch.setattr(study_run, "run_part", lambda *_: (empty, empty))
    run(tmp_path / "study", 2, stop_after=1)
    run(tmp_path / "study", 3, stop_after=4)  # three parts of the first block, one of the second
    with pytest.raises(ValueError, match="`seeds` was 3, is 2, and a study continues only for"):
        RecordStore(tmp_path / "study", resolved_config(study(2))).check(resume=True)
    with pytest.raises(ValueError, match="continue with --resume"):
        RecordStore(tmp_path / "study", resolved_config(study(3))).check(resume=False)
    for file in (tmp_path / "study" / "parts_of_seeds_0_2").iterdir():
        file.unlink()
    (tmp_path / "study" / "parts_of_seeds_0_2").rmdir()
    with pytest.raises(ValueError, match="parts_of_seeds_0_2 is missing"):
        find_blocks(tmp_path / "study", 3)


def test_roundtrip_records_are_cut_into_parts_and_joined_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bandits.study.parts.MAX_DRAWS_PER_PART", 7)
    config = StudyConfig(
        name="a", methods=[MethodConfig(method="behavior_cloning")], comparisons=[9], seeds=10
    )
    plan = plan_parts(config)
    tables = [pa.table({"seed": part.seeds[: part.n_draws]}) for part in plan]
    parts = dict(split_records(config, iter(tables)))
    (joined, *rest) = join_blocks(config, [SeedBlock(0, 10)], lambda _, number: parts[number])
    assert [joined, *rest] == [table.combine_chunks() for table in tables]
    with pytest.raises(ValueError, match="fewer than the study has"):
        list(split_records(config, iter(tables[:1])))


def test_closed_form_every_file_that_a_study_reads_has_a_digest(tmp_path: Path) -> None:
    votes, features = tmp_path / "v.csv", tmp_path / "f.npy"
    votes.write_bytes(b"abc")
    features.write_bytes(b"")
    config = StudyConfig(
        name="a",
        methods=[MethodConfig(method="rpo")],
        comparisons=[9],
        seeds=1,
        environments=[f"votes:{votes}", "design"],
        design={"features_file": [str(features)], "reward": "linear"},
    )
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert input_digests(config) == {
        f"environments votes:{votes}": abc,
        f"design.features_file {features}": empty,
    }
