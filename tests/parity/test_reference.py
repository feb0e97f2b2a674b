"""Five steps with a reference that is not the start, against a decoder and a loop in PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.hf.factory import build_model, resolve_model
from llm.hf.io import export_model
from llm.precision import computing_in
from llm.train.dataset import load_training_data
from llm.train.tracking import make_tracker
from llm.train.trainer import Trainer

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pytestmark = pytest.mark.parity

EXACT = 1e-8
WIDTH, HEADS, KEYS, SIZE, LAYERS = 16, 4, 2, 4, 2
SIZES: dict[str, Any] = {
    "vocab_size": 261,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
}
DOUBLE: dict[str, Any] = {"dtype": "float64", "param_dtype": "float64"}
BETA, ETA, RATE, DECAY, CLIP = 0.4, 0.3, 3e-3, 0.1, 0.7
TEXTS = ("yes", "no", "maybe so", "a", "longer answer", "x")


def log_prob(weights: dict[str, Any], prompt: list[int], response: list[int]) -> Any:
    """Return the log-probability of a response under a Llama decoder in float64."""
    ids = torch.tensor(prompt + response)
    n = len(ids)
    angles = torch.arange(n).double()[:, None] * 10000.0 ** (-torch.arange(0, SIZE, 2) / SIZE)
    cosine, sine = (torch.cat([f(angles)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))

    def norm(x: Any, name: str) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * weights[f"{name}.weight"]

    def turned(x: Any) -> Any:
        first, second = x.chunk(2, -1)
        return x * cosine + torch.cat([-second, first], -1) * sine

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T

    x = weights["model.embed_tokens.weight"][ids]
    mask = torch.full((n, n), -torch.inf, dtype=torch.float64).triu(1)
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        h = norm(x, f"{name}.input_layernorm")
        q, k, v = (linear(h, f"{name}.self_attn.{c}_proj").reshape(n, -1, SIZE) for c in "qkv")
        k, v = (each.repeat_interleave(HEADS // KEYS, 1) for each in (turned(k), v))
        scores = torch.einsum("ihd,jhd->hij", turned(q), k) / SIZE**0.5 + mask
        mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(n, -1)
        x = x + linear(mixed, f"{name}.self_attn.o_proj")
        h = norm(x, f"{name}.post_attention_layernorm")
        gate = torch.nn.functional.silu(linear(h, f"{name}.mlp.gate_proj"))
        x = x + linear(gate * linear(h, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")
    logits = linear(norm(x, "model.norm"), "lm_head")[len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum()


def rpo_loss(policy: dict[str, Any], reference: dict[str, Any], pairs: list[Any]) -> Any:
    """Return eq. 4.8 over a batch."""
    losses = []
    for pair in pairs:
        responses = [list(pair.chosen), list(pair.rejected)]
        ours, theirs = (
            [log_prob(weights, list(pair.prompt), y) for y in responses]
            for weights in (policy, reference)
        )
        margin = (ours[0] - theirs[0]) - (ours[1] - theirs[1])
        losses.append(torch.nn.functional.softplus(-BETA * margin) - ETA * BETA * ours[0])
    return torch.stack(losses).mean()


def torch_run(start: Path, other: Path, batches: list[list[Any]]) -> tuple[list[float], Any]:
    policy, reference = (
        {k: torch.tensor(v) for k, v in load_file(path / "model.safetensors").items()}
        for path in (start, other)
    )
    for weight in policy.values():
        weight.requires_grad_()
    decays = [weight for weight in policy.values() if weight.ndim > 1]
    norms = [weight for weight in policy.values() if weight.ndim == 1]
    groups = [{"params": decays, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), eps=1e-8)
    losses = []
    for pairs in batches:
        optimizer.zero_grad()
        loss = rpo_loss(policy, reference, pairs)
        loss.backward()
        norm_of_all = torch.sqrt(sum(weight.grad.square().sum() for weight in policy.values()))
        for weight in policy.values():
            weight.grad *= min(1.0, CLIP / float(norm_of_all.detach()))
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, {name: weight.detach().numpy() for name, weight in policy.items()}


def test_parity_five_steps_with_another_reference(tmp_path: Path) -> None:
    with computing_in("float64"):
        for name, seed in (("start", 1), ("other", 2)):
            model = resolve_model(ModelConfig(architecture=SIZES, seed=seed, **DOUBLE))
            export_model(build_model(model), tmp_path / name)
    rows = [
        {"prompt": f"q{i}", "chosen": TEXTS[i % 6], "rejected": TEXTS[(i + 1 + i // 6) % 6]}
        for i in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(
        name="tiny",
        model=ModelConfig(
            path=str(tmp_path / "start"), reference=str(tmp_path / "other"), **DOUBLE
        ),
        data=DataConfig(train=str(tmp_path / "rows.jsonl"), tokenizer="bytes", max_length=32),
        objective=ObjectiveConfig(method="rpo", beta=BETA, eta=ETA),
        optimizer=OptimizerConfig(
            learning_rate=RATE,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            adam_beta2=0.99,
        ),
        trainer=TrainerConfig(max_steps=5, per_device_train_batch_size=4),
    )
    resolved = resolve_model(config.model)
    data = load_training_data(config.data, resolved)
    out = tmp_path / "run"
    out.mkdir()
    tracker = make_tracker(out / "metrics.jsonl", config)
    trainer = Trainer(config, resolved, data, out, tracker=tracker)
    sampler = trainer.run.sampler
    batches = [[data.train[int(i)] for i in sampler.pair_indices(step)] for step in range(5)]
    trainer.train()
    losses, expected = torch_run(tmp_path / "start", tmp_path / "other", batches)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [line["loss"] for line in lines if "loss" in line]
    np.testing.assert_allclose(measured, losses, rtol=0, atol=EXACT)
    assert max(measured) - min(measured) > 0.01
    with computing_in("float64"):
        export_model(trainer.run.model(), tmp_path / "final")
    ours = load_file(tmp_path / "final" / "model.safetensors")
    assert set(ours) == set(expected)
    worst = max(np.abs(ours[name] - expected[name]).max() for name in ours)
    assert worst < EXACT
    print(f"losses {np.abs(np.subtract(measured, losses)).max():.1e}, parameters {worst:.1e}")
