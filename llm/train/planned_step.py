"""A training step as shapes only: its memory and its work on a mesh of devices."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from llm.config import TrainConfig
from llm.hf.factory import ResolvedModel, abstract_model
from llm.models.architecture import Architecture
from llm.models.lora import trainable_filter
from llm.models.quantization import QuantizedParam, kernel_shape
from llm.parallel.layout import ShardingPlan
from llm.parallel.mesh import mesh_sizes, plan_model
from llm.types import Batch, Bounds, Completions, Rows

from .batches import divide_step
from .moving_reference import policy_as_reference
from .optimizer import make_optimizer
from .step import GraphDef, Parameters, TrainState, init_train_state


class PlannedStep:
    """A training step that exists as shapes only.

    Attributes:
        config: configuration of the run.
        sizes: number of devices along each axis of the mesh.
        architecture: architecture of the model.
        plan: sharding plan of the model.
        graphdef: structure of the model.
        trainable: shapes of the trained parameters.
        frozen: shapes of the other parameters.
        optimizer: optax transformation.
        state: shapes of the training state.
        pairs: pairs of a microbatch on each device.
    """

    config: TrainConfig
    sizes: dict[str, int]
    architecture: Architecture
    plan: ShardingPlan
    graphdef: GraphDef
    trainable: Parameters
    frozen: Parameters
    optimizer: optax.GradientTransformation
    state: TrainState
    pairs: int

    def __init__(self, config: TrainConfig, model: ResolvedModel, n_devices: int) -> None:
        """Describe the step of a run.

        Args:
            config: configuration of the run.
            model: ``config.model``, resolved.
            n_devices: number of devices of the mesh.

        Raises:
            ValueError: if rows may be longer than the model has positions, or the mesh does not
                divide the devices or the heads.
        """
        mesh, positions = config.mesh, model.architecture.max_position_embeddings
        if config.data.max_length > positions:
            raise ValueError(
                f"`data.max_length` must be at most {positions}, the number of positions of the "
                f"model, got {config.data.max_length}"
            )
        self.sizes = mesh_sizes(
            data=mesh.data,
            fsdp=mesh.fsdp,
            tensor=mesh.tensor,
            expert=mesh.expert,
            devices=n_devices,
        )
        decoder = abstract_model(model)
        self.architecture = decoder.architecture
        self.plan = plan_model(self.sizes, decoder)
        decoder.sharding_plan = self.plan
        self.config = config = divide_step(config, self.plan.batch_shards)
        self.graphdef, self.trainable, self.frozen = nnx.split(
            decoder, trainable_filter(decoder), ...
        )
        self.optimizer, _ = make_optimizer(config.optimizer, 1000)
        self.state = jax.eval_shape(
            lambda trainable: init_train_state(trainable, self.optimizer), self.trainable
        )
        if config.model.reference_refresh_steps is not None:
            decay = config.model.reference_decay
            convert = partial(policy_as_reference, self.graphdef, decay=decay)
            reference = jax.eval_shape(convert, self.trainable, self.frozen)
            self.state = self.state._replace(reference=reference)
        self.pairs = config.trainer.per_device_train_batch_size

    @property
    def n_devices(self) -> int:
        """Number of devices of the mesh."""
        return int(np.prod(list(self.sizes.values())))

    @property
    def row_tokens(self) -> int:
        """Largest number of tokens of a pair: the prompt once, and two responses."""
        data = self.config.data
        prompt = data.max_prompt_length or data.max_length // 2
        return prompt + 2 * (data.max_length - prompt)

    @property
    def completions(self) -> int:
        """Largest number of completion tokens of a pair."""
        data = self.config.data
        return 2 * (data.max_length - (data.max_prompt_length or data.max_length // 2))

    def batch(self) -> Batch:
        """Return the shapes of the batch of a step, one row per device and microbatch."""
        parts = self.config.trainer.gradient_accumulation_steps, self.plan.batch_shards
        n, tokens = self.pairs, self.row_tokens * self.pairs
        completions = self.completions * self.pairs

        def shape(*sizes: int, dtype: Any = jnp.int32) -> Any:
            return jax.ShapeDtypeStruct((*parts, *sizes), dtype)

        row = shape(1, tokens)
        return Batch(
            rows=Rows(row, row, row, row, Bounds(roles=2)),
            completions=Completions(*[shape(completions)] * 3),
            lengths=shape(n, 2),
            present=shape(n, dtype=jnp.bool_),
            row_ids=shape(n),
            reference=shape(n, 2, dtype=jnp.float32),
        )

    def bytes_of(self, tree: Any) -> int:
        """Return the bytes per device of parameters, or of arrays with their shapes."""
        specs = self.plan.partition_specs(tree)

        def share(leaf: Any, spec: Any) -> int:
            names = jax.tree.leaves(tuple(spec))
            parts = int(np.prod([self.sizes[name] for name in names]))
            return leaf.size * leaf.dtype.itemsize // parts

        return sum(jax.tree.leaves(jax.tree.map(share, tree, specs)))

    def flops(self, tokens: int, completions: int) -> int:
        """Return the model FLOPs of a forward and backward pass.

        Args:
            tokens: number of tokens; each costs 6 FLOPs per parameter of the layers, and of the
                experts that serve it.
            completions: number of completion tokens; each costs 6 per parameter of the head.
        """
        head = self.architecture.vocab_size * self.architecture.hidden_size
        count = count_parameters((self.trainable, self.frozen))
        layers = count - head * (1 if self.architecture.tie_word_embeddings else 2)
        layers -= self._idle_expert_parameters()
        return 6 * (tokens * layers + completions * head)

    def _idle_expert_parameters(self) -> int:
        """Return the number of parameters of the experts that do not serve a token."""
        a = self.architecture
        idle = a.num_experts - a.num_experts_per_tok
        return a.num_hidden_layers * idle * 3 * a.hidden_size * a.intermediate_size

    def numbers(self) -> dict[str, int]:
        """Return the fields of the plan that do not depend on the compiler."""
        parameters = (self.trainable, self.frozen)
        pairs = self.pairs * self.plan.batch_shards
        pairs *= self.config.trainer.gradient_accumulation_steps
        return {
            "devices": self.n_devices,
            "pairs_per_device": self.pairs,
            "pairs_per_step": pairs,
            "max_length": self.config.data.max_length,
            "parameter_bytes_per_device": self.bytes_of(parameters),
            "optimizer_bytes_per_device": self.bytes_of(self.state.optimizer_state),
            "reference_bytes_per_device": self.bytes_of(self.state.reference),
            "flops_per_step": pairs * self.flops(self.row_tokens, self.completions),
            "tokens_per_step": pairs * self.row_tokens,
        }


def count_parameters(state: Any) -> int:
    """Return the number of parameters of a model; a quantized one counts as the matrix it is.

    Args:
        state: an ``nnx.State``, or several of them.

    Returns:
        The number of parameters, those of adapters included.

    Examples:
        >>> count_parameters(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
        9
    """
    count = 0
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    for leaf in jax.tree.leaves(state, is_leaf=is_variable):
        if not isinstance(leaf, QuantizedParam):
            count += leaf.size
        elif jnp.issubdtype(leaf.dtype, jnp.integer):
            count += math.prod(kernel_shape(leaf.get_value()))
    return count


def estimate_peak_bytes(step: PlannedStep, tokens: int, completions: int) -> int:
    """Estimate the peak memory of a device: arrays are counted, activations estimated.

    Args:
        step: the planned step.
        tokens: number of tokens in the rows of a device.
        completions: number of completion tokens among them.

    Returns:
        Bytes of parameters, moments, gradients, a reference that moves, saved activations and the
        logits of one chunk; with bfloat16 parameters also of the random bits that round the largest
        one.
    """
    a, model = step.architecture, step.config.model
    width = jnp.dtype(model.dtype).itemsize
    heads = (a.num_attention_heads + 2 * a.num_key_value_heads) * a.head_dim
    # The experts of a token have copies of it, and hidden units of their own.
    copies = max(a.num_experts_per_tok, 1)
    units = copies * a.intermediate_size
    copied = (4 * copies if a.num_experts else 0) * a.hidden_size
    of_layer = tokens * width * (6 * a.hidden_size + 2 * heads + 4 * units + copied)
    kept = {
        "full": 1 * a.hidden_size,
        "dots": 3 * a.hidden_size + heads + 2 * units + copied,
    }
    saved = (
        tokens * width * a.num_hidden_layers * kept[model.remat]
        if model.remat in kept
        else (of_layer * a.num_hidden_layers)
    )
    logits = 3 * 4 * min(2**26, completions * a.vocab_size)
    gradients = step.bytes_of(step.trainable) * 4 // jnp.dtype(model.param_dtype).itemsize
    state = step.state
    held = sum(
        map(step.bytes_of, (step.trainable, step.frozen, state.optimizer_state, state.reference))
    )
    rounding = 0
    if model.param_dtype == "bfloat16":
        # The update of a parameter in float32, and as many random bits.
        rounding = 2 * 4 * max(leaf.size for leaf in jax.tree.leaves(step.trainable))
        rounding //= step.n_devices
    return held + gradients + rounding + (saved + of_layer) // step.sizes["tensor"] + logits
