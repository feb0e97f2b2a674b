"""Losses and their gradients against the loss functions of TRL, on the same log-probabilities.

TRL's own code runs: its loss methods are called on an object that has their options, with a model
that returns given log-probabilities of tokens. Both sides are float64 where TRL allows it.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory import losses
from rpo_theory.losses import PairLogProbs

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
trl = pytest.importorskip("trl", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

TOLERANCE = 1e-6
BETA, SMOOTHING, N_PAIRS, LONGEST = 0.3, 0.1, 6, 9


class Tokens(NamedTuple):
    """Random log-probabilities of tokens of chosen responses, followed by rejected ones."""

    policy: np.ndarray
    reference: np.ndarray
    squares: np.ndarray
    mask: np.ndarray


def random_tokens(seed: int = 0) -> Tokens:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST, size=2 * N_PAIRS)
    mask = np.arange(LONGEST) < lengths[:, None]

    def draw() -> np.ndarray:
        return np.where(mask, -rng.exponential(size=mask.shape), 0.0)

    return Tokens(draw(), draw(), draw(), mask)


def pair(per_response: jax.Array | np.ndarray) -> PairLogProbs:
    return PairLogProbs(per_response[:N_PAIRS], per_response[N_PAIRS:])


def accelerator() -> Any:
    identity = types.SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x)
    identity.device = torch.device("cpu")
    return identity


class GivenTokens(torch.nn.Module):
    """A model that returns given log-probabilities, with the statistics that TRL logs."""

    def __init__(self, log_probs: Any, squares: Any) -> None:
        super().__init__()
        blank = torch.zeros_like(squares)
        self.outputs = types.SimpleNamespace(
            log_probs=log_probs,
            log_sum_sq_probs=squares,
            entropy=blank,
            mean_logits=blank,
            is_top1=blank.bool(),
        )

    def forward(self, **_: Any) -> Any:
        return self.outputs


def trl_dpo(tokens: Tokens, loss_type: str, dtype: Any, **options: Any) -> tuple[float, np.ndarray]:
    """Return the loss of TRL's DPO trainer, and its gradient in the token log-probabilities."""
    policy = torch.tensor(tokens.policy, dtype=dtype, requires_grad=True)
    reference, squares = (torch.tensor(x, dtype=dtype) for x in (tokens.reference, tokens.squares))
    model, reference_model = GivenTokens(policy, squares), GivenTokens(reference, squares)
    completion_mask = torch.tensor(np.pad(tokens.mask, ((0, 0), (1, 0))).astype(int))
    shape = completion_mask.shape
    inputs = {
        "input_ids": torch.ones(shape, dtype=torch.long),
        "attention_mask": torch.ones(shape, dtype=torch.long),
        "completion_mask": completion_mask,
    }
    settings = {
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "use_weighting": False,
        "label_smoothing": SMOOTHING,
    } | options
    trainer = types.SimpleNamespace(
        model=model,
        ref_model=reference_model,
        accelerator=accelerator(),
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        beta=BETA,
        loss_types=[loss_type],
        loss_weights=[1.0],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )
    model.is_gradient_checkpointing = reference_model.is_gradient_checkpointing = False
    loss = trl.DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    loss.backward()
    return float(loss), policy.grad.numpy()


Objective = Callable[[jax.Array, Tokens], jax.Array]
"""Per-pair losses of the token log-probabilities of the policy."""


def of_sums(loss: Callable[..., jax.Array], **options: Any) -> Objective:
    def call(policy: jax.Array, tokens: Tokens) -> jax.Array:
        return loss(pair(policy.sum(axis=1)), pair(tokens.reference.sum(axis=1)), **options)

    return call


def inverse_lengths(tokens: Tokens) -> PairLogProbs:
    return pair(1.0 / tokens.mask.sum(axis=1))


def sigmoid_norm(policy: jax.Array, tokens: Tokens) -> jax.Array:
    sums = pair(policy.sum(axis=1)), pair(tokens.reference.sum(axis=1))
    return losses.sigmoid_norm(*sums, inverse_lengths(tokens), beta=BETA)


def ipo(policy: jax.Array, tokens: Tokens) -> jax.Array:
    sums = pair(policy.sum(axis=1)), pair(tokens.reference.sum(axis=1))
    return losses.ipo(*sums, tau=BETA, weights=inverse_lengths(tokens))


def weighted_dpo(policy: jax.Array, tokens: Tokens) -> jax.Array:
    sums = pair(policy.sum(axis=1))
    weights = losses.wpo_weights(sums, pair(tokens.squares.sum(axis=1)), inverse_lengths(tokens))
    return weights * losses.dpo(sums, pair(tokens.reference.sum(axis=1)), beta=BETA)


