"""What a study of a kind of its own would run: its cells, fits and files, and its duration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from rpo.results import StudyKindEstimate
from rpo.runtime.output import count_noun

if TYPE_CHECKING:
    from bandits.minimax_regret.config import MinimaxRegretConfig
    from bandits.overoptimization.config import LawsConfig
    from bandits.rounds.config import RoundsConfig

TRIAL_SEEDS = 50
"""Seeds of the trial run of a study of laws, for one number of comparisons."""
TRIAL_ROUNDS = 3
"""Rounds of the trial run of a study in rounds, with all seeds."""
_COMMON_FILES = ("summary.json", "config.yaml", "captions.json")


def estimate_study_kind(config: Any) -> StudyKindEstimate:
    """Describe a study of a kind of its own, and estimate its duration from a small part of it.

    Args:
        config: configuration of a kind in :data:`rpo.jobs.study_kinds.KINDS`.

    Returns:
        The description; the duration is NaN for a study of minimax regret.
    """
    describe: dict[str, Callable[[Any], StudyKindEstimate]] = {
        "minimax_regret": _describe_minimax_regret,
        "laws": _describe_laws,
        "rounds": _describe_rounds,
    }
    return describe[config.kind](config)


def _describe_minimax_regret(config: MinimaxRegretConfig) -> StudyKindEstimate:
    from bandits.minimax_regret.config import worlds_of
    from bandits.minimax_regret.plots import MinimaxFigureKind
    from bandits.minimax_regret.worlds import count_outcomes

    all_worlds = [worlds_of(config, comparisons) for comparisons in config.comparisons]
    outcomes = [
        count_outcomes(worlds.pair_distribution, worlds.comparisons) for worlds in all_worlds
    ]
    figures = get_args(MinimaxFigureKind)[: 2 if len(config.comparisons) > 1 else 1]
    return StudyKindEstimate(
        config=config,
        cells=(
            count_noun(len(config.methods), "method")
            + f": {', '.join(method.display_label for method in config.methods)}",
            f"{count_noun(len(all_worlds[0].rewards), 'world')} of {config.actions} actions",
            f"comparisons {_listed(config.comparisons)}, with {_listed(outcomes)} outcomes",
        ),
        fits=sum(outcomes) * len(config.methods),
        files=("records.parquet", "optima.parquet", *_COMMON_FILES, *figures),
        seconds=math.nan,
    )


def _describe_laws(config: LawsConfig) -> StudyKindEstimate:
    from bandits.overoptimization.fitting import BEST_OF_N
    from bandits.overoptimization.run import run_laws

    points = {method: 1 if method == BEST_OF_N else config.beta.count for method in config.methods}
    n_cells = len(config.reward_classes) * len(config.comparisons)
    n_curves = sum(len(config.etas_of(method)) for method in config.methods)
    fits = sum(len(config.etas_of(method)) * n_points for method, n_points in points.items())
    trial = replace(
        config,
        seeds=min(config.seeds, TRIAL_SEEDS),
        comparisons=config.comparisons[:1],
        reward_classes=config.reward_classes[:1],
    )
    figures = [f"laws_{name}_{n}" for name in config.reward_classes for n in config.comparisons]
    return StudyKindEstimate(
        config=config,
        cells=(
            f"{count_noun(len(config.methods), 'method')}: {', '.join(config.methods)}",
            f"reward classes {', '.join(config.reward_classes)}",
            f"comparisons {_listed(config.comparisons)}",
            f"{count_noun(n_cells * n_curves, 'curve')} over {config.beta.count} values of beta, "
            f"{len(config.best_of_n)} of n, and {count_noun(config.seeds, 'seed')}",
        ),
        fits=n_cells * fits * config.seeds,
        files=("records.parquet", "fits.parquet", *_COMMON_FILES, *figures, "coefficients"),
        seconds=_seconds(lambda: run_laws(trial)) * n_cells * config.seeds / trial.seeds,
    )


def _describe_rounds(config: RoundsConfig) -> StudyKindEstimate:
    from bandits.rounds.config import method_labels
    from bandits.rounds.run import run_rounds

    trial = replace(config, rounds=min(config.rounds, TRIAL_ROUNDS))
    figures = ["cumulative_regret"] + ["cumulative_regret_growth"] * (config.rounds > 1)
    return StudyKindEstimate(
        config=config,
        cells=(
            f"{count_noun(len(config.methods), 'method')}: {', '.join(method_labels(config))}",
            f"environment {config.environment}",
            f"{count_noun(config.rounds, 'round')} of {config.pairs_per_round} comparisons, after "
            f"{config.comparisons:,} at the start",
            count_noun(config.seeds, "seed"),
        ),
        fits=len(config.methods) * config.rounds * config.seeds,
        files=("records.parquet", *_COMMON_FILES, *figures),
        seconds=_seconds(lambda: run_rounds(trial)) * config.rounds / trial.rounds,
    )


def _seconds(run: Callable[[], object]) -> float:
    """Return how long a run takes once everything is compiled."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _listed(numbers: list[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)
