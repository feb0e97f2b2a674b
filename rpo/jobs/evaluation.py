"""Measure a model against a reference: on preference data, with a reward, or by judgments."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
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
from llm.inference.generate import generate_replies
from llm.inference.score import PairScore, score_pairs
from llm.precision import computing_in
from rpo.results import Evaluation
from rpo.runtime.generation import model_settings
from rpo.runtime.loading import (
    PAIRS,
    PROMPTS,
    LoadedModel,
    LoadingOptions,
    check_meshes,
    load_model_and_tokenizer,
    log_report,
    read_pairs,
)
from rpo.runtime.progress import track_progress
from rpo_io.user_modules import import_user_module, printing_to_stderr

if TYPE_CHECKING:
    from llm.evaluation.win_rates import RewardFunction


class _Run(NamedTuple):
    """Scores of the data under a model, and the rewards of its replies."""

    scores: list[PairScore]
    rewards: Float[np.ndarray, " n"] | None
    settings: dict[str, Any]
    report: dict[str, int]
    notes: list[str]


def measure_on_data(
    model: str,
    reference: str,
    data: str,
    objective: ObjectiveConfig,
    reward: RewardFunction | None,
    options: LoadingOptions,
    generation: Mapping[str, Any],
    *,
    n_prompts: int,
) -> Evaluation:
    """Return rewards and margins on preference data, and a win rate.

    Without a reward function, the win rate is that of the chosen responses against the rejected
    ones, by the implicit rewards; a pair of equal rewards is a tie.

    Args:
        model: the policy, as :func:`rpo.runtime.loading.load_model_and_tokenizer` takes it.
        reference: the same of the reference.
        data: file of preference rows, or a data set on the hub.
        objective: its beta and eta scale the metrics.
        reward: reward of a prompt and a reply, which decides between the replies of the models;
            None generates no replies.
        options: how models and data are read.
        generation: given settings of generation, with the seed, which is also that of bootstraps.
        n_prompts: number of prompts that are answered for the reward.

    Returns:
        Metrics by name, and what was noticed while reading.

    Raises:
        ValueError: if a model, the data or a reward is unusable.
    """
    with computing_in(options.dtype):
        check_meshes((model, reference), options)
        runs = [
            _run_model(name, data, reward, options, generation, n_prompts)
            for name in (model, reference)
        ]
        policy, base = runs
        metrics: dict[str, Any] = preference_metrics(
            objective, policy.scores, base.scores, seed=generation["seed"]
        )
    if policy.rewards is not None and base.rewards is not None:
        metrics["reward/model"] = float(policy.rewards.mean())
        metrics["reward/reference"] = float(base.rewards.mean())
        metrics |= _named_win_rate(compare_rewards(policy.rewards, base.rewards))
    else:
        names = ("win_rate", "win_rate_lower", "win_rate_upper", "wins", "ties", "losses")
        metrics |= {name: metrics[f"rewards/{name}"] for name in names}
    settings = {"model": policy.settings, "reference": base.settings} if reward else {}
    notes = log_report(policy.report, [*policy.notes, *base.notes])
    return Evaluation(metrics, policy.report, notes, settings)


def measure_by_judgments(
    path: Path, model: str, reference: str, *, gamed: Path | None = None
) -> Evaluation:
    """Return the win rate of a model over a reference, from a file of judgments.

    Args:
        path: AlpacaEval's annotations or MT-Bench's pair judgments.
        model: name of the model in the file.
        reference: name of the reference in the file.
        gamed: AlpacaEval's df_gamed.csv, for the length-controlled win rate.

    Returns:
        Win rates with their intervals, the counts, and what was noticed while reading.

    Raises:
        ValueError: if a file is unusable, or no question compares the two models.
        OSError: if a file cannot be read.
    """
    file = read_judgment_file(path)
    counts = count_wins(file.verdicts, model, reference)
    if counts.wins + counts.ties + counts.losses == 0:
        raise ValueError(f"{path}: the judge failed on every question")
    annotations = None
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
    notes: list[str] = []
    if file.repeated:
        notes.append(f"questions that repeat an earlier one and count again: {file.repeated:,}")
    if metrics["other_models"]:
        notes.append(f"judgments of other models, left out: {metrics['other_models']:,}")
    judges = {str(row.fields["annotator"]) for row in file.rows if "annotator" in row.fields}
    if len(judges) > 1:
        notes.append(f"judgments counted together, of several: {', '.join(sorted(judges))}")
    if file.passed_over:
        notes.append(f"fields of {path} passed over: {', '.join(file.passed_over)}")
    if annotations is not None and annotations.passed_over:
        notes.append(f"columns of {gamed} passed over: {', '.join(annotations.passed_over)}")
    return Evaluation(metrics, notes=log_report({}, notes))


def _named_win_rate(rate: WinRate) -> dict[str, Any]:
    """Return the fields of a win rate by the names of the metrics."""
    ends = {"win_rate_lower": rate.lower, "win_rate_upper": rate.upper}
    counts = {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
    return {"win_rate": rate.win_rate} | ends | counts


def load_reward(name: str) -> RewardFunction:
    """Load a reward function from a Python file or a module.

    Args:
        name: file and function, ``FILE.py:NAME``, or module and function, ``MODULE:NAME``; a module
            may lie in the current folder.

    Returns:
        The function.

    Raises:
        ValueError: if the name has another form, the file fails or has no such function.
        OSError: if the file cannot be read.
    """
    source, _, function = name.rpartition(":")
    is_file = source.endswith(".py")
    if not function or not (is_file or all(map(str.isidentifier, source.split(".")))):
        raise ValueError(f"argument --reward: must be FILE.py:NAME or MODULE:NAME, got {name!r}")
    if is_file and not Path(source).is_file():
        raise FileNotFoundError(2, "No such file or directory", source)
    try:
        with printing_to_stderr():
            module = _load_file(Path(source)) if is_file else import_user_module(source)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's file may raise anything, or exit
        raise ValueError(f"argument --reward: {source}: {type(error).__name__}: {error}") from error
    reward = getattr(module, function, None)
    if not callable(reward):
        raise ValueError(f"argument --reward: {source} has no function `{function}`")
    return cast("RewardFunction", reward)


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("user_reward", path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up by name
    spec.loader.exec_module(module)
    return module


def _run_model(
    name: str,
    data: str,
    reward: RewardFunction | None,
    options: LoadingOptions,
    generation: Mapping[str, Any],
    n_prompts: int,
) -> _Run:
    """Return the scores of the data and the rewards of replies; free the model's memory after."""
    model = load_model_and_tokenizer(name, options)
    tokenized = read_pairs(data, model, options)
    try:
        scores = score_pairs(
            model.decoder,
            tokenized.pairs,
            batch_size=options.batch_size or PAIRS,
            devices=model.devices,
            progress=lambda batches, n: track_progress(batches, n, f"batches scored by {name}"),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {data}: {error}") from error
    notes = [*model.notes, *tokenized.notes]
    if reward is None:
        return _Run(scores, None, {}, tokenized.report, notes)
    rewards, settings, more = _reward_replies(
        name, model, data, reward, options, generation, n_prompts
    )
    return _Run(scores, rewards, settings, tokenized.report, [*notes, *more])


def _reward_replies(
    name: str,
    model: LoadedModel,
    data: str,
    reward: RewardFunction,
    options: LoadingOptions,
    generation: Mapping[str, Any],
    n_prompts: int,
) -> tuple[Float[np.ndarray, " n"], dict[str, Any], tuple[str, ...]]:
    """Return the rewards of the model's replies, and the settings of generation with notes."""
    settings = model_settings(model, options, generation)
    found: list[str] = []
    questions = read_questions(data, columns=options.columns, notes=found)[:n_prompts]
    # The columns were listed when the pairs were read; here the answers would be among them.
    notes = [note for note in found if not note.startswith("columns passed over: ")]
    try:
        replies = generate_replies(
            model.decoder,
            model.tokenizer,
            questions,
            settings.config,
            end_ids=settings.end_ids,
            batch_size=options.batch_size or PROMPTS,
            devices=model.devices,
            progress=lambda batches, n: track_progress(batches, n, "batches answered"),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    prompts = [question.prompts[0] for question in questions]
    sources = [question.where for question in questions]
    texts = [answers[0].text for answers in replies]
    with printing_to_stderr():
        rewards = score_replies(reward, prompts, texts, sources=sources)
    return rewards, settings.record(), (*settings.notes, *notes)
