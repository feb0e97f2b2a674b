"""Measure a model against a reference: on preference data, with a reward, or by judgments."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from llm.config import ObjectiveConfig
from llm.evaluation.alpaca_eval import alpaca_eval_metrics, read_gamed_annotations
from llm.evaluation.judgments import count_wins, read_judgment_file
from llm.evaluation.metrics import preference_metrics
from llm.evaluation.prompts import read_questions
from llm.evaluation.win_rates import (
    WinRate,
    compare_rewards,
    score_replies,
    win_rate_from_counts,
)
from llm.inference.generate import GenerationConfig, generate_replies
from llm.inference.score import PairScore, score_pairs
from llm.precision import computing_in
from rpo.runtime.loading import load_model_and_tokenizer, read_pairs
from rpo.runtime.progress import track_progress

if TYPE_CHECKING:
    from llm.evaluation.win_rates import RewardFunction


class EvaluationOptions(NamedTuple):
    """How models are run on preference data.

    Attributes:
        data: file of preference rows, or a data set on the hub.
        tokenizer: folder, name on the hub or ``"bytes"``; None takes that of the model.
        max_length: limit of prompt and response together, in tokens; None for the default.
        skip_bad_rows: skip and count unusable rows instead of refusing them.
        batch_size: number of pairs or prompts that are computed together.
        dtype: dtype of the parameters and of the computation.
        prompts: number of prompts that are answered for a reward.
        generation: how replies are generated.
    """

    data: str
    tokenizer: str | None
    max_length: int | None
    skip_bad_rows: bool
    batch_size: int
    dtype: str
    prompts: int
    generation: GenerationConfig


def measure_on_data(
    model: str,
    reference: str,
    objective: ObjectiveConfig,
    reward: RewardFunction | None,
    options: EvaluationOptions,
) -> dict[str, Any]:
    """Return rewards and margins on preference data, and a win rate.

    Without a reward function, the win rate is that of the chosen responses against the rejected
    ones, by the implicit rewards; a pair of equal rewards is a tie.

    Args:
        model: Hugging Face folder or name on the hub of the policy.
        reference: the same of the reference.
        objective: its beta and eta scale the metrics.
        reward: reward of a prompt and a reply, which decides between the replies of the models;
            None generates no replies.
        options: how the models are run.

    Returns:
        Metrics by name.

    Raises:
        ValueError: if a model, the data or a reward is unusable.
    """
    seed = options.generation.seed
    with computing_in(options.dtype):
        policy_scores, policy_rewards = _run_model(model, reward, options)
        reference_scores, reference_rewards = _run_model(reference, reward, options)
        metrics: dict[str, Any] = preference_metrics(
            objective, policy_scores, reference_scores, seed=seed
        )
    if policy_rewards is not None and reference_rewards is not None:
        metrics["reward/model"] = float(policy_rewards.mean())
        metrics["reward/reference"] = float(reference_rewards.mean())
        metrics |= _named_win_rate(compare_rewards(policy_rewards, reference_rewards))
    else:
        names = ("win_rate", "win_rate_lower", "win_rate_upper", "wins", "ties", "losses")
        metrics |= {name: metrics[f"rewards/{name}"] for name in names}
    return metrics


def measure_by_judgments(
    path: Path, model: str, reference: str, *, gamed: Path | None = None
) -> dict[str, Any]:
    """Return the win rate of a model over a reference, from a file of judgments.

    Args:
        path: AlpacaEval's annotations or MT-Bench's pair judgments.
        model: name of the model in the file.
        reference: name of the reference in the file.
        gamed: AlpacaEval's df_gamed.csv, for the length-controlled win rate.

    Returns:
        Win rates with their intervals, and the counts.

    Raises:
        ValueError: if a file is unusable, or no question compares the two models.
        OSError: if a file cannot be read.
    """
    file = read_judgment_file(path)
    counts = count_wins(file.verdicts, model, reference)
    if counts.wins + counts.ties + counts.losses == 0:
        raise ValueError(f"{path}: the judge failed on every question")
    if file.kind == "alpaca_eval":
        annotations = None if gamed is None else read_gamed_annotations(gamed)
        metrics = alpaca_eval_metrics(file, model, reference, gamed=annotations)
        metrics |= {"wins": counts.wins, "ties": counts.ties, "losses": counts.losses}
    elif gamed is not None:
        raise ValueError(f"argument --gamed: {path} must be a file of AlpacaEval's annotations")
    else:
        rate = win_rate_from_counts(counts.wins, counts.ties, counts.losses)
        metrics = _named_win_rate(rate) | counts._asdict()
    others = sum({each.first, each.second} != {model, reference} for each in file.verdicts)
    metrics["other_models"] = others // (1 if file.kind == "alpaca_eval" else 2)
    metrics["repeated"] = file.repeated
    notes = []
    if file.repeated:
        notes.append(f"questions that repeat an earlier one and count again: {file.repeated:,}")
    if metrics["other_models"]:
        notes.append(f"judgments of other models, left out: {metrics['other_models']:,}")
    judges = {str(row.fields["annotator"]) for row in file.rows if "annotator" in row.fields}
    if len(judges) > 1:
        notes.append(f"judgments counted together, of several: {', '.join(sorted(judges))}")
    if file.passed_over:
        notes.append(f"fields of {path} passed over: {', '.join(file.passed_over)}")
    if gamed is not None and annotations is not None and annotations.passed_over:
        notes.append(f"columns of {gamed} passed over: {', '.join(annotations.passed_over)}")
    return metrics | {"notes": notes}


def _named_win_rate(rate: WinRate) -> dict[str, Any]:
    """Return the fields of a win rate by the names of the metrics."""
    ends = {"win_rate_lower": rate.lower, "win_rate_upper": rate.upper}
    counts = {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
    return {"win_rate": rate.win_rate} | ends | counts


def load_reward(name: str) -> RewardFunction:
    """Load a reward function from a Python file.

    Args:
        name: file and function, ``FILE.py:NAME``.

    Returns:
        The function.

    Raises:
        ValueError: if the name has another form, the file fails or has no such function.
        OSError: if the file cannot be read.
    """
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not function:
        raise ValueError(f"argument --reward: must be FILE.py:NAME, got {name!r}")
    spec = importlib.util.spec_from_file_location("user_reward", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"argument --reward: {path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except OSError:
        raise
    except Exception as error:  # the user's file may raise anything
        raise ValueError(f"argument --reward: {path}: {type(error).__name__}: {error}") from error
    reward = getattr(module, function, None)
    if not callable(reward):
        raise ValueError(f"argument --reward: {path} has no function `{function}`")
    return cast("RewardFunction", reward)


def _run_model(
    name: str, reward: RewardFunction | None, options: EvaluationOptions
) -> tuple[list[PairScore], Float[np.ndarray, " n"] | None]:
    """Return the scores of the data and the rewards of replies; free the model's memory after."""
    model, tokenizer = load_model_and_tokenizer(name, options.tokenizer, options.dtype)
    pairs = read_pairs(
        options.data,
        model,
        tokenizer,
        max_length=options.max_length,
        skip_bad_rows=options.skip_bad_rows,
    )
    scores = score_pairs(
        model,
        pairs,
        batch_size=options.batch_size,
        progress=lambda batches, n: track_progress(batches, n, f"batches scored by {name}"),
    )
    if reward is None:
        return scores, None
    questions = read_questions(options.data)[: options.prompts]
    replies = generate_replies(
        model,
        tokenizer,
        questions,
        options.generation,
        batch_size=options.batch_size,
        progress=lambda batches, n: track_progress(batches, n, "batches answered"),
    )
    prompts = [question.prompts[0] for question in questions]
    return scores, score_replies(reward, prompts, [answers[0].text for answers in replies])
