"""Claims about log-probabilities, losses and gradients, against TRL (extra ``parity``).

SmolLM2's padding token is also its end-of-turn token. PyTorch gives the embedding of the padding
token no gradient, even where the token is not padding, so TRL's gradient norm is 3.5e-5 too small.
The comparison therefore resets ``padding_idx``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from llm.config import ObjectiveConfig
from llm.data.mismatched import with_mismatched_responses
from llm.data.packing import pack, required_shape
from llm.data.pair_table import PairTable
from llm.data.preferences import PairTokens
from llm.hf.io import load_model
from llm.models.logprobs import response_log_probs
from llm.models.lora import trainable_filter
from llm.parallel.mesh import single_device
from llm.precision import computing_in
from llm.train.step import gradients
from llm.types import Batch

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
trl = pytest.importorskip("trl", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
datasets = pytest.importorskip("datasets", reason="needs the extra `parity`")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

NATS, RELATIVE = 1e-3, 1e-5  # both sides sum in float32, in different orders
BETA, SFT_WEIGHT = 0.3, 0.7
VOCABULARY, N_PAIRS, REAL_LENGTH = 61, 5, 256
DOUBLE: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
ON_CPU: dict[str, Any] = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "gradient_checkpointing": False,
}
KTO_LENGTH = 20  # cuts some responses after another prompt
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def random_pairs() -> list[PairTokens]:
    rng = np.random.default_rng(0)

    def draw(least: int, most: int) -> tuple[int, ...]:
        return tuple(rng.integers(3, VOCABULARY, rng.integers(least, most)).tolist())

    return [PairTokens(draw(1, 12), draw(1, 16), draw(1, 16), None, row) for row in range(N_PAIRS)]


def random_model(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(**LLAMA)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def packed(pairs: list[PairTokens]) -> Batch:
    """Pack all pairs into one row, with every prompt written once."""
    shape = required_shape(pairs, layout="shared", roles=2)
    return pack(pairs, layout="shared", roles=2, n_pairs=len(pairs), shape=shape)


def trl_trainer(
    folder: Path, reference: Path, pairs: list[PairTokens], out: Path, **options: Any
) -> Any:
    """Make TRL's trainer for tokenized rows."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    rows = [dict(zip(names, map(list, pair[:3]), strict=True)) for pair in pairs]
    config = trl.DPOConfig(
        output_dir=str(out),
        beta=BETA,
        max_length=None,
        per_device_train_batch_size=len(pairs),
        **ON_CPU,
        **options,
    )
    return trainer_on_rows(trl.DPOTrainer, config, rows, (folder, reference), torch.float32)


def trainer_on_rows(
    kind: Any, config: Any, rows: list[dict[str, Any]], folders: tuple[Path, Path], dtype: Any
) -> Any:
    """Make a trainer of TRL for tokenized rows, from the folders of policy and reference."""

    class Rows(kind):
        def _prepare_dataset(self, dataset: Any, *unused: Any) -> Any:
            return dataset

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=_dummy_tokenizer(), pad_token="0", eos_token="2", bos_token="1"
    )
    models = [
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype) for folder in folders
    ]
    for model in models:
        model.get_input_embeddings().padding_idx = None
    return Rows(
        *models,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def _dummy_tokenizer() -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {str(number): number for number in range(3)}
    return tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="0"))


def trl_result(
    folder: Path, reference: Path, pairs: list[PairTokens], out: Path, **options: Any
) -> dict[str, Any]:
    """Return TRL's loss, log-probabilities and gradient norm, which is summed in float64."""
    trainer = trl_trainer(folder, reference, pairs, out, **options)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(pairs))])
    with torch.no_grad():
        policy = trainer.compute_ref_log_probs(trainer.model.eval(), batch)
        baseline = trainer.compute_ref_log_probs(trainer.ref_model, batch)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    squares = sum(
        float(parameter.grad.double().square().sum())
        for parameter in trainer.model.parameters()
        if parameter.grad is not None
    )
    return {
        "loss": float(loss),
        "grad_norm": squares**0.5,
        "policy": torch.stack(policy, 1).numpy(),
        "reference": torch.stack(baseline, 1).numpy(),
    }


def our_result(
    folder: Path, reference: Path, pairs: list[PairTokens], config: ObjectiveConfig
) -> dict[str, Any]:
    """Return our loss, log-probabilities and gradient norm, from one packed row in float32."""
    batch = packed(pairs)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        score = nnx.jit(response_log_probs)
        policy, baseline = (
            np.asarray(score(load_model(path), batch)) for path in (folder, reference)
        )
        model = load_model(folder)
        graphdef, trainable, frozen = nnx.split(model, trainable_filter(model), ...)
        # One part on one shard.
        batches = jax.tree.map(lambda leaf: leaf[None, None], batch._replace(reference=baseline))
        devices = single_device()
        step = jax.jit(lambda t, f, b: gradients(graphdef, t, f, b, config, devices=devices))
        gradient, result = step(trainable, frozen, batches)
        leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradient)]
    return {
        "loss": float(result.metrics["loss"]),
        "grad_norm": float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves))),
        "policy": policy,
        "reference": baseline,
    }