def desensitized_dpo(policy: jax.Array, tokens: Tokens) -> jax.Array:
    shared = np.minimum(*np.split(tokens.mask.sum(axis=1), 2))
    shared = np.broadcast_to(np.tile(shared, 2)[:, None], tokens.mask.shape)
    positions = np.broadcast_to(np.arange(LONGEST), tokens.mask.shape)
    scale = losses.length_desensitized_weights(positions, shared, alpha=0.4)
    sums = [pair((scale * each).sum(axis=1)) for each in (policy, tokens.reference)]
    return losses.dpo(*sums, beta=BETA)


def f_dpo(name: str) -> Objective:
    return of_sums(losses.f_dpo, beta=BETA, divergence=name, alpha=0.5)


CASES: dict[str, tuple[Objective, str, dict[str, Any]]] = {
    "dpo": (of_sums(losses.dpo, beta=BETA), "sigmoid", {}),
    "hinge": (of_sums(losses.hinge, beta=BETA), "hinge", {}),
    "ipo": (ipo, "ipo", {}),
    "robust": (of_sums(losses.robust, beta=BETA, flip_probability=SMOOTHING), "robust", {}),
    "exo_pair": (of_sums(losses.exo_pair, beta=BETA, label_smoothing=SMOOTHING), "exo_pair", {}),
    "discopop": (of_sums(losses.discopop, beta=BETA, tau=0.05), "discopop", {}),
    "sigmoid_norm": (sigmoid_norm, "sigmoid_norm", {}),
    "nca_pair": (of_sums(losses.nca_pair, beta=BETA), "nca_pair", {}),
    "bco_pair": (of_sums(losses.bco_pair, beta=BETA), "bco_pair", {}),
    "sppo_hard": (of_sums(losses.sppo_hard, beta=BETA), "sppo_hard", {}),
    "apo_zero": (of_sums(losses.apo_zero, beta=BETA), "apo_zero", {}),
    "apo_down": (of_sums(losses.apo_down, beta=BETA), "apo_down", {}),
    "aot": (of_sums(losses.aot, beta=BETA, label_smoothing=SMOOTHING), "aot", {}),
    "aot_unpaired": (
        of_sums(losses.aot_unpaired, beta=BETA, label_smoothing=SMOOTHING),
        "aot_unpaired",
        {},
    ),
    "forward_kl": (f_dpo("forward_kl"), "sigmoid", {"f_divergence_type": "forward_kl"}),
    "js_divergence": (f_dpo("js_divergence"), "sigmoid", {"f_divergence_type": "js_divergence"}),
    "alpha_divergence": (
        f_dpo("alpha_divergence"),
        "sigmoid",
        {"f_divergence_type": "alpha_divergence"},
    ),
    "wpo": (weighted_dpo, "sigmoid", {"use_weighting": True}),
    "ld_dpo": (desensitized_dpo, "sigmoid", {"ld_alpha": 0.4}),
}


@pytest.mark.parametrize("name", CASES)
def test_parity_of_value_and_gradient_with_trls_dpo_trainer(name: str) -> None:
    objective, loss_type, options = CASES[name]
    for seed in range(3):
        tokens = random_tokens(seed)
        # TRL limits the exponent of this divergence for dtypes that do not include float64.
        dtype = torch.float32 if name == "alpha_divergence" else torch.float64
        value, gradient = trl_dpo(tokens, loss_type, dtype, **options)
        with jax.enable_x64(True):
            ours, slope = jax.value_and_grad(lambda p, t=tokens: objective(p, t).mean())(
                jnp.asarray(tokens.policy)
            )
        scale = max(1.0, float(np.abs(gradient).max()))
        assert float(ours) == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE)
        # The gradient of our sums reaches padding, which the trainer never sums.
        slope = np.where(tokens.mask, slope, 0.0)
        expected = np.where(tokens.mask, gradient, 0.0)
        np.testing.assert_allclose(slope, expected, atol=TOLERANCE * scale)


