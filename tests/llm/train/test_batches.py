"""Batches of a run: their number, what the last step of an epoch weighs, and their limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens
from llm.train.batches import count_steps, describe_last_step, divide_step, make_sampler
from llm.train.dataset import TrainingData


def config(size: int, parts: int = 1, **trainer: Any) -> TrainConfig:
    return TrainConfig(
        name="tiny",
        model=ModelConfig(path="model"),
        data=DataConfig(train="rows.jsonl"),
        trainer=TrainerConfig(
            per_device_train_batch_size=size, gradient_accumulation_steps=parts, **trainer
        ),
    )


def data(count: int) -> TrainingData:
    pair = PairTokens((1, 2), (3,), (4, 5), None, 0)
    pairs = PairTable.from_pairs(pair._replace(row=row) for row in range(count))
    return TrainingData(pairs, PairTable.from_pairs([]), {}, {}, frozenset())


@pytest.mark.parametrize("seed", [0, 7])
def test_property_the_last_step_is_made_or_left_out_and_is_described(seed: int) -> None:
    whole = make_sampler(config(4, seed=seed), data(9), 1)
    assert [len(whole.pair_indices(step)) for step in range(6)] == [4, 4, 1] * 2
    assert (describe_last_step(whole, 3) or "").startswith(
        "the last step of an epoch has 1 pair, the others have 4. Each of its pairs counts 4 times "
        "as much as one of another step. `trainer.dataloader_drop_last: true`"
    )
    assert describe_last_step(whole, 2) is None  # the run ends before that step
    dropped = make_sampler(config(2, 2, dataloader_drop_last=True, seed=seed), data(9), 1)
    assert dropped.steps_per_epoch == 2
    epochs = [
        np.concatenate([dropped.pair_indices(step) for step in (first, first + 1)])
        for first in (0, 2, 4)
    ]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert len(set(map(frozenset, map(np.ndarray.tolist, epochs)))) > 1  # not the same pair always
    assert "1 of 9 pairs are left out" in (describe_last_step(dropped, 4) or "")
    even = make_sampler(config(3), data(9), 1)
    assert describe_last_step(even, 9) is None


@pytest.mark.parametrize(
    ("size", "parts", "shards", "named"),
    [
        (2**31 - 1, 1, 1, "`trainer.per_device_train_batch_size` must be at most 1,024 for 9 "),
        (1, 2**31 - 1, 4, "`trainer.gradient_accumulation_steps` must be at most 4,096 for 9 "),
        (2**31 - 1, 2**31 - 1, 1, "`trainer.per_device_train_batch_size` x `trainer.gradient_acc"),
        (1000, 1000, 8, " x 8 shards of a batch must be at most 8,192 for 9 training pairs, got "),
        (1025, 1, 1, "must be at most 1,024 for 9 training pairs, got 1,025"),
    ],
)
def test_raises_a_step_of_many_more_pairs_than_there_are_by_its_key(
    size: int, parts: int, shards: int, named: str
) -> None:
    with pytest.raises(ValueError, match=r"^`trainer") as caught:
        make_sampler(config(size, parts), data(9), shards)
    assert named in str(caught.value)
    assert make_sampler(config(512, 2), data(9), 1).steps_per_epoch == 1


def test_raises_if_no_step_is_left_or_too_many_epochs_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"^`trainer.dataloader_drop_last` leaves no step"):
        make_sampler(config(10, dataloader_drop_last=True), data(9), 1)
    run = config(4, num_train_epochs=1e30)
    with pytest.raises(ValueError, match=r"^`trainer.num_train_epochs` must give at most 2,147"):
        count_steps(run, make_sampler(run, data(9), 1))


def test_closed_form_steps_of_epochs_are_rounded_up_and_max_steps_takes_precedence() -> None:
    for epochs, steps in ((1.0, 3), (2.0, 6), (0.5, 2), (1.1, 4)):
        run = config(4, num_train_epochs=epochs)
        assert count_steps(run, make_sampler(run, data(9), 1)) == steps
    run = config(4, max_steps=2**31 - 1, num_train_epochs=5.0)
    assert count_steps(run, make_sampler(run, data(9), 1)) == 2**31 - 1


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
@pytest.mark.parametrize("largest", [1, 3, 4, 7, 64])
def test_property_a_global_batch_has_its_pairs_in_the_fewest_equal_microbatches(
    shards: int, largest: int
) -> None:
    for of_shard in (1, 6, 12, 13):
        one = config(largest, global_batch_size=of_shard * shards)
        divided = divide_step(one, shards)
        trainer = divided.trainer
        size, parts = trainer.per_device_train_batch_size, trainer.gradient_accumulation_steps
        assert size * parts * shards == of_shard * shards
        assert size <= largest
        fewest = min(
            n for n in range(1, of_shard + 1) if of_shard % n == 0 and of_shard <= n * largest
        )
        assert parts == fewest
        assert divide_step(divided, shards) == divided
        assert make_sampler(one, data(60), shards).pairs_per_step == of_shard * shards


def test_raises_a_global_batch_that_the_devices_do_not_divide_or_that_is_given_twice() -> None:
    with pytest.raises(
        ValueError,
        match=r"`trainer.global_batch_size` must be a multiple of 8, .*"
        r"got 100: give 96 or 104",
    ):
        divide_step(config(4, global_batch_size=100), 8)
    with pytest.raises(ValueError, match="got 3: give 8"):
        divide_step(config(4, global_batch_size=3), 8)
    with pytest.raises(ValueError, match="must not be given with"):
        config(4, 2, global_batch_size=100)
    with pytest.raises(ValueError, match=r"global_batch_size` must be at most 1,024 for 9"):
        make_sampler(config(4, global_batch_size=1025), data(9), 1)
