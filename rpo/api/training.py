"""The functions ``train``, ``estimate_train``, ``plan`` and ``export``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rpo.results import ExportResult, InferencePlanResult, PlanResult, TrainEstimate, TrainResult
from rpo.runtime.config_files import load_config, read_config
from rpo.runtime.errors import UsageError, check_whole_number, user_input
from rpo.runtime.export_sources import (
    describe_missing_run,
    describe_missing_step,
    find_adapter_base,
    find_export_base,
    find_export_template,
    find_export_tokenizer,
)
from rpo.runtime.hub_push import prepare_push, push_folder
from rpo.runtime.loading import check_dtype
from rpo.runtime.output import count_noun
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.shared_work import work_together
from rpo_io.bucket_paths import AnyPath, as_path
from rpo_io.outputs import prepare_new_folder

if TYPE_CHECKING:
    from llm.config import DtypeName, MeshConfig, TrainConfig

PathLike = str | os.PathLike[str]
Output = str | os.PathLike[str] | AnyPath


def train(
    config: PathLike | TrainConfig,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: Output | None = None,
    resume: bool = False,
    processes: ProcessGroup | None = None,
) -> TrainResult:
    """Train a transformer on preferences: SFT, RPO, DPO and others.

    Args:
        config: YAML file or configuration.
        overrides: new values by dotted key of the configuration, such as
            ``{"objective.eta": 0.1}``.
        out: folder for metrics, checkpoints and the resolved configuration, local or in a bucket;
            ``out/NAME`` by default.
        resume: continue from the last checkpoint in the folder; a folder without one starts from
            the beginning.
        processes: the processes that share the work; by default those that JAX has connected, or
            this one alone.

    Returns:
        The finished run.

    Raises:
        ValueError: if the configuration or the data are invalid, the folder holds another run, or
            a number of the training is not finite.
        OSError: if a file cannot be read or written.
        llm.train.trainer.InterruptedRunError: if SIGTERM or SIGINT asked the run to stop; its
            state is saved.

    Examples:
        >>> run = api.train("run.yaml", {"objective.eta": 0.1}, out="out/run")  # doctest: +SKIP
        >>> run.metrics[-1]["loss"]  # doctest: +SKIP
    """
    resolved = _load_train_config(config, overrides)
    from rpo.jobs.training import run_training

    with user_input():
        folder = Path("out") / resolved.name if out is None else as_path(out)
    return run_training(resolved, folder, resume=resume, processes=processes)


def estimate_train(
    config: PathLike | TrainConfig, overrides: Mapping[str, Any] | None = None
) -> TrainEstimate:
    """Estimate steps, memory and duration of a run on the present devices; write nothing.

    Args:
        config: YAML file or configuration.
        overrides: new values by dotted key of the configuration.

    Returns:
        The estimate.

    Raises:
        ValueError: if the configuration or the data are invalid.
        OSError: if a file cannot be read.

    Examples:
        >>> api.estimate_train("run.yaml").peak_bytes_per_device  # doctest: +SKIP
    """
    resolved = _load_train_config(config, overrides)
    from rpo.jobs.training import describe_unread_date, load_inputs

    with user_input():
        from llm.precision import computing_in
        from llm.train.run_estimate import estimate_run

        model, data, notes = load_inputs(resolved)
        with computing_in(resolved.model.dtype):
            estimate = estimate_run(resolved, model, data)
    notes += describe_unread_date(resolved, data)
    if data.evaluation:
        notes.insert(0, f"{count_noun(len(data.evaluation), 'pair')} held out for evaluation")
    estimate = estimate._replace(notes=(*notes, *estimate.notes))
    return TrainEstimate(config=resolved, pairs=len(data.train), **estimate._asdict())


def plan(
    config: PathLike | TrainConfig,
    topology: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    slices: int = 1,
    largest: Literal["pairs", "max_length"] | bool = False,
) -> PlanResult:
    """Compile the training step for TPU slices, without a TPU, and read its memory.

    Args:
        config: YAML file or configuration.
        topology: a slice, such as ``"v5e:4x4"`` or ``"v5litepod-16"``, or GPUs, such as
            ``"h100:8"``.
        overrides: new values by dotted key of the configuration.
        slices: number of slices; the mesh axis ``data`` goes across them.
        largest: search for the largest number of ``pairs`` per device that fits, from 64 down, or
            for the largest ``max_length``; True for the pairs.

    Returns:
        The plan. A step that does not fit raises nothing: see ``plan.fits``.

    Raises:
        ValueError: if the configuration is invalid, the topology is unknown, or not even the
            smallest value fits when the largest one is searched for.
        OSError: if a file cannot be read.

    Examples:
        >>> api.plan("run.yaml", "v5e:4x4").plan.fits  # doctest: +SKIP
        True
    """
    with user_input():
        from llm.train.memory_plan import largest_fitting_plan, make_plan

        resolved = _load_train_config(config, overrides)
        if not largest:
            return PlanResult(make_plan(resolved, topology, slices=slices))
        quantity = "max_length" if largest == "max_length" else "pairs"
        found = largest_fitting_plan(resolved, topology, slices=slices, quantity=quantity)
        if found is None:
            smallest = "one pair per device" if quantity == "pairs" else "the shortest length"
            raise ValueError(f"{topology}: not even {smallest} fits")
    return PlanResult(found)


def plan_inference(
    config: PathLike | TrainConfig,
    topology: str,
    workload: Literal["score", "generate"],
    overrides: Mapping[str, Any] | None = None,
) -> InferencePlanResult:
    """Compile scoring or generation for a TPU slice, without a TPU, and read its memory.

    A batch has ``trainer.per_device_train_batch_size`` pairs or prompts on each device. Prompts
    have ``data.max_prompt_length`` tokens, and half of ``data.max_length`` without it; responses
    have the rest.

    Args:
        config: YAML file or configuration.
        topology: the slice, such as ``"v5p:4x4x4"``.
        workload: the scoring of pairs, or the generation of replies.
        overrides: new values by dotted key of the configuration.

    Returns:
        The plan. A program that does not fit raises nothing: see ``plan.fits``.

    Raises:
        ValueError: if the configuration is invalid, or the topology is unknown.
        OSError: if a file cannot be read.

    Examples:
        >>> api.plan_inference("run.yaml", "v5e:4x4", "score").plan.fits  # doctest: +SKIP
        True
    """
    with user_input():
        from llm.hf.factory import resolve_model
        from llm.train.inference_plan import plan_inference as compile_plan

        resolved = _load_train_config(config, overrides)
        prompt = resolved.data.max_prompt_length or resolved.data.max_length // 2
        found = compile_plan(
            resolve_model(resolved.model),
            resolved.mesh,
            topology,
            workload,
            rows_per_device=resolved.trainer.per_device_train_batch_size,
            prompt_tokens=prompt,
            response_tokens=resolved.data.max_length - prompt,
        )
    return InferencePlanResult(found)


def export(
    run: Output,
    *,
    out: Output,
    step: int | None = None,
    dtype: DtypeName | None = None,
    tokenizer: PathLike | None = None,
    adapter: bool = False,
    push_to_hub: str | None = None,
    private: bool = False,
    revision: str | None = None,
    mesh: MeshConfig | None = None,
    processes: ProcessGroup | None = None,
) -> ExportResult:
    """Write the policy of a training run as a Hugging Face folder, or its adapter as PEFT's.

    Args:
        run: folder that :func:`train` wrote, local or in a bucket.
        out: folder to write, local or in a bucket, new or empty.
        step: training step of the checkpoint; the last one by default.
        dtype: dtype of the tensors; by default that of the base model's files, or of the
            parameters if the run began from random ones.
        tokenizer: folder or hub name whose tokenizer files are copied, or ``"bytes"`` for none; by
            default that of the run.
        adapter: write the LoRA adapter as a PEFT folder instead of the whole model, by default in
            the dtype of the parameters.
        push_to_hub: repository of the Hugging Face hub, ``OWNER/NAME``, to which the folder is
            uploaded in one commit. It is created before the export unless it exists, and keeps a
            model card that this package did not write.
        private: whether the repository must be private.
        revision: branch of the repository, created if it is missing; ``main`` by default.
        mesh: how the policy is sharded over all devices while it is read; FSDP by default. The
            files do not depend on it.
        processes: the processes that share the work; by default those that JAX has connected, or
            this one alone.

    Returns:
        The folder, the step, the size of the tensors, what merging adapters has lost, and the URL
        of the commit.

    Raises:
        ValueError: if there is no such checkpoint, ``out`` is not empty, the tokenizer of the run
            is not where it was, a run without adapters shall write one, or the hub refuses the
            name, the token or the upload.
        OSError: if a file cannot be read or written.

    Examples:
        >>> api.export("out/run", out="policy").step  # doctest: +SKIP
        500
    """
    check_whole_number("step", step, 1)
    check_dtype(dtype)
    if push_to_hub is None and (private or revision is not None):
        name = "private" if private else "revision"
        raise UsageError(f"argument --{name}: goes with --push-to-hub")
    with user_input():
        run_folder, folder = as_path(run), as_path(out)
        if push_to_hub is not None and not isinstance(folder, Path):
            raise UsageError(
                f"argument --push-to-hub: needs a local --out, got {folder}: export to a local "
                "folder, and copy it to the bucket"
            )
    given = None if tokenizer is None else os.fspath(tokenizer)
    targets = []  # of process 0 alone

    def check_out() -> None:
        _check_export(run_folder, folder)
        # What the hub refuses is known before the model is loaded.
        if push_to_hub is not None:
            targets.append(prepare_push(push_to_hub, private=private, revision=revision))

    together = work_together(
        processes,
        options={"step": step, "dtype": dtype, "adapter": adapter, "mesh": mesh},
        inputs=[str(run_folder), *([] if given is None else [given])],
        check_out=check_out,
        out=folder.parent,
    )
    with user_input(), together:
        from llm.config import TrainConfig
        from llm.hf.adapters import export_adapter
        from llm.hf.io import export_model, stored_dtype
        from llm.parallel.mesh import is_first_process
        from llm.precision import computing_in
        from llm.text.template_options import stored_template_options
        from llm.text.tokenizer import TokenizerOptions
        from llm.train.checkpoint import kept_steps
        from llm.train.model_card import exported_card, write_model_card
        from llm.train.policy import load_policy

        config = read_config(str(run_folder / "config.yaml"), TrainConfig)
        checkpoints = run_folder / "checkpoints"
        kept = kept_steps(checkpoints)
        if step is not None and kept and step not in kept:
            raise ValueError(f"argument --step: {describe_missing_step(kept, step)}")
        tokenizer_folder = find_export_tokenizer(config, given)
        template = find_export_template(config, tokenizer_folder)
        options = None
        if tokenizer_folder is not None:
            options = stored_template_options(TokenizerOptions.from_config(config.data))
        base_name = find_adapter_base(config, run_folder) if adapter else None
        policy = load_policy(run_folder, step, base_model=config.model.path, mesh=mesh)
        base_folder = find_export_base(config)
        if adapter:
            report = export_adapter(
                policy.decoder,
                folder,
                base=base_name,
                dtype=dtype,
                tokenizer_folder=tokenizer_folder,
                chat_template=template,
                template_options=options,
            )
        else:
            # The tensors of the folder are not those that were quantized if an adapter was merged.
            is_merged_base = config.model.merge_adapter and config.model.quantization is not None
            chosen = dtype
            if dtype is None and base_folder is not None:
                chosen = stored_dtype(base_folder)
            with computing_in(config.model.dtype):
                report = export_model(
                    policy.decoder,
                    folder,
                    tokenizer_folder=tokenizer_folder,
                    chat_template=template,
                    template_options=options,
                    base_folder=None if is_merged_base else base_folder,
                    dtype=chosen,
                )
        # All processes take part in reading the checkpoint and in the digest of the parameters.
        card = exported_card(config, run_folder, policy, adapter=adapter, base_folder=base_folder)
        if is_first_process():
            write_model_card(folder, card)
        url = None
        if targets and isinstance(folder, Path):
            url = push_folder(folder, targets[0], step=policy.step)
    return ExportResult(folder, policy.step, *report, url=url)


def _check_export(run_folder: AnyPath, folder: AnyPath) -> None:
    """Refuse a folder that is no run, and a folder that cannot be written."""
    if not (run_folder / "config.yaml").is_file():
        raise ValueError(describe_missing_run(run_folder))
    prepare_new_folder(folder)


def _load_train_config(
    config: PathLike | TrainConfig, overrides: Mapping[str, Any] | None
) -> TrainConfig:
    with user_input():
        from llm.config import TrainConfig

        return load_config(config, TrainConfig, overrides)
