"""A run before it starts: the pairs it uses, and its fingerprint."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from llm.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens
from llm.hf.factory import build_model, resolve_model
from llm.train.dataset import TrainingData
from llm.train.run import Run

SIZES = {
    "vocab_size": 261,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
CONFIG = TrainConfig(
    name="tiny",
    model=ModelConfig(architecture=SIZES),
    data=DataConfig(train="rows.jsonl", max_length=16),
    trainer=TrainerConfig(per_device_train_batch_size=2, gradient_accumulation_steps=2),
)


def pairs(rows: range) -> PairTable:
    return PairTable.from_pairs(PairTokens((1, 2), (3 + row,), (4, 5), None, row) for row in rows)


DATA = TrainingData(pairs(range(10)), pairs(range(20, 23)), {"data": "d4"}, {}, frozenset())


@pytest.fixture(scope="module")
def run() -> Run:
    """Return a run that has compiled nothing yet."""
    return Run(CONFIG, DATA, build_model(resolve_model(CONFIG.model)))


def other(run: Run, **changed: Any) -> Run:
    """Return the run with other attributes."""
    result = copy.copy(run)
    vars(result).update(changed)
    return result


def test_closed_form_a_run_uses_the_pairs_of_its_steps_and_all_held_out_pairs(run: Run) -> None:
    held_out = [20, 21, 22]
    assert run.num_steps == 3
    assert run.visited_pairs().rows.tolist() == [*range(10), *held_out]
    used = sorted(row for step in range(2) for row in run.sampler.batch(step).row_ids.ravel())
    assert len(set(used)) == 8
    assert other(run, num_steps=2).visited_pairs().rows.tolist() == [*used, *held_out]


def test_property_batches_in_order_hold_every_pair_once_in_the_shapes_of_a_step(run: Run) -> None:
    batches = list(run.batches_in_order(DATA.evaluation))
    assert run.num_shards == 1
    assert [batch.lengths.shape for batch in batches] == [(1, 1, 2, 2)] * 2
    rows = np.concatenate([batch.row_ids[batch.present] for batch in batches])
    assert sorted(rows.tolist()) == [20, 21, 22]


def test_limit_on_one_device_a_batch_has_one_shard(run: Run) -> None:
    batch = run.sampler.batch(0)
    assigned = run.assign_to_shards(batch)
    assert assigned.lengths.shape == (2, 1, 2, 2)
    np.testing.assert_array_equal(assigned.row_ids[:, 0], batch.row_ids)
    np.testing.assert_array_equal(run.put_on_devices(assigned).row_ids, assigned.row_ids)


def test_property_a_fingerprint_depends_on_what_decides_the_result_and_nothing_else(
    run: Run,
) -> None:
    def config(**changed: Any) -> TrainConfig:
        return dataclasses.replace(CONFIG, trainer=dataclasses.replace(CONFIG.trainer, **changed))

    def difference(**changed: Any) -> str | None:
        return other(run, **changed).fingerprint().difference(recorded)

    recorded = json.loads(json.dumps(run.fingerprint()._asdict()))
    equal = [
        config(logging_steps=7, save_steps=3, save_total_limit=9, eval_steps=5),
        config(per_device_train_batch_size=4, gradient_accumulation_steps=1),
        config(max_steps=3),
        dataclasses.replace(CONFIG, mesh=MeshConfig(tensor=2)),
    ]
    assert [difference(config=changed) for changed in equal] == [None] * 4
    adam = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(adam_beta1=0.8))
    sampler = dataclasses.replace(run.sampler, pairs_per_microbatch=4)
    expected = {
        "another configuration (`trainer.seed` was 0 and is 3)": {"config": config(seed=3)},
        "another configuration (`optimizer.adam_beta1` was 0.9 and is 0.8)": {"config": adam},
        "another configuration (the number of pairs of a step (`trainer.global_batch_size`, or "
        "`trainer.per_device_train_batch_size` x `trainer.gradient_accumulation_steps` x devices) "
        "was 4 and is 8)": {"sampler": sampler},
        "other data (the rows of `data.train` or `data.eval` changed)": {
            "data": DATA._replace(provenance={"data": "d5"})
        },
        "another model (the frozen weights of `model.path` changed": {
            "frozen_weights_digest": "f7"
        },
        "another model (the weights of `model.path` changed": {"initial_weights_digest": "f7"},
        "another model (`parameters.embedding` was 'float32 [261, 8]' and is None": {
            "state": run.state._replace(trainable={})
        },
    }
    for message, changed in expected.items():
        assert (difference(**changed) or "").startswith(message)
