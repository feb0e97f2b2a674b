"""Tables and captions of the studies of minimax regret, of overoptimization laws and in rounds."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .tables import CaptionedTable, MeanTable

if TYPE_CHECKING:
    from bandits.minimax_regret.run import MinimaxRegretResult
    from bandits.overoptimization.run import LawsResult
    from bandits.rounds.run import RoundsResult

BEST = "best possible"
MEAN_INTERVAL = "95 % confidence intervals of the mean (mean ± 1.96 standard errors over seeds)"
BOLD = "Bold: the smallest value of a row, where its interval is below all others."


def minimax_table(result: MinimaxRegretResult) -> CaptionedTable:
    """Return the worst-case regret of every method, one row per number of comparisons.

    Args:
        result: result of the study.
    """
    values = {(row["comparisons"], BEST): row["minimax_regret"] for row in _rows(result.optima)}
    for row in _rows(result.records):
        values[row["comparisons"], row["label"]] = row["worst_case_regret"]
    caption = (
        "Largest regret over the worlds, in units of reward. The values are exact: expectations "
        "over all outcomes, without seeds and intervals."
    )
    return CaptionedTable(_table(("N",), values, {}), caption)


def laws_table(result: LawsResult) -> CaptionedTable:
    """Return the coefficients of the fitted laws, one row per coefficient and setting.

    Args:
        result: result of the study.
    """
    from bandits.overoptimization.fitting import BEST_OF_N
    from bandits.study.summary_queries import display_name

    values, half_widths = {}, {}
    for row in _rows(result.fits):
        eta = "" if row["eta"] is None or math.isnan(row["eta"]) else f", η = {row['eta']:g}"
        is_best_of_n = row["method"] == BEST_OF_N
        method = "best-of-n" if is_best_of_n else display_name(row["method"]) + eta
        for name, symbol in (("alpha", "α"), ("gamma", "γ")):
            key = row["reward_class"], symbol, row["comparisons"], method
            values[key] = row[name]
            half_widths[key] = (row[f"{name}_high"] - row[f"{name}_low"]) / 2.0
    caption = (
        "Coefficients of the overoptimization laws, in units of reward: the gain α and the "
        f"overoptimization γ. {_seeds(result.config.seeds)} ± is half the width of "
        f"{_bootstrap(result.config.confidence)}."
    )
    table = _table(("reward class", "coefficient", "N"), values, half_widths)
    return CaptionedTable(table._replace(marks_best=False), caption)


def rounds_table(result: RoundsResult) -> CaptionedTable | None:
    """Return the cumulative regret of every method after the last round, and its slope.

    Args:
        result: result of the study.

    Returns:
        The table; None with fewer than two rounds.
    """
    from bandits.rounds.growth import mean_curve

    if not result.growth:
        return None
    values, half_widths = {}, {}
    for growth in result.growth:
        curve = mean_curve(result.records, growth.label)
        final, slope = ("cumulative regret", growth.label), ("slope", growth.label)
        values |= {final: float(curve.mean[-1]), slope: growth.slope}
        # One seed has no interval.
        is_known = result.config.seeds > 1
        half_widths[final] = float(curve.high[-1] - curve.mean[-1]) if is_known else math.nan
        half_widths[slope] = (growth.high - growth.low) / 2.0 if is_known else math.nan
    caption = (
        f"Cumulative regret after {result.config.rounds:,} rounds, in units of reward, and slope "
        f"of its logarithm against that of the round. {_seeds(result.config.seeds)} ± is half the "
        f"width of {MEAN_INTERVAL} for the regret, and of {_bootstrap(0.95)} for the slope. {BOLD}"
    )
    return CaptionedTable(_table(("quantity",), values, half_widths), caption)


def minimax_captions(names: tuple[str, ...]) -> dict[str, str]:
    """Return the captions of the figures of a study of minimax regret.

    Args:
        names: names of the figures.
    """
    exact = "The values are exact: expectations over all outcomes, without seeds and intervals."
    what = {
        "regret_by_world": (
            "Regret of every method and of the minimax rule in every world, in units of reward, "
            "and the least favorable prior over the worlds."
        ),
        "worst_case_against_comparisons": (
            "Regret in the worst world, in units of reward, against the number of comparisons N on "
            "logarithmic axes. No method can be below the minimax regret."
        ),
    }
    return {name: f"{what[name]} {exact}" for name in names}


def laws_captions(names: tuple[str, ...], seeds: int, confidence: float = 0.95) -> dict[str, str]:
    """Return the captions of the figures of a study of overoptimization laws.

    Args:
        names: names of the figures.
        seeds: number of seeds.
        confidence: probability with which the interval of a coefficient covers it.
    """
    bootstrap = _bootstrap(confidence)
    gains = (
        "True gain over the reference policy (solid), gain under the fitted reward (dashed) and "
        "law fitted to the true gain (dotted), in units of reward, against the square root of the "
        f"KL divergence. {_seeds(seeds)} Shaded bands are {MEAN_INTERVAL}. Brackets after the "
        f"coefficients α and γ are {bootstrap}."
    )
    coefficients = (
        "Coefficients α and γ of the fitted laws, in units of reward, against the number of "
        f"comparisons N. {_seeds(seeds)} Shaded bands are {bootstrap}."
    )
    return {name: coefficients if name == "coefficients" else gains for name in names}


def rounds_captions(names: tuple[str, ...], seeds: int) -> dict[str, str]:
    """Return the captions of the figures of a study in rounds.

    Args:
        names: names of the figures.
        seeds: number of seeds.
    """
    what_is_drawn = "Cumulative regret of every method, in units of reward, against the round"
    bands = f"{_seeds(seeds)} Shaded bands are {MEAN_INTERVAL}."
    slopes = (
        f"Slopes are fitted over the last factor of ten of the rounds, with {_bootstrap(0.95)}."
    )
    what = {
        "cumulative_regret": f"{what_is_drawn}. {bands}",
        "cumulative_regret_growth": f"{what_is_drawn} on logarithmic axes. {bands} {slopes}",
    }
    return {name: what[name] for name in names}


def _table(
    axes: tuple[str, ...], values: dict[Any, float], half_widths: dict[Any, float]
) -> MeanTable:
    """Return the table of values by their setting and, as the last part of the key, method."""
    settings = list(dict.fromkeys(key[:-1] for key in values))
    methods = list(dict.fromkeys(key[-1] for key in values))
    mean, half_width = (
        np.array(
            [[numbers.get((*setting, name), math.nan) for name in methods] for setting in settings],
            np.float64,
        )
        for numbers in (values, half_widths)
    )
    return MeanTable(axes, settings, tuple(methods), mean, half_width)


def _rows(table: Any) -> list[dict[str, Any]]:
    return table.to_pylist()


def _bootstrap(confidence: float) -> str:
    return f"{100.0 * confidence:g} % bootstrap intervals over the seeds"


def _seeds(number: int) -> str:
    return f"Means over {number:,} {'seed' if number == 1 else 'seeds'}."
