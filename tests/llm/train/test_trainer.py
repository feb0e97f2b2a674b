"""The trainer: it checks the first loss, stops at non-finite values, and resumes bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
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
from llm.hashing import parameters_sha256
from llm.train import reference_cache
from llm.train.diagnostics import NonFiniteError
from llm.train.first_step import check_first_loss
from llm.train.reference_check import check_given_reference
from llm.train.run import Run
from llm.train.run_notes import describe_run
from llm.train.schedules import learning_rate_schedule
from llm.train.stopping import SaveTimer
from llm.train.trainer import InterruptedRunError, Trainer
from tests.llm.train.tiny_runs import TINY, make_trainer, read_lines

ROWS = 18


def digest_of(run: Run) -> str:
    return parameters_sha256(run.state.trainable, run.frozen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    replies = ["yes", "no", "maybe", "never", "now"]
    with (folder / "rows.jsonl").open("w") as file:
        for row in range(ROWS):
            chosen, rejected = rng.choice(replies, 2, replace=False)
            fields = {"prompt": f"q{row % 4}", "chosen": str(chosen), "rejected": str(rejected)}
            file.write(json.dumps(fields) + "\n")
    return folder


def config(folder: Path, **changed: Any) -> TrainConfig:
    objective = changed.pop("objective", ObjectiveConfig(beta=0.5, eta=0.1))
    model = changed.pop("model", {"architecture": TINY})
    steps = {"max_steps": 9, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    return TrainConfig(
        name="tiny",
        model=ModelConfig(**model),
        data=DataConfig(train=str(folder / "rows.jsonl"), eval_rows=4, max_length=16),
        objective=objective,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        trainer=TrainerConfig(**{**steps, **changed}),
    )


def run(
    config: TrainConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Callable[..., Any] = lambda steps, remaining: steps,
) -> Run:
    return make_trainer(config, out, resume=resume).train(progress)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """An uninterrupted run with a checkpoint and an evaluation every three steps."""
    out = tmp_path_factory.mktemp("whole")
    # 14 pairs in steps of 4: an epoch ends within a step.
    return run(config(folder, save_steps=3, eval_steps=3), out), out


def logged(out: Path) -> list[dict[str, Any]]:
    """Return the lines without what differs between equal runs."""
    return [
        {name: value for name, value in row.items() if "per_second" not in name}
        for row in read_lines(out)
    ]


class Killed(Exception):  # noqa: N818
    """Stands for the death of the process."""


def killed(after: int) -> Callable[..., Any]:
    """Return a progress hook that ends the run after a number of steps."""

    def progress(steps: Any, remaining: int) -> Any:
        del remaining
        for number, step in enumerate(steps):
            yield step
            if number + 1 == after:
                raise Killed

    return progress


def test_closed_form_the_first_loss_is_that_of_a_policy_equal_to_its_reference(
    whole: tuple[Run, Path],
) -> None:
    first, *rest = read_lines(whole[1])
    assert first["loss"] == pytest.approx(np.log(2) + 0.05 * first["loss/sft"], rel=1e-5)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    steps = [row for row in rest if "loss" in row]
    assert [row["step"] for row in steps] == list(range(2, 10))
    assert steps[-1]["loss"] < first["loss"]
    assert [row["step"] for row in rest if "eval_loss" in row] == [3, 6, 9]
    last = rest[-1]
    assert last["event"] == "finished"
    assert len(last["parameters_sha256"]) == 64


def with_references(folder: Path, out: Path, values: dict[int, list[float]]) -> DataConfig:
    """Write the rows with log-probabilities of a reference beside the responses."""
    names = ("ref_chosen_logps", "ref_rejected_logps")
    lines = (folder / "rows.jsonl").read_text().splitlines()
    rows = [
        json.loads(line) | dict(zip(names, values.get(row, ()), strict=False))
        for row, line in enumerate(lines)
    ]
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(config(folder).data, train=str(out / "rows.jsonl"))


def test_roundtrip_reference_log_probabilities_of_the_data_are_used(
    folder: Path, tmp_path: Path, whole: tuple[Run, Path]
) -> None:
    cache = load_file(whole[1] / "reference.safetensors")
    values = dict(zip(cache["row_ids"].tolist(), cache["log_probs"].tolist(), strict=True))
    data = with_references(folder, tmp_path, values)
    given = run(dataclasses.replace(config(folder), data=data), tmp_path / "given")
    assert digest_of(given) == digest_of(whole[0])
    assert not (tmp_path / "given" / "reference.safetensors").exists()
    some = with_references(folder, tmp_path, {row: values[row] for row in range(5)})
    mixed = run(dataclasses.replace(config(folder), data=some), tmp_path / "mixed")
    assert digest_of(mixed) == digest_of(whole[0])


def test_raises_for_given_references_that_are_off_in_one_row_or_on_both_sides(
    folder: Path, tmp_path: Path, whole: tuple[Run, Path]
) -> None:
    check_given_reference(whole[0], tolerance=0.0)  # its rows have no values to compare
    cache = load_file(whole[1] / "reference.safetensors")
    values = dict(zip(cache["row_ids"].tolist(), cache["log_probs"].tolist(), strict=True))
    shifted = {row: [chosen - 7.0, rejected - 7.0] for row, (chosen, rejected) in values.items()}
    exchanged = values | {11: values[11][::-1]}
    held_out = values | {17: [values[17][0], -99.0]}  # a row for evaluation
    for wrong, message in (
        (
            shifted,
            r"rows\.jsonl:1: field `ref_chosen_logps` must be the log-probability of the cho",
        ),
        (exchanged, r"rows\.jsonl:12: field `ref_chosen_logps` must be .* nats, got -"),
        (held_out, r"rows\.jsonl:18: field `ref_rejected_logps` must be .* got -99\.0000 \(`train"),
    ):
        data = with_references(folder, tmp_path, wrong)
        with pytest.raises(ValueError, match=message) as caught:
            make_trainer(dataclasses.replace(config(folder), data=data), tmp_path / "wrong")
        assert "\n" not in str(caught.value)


def test_raises_a_reference_of_another_model_is_detected_at_the_first_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference_cache.attach_reference

    def wrong(batch: Any, cache: Any) -> Any:
        batch = right(batch, cache)
        return batch._replace(reference=batch.reference + np.array([3.0, 0.0], np.float32))

    monkeypatch.setattr(reference_cache, "attach_reference", wrong)
    with pytest.raises(ValueError, match="the first loss must be"):
        run(config(folder), tmp_path / "run")


@pytest.mark.parametrize(
    "killed_after",
    [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)],
)
def test_roundtrip_a_killed_run_ends_with_the_bits_of_an_uninterrupted_one(
    folder: Path, tmp_path: Path, whole: tuple[Run, Path], killed_after: int
) -> None:
    one = config(folder, save_steps=3, eval_steps=3)
    with pytest.raises(Killed):
        run(one, tmp_path / "cut", progress=killed(killed_after))
    again = run(one, tmp_path / "cut", resume=True)
    assert digest_of(again) == digest_of(whole[0])
    jax.tree.map(
        np.testing.assert_array_equal, again.state.optimizer_state, whole[0].state.optimizer_state
    )
    assert logged(tmp_path / "cut") == logged(whole[1])


def test_property_a_run_is_resumed_for_more_steps_and_with_other_parts_which_is_logged(
    folder: Path, tmp_path: Path, whole: tuple[Run, Path], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole[1], out)
    before, data = (out / "metrics.jsonl").read_bytes(), whole[0].data
    refused = {
        r"another configuration \(`objective.eta` was 0.1 and is 0.2\)": config(
            folder, objective=ObjectiveConfig(beta=0.5, eta=0.2)
        ),
        r"has made 9 steps already, but `trainer.max_steps` is 8: give at least": config(
            folder, max_steps=8
        ),
        r"made 9 steps already, but `trainer.num_train_epochs` 2.0 gives 8": config(
            folder, max_steps=None, num_train_epochs=2.0
        ),
        r"`trainer.gradient_accumulation_steps` x devices\) was 4 and is 6": config(
            folder, per_device_train_batch_size=3
        ),
    }
    for message, other in refused.items():
        with pytest.raises(ValueError, match=message):
            make_trainer(other, out, resume=True, data=data)
        assert (out / "metrics.jsonl").read_bytes() == before
    renamed = folder / "renamed.jsonl"
    renamed.write_bytes((folder / "rows.jsonl").read_bytes())
    more = config(
        folder, max_steps=11, per_device_train_batch_size=4, gradient_accumulation_steps=1
    )
    more = dataclasses.replace(
        more, name="other", data=dataclasses.replace(more.data, train=str(renamed))
    )
    with caplog.at_level("INFO", logger="llm"):
        caplog.clear()
        run(more, out, resume=True)
    where, steps, parts, sizes, *_ = caplog.messages
    assert where == "resumed from step 9 of 11"
    assert steps.startswith("resumed for 11 steps instead of 9: the learning rate schedule is rec")
    assert steps.endswith("the run is not bit-equal to one of 11 steps from the start")
    assert parts.startswith(
        "resumed with `trainer.gradient_accumulation_steps` 1 instead of 2, "
        "`trainer.per_device_train_batch_size` 4 instead of 2: the remaining steps are the same up "
    )
    assert ", 4 held out; 11 steps of 4 pairs;" in sizes
    rows = read_lines(out)
    assert [row["step"] for row in rows if "loss" in row] == [*range(1, 12)]
    rates = learning_rate_schedule(more.optimizer, 11)
    later = [row["learning_rate"] for row in rows if row["step"] > 9 and "loss" in row]
    assert later == [float(np.asarray(rates(step))) for step in (9, 10)]
    last_step = "the last step of an epoch has 2 pairs, the others have 4. Each of its pairs counts"
    assert f"{last_step} 2 times as much" in caplog.messages[-1]


def test_roundtrip_a_trainer_logs_its_size_and_evaluates_at_any_time(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(config(folder, max_steps=1, eval_steps=1), tmp_path / "run")
    before = trainer.evaluate()
    assert before is not None
    assert before["eval_loss/dpo"] == pytest.approx(np.log(2), rel=1e-5)
    with caplog.at_level("INFO", logger="llm"):
        caplog.clear()
        trainer.train()
    first, second, third = caplog.messages
    assert first.startswith("14 pairs, 4 held out; 1 step of 4 pairs; ")
    assert first.endswith(" trained parameters")
    assert second.startswith("SFT weight eta*beta = 0.05 per chosen token. Equivalent TRL")
    assert third.startswith("no parameter will change: the only step has the learning rate 0")
    measured = next(row for row in read_lines(tmp_path / "run") if "eval_loss" in row)
    assert trainer.evaluate() == {name: value for name, value in measured.items() if name != "step"}
    trainer.request_stop()
    assert trainer.evaluate() is None


def test_raises_a_non_finite_value_with_its_step_and_rows(folder: Path, tmp_path: Path) -> None:
    one = config(folder, save_steps=1)
    one = dataclasses.replace(
        one, optimizer=OptimizerConfig(learning_rate=1e30, max_grad_norm=1e30, warmup_ratio=0.0)
    )
    with pytest.raises(NonFiniteError, match=r"step 2: not finite in rows [\d, ]+; the last good"):
        run(one, tmp_path / "run")
    assert "event" not in read_lines(tmp_path / "run")[-1]


@pytest.mark.parametrize(
    ("file", "rows"),
    [("held_out", "4, 8"), pytest.param("rows", "14, 15", marks=pytest.mark.slow)],
)
def test_raises_with_the_rows_if_only_the_evaluation_overflows(
    folder: Path, tmp_path: Path, file: str, rows: str
) -> None:
    far = OptimizerConfig(learning_rate=1e30, max_grad_norm=1e30, warmup_ratio=0.0)
    one = dataclasses.replace(config(folder, max_steps=1, eval_steps=1), optimizer=far)
    if file == "held_out":
        # A copy of the training file would be refused; spaces make it another file.
        spaced = (folder / "rows.jsonl").read_text().replace("{", "{ ")
        (tmp_path / "held_out.jsonl").write_text(spaced)
        data = dataclasses.replace(one.data, eval=str(tmp_path / "held_out.jsonl"), eval_rows=0)
        one = dataclasses.replace(one, data=data)
    message = rf"step 1: not finite in rows {rows} of \S+/{file}\.jsonl; no checkpoint yet"
    with pytest.raises(NonFiniteError, match=message):
        run(one, tmp_path / "run")
    assert not any("eval_loss" in line for line in read_lines(tmp_path / "run"))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_raises_rather_than_saving_parameters_that_the_update_made_infinite(
    folder: Path, tmp_path: Path, dtype: str
) -> None:
    one = config(folder, model={"architecture": TINY, "dtype": dtype}, save_steps=1)
    too_far = OptimizerConfig(learning_rate=1e38, weight_decay=1e3, warmup_ratio=0.0)
    message = r"step 1: not finite in the updated parameters of the step on rows [\d, ]+; no check"
    with pytest.raises(NonFiniteError, match=message):
        run(dataclasses.replace(one, optimizer=too_far), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_raises_with_the_rows_of_the_step_if_only_the_gradient_overflows(
    folder: Path, tmp_path: Path
) -> None:
    steep = ObjectiveConfig(beta=1.0, eta=1e36)
    message = r"step 1: not finite in `grad_norm` of the step on rows [\d, ]+; no checkpoint yet"
    with pytest.raises(NonFiniteError, match=message):
        run(config(folder, objective=steep, save_steps=1), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("beta", "eta"), [(1e-8, 1e-8), (1e-8, 1e8), (1.0, 1e8), (1e8, 1e8)])
def test_extreme_eta_and_beta_train_with_finite_numbers(
    folder: Path, tmp_path: Path, dtype: str, beta: float, eta: float
) -> None:
    one = config(
        folder,
        model={"architecture": TINY, "dtype": dtype},
        objective=ObjectiveConfig(beta=beta, eta=eta),
        max_steps=3,
    )
    state = run(one, tmp_path / "run").state
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    logged = [line for line in read_lines(tmp_path / "run") if "loss" in line]
    assert len(logged) == 3
    assert all(np.isfinite([line["loss"], line["grad_norm"]]).all() for line in logged)


def test_roundtrip_a_run_that_is_killed_twice_and_then_asked_to_stop_is_resumed_each_time(
    folder: Path, tmp_path: Path, whole: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = config(folder)
    out = tmp_path / "cut"
    with pytest.raises(Killed):
        run(one, out, progress=killed(3))
    assert len(read_lines(out)) == 3
    assert not list((out / "checkpoints").glob("[0-9]*"))

    # From the beginning, because no checkpoint was due.
    answers = itertools.chain([False, False, True], itertools.repeat(False))
    with monkeypatch.context() as patch:
        patch.setattr(SaveTimer, "is_due", lambda timer: next(answers))
        with pytest.raises(Killed):
            run(one, out, resume=True, progress=killed(5))
    assert len(read_lines(out)) == 5
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["3"]

    def asks(steps: Any, remaining: int) -> Any:
        assert remaining == 6  # from the checkpoint of the clock
        for number, step in enumerate(steps):
            yield step
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedRunError, match="stopped after step 8: continue with --resume"):
        run(one, out, resume=True, progress=asks)
    again = run(one, out, resume=True)
    assert digest_of(again) == digest_of(whole[0])
    assert [row["step"] for row in read_lines(out)] == [*range(1, 10), 9]


@pytest.mark.parametrize(
    ("interruptions", "interval"), [(1, 1), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_roundtrip_an_interrupted_evaluation_is_repeated_on_resume(
    folder: Path,
    tmp_path: Path,
    whole: tuple[Run, Path],
    monkeypatch: pytest.MonkeyPatch,
    interruptions: int,
    interval: int,
) -> None:
    one = config(folder, save_steps=3, eval_steps=3, logging_steps=interval)
    uninterrupted = whole[1]
    if interval > 1:
        uninterrupted = tmp_path / "whole"
        run(one, uninterrupted)
    evaluate = Trainer.evaluate

    def asked(trainer: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(trainer)

    for resume in (False, True)[:interruptions]:
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "evaluate", asked)
            with pytest.raises(InterruptedRunError, match="stopped after step 3"):
                run(one, tmp_path / "cut", resume=resume)
        assert [row["step"] for row in read_lines(tmp_path / "cut")] == [
            *range(interval, 4, interval)
        ]
    run(one, tmp_path / "cut", resume=True)
    assert logged(tmp_path / "cut") == logged(uninterrupted)


@pytest.mark.slow  # test_equivalences.py compares the same gradients without a trainer
def test_property_accumulation_does_not_change_the_first_gradient(
    folder: Path, tmp_path: Path
) -> None:
    norms = []
    for parts in (1, 4):
        sizes = {
            "per_device_train_batch_size": 4 // parts,
            "gradient_accumulation_steps": parts,
            "max_steps": 1,
        }
        model = {"architecture": TINY, "dtype": "float64", "param_dtype": "float64"}
        run(config(folder, model=model, **sizes), tmp_path / str(parts))
        norms.append(read_lines(tmp_path / str(parts))[0]["grad_norm"])
    np.testing.assert_allclose(norms, norms[0], rtol=1e-10)


def test_property_sft_and_adapters_lower_the_loss(folder: Path, tmp_path: Path) -> None:
    one = config(
        folder,
        objective=ObjectiveConfig(method="sft"),
        model={"architecture": TINY, "lora_r": 2},
    )
    finished = run(one, tmp_path / "run")
    assert not (tmp_path / "run" / "reference.safetensors").exists()
    losses = [row["loss"] for row in read_lines(tmp_path / "run") if "loss" in row]
    assert losses[-1] < losses[0]
    assert sum(leaf.size for leaf in jax.tree.leaves(finished.state.trainable)) < 2000


@pytest.mark.parametrize("method", ["rpo", "dpo", "sft", "ipo"])
def test_closed_form_the_first_loss_may_differ_by_its_tolerance_and_no_more(
    method: Any, folder: Path
) -> None:
    objective = ObjectiveConfig(method=method, beta=0.5, eta=0.1, tau=0.2)
    one = config(folder, objective=objective, step0_tolerance=1e-3)
    exact = {
        "rpo": np.log(2) + 0.05 * 3.0,
        "dpo": np.log(2),
        "sft": 3.0,
        "ipo": 1 / (4 * 0.2**2),
    }[method]
    allowed = 1e-3 * max(1.0, exact)
    for off in (-0.9, 0.0, 0.9):
        check_first_loss(one, {"loss": exact + off * allowed, "loss/sft": 3.0})
    for off in (-1.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=f"the first loss must be {exact:.6f}, that of"):
            check_first_loss(one, {"loss": exact + off * allowed, "loss/sft": 3.0})


def test_golden_a_run_is_described_by_its_sizes_and_the_equivalent_trl_configuration(
    folder: Path, tmp_path: Path
) -> None:
    run = make_trainer(config(folder), tmp_path / "run").run
    sizes, objective = describe_run(run)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(run.state.trainable))
    pairs = f"{len(run.data.train):,} pairs, 4 held out; 9 steps of 4 pairs"
    assert sizes == f"{pairs}; {parameters:,} trained parameters"
    mean_tokens = float(np.mean(run.data.train.lengths[:, 1]))
    assert objective.startswith("SFT weight eta*beta = 0.05 per chosen token. Equivalent TRL")
    assert objective.endswith(f"loss_weights=[1, {0.05 * mean_tokens:.3g}]")
