"""Replies of the policy at evaluations: their rewards, their file, and runs that are resumed."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

from llm.config import (
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SamplesConfig,
    TrainConfig,
    TrainerConfig,
)
from llm.data.preferences import Message
from llm.evaluation.win_rates import win_rate_from_counts
from llm.hf.factory import resolve_model
from llm.inference import generate
from llm.inference.generate import GenerationConfig, generate_tokens
from llm.text.tokenizer import ByteTokenizer
from llm.train.dataset import load_training_data
from llm.train.policy_samples import PolicySamples, RewardError, check_samples, load_reward
from llm.train.tracking import read_log
from tests.llm.train.tiny_runs import TINY, make_trainer

ARCHITECTURE = {**TINY, "max_position_embeddings": 64}
CALLS: list[tuple[Any, str]] = []
SAMPLES = SamplesConfig(prompts=3, reward="rewards_of_test:length", max_new_tokens=4)


def length(prompt: Sequence[Message], reply: str) -> float:
    """Return the length of a reply, modulo 3, so that there are ties."""
    CALLS.append((prompt, reply))
    return float(len(reply.encode()) % 3)


def failing(prompt: Sequence[Message], reply: str) -> float:
    raise RuntimeError("no license")


@pytest.fixture(autouse=True)
def _module_of_rewards() -> Iterator[None]:
    module: Any = ModuleType("rewards_of_test")
    module.length, module.failing, module.number = length, failing, 3
    sys.modules["rewards_of_test"] = module
    yield
    del sys.modules["rewards_of_test"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, first in (("train", 0), ("new", 10), ("old", 20)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for row in range(first, first + 5):
                fields = {"prompt": f"q{row}", "chosen": "y" * (row % 4 + 1), "rejected": "n"}
                file.write(json.dumps(fields | {"rejected": f"n{row}"}) + "\n")
    return folder


def config(folder: Path, *, samples: SamplesConfig = SAMPLES, **changed: Any) -> TrainConfig:
    data: dict[str, Any] = {"eval": changed.pop("eval", str(folder / "new.jsonl"))}
    steps = {"max_steps": 4, "per_device_train_batch_size": 2, "eval_steps": 2, "save_steps": 2}
    return TrainConfig(
        name="tiny",
        model=ModelConfig(architecture=ARCHITECTURE, **changed.pop("model", {})),
        data=DataConfig(train=str(folder / "train.jsonl"), max_length=16, **data),
        objective=ObjectiveConfig(beta=0.5, eta=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        trainer=TrainerConfig(samples=samples, **{**steps, **changed}),
    )


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(out / "metrics.jsonl") if "eval_loss" in line]


class Killed(Exception):  # noqa: N818
    """Stands for the death of the process."""


def killed(after: int) -> Any:
    def progress(steps: Any, remaining: int) -> Any:
        for number, step in enumerate(steps):
            yield step
            if number + 1 == after:
                raise Killed

    return progress


def test_closed_form_rewards_and_win_rates_are_those_of_the_written_replies(
    folder: Path, tmp_path: Path
) -> None:
    CALLS.clear()
    one = config(folder, eval_on_start=True, max_steps=2, eval_steps=1, model={"lora_r": 2})
    trainer = make_trainer(one, tmp_path / "run")
    chosen = CALLS[1:]  # the first call is the check
    assert chosen == [((Message("user", f"q{row}"),), "y" * (row % 4 + 1)) for row in (10, 11, 12)]
    trainer.train()
    samples = read_log(tmp_path / "run" / "samples.jsonl")
    assert [line["step"] for line in samples] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    measured = evaluations(tmp_path / "run")
    assert [line["step"] for line in measured] == [0, 1, 2]
    for line in measured:
        mine = [each for each in samples if each["step"] == line["step"]]
        assert [each["prompt"][0]["content"] for each in mine] == ["q10", "q11", "q12"]
        assert [each["where"] for each in mine] == [
            f"{folder / 'new.jsonl'}:{number}" for number in (1, 2, 3)
        ]
        rewards = np.array([length((), each["reply"]) for each in mine])
        others = np.array([(row % 4 + 1) % 3 for row in (10, 11, 12)], float)
        assert [each["reward"] for each in mine] == rewards.tolist()
        assert [each["chosen_reward"] for each in mine] == others.tolist()
        assert line["eval_reward/policy"] == rewards.mean()
        assert line["eval_reward/chosen"] == others.mean()
        wins, losses = int((rewards > others).sum()), int((rewards < others).sum())
        rate = win_rate_from_counts(wins, 3 - wins - losses, losses)
        assert line["eval_win_rate"] == rate.win_rate
        ends = [line[f"eval_win_rate_{end}"] for end in ("lower", "upper")]
        assert ends == [rate.lower, rate.upper]
        assert line["eval_samples/tokens"] == np.mean([each["tokens"] for each in mine])
        assert line["eval_samples/finished"] == np.mean([each["finished"] for each in mine])
    # The last replies are those of the final policy, to the tokens of the data.
    prompts = [pair.prompt for pair in trainer.run.data.evaluation[:3]]
    decoding = GenerationConfig(max_new_tokens=4, temperature=1.0)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        expected = generate_tokens(
            trainer.run.model(), prompts, decoding, end_ids=ByteTokenizer().end_ids, batch_size=2
        )
    assert [each["reply"] for each in samples[-3:]] == [
        ByteTokenizer().decode(reply.tokens) for reply in expected
    ]


@pytest.mark.slow
def test_compiles_once_for_all_evaluations_and_a_resumed_run_writes_no_reply_twice(
    folder: Path, tmp_path: Path
) -> None:
    sets = {"new": str(folder / "new.jsonl"), "old": str(folder / "old.jsonl")}
    one = config(folder, eval=sets, metric_for_best_model="eval_old_win_rate")
    compiled: Any = generate._generate_batch
    programs = compiled._cache_size() + 1
    make_trainer(one, tmp_path / "whole").train()
    assert compiled._cache_size() == programs
    with pytest.raises(Killed):  # after the evaluation of step 4, before its checkpoint is whole
        make_trainer(one, tmp_path / "cut").train(killed(3))
    lines = (tmp_path / "cut" / "samples.jsonl").read_text().splitlines()
    later = [json.dumps(json.loads(line) | {"step": 4}) for line in lines[:2]]
    (tmp_path / "cut" / "samples.jsonl").write_text("\n".join([*lines, *later, '{"step"']))
    make_trainer(one, tmp_path / "cut", resume=True).train()
    assert compiled._cache_size() == programs
    written = (tmp_path / "cut" / "samples.jsonl").read_text()
    assert written == (tmp_path / "whole" / "samples.jsonl").read_text()
    found = [(line["step"], line["set"]) for line in read_log(tmp_path / "cut" / "samples.jsonl")]
    assert found == [(step, name) for step in (2, 4) for name in sets for _ in range(3)]


def test_property_a_stopped_evaluation_is_repeated_and_an_extra_one_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(config(folder, max_steps=2), tmp_path / "run")
    metrics = trainer.evaluate()
    assert metrics is not None
    assert not (tmp_path / "run" / "samples.jsonl").exists()
    samples: Any = trainer.samples
    assert isinstance(samples, PolicySamples)
    measure = samples.measure

    def stopped(*arguments: Any) -> Any:
        trainer.request_stop()
        return measure(*arguments)

    monkeypatch.setattr(samples, "measure", stopped)
    assert trainer.evaluate() is None


@pytest.mark.slow
def test_roundtrip_a_run_whose_reward_fails_is_saved_and_continues(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(folder, save_steps=0)
    trainer = make_trainer(one, tmp_path / "run")
    samples: Any = trainer.samples
    monkeypatch.setattr(samples, "_reward", failing)
    message = r"^`trainer.samples.reward`: .*new.jsonl:1: reward function `failing` failed for "
    with pytest.raises(RewardError, match=f"{message}.*; stopped after step 2: continue with --"):
        trainer.train()
    make_trainer(one, tmp_path / "run", resume=True).train()
    found = [line["step"] for line in read_log(tmp_path / "run" / "samples.jsonl")]
    assert found == [2, 2, 2, 4, 4, 4]
    assert [line["step"] for line in evaluations(tmp_path / "run")] == [2, 4]


def test_raises_before_training_for_samples_that_cannot_be_made(folder: Path) -> None:
    def check(**fields: Any) -> None:
        one = config(folder, samples=dataclasses.replace(SAMPLES, **fields))
        reward, model = load_reward(one), resolve_model(one.model)
        data = load_training_data(one.data, model, n_samples=3)
        check_samples(one, data, model.architecture, reward)

    check()
    for fields, message in (
        ({"reward": "rewards_of_test:none"}, r"^`trainer.samples.reward` the module rewards_of_"),
        ({"reward": "no_such_module:f"}, r"^`trainer.samples.reward` cannot import no_such_mod"),
        ({"reward": "rewards_of_test:number"}, r"^`trainer.samples.reward` must be a function"),
        ({"reward": "rewards_of_test:failing"}, r"new.jsonl:1: reward function `failing` failed"),
        ({"max_new_tokens": 60}, r"^`trainer.samples.max_new_tokens` must be at most 5\d, what"),
    ):
        with pytest.raises(ValueError, match=message):
            check(**fields)
    one = config(folder, eval=None)
    model = resolve_model(one.model)
    data = load_training_data(one.data, model, n_samples=3)
    with pytest.raises(ValueError, match=r"^`trainer.samples.prompts` needs rows for evaluation"):
        check_samples(one, data, model.architecture, None)
