"""Which batches a run makes of its pairs: their size, their number, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

from llm.config import TrainConfig
from llm.data.loader import BatchSampler

from .dataset import TrainingData

LARGEST_SMALL_STEP = 1024
"""Number of pairs per step and shard that is accepted for any number of training pairs."""
LARGEST_NUM_STEPS = 2**31 - 1


def divide_step(config: TrainConfig, shards: int) -> TrainConfig:
    """Divide the pairs of a step into microbatches, as few and as equal as possible.

    Args:
        config: configuration of a run.
        shards: number of shards of a batch, which are on different devices.

    Returns:
        The configuration without ``trainer.global_batch_size``: the size and the number of the
        microbatches have its place. A configuration without that key is returned as it is.

    Raises:
        ValueError: if the shards do not divide ``trainer.global_batch_size``.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig, TrainerConfig
        >>> trainer = TrainerConfig(global_batch_size=96, per_device_train_batch_size=10)
        >>> data, model = DataConfig(train="rows.jsonl"), ModelConfig(path="model")
        >>> config = TrainConfig(name="run", model=model, data=data, trainer=trainer)
        >>> divided = divide_step(config, shards=4).trainer
        >>> divided.per_device_train_batch_size, divided.gradient_accumulation_steps
        (8, 3)
    """
    trainer = config.trainer
    pairs, largest = trainer.global_batch_size, trainer.per_device_train_batch_size
    if pairs is None:
        return config
    if pairs % shards:
        below = pairs - pairs % shards
        nearest = [str(each) for each in (below, below + shards) if each]
        raise ValueError(
            f"`trainer.global_batch_size` must be a multiple of {shards}, the number of devices "
            f"along `mesh.data` and `mesh.fsdp`, got {pairs}: give {' or '.join(nearest)}"
        )
    of_shard = pairs // shards
    parts = -(-of_shard // largest)
    while of_shard % parts:
        parts += 1
    divided = replace(
        trainer,
        global_batch_size=None,
        per_device_train_batch_size=of_shard // parts,
        gradient_accumulation_steps=parts,
    )
    return replace(config, trainer=divided)


def make_sampler(
    config: TrainConfig, data: TrainingData, shards: int, *, roles: int | None = None
) -> BatchSampler:
    """Create the sampler of a run; nothing is allocated for a batch that is far too large.

    Args:
        config: configuration of the run.
        data: tokenized pairs.
        shards: number of shards of a batch, which are on different devices.
        roles: number of responses per pair; None counts them in the training pairs.

    Returns:
        The sampler.

    Raises:
        ValueError: if a step has many more pairs than there are, or no step has all its pairs and
            ``trainer.dataloader_drop_last`` asks for such steps.
    """
    trainer = divide_step(config, shards).trainer
    size, parts = trainer.per_device_train_batch_size, trainer.gradient_accumulation_steps
    per_step, pairs = size * parts * shards, len(data.train)
    if data.mixture:
        pairs = sum(part.pairs for part in data.mixture)
    limit = max(pairs, LARGEST_SMALL_STEP * shards)
    if per_step > limit:
        single = {
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": parts,
        }
        # Name one key if it alone is the cause.
        names = [name for name, value in single.items() if value > limit] or list(single)
        if config.trainer.global_batch_size is not None:
            names, single = ["global_batch_size"], {"global_batch_size": per_step}
        got = single[names[0]] if len(names) == 1 else per_step
        shown = " x ".join(f"`trainer.{name}`" for name in names)
        shown += f" x {shards} shards of a batch" if len(names) > 1 < shards else ""
        raise ValueError(
            f"{shown} must be at most {limit:,} for {pairs:,} training pairs, got {got:,}"
        )
    if trainer.dataloader_drop_last and pairs < per_step:
        raise ValueError(
            f"`trainer.dataloader_drop_last` leaves no step: a step has {per_step:,} pairs, the "
            f"training data have {pairs:,}: lower `trainer.per_device_train_batch_size`"
        )
    return BatchSampler(
        data.train,
        config.data.layout,
        size,
        parts * shards,
        trainer.seed,
        roles=roles,
        drop_last=trainer.dataloader_drop_last,
        mixture=data.mixture,
    )


def count_steps(config: TrainConfig, sampler: BatchSampler) -> int:
    """Return the number of steps of a run.

    Args:
        config: configuration of the run.
        sampler: :func:`make_sampler` of the run.

    Raises:
        ValueError: if ``trainer.num_train_epochs`` gives more steps than can be counted.
    """
    trainer = config.trainer
    if trainer.max_steps is not None:
        return trainer.max_steps
    epochs = trainer.num_train_epochs * sampler.steps_per_epoch
    if not epochs <= LARGEST_NUM_STEPS:
        raise ValueError(
            f"`trainer.num_train_epochs` must give at most {LARGEST_NUM_STEPS:,} steps, got "
            f"{trainer.num_train_epochs:g} epochs of {sampler.steps_per_epoch:,} steps"
        )
    return math.ceil(epochs)


def describe_last_step(sampler: BatchSampler, num_steps: int) -> str | None:
    """Describe the step of an epoch that has fewer pairs than the others, for the log.

    Args:
        sampler: sampler of the run.
        num_steps: number of steps of the run.

    Returns:
        A sentence; None if the run makes no such step.
    """
    pairs, per_step = sampler.pairs_per_epoch, sampler.pairs_per_step
    left, steps = pairs % per_step, pairs // per_step
    if not left:
        return None
    if sampler.drop_last:
        return (
            f"`trainer.dataloader_drop_last`: {left} of {pairs:,} pairs are left out of every "
            f"epoch, {'others' if sampler.steps is None else 'the same'} in each"
        )
    if num_steps <= steps or not steps:
        return None
    weight = per_step / left
    return (
        f"the last step of an epoch has {left} pair{'' if left == 1 else 's'}, the others have "
        f"{per_step}. Each of its pairs counts {weight:.3g} times as much as one of another step. "
        "`trainer.dataloader_drop_last: true` leaves that step out"
    )
