r"""Win rates of AlpacaEval from its annotation files, plain and length-controlled.

The numbers are those of the package ``alpaca-eval`` as fractions: it prints percentages. The
length-controlled win rate (Dubois et al., 2024) comes from a logistic regression of the judge's
preference on the difference of lengths, the difficulty of the instruction and a constant; it is the
mean prediction at equal lengths. Its penalty is chosen by cross-validation, and annotations of two
models that game the length, from AlpacaEval's file ``df_gamed.csv``, regularize it.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from llm.data.rows import Row

from .judgments import JudgmentFile, Verdict
from .win_rates import exact_rate_interval

GAMED_COLUMNS = (
    "index",
    "preference",
    "std_delta_len",
    "instruction_difficulty",
    "not_gamed_baseline",
)
MAX_GAMED_BYTES = 100_000_000
"""Largest size of the file of gamed annotations; AlpacaEval's has 1 MB."""
GAMED_WEIGHT = 0.2 / 2
"""Weight of a gamed annotation: AlpacaEval's regularization, shared by the two gamed models."""
N_FOLDS = 5
PENALTIES = np.logspace(-4, 4, 10)
"""Inverse strengths of the L1 penalty among which cross-validation chooses, as scikit-learn's."""
RANDOM_SEED = 123
"""Seed of the order in which liblinear visits coordinates, as in the package."""


class GamedAnnotations(NamedTuple):
    """Annotations of models that game the length, from ``df_gamed.csv``.

    Attributes:
        features: design matrix: tanh of the standardized length difference, difficulty of the
            instruction, and 1 if the row is not of a gamed model.
        preference: preference for the gamed model, from 0 to 1.
        difficulty: difficulty of each instruction, by its position in AlpacaEval's set.
        passed_over: names of columns that nothing reads.
    """

    features: Float[np.ndarray, "n 3"]
    preference: Float[np.ndarray, " n"]
    difficulty: Float[np.ndarray, " instructions"]
    passed_over: list[str]


class _Comparison(NamedTuple):
    """Annotations of one pair of models, seen from one of them; nan means no verdict."""

    preferences: Float[np.ndarray, " n"]
    rows: list[Row]
    swapped: list[bool]


def alpaca_eval_metrics(
    file: JudgmentFile, model: str, reference: str, *, gamed: GamedAnnotations | None = None
) -> dict[str, Any]:
    """Compute AlpacaEval's metrics of a model against a reference, as fractions.

    Args:
        file: annotations of AlpacaEval; those on other pairs of models are left out. If the model
            is ``generator_1`` of an annotation, its preference is reversed.
        model: name of the model.
        reference: name of the reference.
        gamed: gamed annotations, for the length-controlled win rate; None leaves it out.

    Returns:
        Metrics by name. ``win_rate`` is the mean preference for the model, ``standard_error`` its
        standard error (None for one annotation). ``discrete_win_rate`` counts an annotation as 1 or
        0 by the preferred model and a draw as one half. ``n_wins``, ``n_wins_base``, ``n_draws``
        and ``n_total`` are counts of annotations with a verdict, ``errors`` of those without. With
        ``gamed`` also ``length_controlled_winrate`` and ``lc_standard_error``. The ends of 95 %
        intervals are ``NAME_lower`` and ``NAME_upper``.

    Raises:
        ValueError: if no annotation with a verdict compares the models, or a length, an index or
            a difficulty is missing.
    """
    comparison = _select(file, model, reference)
    preferences = comparison.preferences[~np.isnan(comparison.preferences)]
    n_judged = len(preferences)
    if not n_judged:
        raise ValueError("the judge failed on every annotation of the two models")
    discrete = np.where(preferences == 0.5, 0.5, preferences > 0.5)
    deviation = float(np.std(preferences, ddof=1)) if n_judged > 1 else None
    metrics: dict[str, Any] = {
        "win_rate": float(preferences.mean()),
        "discrete_win_rate": float(discrete.mean()),
        "standard_error": None if deviation is None else deviation / math.sqrt(n_judged),
        "n_total": n_judged,
        "n_wins": int(np.sum(preferences > 0.5)),
        "n_wins_base": int(np.sum(preferences < 0.5)),
        "n_draws": int(np.sum(preferences == 0.5)),
        "errors": len(comparison.preferences) - n_judged,
    }
    for name, values in (("win_rate", preferences), ("discrete_win_rate", discrete)):
        lower, upper = exact_rate_interval(float(values.sum()), n_judged)
        metrics |= {f"{name}_lower": lower, f"{name}_upper": upper}
    if gamed is not None:
        predicted = _predict_at_equal_lengths(comparison, gamed)
        metrics["length_controlled_winrate"] = float(predicted.mean())
        metrics["lc_standard_error"] = float(np.std(predicted, ddof=1)) / math.sqrt(len(predicted))
    return metrics


