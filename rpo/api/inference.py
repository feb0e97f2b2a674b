"""The functions ``score``, ``generate`` and ``evaluate``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rpo.results import Evaluation, GeneratedReplies, Reply, Scores
from rpo.runtime.errors import UsageError, check_number, check_whole_number, user_input
from rpo.runtime.loading import check_dtype
from rpo.runtime.progress import track_progress

if TYPE_CHECKING:
    from llm.config import DtypeName
    from llm.evaluation.win_rates import RewardFunction

PathLike = str | os.PathLike[str]


def score(
    *,
    model: PathLike,
    data: PathLike,
    out: PathLike,
    tokenizer: PathLike | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    batch_size: int = 8,
    dtype: DtypeName = "float32",
) -> Scores:
    """Compute the log-probabilities of the responses of preference data under a model.

    Args:
        model: Hugging Face folder, or a name on the hub.
        data: file of preference rows, or a data set on the hub.
        out: file for the scores, one line of JSON per row; sums over tokens, in nats.
        tokenizer: folder or name on the hub, or ``"bytes"``; that of the model by default.
        max_length: limit of prompt and response together, in tokens, at least 2; by default 1024
            or the model's limit, whichever is smaller.
        skip_bad_rows: skip and count unusable rows instead of refusing them.
        batch_size: number of pairs that are computed together, at least 1.
        dtype: dtype of the parameters and of the computation.

    Returns:
        The scored rows.

    Raises:
        ValueError: if the model, the data or an argument is invalid.
        OSError: if a file cannot be read or written.

    Examples:
        >>> api.score(model="policy", data="rows.jsonl", out="scores.jsonl")  # doctest: +SKIP
    """
    _check_model_options(batch_size, dtype, max_length)
    path = Path(out)
    with user_input():
        from rpo.runtime.loading import load_model_and_tokenizer, prepare_file, read_pairs

        inputs = [os.fspath(given) for given in (model, tokenizer, data) if given is not None]
        prepare_file(path, inputs=inputs, is_earlier_result=_is_scores)
    from llm.inference.score import score_pairs
    from llm.precision import computing_in
    from rpo_io.atomic import write_atomic

    with user_input(), computing_in(dtype):
        loaded, loaded_tokenizer = load_model_and_tokenizer(
            os.fspath(model), _optional(tokenizer), dtype
        )
        pairs = read_pairs(
            os.fspath(data),
            loaded,
            loaded_tokenizer,
            max_length=max_length,
            skip_bad_rows=skip_bad_rows,
        )
        scores = score_pairs(
            loaded,
            pairs,
            batch_size=batch_size,
            progress=lambda batches, n: track_progress(batches, n, "batches scored"),
        )
        lines = (json.dumps(row._asdict(), allow_nan=False) + "\n" for row in scores)
        write_atomic(path, "".join(lines).encode())
    return Scores(path, len(scores))


@overload
def generate(
    *,
    model: PathLike,
    prompt: str,
    tokenizer: PathLike | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    batch_size: int = ...,
    dtype: DtypeName = ...,
) -> Reply: ...


@overload
def generate(
    *,
    model: PathLike,
    data: PathLike,
    out: PathLike,
    name: str | None = ...,
    tokenizer: PathLike | None = ...,
    max_new_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    seed: int = ...,
    batch_size: int = ...,
    dtype: DtypeName = ...,
) -> GeneratedReplies: ...


def generate(
    *,
    model: PathLike,
    prompt: str | None = None,
    data: PathLike | None = None,
    out: PathLike | None = None,
    name: str | None = None,
    tokenizer: PathLike | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    dtype: DtypeName = "float32",
) -> Reply | GeneratedReplies:
    """Generate the reply to a prompt, or replies to a file of prompts.

    Give either ``prompt``, or ``data`` with ``out``.

    Args:
        model: Hugging Face folder, or a name on the hub.
        prompt: text of a user message.
        data: rows with a prompt, AlpacaEval's instructions, or MT-Bench's questions.
        out: file for the replies to ``data``, in the form that the benchmark's judge reads.
        name: name of the model in ``out``; by default the last part of ``model``.
        tokenizer: folder or name on the hub, or ``"bytes"``; that of the model by default.
        max_new_tokens: largest number of tokens of a reply, at least 1.
        temperature: sampling temperature, at least 0; 0 takes the most likely token.
        top_p: sample from the most likely tokens with this total probability, in (0, 1].
        seed: seed of the samples, at least 0.
        batch_size: number of prompts that are computed together, at least 1.
        dtype: dtype of the parameters and of the computation.

    Returns:
        The reply to ``prompt``, or the file of the replies to ``data``.

    Raises:
        ValueError: if the model, the prompts or an argument is invalid.
        OSError: if a file cannot be read or written.

    Examples:
        >>> api.generate(model="policy", prompt="Why is the sky blue?").text  # doctest: +SKIP
    """
    if (prompt is None) == (data is None):
        raise UsageError("exactly one of the arguments --prompt and --data is required")
    if (data is None) != (out is None):
        raise UsageError("argument --out: goes with --data: give both or neither")
    _check_model_options(batch_size, dtype)
    path = None if out is None else Path(out)
    with user_input():
        from llm.data.preferences import Message
        from llm.evaluation.prompts import Question, format_answers, read_questions
        from llm.inference.generate import GenerationConfig, generate_replies
        from llm.precision import computing_in
        from rpo.runtime.loading import load_model_and_tokenizer, prepare_file
        from rpo_io.atomic import write_atomic

        options = GenerationConfig(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
        )
        if path is not None:
            inputs = [os.fspath(given) for given in (model, tokenizer, data) if given is not None]
            model_name = name or Path(model).name
            prepare_file(
                path, inputs=inputs, is_earlier_result=partial(_is_replies, model=model_name)
            )
    with user_input(), computing_in(dtype):
        if data is None:
            message = Message("user", prompt or "")
            questions = [Question("rows", ((message,),), {}, "argument --prompt")]
        else:
            questions = read_questions(os.fspath(data))
        loaded, loaded_tokenizer = load_model_and_tokenizer(
            os.fspath(model), _optional(tokenizer), dtype
        )
        replies = generate_replies(
            loaded,
            loaded_tokenizer,
            questions,
            options,
            batch_size=batch_size,
            progress=lambda batches, n: track_progress(batches, n, "batches answered"),
        )
        if path is None:
            return Reply(**replies[0][0]._asdict())
        write_atomic(path, format_answers(questions, replies, name or Path(model).name))
    truncated = sum(not reply.finished for answers in replies for reply in answers)
    return GeneratedReplies(path, questions[0].kind, len(replies), truncated)


def evaluate(
    *,
    model: PathLike,
    reference: PathLike,
    data: PathLike | None = None,
    judgments: PathLike | None = None,
    gamed: PathLike | None = None,
    beta: float = 0.01,
    eta: float = 0.005,
    reward: str | RewardFunction | None = None,
    prompts: int = 100,
    out: PathLike | None = None,
    tokenizer: PathLike | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
    dtype: DtypeName = "float32",
) -> Evaluation:
    """Measure a model against a reference: rewards and margins on data, and win rates.

    Give either ``data`` or ``judgments``.

    Args:
        model: Hugging Face folder or name on the hub; with ``judgments``, its name there.
        reference: the same of the model to compare with.
        data: file of preference rows, or a data set on the hub.
        judgments: AlpacaEval's annotations (.json) or MT-Bench's pair judgments (.jsonl).
        gamed: AlpacaEval's file df_gamed.csv; with it, the length-controlled win rate of its
            annotations is computed as well.
        beta: scale of the rewards beta log(policy / reference), greater than 0.
        eta: weight of the adversarial value, at least 0.
        reward: function of prompt messages and reply text that decides between the replies of both
            models, or ``"FILE.py:NAME"`` of one; no win rate by default.
        prompts: number of prompts that are answered for ``reward``, the first ones, at least 1.
        out: file for the metrics as JSON; none is written by default.
        tokenizer: folder or name on the hub, or ``"bytes"``; that of each model by default.
        max_length: limit of prompt and response together, in tokens, at least 2; by default 1024
            or the model's limit, whichever is smaller.
        skip_bad_rows: skip and count unusable rows instead of refusing them.
        max_new_tokens: largest number of tokens of a reply, at least 1.
        temperature: sampling temperature, at least 0; 0 takes the most likely token.
        top_p: sample from the most likely tokens with this total probability, in (0, 1].
        seed: seed of the samples and of the bootstrap intervals, at least 0.
        batch_size: number of pairs or prompts that are computed together, at least 1.
        dtype: dtype of the parameters and of the computation.

    Returns:
        The metrics.

    Raises:
        ValueError: if a model, the data, the reward or an argument is invalid.
        OSError: if a file cannot be read or written.

    Examples:
        >>> result = api.evaluate(model="new", reference="old", data="rows.jsonl")  # doctest: +SKIP
        >>> result.metrics["rewards/margins"]  # doctest: +SKIP
    """
    if (data is None) == (judgments is None):
        raise UsageError("give either --data or --judgments")
    if reward is not None and data is None:
        raise UsageError("argument --reward: goes with --data")
    if gamed is not None and judgments is None:
        raise UsageError("argument --gamed: goes with --judgments")
    _check_model_options(batch_size, dtype, max_length)
    check_number("beta", beta, 0.0, inclusive=False)
    check_number("eta", eta, 0.0, inclusive=True)
    check_whole_number("prompts", prompts, 1)
    with user_input():
        from llm.config import ObjectiveConfig
        from llm.inference.generate import GenerationConfig
        from rpo.jobs.evaluation import (
            EvaluationOptions,
            load_reward,
            measure_by_judgments,
            measure_on_data,
        )
        from rpo.runtime.loading import prepare_file
        from rpo_io.atomic import write_atomic
        from rpo_io.strict_json import format_document

        if out is not None:
            given = (model, reference, tokenizer, data, judgments, gamed)
            inputs = [os.fspath(source) for source in given if source is not None]
            if isinstance(reward, str):
                inputs.append(reward.rpartition(":")[0])
            prepare_file(Path(out), inputs=inputs, is_earlier_result=_is_evaluation)
        models = os.fspath(model), os.fspath(reference)
        if judgments is not None:
            metrics = measure_by_judgments(
                Path(judgments), *models, gamed=None if gamed is None else Path(gamed)
            )
        else:
            metrics = measure_on_data(
                *models,
                ObjectiveConfig(beta=beta, eta=eta),
                load_reward(reward) if isinstance(reward, str) else reward,
                EvaluationOptions(
                    data=os.fspath(data or ""),
                    tokenizer=_optional(tokenizer),
                    max_length=max_length,
                    skip_bad_rows=skip_bad_rows,
                    batch_size=batch_size,
                    dtype=dtype,
                    prompts=prompts,
                    generation=GenerationConfig(
                        max_new_tokens=max_new_tokens,
                        temperature=temperature,
                        top_p=top_p,
                        seed=seed,
                    ),
                ),
            )
        document = format_document(metrics)  # refuses numbers that are not finite
        if out is not None:
            write_atomic(Path(out), document.encode())
    return Evaluation(metrics)


def _is_scores(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a line of an earlier :func:`score`."""
    return {"row", "chosen_logp", "rejected_logp"} <= record.keys()


def _is_replies(record: Mapping[str, Any], *, model: str) -> bool:
    """Return whether a record is one of an earlier :func:`generate` by the same model."""
    if {"row", "prompt", "reply"} <= record.keys():
        return True
    return model in (record.get("generator"), record.get("model_id"))


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    """Return whether a record holds the metrics of an earlier :func:`evaluate`."""
    return "rewards/margins" in record or {"win_rate", "wins"} <= record.keys()


def _check_model_options(batch_size: int, dtype: str, max_length: int | None = None) -> None:
    check_whole_number("batch_size", batch_size, 1)
    check_whole_number("max_length", max_length, 2)
    check_dtype(dtype)


def _optional(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)
