"""The parts of a training run: model, devices, sampler, optimizer and compiled steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from llm.config import TrainConfig
from llm.data.loader import BatchSampler, iterate_batches
from llm.data.packing import count_roles
from llm.data.pair_table import PairTable
from llm.hashing import weights_digest
from llm.models.architecture import Architecture
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.layout import SINGLE_DEVICE
from llm.parallel.mesh import Devices, make_devices
from llm.types import Batch
from rpo_io.digests import sha256_hex

from . import reference_cache
from .batches import count_steps, make_sampler
from .dataset import TrainingData
from .fingerprint import Fingerprint, make_fingerprint
from .optimizer import make_optimizer
from .reference_cache import Provenance
from .sample_coverage import SampleCoverage
from .step import (
    EvaluationStep,
    GraphDef,
    Parameters,
    TrainState,
    TrainStep,
    init_train_state,
    make_evaluation_step,
    make_train_step,
)

COVERAGE_PAIRS = 512
"""Number of training pairs from which the covered feature directions are computed."""


class Run:
    """Everything that the training loop needs, created once.

    Attributes:
        config: configuration of the run.
        data: tokenized pairs.
        devices: mesh of devices with the sharding plan of the model.
        graphdef: structure of the model.
        frozen: parameters that are not trained.
        architecture: architecture of the model.
        sampler: order of the pairs and size of the batches.
        num_steps: number of steps of the whole run.
        optimizer: optax transformation.
        learning_rate: learning rate by number of updates made.
        state: parameters, moments and number of updates; every step replaces it.
        frozen_weights_digest: digest of ``frozen``.
        initial_weights_digest: digest of all parameters before the first step.
        train_step: compiled step, see :func:`llm.train.step.make_train_step`.
        evaluation_step: compiled evaluation, see :func:`llm.train.step.make_evaluation_step`.
    """

    config: TrainConfig
    data: TrainingData
    devices: Devices
    graphdef: GraphDef
    frozen: Parameters
    architecture: Architecture
    sampler: BatchSampler
    num_steps: int
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    state: TrainState
    frozen_weights_digest: str
    initial_weights_digest: str
    train_step: TrainStep
    evaluation_step: EvaluationStep

    def __init__(self, config: TrainConfig, data: TrainingData, model: Decoder) -> None:
        """Place the model on the devices and create the optimizer; nothing is compiled yet.

        Args:
            config: configuration of the run.
            data: tokenized pairs.
            model: the model to train, whose ``sharding_plan`` is set here.
        """
        self.config, self.data = config, data
        self.devices = make_devices(config.mesh, model)
        model.sharding_plan = self.devices.plan
        graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
        trainable = self.devices.put(trainable)
        self.graphdef, self.frozen = graphdef, self.devices.put(frozen)
        self.architecture = model.architecture
        trainer = config.trainer
        roles = max(count_roles(data.train), count_roles(data.evaluation))
        self.sampler = make_sampler(config, data, self.num_shards, roles=roles)
        self.num_steps = count_steps(config, self.sampler)
        self.optimizer, self.learning_rate = make_optimizer(config.optimizer, self.num_steps)
        self.state = self._initial_state(trainable)
        self.frozen_weights_digest = weights_digest(self.frozen)
        self.initial_weights_digest = sha256_hex(
            weights_digest(self.state.trainable) + self.frozen_weights_digest
        )
        self.train_step = make_train_step(
            graphdef, config.objective, self.optimizer, devices=self.devices, seed=trainer.seed
        )
        self.evaluation_step = make_evaluation_step(
            graphdef, config.objective, devices=self.devices
        )

    @property
    def num_shards(self) -> int:
        """Number of shards of a batch: devices along the axes ``data`` and ``fsdp``."""
        return self.devices.plan.batch_shards

    def _initial_state(self, trainable: Any) -> TrainState:
        def create(trainable: Any) -> TrainState:
            return init_train_state(trainable, self.optimizer)

        shardings = self.devices.shardings(jax.eval_shape(create, trainable))
        return jax.jit(create, out_shardings=shardings)(trainable)

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
        """Compute the log-probabilities of the responses of a batch under the current policy.

        Args:
            batch: a batch, ``[parts, shards, ...]``.

        Returns:
            Token sums in nats, ``[parts, shards, n, k]``.
        """
        blank = batch._replace(reference=np.zeros(batch.lengths.shape, np.float32))
        trainable, batch = self.state.trainable, self.put_on_devices(blank)
        return self.evaluation_step(trainable, self.frozen, batch)[1]

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the run, which a checkpoint must match to be resumed."""
        return make_fingerprint(
            self.config,
            architecture=self.architecture,
            trainable=self.state.trainable,
            initial_weights=self.initial_weights_digest,
            frozen_weights=self.frozen_weights_digest,
            data_digests=self.data.provenance,
            pairs_per_step=self.sampler.pairs_per_step,
        )

    def reference(self, path: Path) -> reference_cache.ReferenceCache | None:
        """Load or compute the log-probabilities of the reference, the initial policy.

        Values that the data rows hold are taken; the others are computed once and cached.

        Args:
            path: file of the cache.

        Returns:
            The log-probabilities of all pairs that the run uses; None if the objective needs no
            reference.

        Raises:
            ValueError: if the file is damaged or stale, or a value is not finite.
        """
        if not self.config.objective.needs_reference:
            return None
        data = self.config.data
        provenance = Provenance(
            weights=self.initial_weights_digest,
            **self.data.provenance,
            max_length=data.max_length,
            max_prompt_length=data.max_prompt_length,
            truncation_mode=data.truncation_mode,
            dtype=self.config.model.dtype,
            pairs=self.data.train.digest + self.data.evaluation.digest,
        )
        pairs = self.visited_pairs()
        from_data = reference_cache.cache_from_rows(pairs, self.sampler.n_roles)
        cache = reference_cache.load_cache(path, provenance) if path.exists() else None
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

    def coverage(self) -> SampleCoverage | None:
        """Create the measure of how well the data cover replies, on features of this policy.

        Returns:
            The measure; None if ``trainer.coverage_samples`` is 0 or there are no held-out pairs.

        Raises:
            ValueError: if there are several processes.
        """
        trainer, held_out = self.config.trainer, self.data.evaluation
        if not trainer.coverage_samples or not held_out:
            return None
        if jax.process_count() > 1:
            raise ValueError("`trainer.coverage_samples` must be 0 with several processes")
        # Training reuses the buffers of the initial parameters.
        initial = jax.tree.map(jnp.copy, self.state.trainable)
        return SampleCoverage(
            self._merged(initial),
            self.data.train[:COVERAGE_PAIRS],
            held_out[: trainer.coverage_samples],
            end_ids=self.data.end_ids,
            batch_size=trainer.per_device_train_batch_size,
            seed=trainer.seed,
        )

    def model(self) -> Decoder:
        """Return the model with its current parameters."""
        return self._merged(self.state.trainable)

    def _merged(self, trainable: Any) -> Decoder:
        """Return a model for use outside ``shard_map``; the compiler inserts the collectives."""
        model = nnx.merge(self.graphdef, trainable, self.frozen)
        model.sharding_plan = SINGLE_DEVICE
        return model