def read_gamed_annotations(path: Path) -> GamedAnnotations:
    """Read AlpacaEval's file of gamed annotations.

    Args:
        path: a CSV file with the columns :data:`GAMED_COLUMNS`; a column ``model`` is not read.
            It begins with one row for each instruction, in the order of AlpacaEval's set.

    Returns:
        The annotations. Rows without a preference serve only for the difficulty.

    Raises:
        ValueError: if the file is not such a file; the message names line and column.
        OSError: if the file cannot be read.
    """
    if path.stat().st_size > MAX_GAMED_BYTES:
        raise ValueError(f"{path} must have at most {MAX_GAMED_BYTES:,} bytes")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = list(reader.fieldnames or ())
            missing = [name for name in GAMED_COLUMNS if name not in names]
            if missing or len(set(names)) < len(names):
                raise ValueError(
                    f"{path}: must have the columns {', '.join(GAMED_COLUMNS)}, each once, as "
                    f"AlpacaEval's df_gamed.csv, got {', '.join(names)[:200] or 'no columns'}"
                )
            rows = [_gamed_row(row, f"{path}:{reader.line_num}") for row in reader]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be UTF-8: {error}") from error
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV file: {error}") from error
    difficulty: list[float] = []
    known: set[int] = set()
    for number, row in enumerate(rows):
        if row.instruction in known:
            continue
        # The package finds an instruction by the number of its row.
        if number != len(known):
            raise ValueError(
                f"{row.where}: column `index`: the file must begin with one row for each "
                f"instruction, got the first row of instruction {row.instruction} after others"
            )
        known.add(row.instruction)
        difficulty.append(row.difficulty)
    if not rows:
        raise ValueError(f"{path} has no rows")
    return GamedAnnotations(
        np.array([(math.tanh(row.length), row.difficulty, row.constant) for row in rows]),
        np.array([row.preference for row in rows]),
        np.array(difficulty),
        sorted(set(names) - {*GAMED_COLUMNS, "model", ""}),
    )


class _GamedRow(NamedTuple):
    instruction: int
    preference: float
    length: float
    difficulty: float
    constant: float
    where: str


def _gamed_row(row: dict[Any, Any], where: str) -> _GamedRow:
    """Parse a row of the gamed annotations; an empty preference is nan."""
    if None in row or None in row.values():
        raise ValueError(f"{where}: the row must have as many values as there are columns")

    def number(name: str, low: float, high: float) -> float:
        try:
            value = float(row[name])
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise ValueError(
                f"{where}: column `{name}` must be a number from {low:g} to {high:g}, got "
                f"{row[name]!r:.60}"
            )
        return value

    flag = row["not_gamed_baseline"].strip().lower()
    if flag not in ("true", "false"):
        raise ValueError(
            f"{where}: column `not_gamed_baseline` must be True or False, got {flag!r:.60}"
        )
    index = row["index"].strip()
    if not re.fullmatch(r"[0-9]{1,9}(\.0+)?", index):
        raise ValueError(
            f"{where}: column `index` must be the position of an instruction, from 0, got "
            f"{index!r:.60}"
        )
    is_missing = row["preference"].strip().lower() in ("", "nan")
    return _GamedRow(
        int(float(index)),
        math.nan if is_missing else number("preference", 0.0, 1.0),
        number("std_delta_len", -1e300, 1e300),
        number("instruction_difficulty", -1e300, 1e300),
        float(flag == "true"),
        where,
    )


def _select(file: JudgmentFile, model: str, reference: str) -> _Comparison:
    """Return the annotations that compare the two models, seen from the first."""
    preferences: list[float] = []
    rows, swapped = [], []
    for row, verdict in zip(file.rows, file.verdicts, strict=True):
        if {verdict.first, verdict.second} == {model, reference}:
            preferences.append(_preference(verdict, model))
            rows.append(row)
            swapped.append(verdict.first == model)
    return _Comparison(np.array(preferences), rows, swapped)


def _preference(verdict: Verdict, model: str) -> float:
    if verdict.preference is None:
        return math.nan
    return verdict.preference if verdict.first == model else 1.0 - verdict.preference


def _predict_at_equal_lengths(
    comparison: _Comparison, gamed: GamedAnnotations
) -> Float[np.ndarray, " n"]:
    """Fit the regression and predict every annotation, also those without a verdict."""
    difficulty = gamed.difficulty[_instructions(comparison.rows, len(gamed.difficulty))]
    differences = _length_differences(comparison)
    scale = float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    if scale == 0.0:
        raise ValueError(
            "the length-controlled win rate needs annotations whose answers differ in length by "
            "different numbers of characters: leave --gamed out"
        )
    constant = np.ones(len(differences))
    features = np.stack([np.tanh(differences / scale), difficulty, constant], axis=1)
    targets = np.concatenate([gamed.preference, comparison.preferences])
    weights = np.where(gamed.features[:, 2] == 1, 1.0, GAMED_WEIGHT)
    weights = np.concatenate([weights, constant])
    known = ~np.isnan(targets)
    if known.sum() < N_FOLDS:
        raise ValueError(
            f"the length-controlled win rate needs at least {N_FOLDS} preferences, got "
            f"{known.sum()}: leave --gamed out"
        )
    train = np.concatenate([gamed.features, features])[known]
    coefficients = _fit_cross_validated(train, targets[known], weights[known])
    at_equal_lengths = np.stack([0.0 * constant, difficulty, constant], axis=1)
    return _sigmoid(at_equal_lengths @ coefficients)


