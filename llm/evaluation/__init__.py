"""Evaluation: metrics on preference pairs, win rates by rewards or judges, and question files.

:func:`preference_metrics` evaluates a policy on scored pairs, :func:`compare_rewards` and
:func:`count_wins` compare two models, and :func:`read_questions` and :func:`format_answers` read
and write the files of AlpacaEval and MT-Bench. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .judgments import Verdict, WinCounts, count_wins, read_judgments
    from .metrics import (
        MetricSums,
        add_metric_sums,
        compute_metric_sums,
        finalize_metrics,
        log_ratio_quantiles,
        preference_metrics,
    )
    from .pair_losses import (
        baseline_values,
        expected_loss,
        pair_inputs,
        preference_sums,
        present_pair_weights,
        sft_sum,
        sum_over_pairs,
    )
    from .prompts import Question, QuestionKind, format_answers, read_questions
    from .win_rates import (
        RewardFunction,
        WinRate,
        bootstrap_mean_interval,
        compare_rewards,
        score_replies,
        win_rate_from_counts,
    )

_EXPORTS = {
    "MetricSums": "metrics",
    "Question": "prompts",
    "QuestionKind": "prompts",
    "RewardFunction": "win_rates",
    "Verdict": "judgments",
    "WinCounts": "judgments",
    "WinRate": "win_rates",
    "add_metric_sums": "metrics",
    "baseline_values": "pair_losses",
    "bootstrap_mean_interval": "win_rates",
    "compare_rewards": "win_rates",
    "compute_metric_sums": "metrics",
    "count_wins": "judgments",
    "expected_loss": "pair_losses",
    "finalize_metrics": "metrics",
    "format_answers": "prompts",
    "log_ratio_quantiles": "metrics",
    "pair_inputs": "pair_losses",
    "preference_metrics": "metrics",
    "preference_sums": "pair_losses",
    "present_pair_weights": "pair_losses",
    "read_judgments": "judgments",
    "read_questions": "prompts",
    "score_replies": "win_rates",
    "sft_sum": "pair_losses",
    "sum_over_pairs": "pair_losses",
    "win_rate_from_counts": "win_rates",
}

__all__ = [
    "MetricSums",
    "Question",
    "QuestionKind",
    "RewardFunction",
    "Verdict",
    "WinCounts",
    "WinRate",
    "add_metric_sums",
    "baseline_values",
    "bootstrap_mean_interval",
    "compare_rewards",
    "compute_metric_sums",
    "count_wins",
    "expected_loss",
    "finalize_metrics",
    "format_answers",
    "log_ratio_quantiles",
    "pair_inputs",
    "preference_metrics",
    "preference_sums",
    "present_pair_weights",
    "read_judgments",
    "read_questions",
    "score_replies",
    "sft_sum",
    "sum_over_pairs",
    "win_rate_from_counts",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
