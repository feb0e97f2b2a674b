r"""Training: from a configuration to a policy, its metrics and its checkpoints.

The first step is a check. The policy is then its own reference, so that the loss must be
:math:`\log 2+\eta\beta\,` NLL to the precision of the dtype; a run in which it is not would train
towards something else, and is refused.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from llm.config import TrainConfig
from llm.data.loader import iterate_batches
from llm.evaluation.metrics import add_metric_sums, finalize_metrics, log_ratio_quantiles
from llm.hashing import weights_digest
from llm.hf.factory import ResolvedModel, build_model
from llm.parallel.mesh import on_host
from llm.precision import computing_in
from llm.types import Batch, Role
from rpo_theory.reductions import weight_per_token

from . import reference_cache
from .checkpoint import Checkpoints
from .dataset import TrainingData
from .diagnostics import DisplacementMonitor
from .non_finite import NonFiniteError, last_good, not_finite, refuse_what_is_not_finite, rows_of
from .run import Run
from .sample_coverage import SampleCoverage
from .step import all_finite
from .tracking import Tracker
from .trainer_conventions import RpoLoss, to_trainer_options

STEP0_TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 5e-2}
r"""How far the first loss may be from its exact value, relative to the loss, by dtype of the model.

Measured on SmolLM2-135M: float32 differs by under 2e-6 between the compiled forward pass of the
reference and that of the step; the rest is a margin for deeper models."""


OWED = "evaluation_owed"
"""In a checkpoint: metrics of its step, if the evaluation that follows it was broken off."""


class InterruptedRunError(Exception):
    """A run was asked to stop, and has saved its state."""


def train(
    config: TrainConfig,
    model: ResolvedModel,
    data: TrainingData,
    folder: Path,
    *,
    resume: bool = False,
    tracker: Tracker,
    say: Callable[[str], None] = lambda sentence: None,
    watch: Callable[[Iterator[int], int], Iterator[int]] = lambda steps, total: steps,
) -> Run:
    """Train a policy.

    Args:
        config: the configuration.
        model: ``config.model``, resolved.
        data: the pairs.
        folder: for checkpoints and the reference cache.
        resume: continue from the last checkpoint, from the beginning if there is none yet.
        tracker: receives the metrics.
        say: receives sentences for people.
        watch: shows the progress of the steps that pass through it.

    Returns:
        The finished run.

    Raises:
        ValueError: the first loss is not what it must be; a value is not finite; a checkpoint is
            damaged or of another run.
        InterruptedRunError: the process was asked to stop; the state is saved.
    """
    with computing_in(config.model.dtype):
        run = Run(config, data, build_model(model, config.mesh))
        checkpoints = Checkpoints(
            folder / "checkpoints", config.trainer.save_total_limit, run.fingerprint()
        )
        # A run that was killed before its first checkpoint goes on from the beginning.
        resume = resume and checkpoints.latest() is not None
        if resume:
            checkpoints.find()  # a run that cannot go on is refused before the reference is run
        cache = run.reference(folder / "reference.safetensors")
        coverage = run.coverage()
        first, owed = _resume(run, checkpoints) if resume else (0, None)
        tracker.start(first if owed is None else first - 1)
        say(_opening(run))
        # Until the last checkpoint is whole, a process that is asked to stop is asked in vain.
        with _asked_to_stop() as stop, checkpoints:
            if owed is not None:
                tracker.log(first, owed)
                if not _evaluated(run, cache, coverage, checkpoints, tracker, first, stop):
                    raise InterruptedRunError(_stopped_after(first))
            loop = _loop(run, cache, coverage, checkpoints, tracker, first, say, stop)
            for _ in watch(loop, run.num_steps - first):
                pass
        digest_of = weights_digest((run.state.trainable, run.frozen))
        tracker.finish({"event": "finished", "step": run.num_steps, "parameters_sha256": digest_of})
    return run


def _resume(run: Run, checkpoints: Checkpoints) -> tuple[int, dict[str, float] | None]:
    """Steps made; metrics of the last of them, if the evaluation that follows was broken off."""
    step, run.state, data_state = checkpoints.restore(run.state)
    return step, data_state[OWED]


def _loop(
    run: Run,
    cache: reference_cache.ReferenceCache | None,
    coverage: SampleCoverage | None,
    checkpoints: Checkpoints,
    tracker: Tracker,
    first: int,
    say: Callable[[str], None],
    stop: threading.Event,
) -> Iterator[int]:
    trainer = run.config.trainer
    displacement = DisplacementMonitor(run.config.objective.beta)
    for step, batch in iterate_batches(run.sampler, first, run.num_steps):
        started = time.perf_counter()
        batch = run.assign_to_shards(batch)
        batch = batch if cache is None else reference_cache.attach_reference(batch, cache)
        run.state, result = run.train_step(run.state, run.frozen, run.put_on_devices(batch))
        measured = {name: float(on_host(value)) for name, value in result.metrics.items()}
        flags = on_host(result.non_finite)
        refuse_what_is_not_finite(measured, flags, batch, step, checkpoints)
        if step == 0:
            check_first_loss(run.config, measured)
        measured |= _about_step(run, batch, step, time.perf_counter() - started)
        done, last = step + 1, step + 1 == run.num_steps
        told = measured if done % trainer.logging_steps == 0 or last else {}
        tracker.log(done, told)
        alarm = displacement.update(measured)
        if alarm is not None:
            say(f"step {done}: {alarm}")
        due = trainer.eval_steps and (done % trainer.eval_steps == 0 or last)
        owed = bool(due) and not _evaluated(run, cache, coverage, checkpoints, tracker, done, stop)
        stopping = owed or (not last and _agreed(stop.is_set()))
        if last or stopping or (trainer.save_steps and done % trainer.save_steps == 0):
            if not bool(on_host(all_finite(run.state))):
                raise not_finite("the updated parameters", batch, step, checkpoints)
            checkpoints.save(done, run.state, {OWED: told if owed else None})
        if stopping:
            raise InterruptedRunError(_stopped_after(done))
        yield done


def _evaluated(
    run: Run,
    cache: reference_cache.ReferenceCache | None,
    coverage: SampleCoverage | None,
    checkpoints: Checkpoints,
    tracker: Tracker,
    done: int,
    stop: threading.Event,
) -> bool:
    """Evaluate and tell; False if that was broken off, as it may take longer than one may wait."""
    try:
        found = evaluate(run, cache, coverage, stopping=lambda: _agreed(stop.is_set()))
    except NonFiniteError as error:
        raise NonFiniteError(f"step {done}: {error}; {last_good(checkpoints)}") from None
    if found is not None:
        tracker.log(done, found)
    return found is not None


def _stopped_after(done: int) -> str:
    return f"stopped after step {done}: continue with --resume"


def evaluate(
    run: Run,
    cache: reference_cache.ReferenceCache | None,
    coverage: SampleCoverage | None = None,
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Metrics of the held-out pairs under the policy as it is.

    Args:
        run: the run.
        cache: of the reference.
        coverage: of the policy's own replies, if it is asked for.
        stopping: asked before every batch whether to break off.

    Returns:
        Metrics, their names with ``eval_`` before them; none without held-out pairs. None if
        it was broken off.

    Raises:
        NonFiniteError: a log-probability of the policy is not finite.
    """
    if not run.data.evaluation:
        return {}
    totals, ours, theirs = None, [], []
    for batch in run.batches_in_order(run.data.evaluation):
        if stopping():
            return None
        batch = batch if cache is None else reference_cache.attach_reference(batch, cache)
        more, log_probs = run.evaluation_step(
            run.state.trainable, run.frozen, run.put_on_devices(batch)
        )
        totals = more if totals is None else add_metric_sums(totals, more)
        here, log_probs = np.asarray(batch.present), on_host(log_probs)
        flags = here & ~np.isfinite(log_probs).all(axis=-1)
        if flags.any():
            raise NonFiniteError(f"not finite in {_held_out(run, batch, flags)}")
        ours.append(log_probs[here, Role.CHOSEN])
        if batch.reference is not None:
            theirs.append(np.asarray(batch.reference)[here, Role.CHOSEN])
    means = finalize_metrics(run.config.objective, totals or {})
    found = {name: float(on_host(value)) for name, value in means.items()}
    if theirs:
        found |= log_ratio_quantiles(np.concatenate(ours), np.concatenate(theirs))
    if coverage is not None and stopping():
        return None
    if coverage is not None:
        found["theory/coverage"] = coverage.measure(run.model())
    return {f"eval_{name}": value for name, value in found.items()}


