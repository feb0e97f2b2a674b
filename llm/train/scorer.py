"""A model on the devices of a run, and the log-probabilities of the pairs that the run visits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import Array

from llm.config import LoraConfig, TrainConfig
from llm.data.loader import BatchSampler, iterate_batches
from llm.data.packing import count_roles
from llm.data.pair_table import PairTable
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.mesh import Devices, decide_on_first, make_devices
from llm.types import Batch
from rpo_io.bucket_paths import AnyPath

from . import reference_cache
from .batches import count_steps, divide_step, make_sampler
from .dataset import TrainingData
from .mismatched import mismatch_steps
from .reference_cache import Provenance
from .step import EvaluationStep, GraphDef, Parameters, make_evaluation_step


class Scorer:
    """A model on the devices of a run, and the log-probabilities of the pairs that the run visits.

    Attributes:
        config: configuration of the run, with the size and number of its microbatches.
        data: tokenized pairs; unpaired rows have a second response.
        devices: mesh of devices with the sharding plan of the model.
        graphdef: structure of the model.
        frozen: parameters that are not trained.
        architecture: architecture of the model.
        lora: adapters of the model; None if all parameters are trained.
        sampler: order of the pairs and size of the batches.
        num_steps: number of steps of the whole run.
        evaluation_step: compiled evaluation, see :func:`llm.train.step.make_evaluation_step`.
    """

    config: TrainConfig
    data: TrainingData
    devices: Devices
    graphdef: GraphDef
    frozen: Parameters
    architecture: Architecture
    lora: LoraConfig | None
    sampler: BatchSampler
    num_steps: int
    evaluation_step: EvaluationStep

    def __init__(self, config: TrainConfig, data: TrainingData, model: Decoder) -> None:
        """Place the model on the devices; nothing is compiled yet.

        Args:
            config: configuration of the run.
            data: tokenized pairs.
            model: a model, whose ``sharding_plan`` is set here.

        Raises:
            ValueError: if a step has a single unpaired row.
        """
        self.devices = make_devices(config.mesh, model)
        config = divide_step(config, self.num_shards)
        self.config = config
        model.sharding_plan = self.devices.plan
        graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
        self._trainable: Any = self.devices.put(trainable)
        self.graphdef, self.frozen = graphdef, self.devices.put(frozen)
        self.architecture, self.lora = model.architecture, model.lora
        roles = max(count_roles(data.train), count_roles(data.evaluation))
        sampler = make_sampler(config, data, self.num_shards, roles=roles)
        if data.train.desirable is not None:
            data, sampler = mismatch_steps(data, sampler, max_length=config.data.max_length)
        self.data, self.sampler = data, sampler
        self.num_steps = count_steps(config, self.sampler)
        self.evaluation_step = make_evaluation_step(
            graphdef, config.objective, devices=self.devices
        )

    @property
    def num_shards(self) -> int:
        """Number of shards of a batch: devices along the axes ``data`` and ``fsdp``."""
        return self.devices.plan.batch_shards

    @property
    def has_dropout(self) -> bool:
        """Whether training draws dropout masks for adapters."""
        return self.lora is not None and self.lora.lora_dropout > 0

    def parameters(self) -> Parameters:
        """Return the trained parameters, or all of a model without adapters."""
        return self._trainable

    def assign_to_shards(self, batch: Batch) -> Batch:
        """Assign the microbatches of a step to shards.

        Args:
            batch: a batch with arrays ``[parts * shards, ...]``.

        Returns:
            The batch with arrays ``[parts, shards, ...]``.
        """
        return self.devices.assign(batch)

    def put_on_devices(self, batch: Batch) -> Batch:
        """Place a batch, ``[parts, shards, ...]``, on the devices that read it."""
        return self.devices.put_batches(batch)

    def log_probs(self, batch: Batch) -> Array:
        """Compute the log-probabilities of the responses of a batch under the model.

        Args:
            batch: a batch, ``[parts, shards, ...]``.

        Returns:
            Token sums in nats, ``[parts, shards, n, k]``.
        """
        return self.log_probs_under(self.parameters(), self.frozen, batch)

    def log_probs_under(self, trainable: Parameters, frozen: Parameters, batch: Batch) -> Array:
        """Compute the log-probabilities of the responses of a batch under other parameters.

        Args:
            trainable: parameters in the place of the trained ones.
            frozen: parameters in the place of the others.
            batch: a batch, ``[parts, shards, ...]``.

        Returns:
            Token sums in nats, ``[parts, shards, n, k]``.
        """
        blank = batch._replace(reference=np.zeros(batch.lengths.shape, np.float32))
        return self.evaluation_step(trainable, frozen, self.put_on_devices(blank))[1]

    def visited_pairs(self) -> PairTable:
        """Return the pairs that the steps and the evaluation use, each once."""
        used = self.data.train
        if self.num_steps <= self.sampler.steps_per_epoch or self.sampler.mixture:
            steps = [self.sampler.pair_indices(step) for step in range(self.num_steps)]
            used = used.select(np.unique(np.concatenate(steps)))
        return PairTable.from_pairs(chain(used, self.data.evaluation))

    def batches_in_order(self, pairs: PairTable) -> Iterator[Batch]:
        """Yield batches of pairs in their order, in the shapes of the microbatches of a step.

        Args:
            pairs: pairs of training or evaluation.

        Yields:
            Batches ``[1, shards, ...]``; the last one is padded with absent pairs.
        """
        size = self.config.trainer.per_device_train_batch_size
        layout, roles = self.config.data.layout, self.sampler.roles
        sampler = BatchSampler(pairs, layout, size, self.num_shards, roles=roles)
        for _, batch in iterate_batches(sampler, 0, sampler.steps_per_epoch):
            yield self.assign_to_shards(batch)

    def reference_of(self, path: AnyPath, weights: str) -> reference_cache.ReferenceCache | None:
        """Load or compute the log-probabilities of a reference, which is this model.

        Values that the data rows hold are taken; the others are computed once and cached.

        Args:
            path: file of the cache.
            weights: digest of all parameters of the model.

        Returns:
            The log-probabilities of all pairs that the run uses; None if the objective needs no
            reference.

        Raises:
            ValueError: if the file is damaged or stale, or a value is not finite.
        """
        if not self.config.objective.needs_reference:
            return None
        data, alpha = self.config.data, self.config.objective.length_alpha
        token_weights = "" if alpha is None else f" length_alpha {alpha!r}"
        provenance = Provenance(
            weights=weights,
            **self.data.provenance,
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            truncation_mode=data.truncation_mode,
            dtype=self.config.model.dtype,
            pairs=self.data.train.digest + self.data.evaluation.digest + token_weights,
        )
        pairs = self.visited_pairs()
        from_data = reference_cache.cache_from_rows(pairs, self.sampler.n_roles)
        is_cached = decide_on_first(path.exists())
        cache = reference_cache.load_cache(path, provenance) if is_cached else None
        known = [part.row_ids for part in (from_data, cache) if part is not None]
        missing = pairs.select(~np.isin(pairs.rows, np.concatenate([[-1], *known])))
        if missing:
            batches = self.batches_in_order(missing)
            computed = reference_cache.compute_reference(self.log_probs, batches)
            cache = computed if cache is None else reference_cache.merge_caches(cache, computed)
            if jax.process_index() == 0:
                reference_cache.save_cache(path, cache, provenance)
        if from_data is None or cache is None:
            return cache if from_data is None else from_data
        return reference_cache.merge_caches(cache, from_data)
