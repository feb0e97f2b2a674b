"""Optimizers against their definitions in NumPy, and groups of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from llm.config import OptimizerConfig, ParameterGroup, SchedulerName
from llm.train.optimizer import make_optimizer, per_layer
from llm.train.schedules import learning_rate_schedule

# Relative error of an update after some steps; its constants are float32.
ADAM = 1e-5


@pytest.fixture(autouse=True)
def promotion_of_the_trainer() -> Iterator[None]:
    """Optax divides by powers of an integer count, which strict promotion does not allow."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


class AdamW:
    """Loshchilov and Hutter, algorithm 2, with Kingma and Ba's bias correction."""

    def __init__(
        self, config: OptimizerConfig, num_steps: int, sizes: list[tuple[int, ...]]
    ) -> None:
        self.config, self.updates = config, 0
        self.schedule = learning_rate_schedule(config, num_steps)
        self.first = [np.zeros(size) for size in sizes]
        self.second = [np.zeros(size) for size in sizes]

    def step(self, parameters: list[np.ndarray], gradients: list[np.ndarray]) -> list[np.ndarray]:
        config = self.config
        norm = math.sqrt(sum(float(np.sum(gradient**2)) for gradient in gradients))
        scale = min(1.0, config.max_grad_norm / norm) if norm else 1.0
        rate = float(np.asarray(self.schedule(self.updates)))
        self.updates += 1
        count, result = self.updates, []
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            beta1, beta2 = config.adam_beta1, config.adam_beta2
            self.first[i] = beta1 * self.first[i] + (1 - beta1) * scale * gradient
            self.second[i] = beta2 * self.second[i] + (1 - beta2) * (scale * gradient) ** 2
            mean = self.first[i] / (1 - beta1**count)
            square = self.second[i] / (1 - beta2**count)
            direction = mean / (np.sqrt(square) + config.adam_epsilon)
            result.append(parameter - rate * (direction + config.weight_decay * parameter))
        return result


@pytest.mark.parametrize(("kind", "decay"), [("cosine", 0.1), ("linear", 0.0)])
def test_parity_updates_equal_those_of_numpy(kind: SchedulerName, decay: float) -> None:
    config = OptimizerConfig(
        learning_rate=0.02,
        lr_scheduler_type=kind,
        warmup_ratio=0.3,
        max_grad_norm=1.0,
        weight_decay=decay,
        adam_beta1=0.8,
        adam_beta2=0.95,
        adam_epsilon=1e-3,
    )
    rng = np.random.default_rng(0)
    sizes = [(3, 2), (4,)]
    num_steps = 7
    expected = [rng.normal(size=size) for size in sizes]
    optimizer, _ = make_optimizer(config, num_steps)
    parameters: Any = [jnp.asarray(array) for array in expected]
    state, reference = optimizer.init(parameters), AdamW(config, num_steps, sizes)
    # The norms are on both sides of the limit: some gradients are clipped.
    for norm in np.geomspace(0.01, 10, num_steps):
        gradients = [norm * rng.normal(size=size) for size in sizes]
        expected = reference.step(expected, gradients)
        updates, state = optimizer.update(list(map(jnp.asarray, gradients)), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        for actual, wanted in zip(parameters, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=ADAM, atol=ADAM * config.learning_rate)


@pytest.mark.parametrize("scale", [1.01, 30.0, 1e6])
def test_property_only_the_direction_of_a_clipped_gradient_counts(scale: float) -> None:
    config = OptimizerConfig(
        learning_rate=1.0, max_grad_norm=0.5, adam_epsilon=1.0, warmup_ratio=0.0
    )
    optimizer, _ = make_optimizer(config, 10)
    direction = np.random.default_rng(0).normal(size=5)
    limit = 0.5 * direction / np.linalg.norm(direction)
    start = jnp.zeros(5)

    def update(gradient: np.ndarray) -> jax.Array:
        return jnp.asarray(optimizer.update(jnp.asarray(gradient), optimizer.init(start), start)[0])

    np.testing.assert_allclose(update(scale * limit), update(limit), rtol=1e-9)
    assert (
        np.max(np.abs(update(0.5 * limit) / update(limit))) < 0.9
    )  # below the limit the size counts


def test_closed_form_decay_is_decoupled_from_the_gradient() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0.0)
    optimizer, schedule = make_optimizer(config, 10)
    parameters = jnp.asarray([2.0, -4.0])
    update, _ = optimizer.update(jnp.zeros(2), optimizer.init(parameters), parameters)
    assert rate(schedule, 0) == pytest.approx(0.1, rel=1e-12)
    np.testing.assert_allclose(jnp.asarray(update), [-0.1, 0.2], rtol=1e-6)