def assert_same(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("policy", "reference"):
        assert np.abs(ours[name] - expected[name]).max() < NATS, name
    for name in ("loss", "grad_norm"):
        assert ours[name] == pytest.approx(expected[name], rel=RELATIVE), name


def objective(pairs: list[PairTokens], method: str) -> tuple[ObjectiveConfig, dict[str, Any]]:
    """Return the same objective as our configuration and as TRL's options."""
    if method == "dpo":
        return ObjectiveConfig(method="dpo", beta=BETA), {"loss_type": ["sigmoid"]}
    # TRL averages over all tokens of the batch with the weight eta * beta.
    config = ObjectiveConfig(
        method="rpo", beta=BETA, eta=SFT_WEIGHT / BETA, sft_reduction="pooled_mean"
    )
    return config, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, SFT_WEIGHT]}


@pytest.mark.parametrize("method", ["dpo", "rpo"])
def test_parity_of_a_random_model_with_another_reference(method: str, tmp_path: Path) -> None:
    folder, reference = (random_model(tmp_path / str(seed), seed) for seed in range(2))
    pairs = random_pairs()
    config, options = objective(pairs, method)
    expected = trl_result(folder, reference, pairs, tmp_path / "out", **options)
    assert np.ptp(expected["policy"] - expected["reference"]) > 1.0
    assert_same(our_result(folder, reference, pairs, config), expected)


def trl_kto_trainer(
    folder: Path, reference: Path, rows: list[PairTokens], out: Path, **options: Any
) -> Any:
    """Make TRL's KTO trainer for one batch of tokenized rows, in float64."""
    names = ("prompt_ids", "completion_ids")
    data = [dict(zip(names, map(list, row[:2]), strict=True)) for row in rows]
    for row, other, tokens in zip(data, [data[-1], *data[:-1]], rows, strict=True):
        row |= {"KL_completion_ids": other["completion_ids"], "label": tokens.desirable}
    config = trl.KTOConfig(
        output_dir=str(out),
        beta=BETA,
        max_length=KTO_LENGTH,
        per_device_train_batch_size=len(rows),
        **ON_CPU,
        **options,
    )
    return trainer_on_rows(trl.KTOTrainer, config, data, (folder, reference), torch.float64)


@pytest.mark.parametrize("swap", [False, True], ids=["clamped", "positive"])
def test_parity_of_kto_on_unpaired_rows_with_its_mismatched_pairs(
    swap: bool, tmp_path: Path
) -> None:
    """One of the two orders of the models has a reference point above 0, the other is clamped."""
    folder, reference = (random_model(tmp_path / str(seed), seed) for seed in range(2))
    if swap:
        folder, reference = reference, folder
    labels = (True, False, False, True, True)
    rows = [
        pair._replace(chosen=pair.chosen[: KTO_LENGTH - len(pair.prompt)], desirable=label)
        for pair, label in zip(random_pairs(), labels, strict=True)
    ]
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    trainer = trl_kto_trainer(folder, reference, rows, tmp_path / "out", **weights)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    kl = trainer._metrics["train"]["kl"][0]

    groups = [np.arange(len(rows))]
    table = with_mismatched_responses(PairTable.from_pairs(rows), groups, max_length=KTO_LENGTH)
    config = ObjectiveConfig(method="kto", beta=BETA, options=weights)
    with computing_in("float64"):
        models = [load_model(path, **DOUBLE) for path in (folder, reference)]
        ours = packed(list(table))
        ours = ours._replace(reference=nnx.jit(response_log_probs)(models[1], ours))
        graphdef, trainable, frozen = nnx.split(models[0], trainable_filter(models[0]), ...)
        batches = jax.tree.map(lambda leaf: leaf[None, None], ours)
        devices = single_device()
        step = jax.jit(lambda t, f, b: gradients(graphdef, t, f, b, config, devices=devices))
        gradient, result = step(trainable, frozen, batches)
        tree = nnx.merge(graphdef, gradient, frozen)
        norm = float(result.metrics["grad_norm"])
        embedding = np.asarray(tree.embedding[...])
    assert (kl > 0) != (float(result.metrics["kl"]) == 0)
    assert float(result.metrics["kl"]) == pytest.approx(kl, abs=1e-6)
    assert float(result.metrics["loss"]) == pytest.approx(float(loss), rel=1e-6)
    grads = [each.grad for each in trainer.model.parameters() if each.grad is not None]
    theirs = sum(float(each.double().square().sum()) for each in grads) ** 0.5
    assert norm == pytest.approx(theirs, rel=1e-6)
    given = trainer.model.get_input_embeddings().weight.grad.numpy()
    np.testing.assert_allclose(embedding, given, atol=1e-6)


@pytest.mark.parametrize("method", ["dpo", "rpo"])
def test_parity_of_a_real_model_on_real_pairs(
    method: str, tmp_path: Path, shared_data: Path
) -> None:
    from llm.data.preferences import read_preferences
    from llm.text.tokenize import tokenize_rows
    from llm.text.tokenizer import load_tokenizer

    folder = Path(os.environ.get("RPO_SMOLLM2", ""))
    if not (folder / "config.json").exists():
        pytest.skip("needs RPO_SMOLLM2, the folder of a converted SmolLM2")
    rows = read_preferences(str(shared_data / "hh-harmless-test.jsonl.gz"), check_content=False)
    tokens = tokenize_rows(
        rows[:20], load_tokenizer(folder), max_length=REAL_LENGTH, on_error="skip"
    )
    pairs = list(tokens.pairs[:4])
    config, options = objective(pairs, method)
    expected = trl_result(folder, folder, pairs, tmp_path / "out", **options)
    assert_same(our_result(folder, folder, pairs, config), expected)
