"""Resumed runs: what makes them differ from an uninterrupted one is described."""

from __future__ import annotations

from typing import Any

import pytest

from llm.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from llm.train.resume import check_steps, describe_changes, describe_resume, execution_of


def test_property_every_change_of_the_execution_is_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def config(**trainer: Any) -> TrainConfig:
        return TrainConfig(
            name="a",
            model=ModelConfig(path="m"),
            data=DataConfig(train="rows.jsonl"),
            trainer=TrainerConfig(**trainer),
        )

    three = {"per_device_train_batch_size": 3}
    before = execution_of(config(**three), {"data": 1, "fsdp": 1, "tensor": 1})
    recorded = {"num_steps": 9, "execution": before}
    assert describe_changes(recorded, before, 9) == []
    other = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
    parts = execution_of(config(**other), {"data": 1, "fsdp": 1, "tensor": 1})
    (line,) = describe_changes(recorded, parts, 9)
    assert "`trainer.gradient_accumulation_steps` 3 instead of 1" in line
    assert "`trainer.per_device_train_batch_size` 1 instead of 3" in line
    assert line.endswith("but not bit-equal to those of an uninterrupted run")
    mesh = execution_of(config(**three), {"data": 1, "fsdp": 2, "tensor": 1})
    assert "`mesh.fsdp` 2 instead of 1" in describe_changes(recorded, mesh, 9)[0]
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    flags = execution_of(config(**three), {"data": 1, "fsdp": 1, "tensor": 1})
    assert (
        "`XLA_FLAGS` --xla_cpu_enable_fast_math=true instead of "
        in (describe_changes(recorded, flags, 9)[0])
    )
    longer, _ = describe_changes(recorded, flags, 12)
    assert longer.startswith("resumed for 12 steps instead of 9: the learning rate schedule is rec")


def test_property_a_resumed_run_is_described_by_its_step() -> None:
    recorded = {"num_steps": 20, "execution": {}, "pending_evaluation": None}
    finished = ["the run is already finished: step 20 of 20"]
    assert describe_resume(20, 20, recorded, {}) == finished
    assert describe_resume(5, 20, recorded, {}) == ["resumed from step 5 of 20"]
    where, change = describe_resume(20, 30, recorded, {})
    assert where == "resumed from step 20 of 30"
    assert change.startswith("resumed for 30 steps instead of 20")
    pending = {**recorded, "pending_evaluation": {"loss": 1.0}}
    assert describe_resume(20, 20, pending, {}) == ["resumed from step 20 of 20"]


def test_raises_if_more_steps_were_made_than_are_asked_for() -> None:
    check_steps(TrainerConfig(max_steps=5), 5, 5)
    with pytest.raises(ValueError, match=r"made 5 steps already, but `trainer.max_steps` is 4"):
        check_steps(TrainerConfig(max_steps=4), 5, 4)
    with pytest.raises(ValueError, match=r"`trainer.num_train_epochs` 2.0 gives 4: give at least"):
        check_steps(TrainerConfig(num_train_epochs=2.0), 5, 4)


def test_closed_form_dropout_masks_depend_on_the_division_of_a_step() -> None:
    recorded = {"num_steps": 9, "execution": {"mesh.data": 1}, "pending_evaluation": None}
    for dropout, expected in (
        (False, "the same up to rounding"),
        (True, "draw other dropout masks"),
    ):
        (change,) = describe_changes(recorded, {"mesh.data": 2}, 9, dropout=dropout)
        assert "`mesh.data` 2 instead of 1: the remaining steps" in change
        assert expected in change
