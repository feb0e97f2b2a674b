"""The function ``evaluate``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rpo.results import Evaluation
from rpo.runtime.errors import UsageError, check_number, check_whole_number, user_input
from rpo.runtime.loading import LoadingOptions
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.shared_work import work_together
from rpo_io.bucket_paths import AnyPath, as_path

if TYPE_CHECKING:
    from llm.config import DtypeName, MeshConfig
    from llm.evaluation.win_rates import RewardFunction
    from llm.text.tokenizer import DataFormat, SpecialTokens

PathLike = str | os.PathLike[str]
Output = str | os.PathLike[str] | AnyPath
BETA, ETA, PROMPTS = 0.01, 0.005, 100
"""Defaults of ``evaluate``."""


def evaluate(
    *,
    model: PathLike,
    reference: PathLike,
    data: PathLike | None = None,
    judgments: PathLike | None = None,
    gamed: PathLike | None = None,
    beta: float = BETA,
    eta: float = ETA,
    reward: str | RewardFunction | None = None,
    prompts: int = PROMPTS,
    out: Output | None = None,
    tokenizer: PathLike | None = None,
    chat_template: PathLike | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    special_tokens: SpecialTokens | None = None,
    data_format: DataFormat | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
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
) -> Evaluation:
    """Measure a model against a reference: rewards and margins on data, and win rates.

    Give either ``data`` or ``judgments``.

    Args:
        model: Hugging Face folder, folder of a PEFT adapter, a name on the hub, folder of a
            training run, or one of its checkpoints; with ``judgments``, its name there.
        reference: the same of the model to compare with.
        data: file of preference rows, or a data set on the hub.
        judgments: AlpacaEval's annotations (.json) or MT-Bench's pair judgments (.jsonl).
        gamed: AlpacaEval's file df_gamed.csv; with it, the length-controlled win rate of its
            annotations is computed as well.
        beta: scale of the rewards beta log(policy / reference), greater than 0.
        eta: weight of the adversarial value, at least 0.
        reward: function of prompt messages and reply text that decides between the replies of both
            models, or its name, ``"FILE.py:NAME"`` or ``"MODULE:NAME"``. By default no replies are
            generated, and the win rate is that of chosen against rejected responses.
        prompts: number of prompts that are answered for ``reward``, the first ones, at least 1.
        out: file for the metrics as JSON; none is written by default.
        tokenizer: folder or name on the hub, or ``"bytes"``; that of each model by default.
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
        max_new_tokens: largest number of tokens of a reply, at least 1. The default of this and of
            the next five arguments is the value in the model's generation_config.json, or else
            256 and greedy decoding.
        temperature: sampling temperature, at least 0; 0 takes the most likely token.
        top_p: sample from the most likely tokens with this total probability, in (0, 1].
        top_k: sample from this number of most likely tokens; 0 for all.
        min_p: sample from tokens at least this likely, relative to the most likely, in [0, 1].
        repetition_penalty: factor by which earlier tokens become less likely; 1 for none.
        seed: seed of the samples and of the bootstrapped intervals, at least 0.
        batch_size: number of pairs or prompts that are computed together, on all devices; by
            default 8 pairs and 32 prompts.
        dtype: dtype of the parameters and of the computation.
        mesh: how models are sharded over all devices; by default as in training, by FSDP.
        processes: the processes that share the work; by default those that JAX has connected, or
            this one alone.

    Returns:
        The metrics, with counts of rows that were skipped or cut.

    Raises:
        ValueError: if a model, the data, the reward or an argument is invalid, or an argument has
            no effect because the one that it goes with is missing.
        OSError: if a file cannot be read or written.

    Examples:
        >>> result = api.evaluate(model="new", reference="old", data="rows.jsonl")  # doctest: +SKIP
        >>> result.metrics["rewards/margins"]  # doctest: +SKIP
    """
    if (data is None) == (judgments is None):
        raise UsageError("give either --data or --judgments")
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
    generation = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    of_replies = generation | {"prompts": None if prompts == PROMPTS else prompts}
    of_data = {
        "reward": reward,
        "beta": None if beta == BETA else beta,
        "eta": None if eta == ETA else eta,
        **{name: value for name, value in vars(options).items() if value != _DEFAULTS[name]},
    }
    if judgments is not None:
        _refuse_unused(of_data | of_replies, "data")
    elif gamed is not None:
        raise UsageError("argument --gamed: goes with --judgments")
    elif reward is None:
        _refuse_unused(of_replies, "reward")
    check_number("beta", beta, 0.0, inclusive=False)
    check_number("eta", eta, 0.0, inclusive=True)
    check_whole_number("prompts", prompts, 1)
    with user_input():
        from llm.config import ObjectiveConfig
        from llm.parallel.mesh import is_first_process
        from rpo.jobs.evaluation import load_reward, measure_by_judgments, measure_on_data
        from rpo.runtime.generation import given_settings
        from rpo_io.atomic import write_atomic
        from rpo_io.outputs import prepare_file
        from rpo_io.staging import check_sources, local_file
        from rpo_io.strict_json import format_document

        named = (model, reference, data, judgments, gamed)
        inputs = [os.fspath(source) for source in named if source is not None]
        inputs += options.input_files()
        check_sources(inputs)
        if isinstance(reward, str):
            inputs.append(reward.rpartition(":")[0])
        path = None if out is None else as_path(out)

        def check_out() -> None:
            if path is not None:
                prepare_file(path, inputs=inputs, is_earlier_result=_is_evaluation)

    together = work_together(
        processes,
        options={**vars(options), **of_replies, "reward": str(reward), "beta": beta, "eta": eta},
        inputs=inputs,
        check_out=check_out,
        out=None if path is None else path.parent,
    )
    with user_input(), together:
        models = os.fspath(model), os.fspath(reference)
        if judgments is not None:
            evaluation = measure_by_judgments(
                local_file(judgments), *models, gamed=None if gamed is None else local_file(gamed)
            )
        else:
            evaluation = measure_on_data(
                *models,
                os.fspath(data or ""),
                ObjectiveConfig(beta=beta, eta=eta),
                load_reward(reward) if isinstance(reward, str) else reward,
                options,
                given_settings(seed=seed, **generation),
                n_prompts=prompts,
            )
        document = format_document(evaluation.to_dict())  # refuses numbers that are not finite
        if path is not None and is_first_process():
            write_atomic(path, document.encode())
    return evaluation


_DEFAULTS = vars(LoadingOptions())


def _refuse_unused(given: Mapping[str, Any], needed: str) -> None:
    """Refuse the first argument that is given and has no effect without another one."""
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"argument --{name.replace('_', '-')}: goes with --{needed}")


def _is_evaluation(record: Mapping[str, Any]) -> bool:
    """Return whether a record holds the metrics of an earlier :func:`evaluate`."""
    return "rewards/margins" in record or {"win_rate", "wins"} <= record.keys()


def _optional(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)
