"""Claims about ``rpo plan``: its table, its JSON document, and its exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rpo.cli import main

ROOT = Path(__file__).resolve().parents[3]
CONFIG = str(ROOT / "configs" / "rpo_mistral_7b.yaml")
SHAPE = ["--model.path", str(ROOT / "configs" / "shapes" / "mistral_7b")]


def test_closed_form_json_has_the_fields_of_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, *SHAPE, "--topology", "h200:8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["topology"], plan["devices"], plan["fits"]) == ("h200:8", 8, True)
    assert plan["compiled"] is False
    assert plan["tokens_per_step"] == 128 * 1536


def test_property_a_step_that_does_not_fit_is_reported_with_exit_code_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", CONFIG, *SHAPE, "--topology", "l40s:1"]) == 1
    first, devices, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"l40s:1: does not fit: [\d,.]+ GiB of 44 GiB per device, [\d,.]+ GiB too much", first
    )
    assert devices.endswith("l40s:1, 1 device (estimated, not compiled)")


@pytest.mark.parametrize(
    ("key", "fits"),
    [
        ("trainer.per_device_train_batch_size", False),
        ("trainer.gradient_accumulation_steps", False),
        ("trainer.max_steps", True),
    ],
)
def test_extreme_the_largest_counts_are_planned_without_an_array(
    key: str, fits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", CONFIG, *SHAPE, "--topology", "h200:8", f"--{key}", "2147483647"]
    argv += ["--trainer.global_batch_size", "null"]
    assert main(argv) == (0 if fits else 1)
    shown = capsys.readouterr().out
    assert shown.startswith("h200:8: fits: " if fits else "h200:8: does not fit: ")
    assert " 0.0" not in shown


def test_raises_rows_longer_than_the_model_has_positions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    too_long = ["--data.max_length", "2147483647"]
    assert main(["plan", CONFIG, *SHAPE, "--topology", "h200:8", *too_long]) == 2
    assert "`data.max_length` must be at most 32768, the number" in capsys.readouterr().err


def test_raises_one_line_for_an_unknown_topology(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, *SHAPE, "--topology", "v9:2x2"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("rpo: error: argument --topology: must be one of v4")
    assert shown.count("\n") == 1


def test_closed_form_the_command_trains_as_planned(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", CONFIG, *SHAPE, "--topology", "h200:16", "--data.max_length=4096", "--json"]
    assert main([*argv, "--largest", "max_length"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["hosts"], plan["pairs_per_step"]) == (2, 128)
    shape = " ".join(SHAPE)
    assert plan["command"] == (
        f"rpo train {CONFIG} {shape} --data.max_length {plan['max_length']} "
        "--out gs://BUCKET/rpo_mistral_7b"
    )
    assert main([*argv[:-2], "--trainer.per_device_train_batch_size", "3", "--largest"]) == 0
    shown = capsys.readouterr().out
    (pairs,) = re.findall(r"pairs per device +(\d+)", shown)
    assert shown.count("per_device_train_batch_size") == 1
    assert f"--trainer.per_device_train_batch_size {pairs} --out" in shown
