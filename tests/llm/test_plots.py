"""Figures of training runs show the logged values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from llm.plots import plot_minimax_agreement, plot_runs, read_metrics

NAMES = ("chosen", "rejected", "margins", "accuracies")


def metrics(start: float) -> list[dict[str, Any]]:
    """Return five steps whose metrics grow with the step, and one evaluation."""
    steps: list[dict[str, Any]] = []
    for step in range(1, 6):
        values = {f"rewards/{name}": start + step for name in NAMES}
        steps.append({"step": step, **values, "theory/adversarial_value": start - step})
    held_out = {f"eval_{name}": value for name, value in steps[2].items() if name != "step"}
    return [*steps, {"step": 5, **held_out}]


def test_closed_form_lines_are_moving_means_and_dots_are_evaluations() -> None:
    axes = Figure().subplots(1, 4)
    plot_runs({"rpo": metrics(0.0), "dpo": metrics(10.0)}, axes, beta=0.5, span=3)
    # A line and dots for each of two roles and two runs; rewards are divided by beta.
    assert [len(ax.lines) for ax in axes] == [9, 4, 4, 4]
    line, dots = axes[0].lines[:2]
    np.testing.assert_allclose(line.get_xydata(), [[3, 4.0], [4, 6.0], [5, 8.0]])
    np.testing.assert_allclose(dots.get_xydata(), [[5, 6.0]])
    np.testing.assert_allclose(axes[3].lines[2].get_ydata(), [8.0, 7.0, 6.0])
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["rpo", "dpo"]


def test_limit_short_runs_without_evaluation_are_drawn() -> None:
    axes = Figure().subplots(1, 4)
    plot_runs({"short": metrics(0.0)[:2]}, axes, beta=1.0)
    assert axes[1].lines[0].get_ydata() == pytest.approx([1.5])
    assert len(axes[1].lines[1].get_xydata()) == 0


def test_roundtrip_reading_metrics_skips_events(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [*metrics(0.0), {"event": "finished", "step": 5}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_metrics(path) == metrics(0.0)


def test_closed_form_minimax_agreement_has_a_line_per_seed_and_a_name_per_size() -> None:
    curves = {
        "large": [([0, 9], [0.4, 1e-6]), ([0, 9], [0.3, 1e-5])],
        "small": [([0, 9], [0.5, 0.2])],
    }
    ax = Figure().subplots()
    assert plot_minimax_agreement(curves, ax) is ax
    drawn = [np.asarray(line.get_xydata()).tolist() for line in ax.lines]
    assert drawn == [[[0, 0.4], [9, 1e-6]], [[0, 0.3], [9, 1e-5]], [[0, 0.5], [9, 0.2]]]
    colors = [line.get_color() for line in ax.lines]
    assert colors[0] == colors[1] != colors[2]
    assert [text.get_text() for text in ax.texts] == ["large", "small"]
    large, small = (text.get_position()[1] for text in ax.texts)
    assert large < 0.3 < 0.8 < small  # shares of the height: beside 1e-5 and 0.2
    assert ax.get_yscale() == "log"
