"""What a training run is made of: model, devices, order of the data, optimizer, compiled steps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from llm.config import TrainConfig
from llm.data.loader import BatchSampler, iterate_batches
from llm.data.packing import count_roles
from llm.data.pair_table import PairTable
from llm.hashing import weights_digest
from llm.models.decoder import Decoder
from llm.models.lora import trainable_filter
from llm.parallel.mesh import devices_of
from llm.types import Batch
from rpo_io.digests import sha256_hex

from . import reference_cache
from .dataset import TrainingData
from .fingerprint import Fingerprint, make_fingerprint
from .optimizer import make_optimizer
from .reference_cache import Provenance
from .sample_coverage import SampleCoverage
from .step import TrainState, init_train_state, make_evaluation_step, make_train_step

COVERAGE_PAIRS = 512
"""Pairs of the data that show which directions of the features they cover."""


class Run:
    """A training run: everything that the loop needs, made once."""

    def __init__(self, config: TrainConfig, data: TrainingData, model: Decoder) -> None:
        """Split the model over the devices, make the optimizer, compile nothing yet."""
        self.config, self.data = config, data
        self.devices = devices_of(config.mesh, model)
        model.layout = None if self.devices is None else self.devices.layout
        graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
        if self.devices is not None:
            trainable, frozen = self.devices.place(trainable), self.devices.place(frozen)
        self.graphdef, self.frozen = graphdef, frozen
        self.architecture = model.architecture
        trainer = config.trainer
        self.sampler = BatchSampler(
            data.train,
            config.data.layout,
            trainer.per_device_train_batch_size,
            trainer.gradient_accumulation_steps * self.shards,
            trainer.seed,
            roles=max(count_roles(data.train), count_roles(data.evaluation)),
        )
        epochs = trainer.num_train_epochs * self.sampler.steps_per_epoch
        self.num_steps = trainer.max_steps or int(np.ceil(epochs))
        self.optimizer, self.learning_rate = make_optimizer(config.optimizer, self.num_steps)
        self.state = self._first_state(trainable)
        self.frozen_weights_digest = weights_digest(self.frozen)
        self.initial_weights_digest = sha256_hex(
            weights_digest(self.state.trainable) + self.frozen_weights_digest
        )
        self.train_step = make_train_step(
            graphdef, config.objective, self.optimizer, devices=self.devices
        )
        self.evaluation_step = make_evaluation_step(
            graphdef, config.objective, devices=self.devices
        )

    @property
    def shards(self) -> int:
        """Devices that have pairs of their own."""
        return 1 if self.devices is None else self.devices.layout.shards

    def _first_state(self, trainable: Any) -> TrainState:
        def start(trainable: Any) -> TrainState:
            return init_train_state(trainable, self.optimizer)

        if self.devices is None:
            return start(trainable)
        where = self.devices.shardings(jax.eval_shape(start, trainable))
        return jax.jit(start, out_shardings=where)(trainable)

    def assign_to_shards(self, batch: Batch) -> Batch:
        """A step's parts, dealt out to the devices that have pairs of their own."""
        return batch if self.devices is None else self.devices.dealt(batch)

    def put_on_devices(self, batch: Batch) -> Batch:
        """A step's parts, where they are read."""
        return batch if self.devices is None else self.devices.place_batches(batch)

    def log_probs(self, batch: Batch) -> Array:
        """Log-probabilities of the responses of a step's parts under the policy as it is."""
        blank = batch._replace(reference=np.zeros(batch.lengths.shape, np.float32))
        return self.evaluation_step(self.state.trainable, self.frozen, self.put_on_devices(blank))[
            1
        ]

    def fingerprint(self) -> Fingerprint:
        """Return what a checkpoint must have in common with the run that continues it."""
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
        """Log-probabilities of the policy as it starts: the data's, or computed once and kept.

        Args:
            path: of the cache.

        Returns:
            The cache, or None if the objective needs no reference.

        Raises:
            ValueError: a cache of something else is there.
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
        )
        pairs = self.visited_pairs()
        given = reference_cache.cache_from_rows(pairs, self.sampler.n_roles)
        cache = reference_cache.load_cache(path, provenance) if path.exists() else None
        known = [some.row_ids for some in (given, cache) if some is not None]
        missing = pairs.select(~np.isin(pairs.rows, np.concatenate([[-1], *known])))
        if missing:
            more = self._reference_of(missing)
            cache = more if cache is None else reference_cache.merge_caches(cache, more)
            if jax.process_index() == 0:
                reference_cache.save_cache(path, cache, provenance)
        if given is None or cache is None:
            return cache if given is None else given
        return reference_cache.merge_caches(cache, given)

    def visited_pairs(self) -> PairTable:
        """Pairs that the run's steps and its evaluation use, each once."""
        used = self.data.train
        if self.num_steps <= self.sampler.steps_per_epoch:
            steps = [self.sampler.pair_indices(step) for step in range(self.num_steps)]
            used = used.select(np.sort(np.concatenate(steps)))
        return PairTable.from_pairs(chain(used, self.data.evaluation))

    def _reference_of(self, pairs: PairTable) -> reference_cache.ReferenceCache:
        return reference_cache.compute_reference(self.log_probs, self.batches_in_order(pairs))

    def batches_in_order(self, pairs: PairTable) -> Iterator[Batch]:
        """All of some pairs, in the shapes of a step's parts."""
        size = self.config.trainer.per_device_train_batch_size
        layout, roles = self.config.data.layout, self.sampler.roles
        order = BatchSampler(pairs, layout, size, self.shards, roles=roles)
        for _, batch in iterate_batches(order, 0, order.steps_per_epoch):
            yield self.assign_to_shards(batch)

    def coverage(self) -> SampleCoverage | None:
        """How well the data cover the policy's own replies, on features of the policy as it is now.

        Returns:
            The measure, or None if the configuration asks for none.
        """
        trainer, held_out = self.config.trainer, self.data.evaluation
        if not trainer.coverage_samples or not held_out:
            return None
        if jax.process_count() > 1:
            raise ValueError("`trainer.coverage_samples` must be 0 with several processes")
        # Training overwrites the buffers that it starts from.
        first = jax.tree.map(jnp.copy, self.state.trainable)
        return SampleCoverage(
            self._merged(first),
            self.data.train[:COVERAGE_PAIRS],
            held_out[: trainer.coverage_samples],
            end_ids=self.data.end_ids,
            batch_size=trainer.per_device_train_batch_size,
            seed=trainer.seed,
        )

    def model(self) -> Decoder:
        """The model as it is now trained."""
        return self._merged(self.state.trainable)

    def _merged(self, trainable: Any) -> Decoder:
        """A model that is used as on one device: the compiler finds the exchanges."""
        model = nnx.merge(self.graphdef, trainable, self.frozen)
        model.layout = None
        return model
