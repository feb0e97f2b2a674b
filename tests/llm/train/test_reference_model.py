"""Claims about a reference that is not the start: first loss, resume and vocabulary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.hf.adapters import export_adapter
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.models.decoder import Decoder
from llm.precision import computing_in
from llm.train.dataset import load_training_data
from llm.train.policy import load_policy
from llm.train.reference_model import resolve_reference
from llm.types import Rows
from tests.llm.train.tiny_runs import TINY, make_trainer, read_lines, train_to_end

ROWS = [("a", "yes", "no"), ("bc", "sure thing", "oh"), ("d", "x", "why not"), ("e", "fg", "h")]
BETA, ETA = 0.5, 0.2
DOUBLE: dict[str, Any] = {"dtype": "float64", "param_dtype": "float64"}
EXACT = 1e-10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one vocabulary, and rows."""
    folder = tmp_path_factory.mktemp("reference")
    with computing_in("float64"):
        for name, seed in (("start", 1), ("other", 2)):
            config = ModelConfig(architecture=TINY, seed=seed, **DOUBLE)
            export_model(build_model(resolve_model(config)), folder / name)
    names = ("prompt", "chosen", "rejected")
    lines = [json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS]
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


def config_of(folder: Path, reference: Path | str | None, **model: Any) -> TrainConfig:
    model = {"path": str(folder / "start"), **DOUBLE} | model
    return TrainConfig(
        name="tiny",
        model=ModelConfig(reference=None if reference is None else str(reference), **model),
        data=DataConfig(train=str(folder / "rows.jsonl"), tokenizer="bytes", max_length=24),
        objective=ObjectiveConfig(method="rpo", beta=BETA, eta=ETA),
        optimizer=OptimizerConfig(learning_rate=0.01, warmup_ratio=0.0),
        trainer=TrainerConfig(max_steps=3, save_steps=1, per_device_train_batch_size=4),
    )


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with another model as reference."""
    out = tmp_path_factory.mktemp("whole")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        train_to_end(config_of(folder, folder / "other"), out)
    return out


def log_probs(decoder: Decoder, sequences: list[tuple[list[int], list[int]]]) -> np.ndarray:
    """Return the log-probabilities of responses to prompts, from the logits of whole sequences."""
    longest = max(len(prompt + response) for prompt, response in sequences)
    # Tokens after a response do not change its logits.
    ids = np.array([(p + r + longest * [0])[:longest] for p, r in sequences])
    rows = Rows(ids, np.arange(longest) + 0 * ids, np.ones_like(ids), np.zeros_like(ids))
    logits = jax.jit(lambda: jax.vmap(decoder.head().logits)(decoder.hidden_states(rows)))()
    logits = np.asarray(logits).astype(np.float64)
    logits -= logits.max(axis=2, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=2, keepdims=True))
    return np.array(
        [
            sum(logits[row, len(prompt) - 1 + i, token] for i, token in enumerate(response))
            for row, (prompt, response) in enumerate(sequences)
        ]
    )


def exact_loss(start: Decoder, other: Decoder, config: TrainConfig) -> float:
    """Return the mean over rows of eq. 4.8, written out in NumPy."""
    pairs = load_training_data(config.data, resolve_model(config.model)).train
    chosen, rejected = (
        [(list(pair.prompt), list(getattr(pair, name))) for pair in pairs]
        for name in ("chosen", "rejected")
    )
    policy, reference = (
        log_probs(each, chosen + rejected).reshape(2, -1) for each in (start, other)
    )
    margin = (policy[0] - reference[0]) - (policy[1] - reference[1])
    return float(np.mean(np.log1p(np.exp(-BETA * margin)) - ETA * BETA * policy[0]))


def test_closed_form_the_first_loss_is_that_of_both_models_row_by_row(
    folder: Path, whole: Path
) -> None:
    config = config_of(folder, folder / "other")
    lines = read_lines(whole)
    with computing_in("float64"):
        start, other = (
            build_model(resolve_model(ModelConfig(path=str(folder / name), **DOUBLE)))
            for name in ("start", "other")
        )
        exact = exact_loss(start, other, config)
        itself = exact_loss(start, start, config)
    assert lines[0]["loss"] == pytest.approx(exact, abs=EXACT)
    assert abs(exact - itself) > 0.01
    assert abs(lines[0]["rewards/margins"]) > 0.01


def test_roundtrip_a_resumed_run_is_bit_equal_and_knows_its_reference(
    folder: Path, tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    shutil.copytree(folder / "other", tmp_path / "moved")
    again = train_to_end(config_of(folder, tmp_path / "moved"), tmp_path / "run", resume=True)
    assert again[-1]["parameters_sha256"] == read_lines(whole)[-1]["parameters_sha256"]
    (tmp_path / "run" / "reference.safetensors").unlink()
    message = r"another model \(the weights of `model.reference` changed\)"
    for other in (folder / "start", None):
        with pytest.raises(ValueError, match=message):
            make_trainer(config_of(folder, other), tmp_path / "run", resume=True)
        (tmp_path / "run" / "reference.safetensors").unlink(missing_ok=True)


@pytest.mark.slow
def test_parity_the_reference_may_be_a_folder_a_run_a_checkpoint_or_an_adapter(
    folder: Path, tmp_path: Path
) -> None:
    """All of them are the same policy."""
    train_to_end(config_of(folder, None, lora_r=2), tmp_path / "run")
    (tmp_path / "run" / "config.yaml").touch()  # as the command writes it
    with computing_in("float64"):
        decoder = load_policy(tmp_path / "run", 2).decoder
        export_model(decoder, tmp_path / "policy")
        export_adapter(decoder, tmp_path / "adapter", base=str(folder / "start"))
        export_adapter(decoder, tmp_path / "unnamed")
    caches = []
    for source in ("policy", "run/checkpoints/2", "adapter", "unnamed"):
        out = tmp_path / f"out-{source.replace('/', '-')}"
        make_trainer(config_of(folder, tmp_path / source), out)
        caches.append(load_file(out / "reference.safetensors")["log_probs"])
        np.testing.assert_allclose(caches[-1], caches[0], rtol=0, atol=EXACT)
    last = make_trainer(config_of(folder, tmp_path / "run"), tmp_path / "last").cache
    assert last is not None
    assert np.abs(last.log_probs - caches[0]).max() > 1e-6


def write_tokenizer(folder: Path, *tokens: str) -> None:
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(tokens)}, unk_token="u")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")


def test_raises_for_a_reference_that_does_not_fit(folder: Path, tmp_path: Path) -> None:
    def refusal(reference: Path | str, **data: Any) -> str:
        config = config_of(folder, reference)
        with pytest.raises(ValueError) as caught:
            resolve_reference(config, resolve_model(config.model))
        assert str(caught.value).startswith(f"`model.reference` {reference}: ")
        return str(caught.value)

    for name, sizes in (
        ("larger", {"vocab_size": 300}),
        ("short", {"max_position_embeddings": 8}),
    ):
        with computing_in("float32"):
            model = resolve_model(ModelConfig(architecture=TINY | sizes))
            export_model(build_model(model), tmp_path / name)
    assert "must have the vocabulary of the policy, 261 tokens, got 300" in refusal(
        tmp_path / "larger"
    )
    assert "`data.max_length` must be at most 8" in refusal(tmp_path / "short")
    assert "gone does not exist: give a model folder" in refusal(tmp_path / "gone")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    assert "the run has saved no checkpoint" in refusal(tmp_path / "run")


def test_raises_for_a_reference_whose_tokens_have_other_ids(folder: Path, tmp_path: Path) -> None:
    for name, tokens in (("start", "uab"), ("other", "uba"), ("same", "uab")):
        shutil.copytree(folder / "other", tmp_path / name)
        write_tokenizer(tmp_path / name, *tokens)
    config = config_of(folder, tmp_path / "other", path=str(tmp_path / "start"))
    data = DataConfig(train="rows.jsonl", max_length=24)
    config = TrainConfig(name="tiny", model=config.model, data=data)
    policy = resolve_model(config.model)
    with pytest.raises(ValueError, match=r"token 'a' has id 1 there and 2 in .*other$"):
        resolve_reference(config, policy)
    same = config_of(folder, tmp_path / "same", path=str(tmp_path / "start")).model
    assert resolve_reference(TrainConfig(name="tiny", model=same, data=data), policy) is not None


def test_raises_for_given_log_probabilities_of_another_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    names = ("prompt", "chosen", "rejected", "ref_chosen_logps", "ref_rejected_logps")
    row = dict(zip(names, (*ROWS[0], -3.0, -4.0), strict=True))
    (tmp_path / "copy" / "rows.jsonl").write_text(4 * (json.dumps(row) + "\n"))
    config = config_of(tmp_path / "copy", folder / "other")
    with pytest.raises(ValueError, match=r"response under the reference .*other, -[\d.]+ nats"):
        make_trainer(config, tmp_path / "run")


@pytest.mark.parametrize("dropout", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
def test_property_an_adapter_may_start_with_its_base_as_reference(
    dropout: float, folder: Path, tmp_path: Path
) -> None:
    """The check of the first loss is without dropout, which changes the loss of a used adapter."""
    with computing_in("float64"):
        config = ModelConfig(path=str(folder / "start"), lora_r=2, lora_dropout=dropout, **DOUBLE)
        decoder = build_model(resolve_model(config))
        adapter = decoder.layers.v_proj.adapter
        assert adapter is not None
        adapter.b[...] = jnp.ones_like(adapter.b[...])
        export_adapter(decoder, tmp_path / "adapter", base=str(folder / "start"))
    config = config_of(folder, folder / "start", path=None, adapter=str(tmp_path / "adapter"))
    first = train_to_end(config, tmp_path / "run")
    with computing_in("float64"):
        start = build_model(resolve_model(config.model))
        plain = build_model(resolve_model(ModelConfig(path=str(folder / "start"), **DOUBLE)))
        exact = exact_loss(start, plain, config)
    assert (abs(first[0]["loss"] - exact) < EXACT) is (dropout == 0)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    again = train_to_end(config, tmp_path / "run", resume=True)
    assert again[-1]["parameters_sha256"] == first[-1]["parameters_sha256"]
