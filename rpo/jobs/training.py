"""Train a policy, in one process or several."""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from typing import Any

from llm.config import TrainConfig
from llm.hf.factory import ResolvedModel, resolve_model
from llm.train.batches import make_sampler
from llm.train.checkpoint import kept_steps
from llm.train.dataset import TrainingData, load_training_data
from llm.train.fingerprint import SOURCES, configuration_of, name_changes
from llm.train.model_card import configuration_digest, model_card, write_model_card
from llm.train.policy_samples import check_samples, load_reward
from llm.train.reference_model import resolve_reference
from llm.train.run_notes import describe_inputs
from llm.train.tracking import CompositeTracker, Tracker, make_tracker, read_log
from llm.train.trainer import Trainer
from rpo.results import TrainResult
from rpo.runtime.config_files import read_config, to_yaml
from rpo.runtime.errors import UsageError, user_input
from rpo.runtime.facts import MISSING, code_facts, configuration_facts, file_facts
from rpo.runtime.meeting import meet
from rpo.runtime.preemption import watched_preemption
from rpo.runtime.processes import ProcessGroup
from rpo.runtime.progress import track_progress
from rpo_io.atomic import write_atomic
from rpo_io.bucket_paths import AnyPath, BucketPath
from rpo_io.folders import check_writable, name_os_errors
from rpo_io.line_logs import open_log
from rpo_io.outputs import output_folder
from rpo_io.staging import check_sources

_ANOTHER_FOLDER = "continue with the config.yaml in it, or choose another --out"
_logger = logging.getLogger(__name__)


def load_inputs(
    config: TrainConfig, *, may_start_jax: bool = True
) -> tuple[ResolvedModel, TrainingData, list[str]]:
    """Resolve the model and load the data of a run.

    Args:
        config: configuration of the run.
        may_start_jax: also check a reference, whose checkpoint is read with JAX; the trainer checks
            it again.

    Returns:
        Model, data, and sentences for the log: counts of rows that are not used as they are, what
        is cut, unused inputs.

    Raises:
        ValueError: if the model or the data are unusable.
        OSError: if a file cannot be read.
    """
    check_sources(_sources(config))
    reward = load_reward(config)
    model = resolve_model(config.model)
    if may_start_jax:
        resolve_reference(config, model)  # refuses one that does not fit before the data are read
    samples = config.trainer.samples.prompts
    data = load_training_data(config.data, model, config.objective, n_samples=samples)
    check_samples(config, data, model.architecture, reward)
    make_sampler(config, data, shards=1)  # refuses impossible sizes before anything is logged
    # The line on the size of the run has the numbers of pairs.
    counts = [
        f"{name}: {count:,}"
        for name, count in data.report.items()
        if count and name != "rows" and not (name.startswith("eval_") and name.endswith("_rows"))
    ]
    notes = (*counts, *getattr(model, "notes", ()), *data.notes, *describe_inputs(config, data))
    return model, data, list(dict.fromkeys(notes))


def _sources(config: TrainConfig) -> Iterator[str | None]:
    """Yield all files, folders and names on the hub that a configuration names."""
    yield from (config.model.path, config.model.adapter, config.model.reference)
    yield config.data.tokenizer
    yield None if config.data.chat_template == "chatml" else config.data.chat_template
    for source in chain(config.data.train_sources, *config.data.evaluation_sources.values()):
        yield from [source.path] if isinstance(source.path, str) else source.path


def describe_unread_date(config: TrainConfig, data: TrainingData) -> list[str]:
    """Name a date that was given and that no template reads.

    Args:
        config: configuration as the user gave it.
        data: its tokenized pairs.

    Returns:
        One sentence or none.
    """
    date = config.data.template_date
    if date is None or data.template_date is not None:
        return []
    return [f"`data.template_date` {date!r} has no effect: the chat template reads no date"]


