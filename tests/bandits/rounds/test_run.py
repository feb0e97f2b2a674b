"""The study in rounds of the project: its file, and the growth of its cumulative regret."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from bandits.environments.designs import Design
from bandits.rounds import QuickRounds, RoundsConfig, RoundsMethod, run_rounds

PATH = Path(__file__).resolve().parents[3] / "configs" / "study_rounds.yaml"


def project_study() -> RoundsConfig:
    values = yaml.safe_load(PATH.read_text(encoding="utf-8"))
    methods = [RoundsMethod(**method) for method in values.pop("methods")]
    design, quick = Design(**values.pop("design")), QuickRounds(**values.pop("quick"))
    return RoundsConfig(**values, methods=methods, design=design, quick=quick)


def test_roundtrip_the_file_of_the_study_is_read_in_both_sizes() -> None:
    study = project_study()
    quick = study.quick_version()
    assert (study.rounds, study.seeds) > (quick.rounds, quick.seeds)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_theorem_optimism_has_sublinear_and_greed_linear_cumulative_regret() -> None:
    # Seeds that the published study does not use.
    result = run_rounds(replace(project_study(), first_seed=100_000))
    for growth in result.growth:
        print(growth)
    optimistic, *others = result.growth
    assert optimistic.label == "optimistic RPO"
    assert optimistic.high < 1.0
    for greedy in others:
        assert greedy.low <= 1.0 <= greedy.high or abs(greedy.slope - 1.0) <= 0.05
        assert greedy.final > 3.0 * optimistic.final
