"""Claims about runs on unpaired rows: KTO's loss, the steps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.data.labels import PairLabel
from llm.data.loader import BatchSampler
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens, PreferenceRow
from llm.evaluation.metrics import compute_metric_sums, finalize_metrics
from llm.train.batches import describe_last_step
from llm.train.dataset import TrainingData
from llm.train.mismatched import mismatch_steps
from llm.train.objective import chosen_log_ratio_quantiles
from llm.train.row_kinds import RowKinds
from llm.types import Batch
from tests.llm.train.tiny_runs import TINY, train_to_end

BETA = 0.4
OPTIONS = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
KTO = ObjectiveConfig(method="kto", beta=BETA, options=OPTIONS)


def rows(n: int) -> PairTable:
    rng = np.random.default_rng(0)

    def draw() -> tuple[int, ...]:
        return tuple(rng.integers(0, 200, rng.integers(1, 9)).tolist())

    tokens = [(draw(), draw()) for _ in range(n)]
    return PairTable.from_pairs(
        PairTokens(prompt, response, response, None, row, desirable=row % 3 == 0)
        for row, (prompt, response) in enumerate(tokens)
    )


def data_of(train: PairTable, evaluation: PairTable) -> TrainingData:
    return TrainingData(train, evaluation, {}, {}, frozenset())


def batch_of(n: int, desirable: np.ndarray) -> Batch:
    present = np.arange(n) < n - 1
    lengths = np.ones((n, 2), int)
    nothing: Any = None  # the tokens have been scored already
    return Batch(nothing, nothing, lengths, present, np.arange(n), desirable=desirable & present)


def test_closed_form_kto_of_unpaired_rows_in_numpy() -> None:
    rng = np.random.default_rng(1)
    policy, reference = rng.normal(-9.0, 2.0, (2, 6, 2))
    desirable = np.array([True, False, False, True, False, True])
    batch = batch_of(6, desirable)
    for shift in (3.0, -3.0):  # on either side of the clamp
        moved = policy + np.array([0.0, shift])
        means = finalize_metrics(KTO, compute_metric_sums(KTO, moved, reference, batch))
        u, other = (moved - reference)[:5].T
        point = max(0.0, other.mean())
        sign = np.where(desirable[:5], 1.0, -1.0)
        weight = np.where(desirable[:5], 1.5, 0.5)
        wanted = weight * (1.0 - 1.0 / (1.0 + np.exp(-sign * BETA * (u - point))))
        assert float(means["loss"]) == pytest.approx(wanted.mean(), rel=1e-6)
        assert float(means["kl"]) == pytest.approx(point, rel=1e-6)
        rewards = [BETA * u[desirable[:5]].mean(), BETA * u[~desirable[:5]].mean()]
        assert float(means["rewards/chosen"]) == pytest.approx(rewards[0], rel=1e-6)
        assert float(means["rewards/margins"]) == pytest.approx(rewards[0] - rewards[1], rel=1e-5)
        assert float(means["logps/rejected"]) == pytest.approx(
            moved[:5, 0][~desirable[:5]].mean(), rel=1e-6
        )
        assert float(means["loss/sft"]) == pytest.approx(
            -moved[:5, 0][desirable[:5]].mean(), rel=1e-6
        )
    zero = ObjectiveConfig(method="kto", beta=BETA, options={"reference_point": "zero"})
    loss = finalize_metrics(zero, compute_metric_sums(zero, policy, reference, batch))["loss"]
    u = (policy - reference)[:5, 0]
    signs = np.where(desirable[:5], 1.0, -1.0)
    assert float(loss) == pytest.approx((1 / (1 + np.exp(signs * BETA * u))).mean(), rel=1e-6)
    with pytest.raises(ValueError, match=r"must be 'kto' for unpaired rows, got 'dpo'$"):
        compute_metric_sums(ObjectiveConfig(method="dpo"), policy, reference, batch)
    scored = [(batch._replace(reference=reference), policy)]
    quantiles = chosen_log_ratio_quantiles(scored)
    assert quantiles["theory/log_ratio_median"] == pytest.approx(
        np.median((policy - reference)[:5, 0][desirable[:5]])
    )
    none = batch_of(6, np.zeros(6, bool))._replace(reference=reference)
    assert chosen_log_ratio_quantiles([(none, policy)]) == {}


def test_property_every_step_pairs_its_prompts_with_responses_of_the_step() -> None:
    table, held_out = rows(23), rows(5)
    first = BatchSampler(table, "shared", 2, 2, seed=3)
    data, sampler = mismatch_steps(data_of(table, held_out), first, max_length=12)
    sizes, orders = [], []
    for epoch in range(3):
        steps = range(epoch * 6, epoch * 6 + 6)
        indices = [sampler.pair_indices(step) for step in steps]
        assert sorted(np.concatenate(indices).tolist()) == list(range(23))
        orders.append([each.tolist() for each in indices])
        for step in steps:
            group = sampler.pair_indices(step)
            batch: Any = sampler.batch(step)
            sizes.append(batch.lengths[..., 1].sum() <= batch.lengths[..., 0].sum())
            others = {data.train[int(i)].rejected for i in group}
            replies = {table[int(i)].chosen for i in group}
            assert all(any(o == r[: len(o)] for r in replies) for o in others)
            kept = batch.row_ids >= 0
            marks = dict(
                zip(batch.row_ids[kept].tolist(), batch.desirable[kept].tolist(), strict=True)
            )
            assert marks == {int(i): int(i) % 3 == 0 for i in group}
    assert all(sizes)
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
    assert orders[0][-1] == orders[1][-1]
    rotated = [row.rejected for row in data.evaluation]
    assert rotated == [held_out[i - 1].chosen[: len(rotated[i])] for i in range(5)]
    in_order, again = mismatch_steps(
        data_of(table, held_out), BatchSampler(table, "shared", 4, seed=None), max_length=99
    )
    assert in_order.train[0].rejected == table[3].chosen
    assert [again.pair_indices(step).tolist() for step in (0, 6)] == [[0, 1, 2, 3]] * 2
    dropping = BatchSampler(table, "shared", 4, seed=0, drop_last=True)
    kept = mismatch_steps(data_of(table, held_out), dropping, max_length=99)[1]
    assert "the same in each" in (describe_last_step(kept, 10) or "")


def test_raises_for_a_step_of_one_row() -> None:
    table = rows(5)
    sampler = BatchSampler(table, "shared", 4)
    with pytest.raises(ValueError, match=r"two rows or more, got 5 rows in steps of 4: change"):
        mismatch_steps(data_of(table, rows(2)), sampler, max_length=99)


def test_raises_for_rows_that_an_objective_does_not_train_on() -> None:
    pair = PreferenceRow((), (), (), None, 0, "rows.jsonl:3")
    single = pair._replace(desirable=True)
    for method in ("dpo", "rpo", "sft", "aot"):
        with pytest.raises(ValueError, match=rf"^rows\.jsonl:3: .* `objective\.method` '{method}'"):
            RowKinds(ObjectiveConfig(method=method)).check(single)
    with pytest.raises(ValueError, match=r"'rpo' does not train on"):
        RowKinds(ObjectiveConfig(preference="kto")).check(single)
    for first, second, kinds in ((pair, single, "is unpaired"), (single, pair, "is a pair")):
        rules = RowKinds(KTO)
        rules.check(first)
        with pytest.raises(ValueError, match=rf"^rows\.jsonl:3: the row {kinds}, but the first"):
            rules.check(second)
    weighted = pair._replace(label=PairLabel(2.0))
    for objective in (KTO, ObjectiveConfig(preference=[{"loss": "dpo"}, {"loss": "aot"}])):
        with pytest.raises(ValueError, match=r"^rows\.jsonl:3: .* no weight, soft label or votes"):
            RowKinds(objective).check(weighted)
    RowKinds(ObjectiveConfig()).check(weighted)


def write_rows(path: Path, n: int = 28) -> str:
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for row in range(n):
            reply = str(rng.choice(["yes", "no", "maybe", "never", "now"]))
            fields = {"prompt": f"q{row}", "completion": reply, "label": bool(row % 3)}
            file.write(json.dumps(fields) + "\n")
    return str(path)


def train(folder: Path, **trainer: Any) -> list[dict[str, Any]]:
    folder.mkdir()
    config = TrainConfig(
        name="kto",
        model=ModelConfig(architecture=TINY, seed=3),
        data=DataConfig(train=write_rows(folder / "rows.jsonl"), eval_rows=4, max_length=32),
        objective=KTO,
        optimizer=OptimizerConfig(learning_rate=3e-3, lr_scheduler_type="constant"),
        trainer=TrainerConfig(max_steps=8, eval_steps=4, **trainer),
    )
    return train_to_end(config, folder)


@pytest.mark.slow
def test_property_a_run_on_unpaired_rows_does_not_depend_on_its_microbatches(
    tmp_path: Path,
) -> None:
    one = train(tmp_path / "one", per_device_train_batch_size=8)
    four = train(tmp_path / "four", per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert one[0]["loss"] == pytest.approx(one[0]["loss/kto"])
    steps = [line for line in one if "loss" in line]
    assert steps[0]["kl"] == 0.0
    assert any(line["kl"] > 0.0 for line in steps)
    for first, second in zip(one[:-1], four[:-1], strict=True):
        for name in first.keys() - {"perf/tokens_per_second", "perf/padding_fraction"}:
            assert first[name] == pytest.approx(second[name], rel=1e-4, abs=1e-5), name