def in_torch(function: Callable[..., Any], *arrays: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return per-example values, and the gradients of their sum in the arrays."""
    inputs = [torch.tensor(array, requires_grad=True) for array in arrays]
    values = function(*inputs)
    values.sum().backward()
    return values.detach().numpy(), [each.grad.numpy() for each in inputs]


def assert_same(
    ours: Callable[[PairLogProbs], jax.Array],
    policy: PairLogProbs,
    expected: tuple[np.ndarray, list[np.ndarray]],
) -> None:
    with jax.enable_x64(True):
        values, gradient = ours(policy), jax.grad(lambda p: ours(p).sum())(policy)
    np.testing.assert_allclose(values, expected[0], rtol=TOLERANCE, atol=TOLERANCE)
    for got, wanted in zip(gradient, expected[1], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def random_pair(seed: int, scale: float = 10.0) -> PairLogProbs:
    rng = np.random.default_rng(seed)
    return PairLogProbs(*(-scale * rng.random((2, 8)) - 0.1))


def test_parity_of_cpo_simpo_and_slic_with_trls_cpo_trainer() -> None:
    from trl.experimental.cpo import CPOTrainer  # pyright: ignore[reportMissingImports]

    policy = random_pair(0)

    def theirs(loss_type: str, beta: float = BETA) -> tuple[np.ndarray, list[np.ndarray]]:
        trainer = types.SimpleNamespace(
            alpha=0.0,
            beta=beta,
            simpo_gamma=0.5,
            label_smoothing=0.0,
            loss_type=loss_type,
            accelerator=accelerator(),
        )
        return in_torch(lambda w, r: CPOTrainer.cpo_loss(trainer, w, r)[0], *policy)

    one = PairLogProbs(np.ones(8), np.ones(8))
    assert_same(lambda p: losses.cpo(p, beta=BETA, sft_weight=0.0), policy, theirs("sigmoid"))
    assert_same(lambda p: losses.simpo(p, one, beta=BETA, gamma=0.5), policy, theirs("simpo"))
    # TRL's hinge is beta times SLiC's with the target 1 / beta.
    slic = losses.slic
    assert_same(lambda p: BETA * slic(p, delta=1 / BETA, sft_weight=0.0), policy, theirs("hinge"))


def test_parity_of_orpo_with_trls_orpo_trainer() -> None:
    from trl.experimental.orpo import ORPOTrainer  # pyright: ignore[reportMissingImports]

    policy = random_pair(1, scale=2.0)
    trainer = types.SimpleNamespace(beta=BETA, accelerator=accelerator())

    def theirs(chosen: Any, rejected: Any) -> Any:
        return -chosen - ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]

    one = PairLogProbs(np.ones(8), np.ones(8))
    # TRL casts to float32.
    assert_same(lambda p: losses.orpo(p, one, penalty=BETA), policy, in_torch(theirs, *policy))


def test_parity_of_kto_with_trls_kto_trainer() -> None:

    rng = np.random.default_rng(2)
    policy, reference = (-rng.exponential(size=(7, LONGEST)) for _ in range(2))
    labels = np.array([True, False, True, True, False, False, True])
    kl_policy, kl_reference = (-rng.exponential(size=7) for _ in range(2))
    point = max(0.0, float((kl_policy - kl_reference).mean()))
    for weights in ((1.0, 1.0), (2.0, 0.5)):
        given = torch.tensor(policy, requires_grad=True)
        blank = torch.zeros_like(given.detach())
        model = GivenTokens(given, blank)
        shape = (7, LONGEST + 1)
        batch = {
            "input_ids": torch.ones(shape, dtype=torch.long),
            "attention_mask": torch.ones(shape, dtype=torch.long),
            "completion_mask": torch.ones(shape, dtype=torch.long),
            "label": torch.tensor(labels),
            "ref_logps": torch.tensor(reference.sum(axis=1)),
            "ref_KL_logps": torch.tensor(kl_reference),
        }
        trainer = types.SimpleNamespace(
            model=model,
            accelerator=accelerator(),
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=True,
            loss_type="kto",
            beta=BETA,
            desirable_weight=weights[0],
            undesirable_weight=weights[1],
            _compute_kl_logps=lambda model, batch: torch.tensor(kl_policy),
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )
        loss = trl.KTOTrainer._compute_loss(trainer, model, batch, return_outputs=False)
        loss.backward()

        def ours(policy: jax.Array, weights: tuple[float, float] = weights) -> jax.Array:
            return losses.kto(
                policy.sum(axis=1),
                reference.sum(axis=1),
                labels,
                beta=BETA,
                reference_point=point,
                desirable_weight=weights[0],
                undesirable_weight=weights[1],
            ).mean()

        with jax.enable_x64(True):
            value, gradient = jax.value_and_grad(ours)(jnp.asarray(policy))
        assert float(value) == pytest.approx(float(loss), rel=TOLERANCE)
        np.testing.assert_allclose(gradient, given.grad.numpy(), atol=TOLERANCE)