def test_closed_form_norms_and_biases_do_not_decay_as_in_transformers() -> None:
    # Every kind of parameter that a decoder can have, under its path here, and whether
    # Trainer.get_decay_parameter_names lists it under its name in Transformers.
    decays = {
        "embedding": True,  # model.embed_tokens.weight
        "output": True,  # lm_head.weight
        "norm/weight": False,  # model.norm.weight
        "layers/input_norm/weight": False,  # input_layernorm.weight
        "layers/mlp_norm/weight": False,  # post_attention_layernorm.weight
        "layers/post_attention_norm/weight": False,  # the same name in Gemma 2
        "layers/post_mlp_norm/weight": False,  # post_feedforward_layernorm.weight
        "layers/q_norm/weight": False,  # self_attn.q_norm.weight
        "layers/k_norm/weight": False,
        "layers/q_proj/kernel": True,  # self_attn.q_proj.weight
        "layers/q_proj/bias": False,
        "layers/down_proj/kernel": True,
        "layers/o_proj/adapter/a": True,  # self_attn.o_proj.lora_A.default.weight
        "layers/o_proj/adapter/b": True,
    }
    parameters: dict[str, Any] = {}
    for path in decays:
        *parents, name = path.split("/")
        level = parameters
        for parent in parents:
            level = level.setdefault(parent, {})
        level[name] = jnp.full(3, 2.0)
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0.0)
    optimizer, _ = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    updates, _ = optimizer.update(zeros, optimizer.init(parameters), parameters)
    for path, decayed in decays.items():
        update: Any = updates
        for name in path.split("/"):
            update = update[name]
        np.testing.assert_allclose(update, -0.1 if decayed else 0.0, rtol=1e-6, err_msg=path)


def stacked_parameters(rng: np.random.Generator) -> dict[str, Any]:
    """Draw parameters of two layers, their norms, an embedding and a head."""
    return {
        "embedding": rng.normal(size=(5, 3)),
        "layers": {
            "input_norm": {"weight": rng.normal(size=(2, 3))},
            "q_proj": {"kernel": rng.normal(size=(2, 3, 4)), "bias": rng.normal(size=(2, 4))},
            "up_proj": {"kernel": rng.normal(size=(2, 6, 3))},
        },
        "output": rng.normal(size=(5, 3)),
    }


def updated(config: OptimizerConfig, gradients: list[Any], parameters: Any) -> Any:
    """Return the parameters after updates with a constant learning rate."""
    optimizer, _ = make_optimizer(config, 100)
    parameters = jax.tree.map(jnp.asarray, parameters)
    state = optimizer.init(parameters)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, gradient), state, parameters)
        parameters = optax.apply_updates(parameters, updates)
    return parameters


CONSTANT: dict[str, Any] = {
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1e6,
    "weight_decay": 0.1,
}


