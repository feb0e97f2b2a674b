"""Unpaired rows of a run, with responses to other prompts of the same step."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np

from llm.data.loader import BatchSampler
from llm.data.mismatched import with_mismatched_responses

from .dataset import TrainingData


def mismatch_steps(
    data: TrainingData, sampler: BatchSampler, *, max_length: int
) -> tuple[TrainingData, BatchSampler]:
    """Pair the prompts of every step with other responses of that step.

    The reference log-probabilities of these pairs are computed once, so every epoch has the same
    steps. A set of rows for evaluation is one batch.

    Args:
        data: tokenized unpaired rows.
        sampler: steps of the first epoch.
        max_length: largest number of tokens of prompt and response.

    Returns:
        The data with these responses, and a sampler of the same steps in every epoch.

    Raises:
        ValueError: if a step or a set of rows for evaluation has a single row; such a set is
            refused when the data are read.
    """
    steps = [sampler.pair_indices(step) for step in range(sampler.steps_per_epoch)]
    try:
        train = with_mismatched_responses(data.train, steps, max_length=max_length)
    except ValueError as error:
        count, size = sampler.pairs_per_epoch, sampler.pairs_per_step
        raise ValueError(
            f"a step on unpaired rows must have two rows or more, got {count:,} rows in steps of "
            f"{size:,}: change `trainer.per_device_train_batch_size`, or leave the last step out "
            "with `trainer.dataloader_drop_last: true`"
        ) from error
    sets = data.evaluation_sets
    stops = np.cumsum([0, *map(len, sets.values())]).tolist()
    groups = [np.arange(start, stop) for start, stop in pairwise(stops) if start < stop]
    evaluation = with_mismatched_responses(data.evaluation, groups, max_length=max_length)
    data = data._replace(train=train, evaluation=evaluation)
    return data, dataclasses.replace(sampler, pairs=train, steps=steps)
