"""What a checkpoint records of the run beside its state, and what changes when a run resumes.

A run may be continued for more steps, on other devices, or with its pairs divided differently into
microbatches. The result is then not bit-equal to an uninterrupted run, and the log says so.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax

from llm.config import TrainConfig, TrainerConfig

PENDING_EVALUATION = "pending_evaluation"
"""Key in a checkpoint: the metrics of its step if the evaluation after it was interrupted."""
NUM_STEPS = "num_steps"
"""Key in a checkpoint: number of steps that the run was planned for."""
EXECUTION = "execution"
"""Key in a checkpoint: settings that change the rounding of a step, but not the objective."""
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def execution_of(config: TrainConfig, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return the settings that change the rounding of a step, but not the objective.

    Args:
        config: configuration of the run.
        sizes: number of devices along each axis of the mesh.

    Returns:
        Plain values by the name that a user knows.
    """
    trainer, device = config.trainer, jax.devices()[0]
    return {
        "trainer.per_device_train_batch_size": trainer.per_device_train_batch_size,
        "trainer.gradient_accumulation_steps": trainer.gradient_accumulation_steps,
        **{f"mesh.{name}": size for name, size in sizes.items()},
        "the kind of device": device.device_kind,
        "the number of processes": jax.process_count(),
        "the version of JAX": jax.__version__,
        **{name: " ".join(os.environ.get(name, "").split()) for name in FLAGS},
    }


def check_steps(trainer: TrainerConfig, done: int, num_steps: int) -> None:
    """Refuse to resume a run for fewer steps than it has made.

    Args:
        trainer: configuration of the trainer.
        done: number of steps that the checkpoint has made.
        num_steps: number of steps of the run.

    Raises:
        ValueError: if ``num_steps`` is less than ``done``.
    """
    if num_steps < done:
        epochs = f"`trainer.num_train_epochs` {trainer.num_train_epochs} gives {num_steps}"
        got = epochs if trainer.max_steps is None else f"`trainer.max_steps` is {num_steps}"
        raise ValueError(
            f"the run has made {done} steps already, but {got}: give at least "
            f"--trainer.max_steps {done}, or choose another --out"
        )


def describe_resume(
    done: int,
    num_steps: int,
    recorded: Mapping[str, Any],
    execution: Mapping[str, Any],
    *,
    dropout: bool = False,
) -> list[str]:
    """Describe where a resumed run continues, and why it will not be bit-equal.

    Args:
        done: number of steps that the checkpoint has made.
        num_steps: number of steps of this run.
        recorded: data of the checkpoint.
        execution: :func:`execution_of` this run.
        dropout: whether adapters have dropout, whose masks depend on the division of a step.

    Returns:
        Sentences for the log; at least one.

    Examples:
        >>> describe_resume(20, 20, {"num_steps": 20}, {})
        ['the run is already finished: step 20 of 20']
    """
    if done == recorded.get(NUM_STEPS) == num_steps and recorded.get(PENDING_EVALUATION) is None:
        return [f"the run is already finished: step {done:,} of {num_steps:,}"]
    where = f"resumed from step {done:,} of {num_steps:,}"
    return [where, *describe_changes(recorded, execution, num_steps, dropout=dropout)]


def describe_changes(
    recorded: Mapping[str, Any],
    execution: Mapping[str, Any],
    num_steps: int,
    *,
    dropout: bool = False,
) -> list[str]:
    """Describe why a resumed run will not be bit-equal to an uninterrupted one.

    Args:
        recorded: data of the checkpoint.
        execution: :func:`execution_of` this run.
        num_steps: number of steps of this run.
        dropout: see :func:`describe_resume`.

    Returns:
        Sentences for the log; none if the run will be bit-equal.

    Examples:
        >>> before = {"num_steps": 10, "execution": {"mesh.fsdp": 1}}
        >>> describe_changes(before, {"mesh.fsdp": 2}, 10)[0][:42]
        'resumed with `mesh.fsdp` 2 instead of 1: t'
    """
    lines = []
    planned = recorded.get(NUM_STEPS, num_steps)
    if planned != num_steps:
        lines.append(
            f"resumed for {num_steps:,} steps instead of {planned:,}: the learning rate schedule "
            f"is recomputed for {num_steps:,} steps; the run is not bit-equal to one of "
            f"{num_steps:,} steps from the start"
        )
    before = recorded.get(EXECUTION, execution)
    changed = [
        f"{_shown(name)} {execution.get(name) or 'none'} instead of {before.get(name) or 'none'}"
        for name in sorted(before.keys() | execution.keys())
        if before.get(name) != execution.get(name)
    ]
    if changed:
        what = "the remaining steps are the same up to rounding, but not bit-equal to those"
        if dropout:
            what = "the remaining steps may draw other dropout masks than those"
        lines.append(f"resumed with {', '.join(changed)}: {what} of an uninterrupted run")
    return lines


def _shown(name: str) -> str:
    return name if name.startswith("the ") else f"`{name}`"