def run_training(
    config: TrainConfig, folder: AnyPath, *, resume: bool, processes: ProcessGroup | None
) -> TrainResult:
    """Train a policy; write its metrics, checkpoints and configuration.

    Args:
        config: configuration of the run.
        folder: output folder, local or in a bucket.
        resume: continue from the last checkpoint in the folder, if there is one.
        processes: the processes that share the work; None for those that JAX has connected, or
            this one alone.

    Returns:
        The finished run.

    Raises:
        UsageError: if the model, the data or the folder is unusable, or a number is not finite.
        InterruptedRunError: if the run was asked to stop; its state is saved.
    """
    with meet(processes, folder=folder) as meeting, ExitStack() as stack:
        with user_input():
            date = meeting.decide(lambda: _open_run(folder, config, stack, resume=resume))
            data_config = dataclasses.replace(config.data, template_date=date)
            dated = dataclasses.replace(config, data=data_config)
            model, data, notes = meeting.agree(
                lambda: load_inputs(dated, may_start_jax=meeting.may_start_jax),
                lambda inputs: _input_facts(dated, folder, *inputs[:2], resume=resume),
            )
            notes += describe_unread_date(config, data)
            config = config if data.template_date is None else dated
            for note in notes:
                _logger.info("%s", note)
            if resume:
                meeting.decide(lambda: _refuse_lost_checkpoints(folder, config))
            meeting.check_shared(folder)
        meeting.connect()
        summary = _train(config, model, data, folder, resume=resume, processes=meeting.group)
        if meeting.is_first:
            samples = ", samples.jsonl" if config.trainer.samples.prompts else ""
            names = f"metrics.jsonl{samples}, checkpoints, config.yaml, README.md"
            _logger.info("written to %s: %s", folder, names)
    return TrainResult(folder, summary["step"], summary["parameters_sha256"])


def _open_run(folder: AnyPath, config: TrainConfig, stack: ExitStack, *, resume: bool) -> str:
    """Take the output folder until the stack is closed; return the date of chat templates.

    Raises:
        ValueError: if the folder is not one of this run.
    """
    stack.enter_context(output_folder(folder, "train", is_earlier_run=_holds_run))
    if not isinstance(folder, BucketPath):
        check_writable(folder / "checkpoints")  # hours before the first of them is written
    if not resume:
        _refuse_existing_run(folder)
    return _template_date(folder, config, resume=resume)


def _template_date(folder: AnyPath, config: TrainConfig, *, resume: bool) -> str:
    """Return the date that chat templates read as today: that of the run to continue, or today."""
    date, recorded = config.data.template_date, folder / "config.yaml"
    if date is None and resume and recorded.is_file():
        date = read_config(str(recorded), TrainConfig).data.template_date
    # In universal time, so that hosts in different time zones agree.
    return date or datetime.datetime.now(datetime.UTC).date().isoformat()


def _input_facts(
    config: TrainConfig, folder: AnyPath, model: ResolvedModel, data: TrainingData, *, resume: bool
) -> dict[str, str]:
    """Return what must be the same in all processes before the first step."""
    adapter = None if model.adapter is None else model.adapter[0]
    sources = [model.folder, adapter, config.model.reference]
    steps = kept_steps(folder / "checkpoints")
    return {
        **code_facts(),
        **dict(configuration_facts(dataclasses.asdict(config))),
        **file_facts(str(source) for source in sources if source is not None),
        **{SOURCES.get(name, name): digest for name, digest in data.provenance.items()},
        "the tokens of the training pairs": data.train.digest,
        "the tokens of the evaluation pairs": data.evaluation.digest,
        "--resume": str(resume),
        "the last checkpoint": f"step {steps[-1]}" if steps else MISSING,
        **file_facts([str(folder / "reference.safetensors")]),
    }