def by_tensor(tree: Any) -> list[tuple[str, np.ndarray]]:
    """Return the tensors that Transformers has: one for each layer."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    tensors = []
    for path, leaf in leaves:
        name = "/".join(key.key for key in path)
        slices = leaf if name.startswith("layers") else [leaf]
        tensors += [(name, np.asarray(each)) for each in slices]
    return tensors


def decays(name: str) -> bool:
    return "norm" not in name and "bias" not in name


def test_parity_adafactor_is_that_of_the_paper_layer_by_layer() -> None:
    rng = np.random.default_rng(1)
    start = stacked_parameters(rng)
    gradients = [stacked_parameters(rng) for _ in range(3)]
    actual = updated(OptimizerConfig(optim="adafactor", **CONSTANT), gradients, start)
    expected = [value for _, value in by_tensor(start)]
    moments: list[Any] = [0.0] * len(expected)
    for step, gradient in enumerate(gradients, start=1):
        decay = 1.0 - step**-0.8
        for index, (name, g) in enumerate(by_tensor(gradient)):
            square = g**2 + 1e-30
            if g.ndim == 2:
                rows, columns = moments[index] or (0.0, 0.0)
                rows = decay * rows + (1 - decay) * square.mean(axis=1)
                columns = decay * columns + (1 - decay) * square.mean(axis=0)
                moments[index] = rows, columns
                second = np.outer(rows, columns) / rows.mean()
            else:
                second = moments[index] = decay * moments[index] + (1 - decay) * square
            update = g / np.sqrt(second)
            update /= max(1.0, math.sqrt((update**2).mean()))
            update += 0.1 * decays(name) * expected[index]
            expected[index] = expected[index] - 0.01 * update
    for (name, value), wanted in zip(by_tensor(actual), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=ADAM, atol=ADAM * 0.01, err_msg=name)


def test_parity_lion_is_that_of_its_paper() -> None:
    rng = np.random.default_rng(2)
    start = stacked_parameters(rng)
    gradients = [stacked_parameters(rng) for _ in range(3)]
    config = OptimizerConfig(optim="lion", adam_beta1=0.9, adam_beta2=0.99, **CONSTANT)
    actual = updated(config, gradients, start)
    expected = [value for _, value in by_tensor(start)]
    moments = [np.zeros_like(value) for value in expected]
    for gradient in gradients:
        for index, (name, g) in enumerate(by_tensor(gradient)):
            update = np.sign(0.9 * moments[index] + 0.1 * g)
            update += 0.1 * decays(name) * expected[index]
            expected[index] = expected[index] - 0.01 * update
            moments[index] = 0.99 * moments[index] + 0.01 * g
    for (name, value), wanted in zip(by_tensor(actual), expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=ADAM, atol=ADAM * 0.01, err_msg=name)


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Return the result of five Newton-Schulz steps."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_parity_muon_orthogonalizes_each_layer_and_leaves_the_rest_to_adamw() -> None:
    rng = np.random.default_rng(3)
    start = stacked_parameters(rng)
    gradients = [stacked_parameters(rng) for _ in range(2)]
    actual = updated(OptimizerConfig(optim="muon", **CONSTANT), gradients, start)
    adamw = updated(OptimizerConfig(**CONSTANT), gradients, start)
    expected = [value for _, value in by_tensor(start)]
    moments = [np.zeros_like(value) for value in expected]
    for step, gradient in enumerate(gradients, start=1):
        for index, (name, g) in enumerate(by_tensor(gradient)):
            if not name.endswith("kernel"):
                continue
            moments[index] = 0.95 * moments[index] + 0.05 * g
            # Nesterov's moment looks one step ahead; both of its parts are free of their bias.
            ahead = 0.95 * moments[index] / (1 - 0.95 ** (step + 1))
            ahead = ahead + 0.05 * g / (1 - 0.95**step)
            update = 0.2 * math.sqrt(max(g.shape)) * orthogonalized(ahead)
            update += 0.1 * expected[index]
            expected[index] = expected[index] - 0.01 * update
    for (name, value), wanted, other in zip(
        by_tensor(actual), expected, by_tensor(adamw), strict=True
    ):
        reference = wanted if name.endswith("kernel") else other[1]
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-6, err_msg=name)


def test_property_the_first_group_of_a_parameter_scales_its_learning_rate() -> None:
    rng = np.random.default_rng(4)
    start = stacked_parameters(rng)
    gradient = stacked_parameters(rng)
    groups = [
        ParameterGroup(parameters="q_proj/kernel", layers=[1], lr_multiplier=4.0),
        ParameterGroup(parameters="q_proj", lr_multiplier=2.0),
        ParameterGroup(parameters="embedding", lr_multiplier=0.0),
    ]
    plain = updated(OptimizerConfig(**CONSTANT), [gradient], start)
    grouped = updated(OptimizerConfig(groups=groups, **CONSTANT), [gradient], start)
    factors = jax.tree.map(lambda leaf: np.ones(leaf.shape), start)
    factors["layers"]["q_proj"]["kernel"][0] = 2.0
    factors["layers"]["q_proj"]["kernel"][1] = 4.0
    factors["layers"]["q_proj"]["bias"][...] = 2.0
    factors["embedding"][...] = 0.0
    expected = jax.tree.map(lambda a, b, factor: a + factor * (b - a), start, plain, factors)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), grouped, expected)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"parameters": "lora_B"}, r"groups\[0\]` has no trained parameter: none of 6 matches"),
        ({"parameters": "embedding", "layers": [0]}, r"groups\[0\]` has no trained parameter"),
        ({"layers": [2]}, r"groups\[0\]\.layers` must be below 2, the number of layers, got 2"),
    ],
)
def test_raises_for_a_group_without_a_parameter(group: dict[str, Any], message: str) -> None:
    config = OptimizerConfig(groups=[ParameterGroup(lr_multiplier=1.0, **group)])
    optimizer, _ = make_optimizer(config, 10)
    with pytest.raises(ValueError, match=message):
        optimizer.init(stacked_parameters(np.random.default_rng(0)))


def test_property_a_transformation_of_no_stacked_parameters_does_nothing() -> None:
    transformation = per_layer(optax.clip_by_block_rms(1.0))
    assert transformation.update({}, transformation.init({}), {}) == ({}, ())
