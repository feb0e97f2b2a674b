"""The functions ``score`` and ``generate``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from rpo.results import GeneratedReplies, Reply, Scores
from rpo.runtime.errors import UsageError, user_input
from rpo.runtime.loading import PAIRS, PROMPTS, LoadingOptions
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.progress import track_progress
from rpo.runtime.shared_work import work_together
from rpo_io.bucket_paths import AnyPath, as_path

if TYPE_CHECKING:
    from llm.config import DtypeName, MeshConfig
    from llm.text.tokenizer import DataFormat, SpecialTokens

PathLike = str | os.PathLike[str]
Output = str | os.PathLike[str] | AnyPath


def score(
    *,
    model: PathLike,
    data: PathLike,
    out: Output,
    tokenizer: PathLike | None = None,
    chat_template: PathLike | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    special_tokens: SpecialTokens | None = None,
    data_format: DataFormat | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
    batch_size: int | None = None,
    dtype: DtypeName = "float32",
    mesh: MeshConfig | None = None,
    processes: ProcessGroup | None = None,
) -> Scores:
    """Compute the log-probabilities of the responses of preference data under a model.

    Args:
        model: Hugging Face folder or folder of a PEFT adapter, local or in a bucket; a name on the
            hub; folder of a training run, or one of its checkpoints.
        data: file of preference rows, or a data set on the hub.
        out: file for the scores, local or in a bucket, one line of JSON per row; sums over tokens,
            in nats.
        tokenizer: folder or name on the hub, or ``"bytes"``; that of the model by default.
        chat_template: ``"chatml"`` or a Jinja file; the template of the tokenizer by default.
        chat_template_kwargs: variables of the template, such as ``{"enable_thinking": False}``.
        template_date: date that the template reads as today, ``YYYY-MM-DD``.
        special_tokens: ``"refuse"`` texts with control tokens, or write these ``"as_text"``.
        data_format: ``"chat"``, or ``"text"`` for base models: no template is applied. The
            default of the last four is the value of the run that exported the model, or else
            today, no variables, ``"refuse"`` and ``"chat"``.
        columns: name of the column for a field, such as ``{"prompt": "question"}``; ``"ignore"``
            passes a column over.
        max_length: limit of prompt and response together, in tokens, at least 2; by default 1024
            or the model's limit, whichever is smaller.
        skip_bad_rows: skip and count unusable rows instead of refusing them.
        batch_size: number of pairs that are computed together, on all devices; 8 by default.
        dtype: dtype of the parameters and of the computation.
        mesh: how the model is sharded over all devices; by default as in training, by FSDP.
        processes: the processes that share the work; by default those that JAX has connected, or
            this one alone.

    Returns:
        The scored rows, with counts of those that were skipped or cut.

    Raises:
        ValueError: if the model, the data or an argument is invalid.
        OSError: if a file cannot be read or written.

    Examples:
        >>> api.score(model="policy", data="rows.jsonl", out="scores.jsonl")  # doctest: +SKIP
    """
    options = LoadingOptions(
        tokenizer=_optional(tokenizer),
        chat_template=_optional(chat_template),
        chat_template_kwargs=chat_template_kwargs or {},
        template_date=template_date,
        special_tokens=special_tokens,
        data_format=data_format,
        columns=columns or {},
        max_length=max_length,
        skip_bad_rows=skip_bad_rows,
        batch_size=batch_size,
        dtype=dtype,
        mesh=mesh,
    )
    with user_input():
        path = as_path(out)
        from rpo.runtime.loading import load_model_and_tokenizer, log_report, read_pairs
        from rpo_io.outputs import prepare_file
        from rpo_io.staging import check_sources

        inputs = [os.fspath(model), os.fspath(data), *options.input_files()]
        check_sources(inputs)
    from llm.inference.score import score_pairs
    from llm.parallel.mesh import is_first_process
    from llm.precision import computing_in
    from rpo_io.atomic import write_atomic

    together = work_together(
        processes,
        options=vars(options),
        inputs=inputs,
        check_out=lambda: prepare_file(path, inputs=inputs, is_earlier_result=_is_scores),
        out=path.parent,
    )
    with user_input(), together, computing_in(dtype):
        loaded = load_model_and_tokenizer(os.fspath(model), options)
        tokenized = read_pairs(os.fspath(data), loaded, options)
        scores = score_pairs(
            loaded.decoder,
            tokenized.pairs,
            batch_size=batch_size or PAIRS,
            devices=loaded.devices,
            progress=lambda batches, n: track_progress(batches, n, "batches scored"),
        )
        # Reported at the end, so that an error is one line.
        notes = log_report(tokenized.report, (*loaded.notes, *tokenized.notes))
        lines = (json.dumps(row._asdict(), allow_nan=False) + "\n" for row in scores)
        if is_first_process():
            write_atomic(path, "".join(lines).encode())
    return Scores(path, len(scores), tokenized.report, notes)


@overload
def generate(
    *,
    model: PathLike,
    prompt: str,
    tokenizer: PathLike | None = ...,
    chat_template: PathLike | None = ...,
    chat_template_kwargs: Mapping[str, Any] | None = ...,
    template_date: str | None = ...,
    special_tokens: SpecialTokens | None = ...,
    data_format: DataFormat | None = ...,
    max_new_tokens: int | None = ...,
    temperature: float | None = ...,
    top_p: float | None = ...,
    top_k: int | None = ...,
    min_p: float | None = ...,
    repetition_penalty: float | None = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    dtype: DtypeName = ...,
    mesh: MeshConfig | None = ...,
    processes: ProcessGroup | None = ...,
) -> Reply: ...


@overload
def generate(
    *,
    model: PathLike,
    data: PathLike,
    out: Output,
    name: str | None = ...,
    tokenizer: PathLike | None = ...,
    chat_template: PathLike | None = ...,
    chat_template_kwargs: Mapping[str, Any] | None = ...,
    template_date: str | None = ...,
    special_tokens: SpecialTokens | None = ...,
    data_format: DataFormat | None = ...,
    columns: Mapping[str, str] | None = ...,
    max_new_tokens: int | None = ...,
    temperature: float | None = ...,
    top_p: float | None = ...,
    top_k: int | None = ...,
    min_p: float | None = ...,
    repetition_penalty: float | None = ...,
    seed: int = ...,
    batch_size: int | None = ...,
    dtype: DtypeName = ...,
    mesh: MeshConfig | None = ...,
    processes: ProcessGroup | None = ...,
) -> GeneratedReplies: ...


def generate(
    *,
    model: PathLike,
    prompt: str | None = None,
    data: PathLike | None = None,
    out: Output | None = None,
    name: str | None = None,
    tokenizer: PathLike | None = None,
    chat_template: PathLike | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    special_tokens: SpecialTokens | None = None,
    data_format: DataFormat | None = None,
    columns: Mapping[str, str] | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    dtype: DtypeName = "float32",
    mesh: MeshConfig | None = None,
    processes: ProcessGroup | None = None,
) -> Reply | GeneratedReplies:
    """Generate the reply to a prompt, or replies to a file of prompts.

    Give either ``prompt``, or ``data`` with ``out``.

    Args:
        model: Hugging Face folder or folder of a PEFT adapter, local or in a bucket; a name on the
            hub; folder of a training run, or one of its checkpoints.
        prompt: text of a user message.
        data: rows with a prompt, AlpacaEval's instructions, or MT-Bench's questions.
        out: file for the replies to ``data``, local or in a bucket, in the form that the
            benchmark's judge reads.
        name: name of the model in ``out``; by default the last part of ``model``.
        tokenizer: folder or name on the hub, or ``"bytes"``; that of the model by default.
        chat_template: ``"chatml"`` or a Jinja file; the template of the tokenizer by default.
        chat_template_kwargs: variables of the template, such as ``{"enable_thinking": False}``.
        template_date: date that the template reads as today, ``YYYY-MM-DD``.
        special_tokens: ``"refuse"`` texts with control tokens, or write these ``"as_text"``.
        data_format: ``"chat"``, or ``"text"`` for base models: no template is applied. The
            default of the last four is the value of the run that exported the model, or else
            today, no variables, ``"refuse"`` and ``"chat"``.
        columns: name of the column for a field, such as ``{"prompt": "question"}``; ``"ignore"``
            passes a column over.
        max_new_tokens: largest number of tokens of a reply, at least 1. The default of this and of
            the next five arguments is the value in the model's generation_config.json, or else
            256 and greedy decoding.
        temperature: sampling temperature, at least 0; 0 takes the most likely token.
        top_p: sample from the most likely tokens with this total probability, in (0, 1].
        top_k: sample from this number of most likely tokens; 0 for all.
        min_p: sample from tokens at least this likely, relative to the most likely, in [0, 1].
        repetition_penalty: factor by which earlier tokens become less likely; 1 for none.
        seed: seed of the samples, at least 0.
        batch_size: number of prompts that are computed together, on all devices; 32 by default.
        dtype: dtype of the parameters and of the computation.
        mesh: how the model is sharded over all devices; by default as in training, by FSDP.
        processes: the processes that share the work; by default those that JAX has connected, or
            this one alone.

    Returns:
        The reply to ``prompt``, or the file of the replies to ``data``, with the settings used.

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
    if prompt is not None and not prompt.strip():
        raise UsageError("argument --prompt: must be text, not empty")
    for argument, value in (("name", name), ("columns", columns)):
        if value and data is None:
            raise UsageError(f"argument --{argument}: goes with --data")
    options = LoadingOptions(
        tokenizer=_optional(tokenizer),
        chat_template=_optional(chat_template),
        chat_template_kwargs=chat_template_kwargs or {},
        template_date=template_date,
        special_tokens=special_tokens,
        data_format=data_format,
        columns=columns or {},
        batch_size=batch_size,
        dtype=dtype,
        mesh=mesh,
    )
    with user_input():
        path = None if out is None else as_path(out)
        from llm.data.preferences import Message
        from llm.evaluation.prompts import Question, format_answers, read_questions
        from llm.inference.generate import generate_replies
        from llm.parallel.mesh import is_first_process
        from llm.precision import computing_in
        from rpo.runtime.generation import given_settings, model_settings
        from rpo.runtime.loading import load_model_and_tokenizer, log_report, naming_options
        from rpo_io.atomic import write_atomic
        from rpo_io.outputs import prepare_file
        from rpo_io.staging import check_sources

        given = given_settings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        inputs = [os.fspath(model), *options.input_files()]
        inputs += [] if data is None else [os.fspath(data)]
        check_sources(inputs)
        is_earlier = partial(_is_replies, model=name or Path(model).name)

        def check_out() -> None:
            if path is not None:
                prepare_file(path, inputs=inputs, is_earlier_result=is_earlier)

    together = work_together(
        processes,
        options={**vars(options), **given, "prompt": prompt, "name": name},
        inputs=inputs,
        check_out=check_out,
        out=None if path is None else path.parent,
    )
    with user_input(), together, computing_in(dtype):
        notes: list[str] = []
        if data is None:
            message = Message("user", prompt or "")
            questions = [Question("rows", ((message,),), {}, "argument --prompt")]
        else:
            with naming_options():
                questions = read_questions(os.fspath(data), columns=columns or {}, notes=notes)
            notes = [f"{os.fspath(data)}: {note}" for note in notes]
        loaded = load_model_and_tokenizer(os.fspath(model), options)
        settings = model_settings(loaded, options, given)
        started = time.perf_counter()
        with naming_options():
            replies = generate_replies(
                loaded.decoder,
                loaded.tokenizer,
                questions,
                settings.config,
                end_ids=settings.end_ids,
                batch_size=batch_size or PROMPTS,
                devices=loaded.devices,
                progress=lambda batches, n: track_progress(batches, n, "batches answered"),
            )
        seconds = time.perf_counter() - started
        distinct = log_report({}, (*loaded.notes, *settings.notes, *notes))
        if path is None:
            reply = replies[0][0]
            return Reply(**reply._asdict(), settings=settings.record(), notes=distinct)
        if is_first_process():
            write_atomic(path, format_answers(questions, replies, name or Path(model).name))
    given_replies = [reply for answers in replies for reply in answers]
    n_tokens = sum(reply.tokens for reply in given_replies)
    return GeneratedReplies(
        path,
        questions[0].kind,
        len(replies),
        sum(not reply.finished for reply in given_replies),
        settings.record(),
        distinct,
        tokens=n_tokens,
        tokens_per_second=round(n_tokens / seconds, 1),
    )


def _is_scores(record: Mapping[str, Any]) -> bool:
    """Return whether a record is a line of an earlier :func:`score`."""
    return {"row", "chosen_logp", "rejected_logp"} <= record.keys()


def _is_replies(record: Mapping[str, Any], *, model: str) -> bool:
    """Return whether a record is one of an earlier :func:`generate` by the same model."""
    if {"row", "prompt", "reply"} <= record.keys():
        return True
    return model in (record.get("generator"), record.get("model_id"))


def _optional(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)