def _held_out(run: Run, batch: Batch, flags: np.ndarray) -> str:
    """Rows by their numbers in their own file, in words."""
    data = run.config.data
    if data.eval is None:
        return f"{rows_of(batch, flags)} of {data.train}"
    return f"{rows_of(batch, flags, run.data.report['rows'])} of {data.eval}"


def check_first_loss(config: TrainConfig, measured: Mapping[str, float]) -> None:
    r"""Refuse to train if the first loss is not that of a policy equal to its reference.

    Args:
        config: the configuration.
        measured: metrics of the first step.

    Raises:
        ValueError: they differ by more than the tolerance of the dtype.
    """
    objective = config.objective
    exact = objective.preference_at_reference + objective.sft_weight * measured["loss/sft"]
    tolerance = config.trainer.step0_tolerance or STEP0_TOLERANCE[config.model.dtype]
    off = abs(measured["loss"] - exact)
    if not off <= tolerance * max(1.0, abs(exact)):
        raise ValueError(
            f"the first loss must be {exact:.6f}, that of a policy equal to its reference, got "
            f"{measured['loss']:.6f}, {off:.1e} off (`trainer.step0_tolerance` is {tolerance:g}): "
            "the reference log-probabilities are not those of this model on these rows"
        )


def _opening(run: Run) -> str:
    """What a run says of itself before it starts."""
    objective = run.config.objective
    mean = float(np.mean(run.data.train.lengths[:, 1]))
    weight = weight_per_token(
        eta=objective.eta, beta=objective.beta, mean_tokens=mean, reduction=objective.sft_reduction
    )
    trained = sum(leaf.size for leaf in jax.tree.leaves(run.state.trainable))
    pairs = f"{len(run.data.train):,} pairs, {len(run.data.evaluation):,} held out"
    steps = f"{run.num_steps:,} steps of {run.sampler.pairs_per_step} pairs"
    lines = [f"{pairs}; {steps}; {trained:,} parameters trained"]
    if objective.method == "rpo":
        loss = RpoLoss(objective.beta, objective.eta, objective.sft_reduction)
        theirs = to_trainer_options("trl", loss, mean_tokens=mean)["loss_weights"][1]
        lines.append(
            f"weight of a chosen token's log-probability: {weight:.3g} a pair; TRL's "
            f'loss_type ["sigmoid", "sft"] has it with loss_weights [1, {theirs:.3g}]'
        )
    return "\n".join(lines)


def _about_step(run: Run, batch: Batch, step: int, seconds: float) -> dict[str, float]:
    segments = np.asarray(batch.rows.segments)
    tokens = int(np.count_nonzero(segments))
    return {
        "learning_rate": float(np.asarray(run.learning_rate(step))),
        "epoch": (step + 1) / run.sampler.steps_per_epoch,
        "num_tokens": float(tokens),
        "perf/tokens_per_second": tokens / seconds,
        "perf/padding_fraction": 1.0 - tokens / segments.size,
    }


def _agreed(stop: bool) -> bool:
    """Whether any process was asked to stop: they all stop after the same step."""
    if jax.process_count() == 1:
        return stop
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(stop))))


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set, so that a step is finished and saved first."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {kind: signal.signal(kind, lambda *_: event.set()) for kind in kinds}
    try:
        yield event
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
