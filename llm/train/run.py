"""The parts of a training run: model, devices, sampler, optimizer and compiled steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from llm.config import TrainConfig
from llm.hashing import weights_digest
from llm.models.decoder import Decoder
from llm.models.lora import has_dropout
from rpo_io.bucket_paths import AnyPath
from rpo_io.digests import sha256_hex

from .dataset import TrainingData
from .fingerprint import Fingerprint, make_fingerprint
from .moving_reference import average_reference, policy_as_reference
from .objective_schedule import ConstantsSchedule, make_constants_schedule
from .optimizer import make_optimizer
from .reference_cache import ReferenceCache
from .sample_coverage import SampleCoverage
from .scorer import Scorer
from .step import Parameters, TrainState, TrainStep, init_train_state, make_train_step

COVERAGE_PAIRS = 512
"""Number of training pairs from which the covered feature directions are computed."""


class Run(Scorer):
    """Everything that the training loop needs, created once.

    Attributes:
        optimizer: optax transformation.
        learning_rate: learning rate by number of updates made.
        state: parameters, moments and number of updates; every step replaces it.
        frozen_weights_digest: digest of ``frozen``.
        initial_weights_digest: digest of all parameters before the first step.
        constants: constants of the objective by number of updates made; None if they are constant.
        reference_digest: digest of the parameters of another model that is the reference; None if
            the initial policy is.
        train_step: compiled step, see :func:`llm.train.step.make_train_step`.
    """

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    state: TrainState
    frozen_weights_digest: str
    initial_weights_digest: str
    constants: ConstantsSchedule | None
    reference_digest: str | None
    train_step: TrainStep

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        model: Decoder,
        *,
        reference_digest: str | None = None,
    ) -> None:
        """Place the model on the devices and create the optimizer; nothing is compiled yet.

        Args:
            config: configuration of the run.
            data: tokenized pairs.
            model: the model to train, whose ``sharding_plan`` is set here.
            reference_digest: digest of the parameters of the reference; None if the initial policy
                is the reference.

        Raises:
            ValueError: if the output head has an adapter with dropout.
        """
        if has_dropout(model) and model.output_adapter is not None:
            raise ValueError(
                "`lora_dropout` must be 0 to train an adapter of `lm_head`, got "
                f"{model.lora.lora_dropout if model.lora else 0}: its input has no dropout here"
            )
        super().__init__(config, data, model)
        self.optimizer, self.learning_rate = make_optimizer(config.optimizer, self.num_steps)
        self.state = self._initial_state(self._trainable)
        self._trainable = None  # the state holds the parameters
        self.frozen_weights_digest = weights_digest(self.frozen)
        self.initial_weights_digest = sha256_hex(
            weights_digest(self.state.trainable) + self.frozen_weights_digest
        )
        self.constants = make_constants_schedule(config.objective, self.num_steps)
        self.reference_digest = reference_digest
        self.train_step = make_train_step(
            self.graphdef,
            config.objective,
            self.optimizer,
            devices=self.devices,
            seed=config.trainer.seed,
            schedule=self.constants,
        )

    def _initial_state(self, trainable: Any) -> TrainState:
        model = self.config.model

        def create(trainable: Any, frozen: Any) -> TrainState:
            state, decay = init_train_state(trainable, self.optimizer), model.reference_decay
            if model.reference_refresh_steps is None:
                return state
            reference = policy_as_reference(self.graphdef, trainable, frozen, decay=decay)
            return state._replace(reference=reference)

        shardings = self.devices.shardings(jax.eval_shape(create, trainable, self.frozen))
        return jax.jit(create, out_shardings=shardings)(trainable, self.frozen)

    def refresh_reference(self) -> None:
        """Move a reference that follows the policy to it, or a part of the way."""
        reference = self._refresh(self.state.reference, self.state.trainable, self.frozen)
        self.state = self.state._replace(reference=reference)

    @cached_property
    def _refresh(self) -> Callable[..., Any]:
        decay = self.config.model.reference_decay

        def refresh(reference: Any, trainable: Any, frozen: Any) -> Any:
            policy = policy_as_reference(self.graphdef, trainable, frozen, decay=decay)
            return average_reference(reference, policy, decay)

        shardings = self.devices.shardings(self.state.reference)
        return jax.jit(refresh, donate_argnums=0, out_shardings=shardings)

    def parameters(self) -> Parameters:
        """Return the current values of the trained parameters."""
        return self.state.trainable

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
            lora=self.lora,
            reference=self.reference_digest,
        )

    def reference(self, path: AnyPath) -> ReferenceCache | None:
        """Load or compute the log-probabilities of the initial policy, the default reference.

        Args:
            path: file of the cache.

        Returns:
            See :meth:`Scorer.reference_of`.
        """
        return self.reference_of(path, self.initial_weights_digest)

    def coverage(self) -> SampleCoverage | None:
        """Create the measure of how well the data cover replies, on features of this policy.

        Returns:
            The measure; None if ``trainer.coverage_samples`` is 0 or there are no held-out pairs.

        Raises:
            ValueError: if the rows are no pairs.
        """
        trainer, held_out = self.config.trainer, self.data.evaluation
        if not trainer.coverage_samples or not held_out:
            return None
        if held_out.desirable is not None or held_out.is_ranked:
            kind = "ranked" if held_out.is_ranked else "unpaired"
            raise ValueError(f"`trainer.coverage_samples` must be 0 with {kind} rows")
        # Training reuses the buffers of the initial parameters.
        initial = jax.tree.map(jnp.copy, self.state.trainable)
        return SampleCoverage(
            nnx.merge(self.graphdef, initial, self.frozen),
            self.data.train[:COVERAGE_PAIRS],
            held_out[: trainer.coverage_samples],
            end_ids=self.data.end_ids,
            batch_size=trainer.per_device_train_batch_size * self.num_shards,
            seed=trainer.seed,
            devices=self.devices,
        )

    def model(self) -> Decoder:
        """Return the model with its current parameters, for functions on :attr:`devices`."""
        return nnx.merge(self.graphdef, self.state.trainable, self.frozen)