class _SummaryTracker:
    """A tracker that keeps only the summary of the finished run."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}

    def start(self, step: int) -> None:
        """Do nothing: only the summary is kept."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: only the summary is kept."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Keep the summary."""
        self.summary = dict(summary)


def _train(
    config: TrainConfig,
    model: ResolvedModel,
    data: TrainingData,
    folder: AnyPath,
    *,
    resume: bool,
    processes: ProcessGroup,
) -> dict[str, Any]:
    """Train to the last step; return the summary of the run."""

    def progress(steps: Iterator[int], remaining: int) -> Iterator[int]:
        # All processes train; only the first one writes metrics and shows progress.
        if not processes.is_first:
            return steps
        return track_progress(steps, remaining, f"steps of {config.name}")

    recorder = _SummaryTracker()
    with user_input(), name_os_errors(folder):
        trackers: list[Tracker] = [recorder]
        if processes.is_first:
            trackers.append(make_tracker(folder / "metrics.jsonl", config))
        tracker = CompositeTracker(trackers)
        trainer = Trainer(config, model, data, folder, resume=resume, tracker=tracker)
        if processes.is_first:
            # Write only after model and checkpoint are accepted: a refused run changes nothing.
            write_atomic(folder / "config.yaml", to_yaml(config))
        with watched_preemption(trainer.request_stop, os.environ):
            trainer.train(progress)
        record = trainer.checkpoints.find()  # in all processes, which Orbax lets wait here
        if processes.is_first:
            card = model_card(
                config,
                record,
                read_log(folder / "metrics.jsonl"),
                parameters=recorder.summary["parameters_sha256"],
                configuration=configuration_digest(folder),
                adapter=config.model.trains_adapter,
                base_folder=model.folder,
            )
            write_model_card(folder, card)
    return recorder.summary


def _holds_run(folder: AnyPath) -> bool:
    """Return whether a folder without a mark holds a training run of an earlier version."""
    checkpoints = (folder / "checkpoints").glob("*/_CHECKPOINT_METADATA")
    return (folder / "metrics.jsonl").is_file() and any(
        path.parent.name.isdigit() for path in checkpoints
    )


def _refuse_lost_checkpoints(folder: AnyPath, config: TrainConfig) -> None:
    """Refuse to start a run over whose metrics are those of another or of a longer run.

    A run that was stopped before its first checkpoint starts over, and logs the same metrics again.

    Raises:
        ValueError: if the checkpoints of the run were moved away, or its configuration differs.
    """
    lines = read_log(folder / "metrics.jsonl")
    if not lines or _has_checkpoint(folder):
        return
    recorded = folder / "config.yaml"
    if not recorded.is_file():
        raise ValueError(
            f"{folder}: metrics.jsonl is there, but neither checkpoints nor config.yaml: choose "
            "another --out"
        )
    before = read_config(str(recorded), TrainConfig)
    last, save_steps = lines[-1].get("step", 0), before.trainer.save_steps
    # The save at a step waits for the one before.
    if "event" in lines[-1] or (save_steps and last > 2 * save_steps):
        raise ValueError(
            f"{folder}: the run has made {last} steps, but its checkpoints are gone: move them "
            f"back to {folder / 'checkpoints'}, or choose another --out"
        )
    changed = name_changes(configuration_of(before), configuration_of(config))
    if changed is not None:
        raise ValueError(f"{folder}: a run of another configuration ({changed}): {_ANOTHER_FOLDER}")


def _has_metrics(folder: AnyPath) -> bool:
    """Return whether there are metrics; a run that failed before its first step leaves none."""
    return bool(open_log(folder / "metrics.jsonl").read())


def _has_checkpoint(folder: AnyPath) -> bool:
    return bool(kept_steps(folder / "checkpoints"))


def _refuse_existing_run(folder: AnyPath) -> None:
    if _has_metrics(folder) or _has_checkpoint(folder):
        raise UsageError(
            f"{folder}: a run is there already: continue with --resume, or choose another --out"
        )