def _instructions(rows: Sequence[Row], n_instructions: int) -> Int[np.ndarray, " n"]:
    """Return the instruction of each annotation: its `index`, or else its position."""
    indices = []
    for position, row in enumerate(rows):
        index = row.fields.get("index", position)
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(
                f"{row.where}: field `index` must be a whole number, got {index!r:.40}"
            )
        if index >= n_instructions:
            raise ValueError(
                f"{row.where}: this is the annotation of instruction {index}, counted from 0, but "
                f"the file of gamed annotations has {n_instructions:,} instructions: give the file "
                "of the same set of instructions, and the annotations of one judge"
            )
        indices.append(index)
    return np.array(indices, dtype=int)


def _length_differences(comparison: _Comparison) -> Float[np.ndarray, " n"]:
    """Return how many characters the reference's answers are longer than the model's."""
    differences = []
    for row, swapped in zip(comparison.rows, comparison.swapped, strict=True):
        lengths = []
        for name in ("output_1", "output_2"):
            text = row.fields.get(name)
            if not isinstance(text, str):
                raise ValueError(
                    f"{row.where}: field `{name}` must be text, for its length, got {text!r:.60}"
                )
            lengths.append(len(text))
        differences.append(lengths[1] - lengths[0] if swapped else lengths[0] - lengths[1])
    return np.array(differences, dtype=float)


def _fit_cross_validated(
    features: Float[np.ndarray, "n 3"],
    targets: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
) -> Float[np.ndarray, " 3"]:
    """Fit probabilities by an L1-penalized logistic regression, the penalty by cross-validation.

    A target between 0 and 1 is a pair of examples, one of each label, that share its weight and
    stay in one fold.
    """
    model_selection = _scikit_learn().model_selection
    doubled = np.concatenate([features, features])
    labels = np.repeat([1, 0], len(targets))
    shares = np.concatenate([targets, 1.0 - targets])
    doubled_weights = np.concatenate([weights, weights])
    groups = np.tile(np.arange(len(targets)), 2)
    losses = np.zeros((N_FOLDS, len(PENALTIES)))
    folds = model_selection.GroupKFold(n_splits=N_FOLDS).split(doubled, labels, groups)
    for fold, (train, test) in enumerate(folds):
        generator = np.random.RandomState(RANDOM_SEED)
        for k, inverse_penalty in enumerate(PENALTIES):
            coefficients = _fit_logistic(
                doubled[train],
                labels[train],
                (shares * doubled_weights)[train],
                inverse_penalty,
                generator,
            )
            predicted = np.clip(_sigmoid(doubled[test] @ coefficients), 1e-15, 1 - 1e-15)
            probability = np.where(labels[test] == 1, shares[test], 1.0 - shares[test])
            log_likelihood = probability * np.log(predicted) + (1 - probability) * np.log(
                1 - predicted
            )
            losses[fold, k] = -np.mean(log_likelihood * doubled_weights[test])
    best = PENALTIES[int(np.argmin(losses.sum(axis=0)))]
    generator = np.random.RandomState(RANDOM_SEED)
    return _fit_logistic(doubled, labels, shares * doubled_weights, best, generator)


def _fit_logistic(
    features: Float[np.ndarray, "n 3"],
    labels: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    inverse_penalty: float,
    generator: np.random.RandomState,
) -> Float[np.ndarray, " 3"]:
    linear_model = _scikit_learn().linear_model
    options: dict[str, Any] = {"penalty": "l1"}
    # scikit-learn 1.8 renamed the option and warns about the former one.
    if linear_model.LogisticRegression().get_params()["penalty"] == "deprecated":
        options = {"l1_ratio": 1.0}
    regression = linear_model.LogisticRegression(
        **options,
        C=inverse_penalty,
        solver="liblinear",
        fit_intercept=False,
        random_state=generator,
    )
    return regression.fit(features, labels, sample_weight=weights).coef_[0]


def _scikit_learn() -> Any:
    try:
        import sklearn
        import sklearn.linear_model
        import sklearn.model_selection
    except ImportError as error:
        raise ValueError(
            "the length-controlled win rate needs scikit-learn: pip install scikit-learn, or "
            "leave --gamed out"
        ) from error
    return sklearn


def _sigmoid(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.exp(-np.logaddexp(0.0, -logits))
