r"""The training loop: from a configuration to a policy, its metrics and its checkpoints.

The first step is a check. The loss of a policy that is still equal to its reference is known, for
RPO :math:`\log 2 + \eta\beta \cdot \text{NLL}`; if another model is the reference, the first loss
is the mean of the exact losses of the rows. Otherwise the run would optimize another objective, and
it is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from llm.config import ObjectiveConstants, TrainConfig
from llm.data.loader import iterate_batches
from llm.hashing import parameters_sha256
from llm.hf.factory import ResolvedModel, build_model
from llm.parallel.mesh import decide_on_first, on_host
from llm.precision import computing_in
from llm.types import Batch
from rpo_io.bucket_paths import AnyPath

from . import reference_cache
from .batches import describe_last_step
from .best_checkpoint import BEST, BestEvaluation, check_best_metric
from .checkpoint import Checkpoints
from .dataset import TrainingData
from .diagnostics import DisplacementMonitor, NonFiniteError, locate_non_finite, name_rows
from .evaluation import measure_pairs
from .first_step import FirstStep, check_first_loss, first_step_tolerance, measure_first_step
from .moving_reference import ReferenceLogProbs
from .policy_samples import PolicySamples, RewardError, StopRequestedError
from .profiling import FOLDER, StepProfiler
from .reference_check import check_given_reference
from .reference_model import resolve_reference, score_reference
from .resume import (
    EXECUTION,
    NUM_STEPS,
    PENDING_EVALUATION,
    check_steps,
    describe_resume,
    execution_of,
)
from .run import Run
from .run_notes import describe_run
from .sample_coverage import SampleCoverage
from .schedules import describe_warmup
from .step import all_finite
from .stopping import SaveTimer, StopRequest
from .tracking import CompositeTracker, Tracker

Progress = Callable[[Iterator[int], int], Iterator[int]]
"""Wraps the iterator over finished steps, given the number of steps left, to display progress."""

_logger = logging.getLogger(__name__)


class InterruptedRunError(Exception):
    """The run was asked to stop and has saved its state."""


class Trainer:
    """The training loop of one run.

    Everything that can be refused is checked when the object is created: the configuration, the
    model, the checkpoint to continue from and the reference log-probabilities.

    Attributes:
        run: model, optimizer, sampler and compiled steps.
        checkpoints: checkpoints in the folder of the run.
        tracker: receives the metrics.
        cache: log-probabilities of the first reference; None if the objective needs none.
        coverage: measure of the policy's own replies; None if the configuration asks for none.
        samples: replies of the policy; None if the configuration asks for none.
        first_step: number of updates made before :meth:`train` begins; positive on resume.
    """

    run: Run
    checkpoints: Checkpoints
    tracker: Tracker
    cache: reference_cache.ReferenceCache | None
    coverage: SampleCoverage | None
    samples: PolicySamples | None
    first_step: int

    def __init__(
        self,
        config: TrainConfig,
        model: ResolvedModel,
        data: TrainingData,
        folder: AnyPath,
        *,
        tracker: Tracker | None = None,
        resume: bool = False,
    ) -> None:
        """Create a run, or restore it from its last checkpoint.

        Args:
            config: configuration of the run.
            model: ``config.model``, resolved by :func:`llm.hf.factory.resolve_model`.
            data: tokenized pairs, from :func:`llm.train.dataset.load_training_data`.
            folder: folder for ``checkpoints`` and the cache of reference log-probabilities, local
                or in a bucket.
            tracker: receives the metrics; None drops them.
            resume: continue from the last checkpoint; a run without one starts from the beginning.

        Raises:
            ValueError: if a reference log-probability is not finite, or the checkpoint is damaged
                or belongs to another model, data set or configuration, or has made more steps than
                the configuration asks for.
        """
        self.tracker = CompositeTracker([]) if tracker is None else tracker
        self.first_step = 0
        self._pending: dict[str, float] | None = None
        self._stop = StopRequest()
        self._resume_notes: list[str] = []
        recorded = None
        with computing_in(config.model.dtype):
            tolerance, cache_file = first_step_tolerance(config), folder / "reference.safetensors"
            other, scores = resolve_reference(config, model), None
            if other is not None:
                scores = score_reference(other, config, data, cache_file, tolerance=tolerance)
            digest = None if scores is None else scores.digest
            decoder = build_model(model, config.mesh, max_length=config.data.max_length)
            self.run = Run(config, data, decoder, reference_digest=digest)
            self.checkpoints = Checkpoints(
                folder / "checkpoints",
                keep=config.trainer.save_total_limit,
                keep_best=config.trainer.metric_for_best_model is not None,
                fingerprint=self.run.fingerprint(),
            )
            resume = decide_on_first(resume and self.checkpoints.latest() is not None)
            self._execution = execution_of(self.run.config, dict(self.run.devices.mesh.shape))
            if resume:  # refuses a wrong checkpoint before the reference runs
                found = self.checkpoints.find()
                check_steps(config.trainer, found.step, self.run.num_steps)
                self.first_step, recorded = found.step, found.data.get(BEST)
            self._best = BestEvaluation(config.trainer, recorded)
            if scores is None:
                self.cache = self.run.reference(cache_file)
                check_given_reference(self.run, tolerance=tolerance)
            else:
                self.cache = scores.cache
            self._reference = ReferenceLogProbs(self.run, self.cache, self.first_step)
            self.coverage = self.run.coverage()
            self.samples = None
            if config.trainer.samples.prompts:
                self.samples = PolicySamples(config, data, self.run.architecture, folder)
            more = () if self.samples is None else self.samples.names
            check_best_metric(self.run, self._reference.attach, more)
            if resume:
                record, self.run.state = self.checkpoints.restore(self.run.state)
                self._pending = record.data[PENDING_EVALUATION]
                steps, dropout = self.run.num_steps, self.run.has_dropout
                self._resume_notes = describe_resume(
                    record.step, steps, record.data, self._execution, dropout=dropout
                )
        self._profiler = StepProfiler(
            folder / FOLDER, self.first_step, config.trainer.profile_steps
        )

    def request_stop(self) -> None:
        """Ask the run to stop after the current step, once its state is saved.

        SIGTERM, SIGINT and SIGHUP do the same while :meth:`train` runs in the main thread.
        """
        self._stop.set()

    def train(self, progress: Progress = lambda steps, remaining: steps) -> Run:
        """Train to the last step.

        Args:
            progress: displays the progress of the steps that pass through it.

        Returns:
            The finished run, whose ``state`` holds the parameters.

        Raises:
            ValueError: if the first loss is not that of a policy equal to its reference, or a
                checkpoint cannot be written.
            NonFiniteError: if a loss, gradient, parameter or log-probability is not finite.
            RewardError: if ``trainer.samples.reward`` fails; the state is saved.
            InterruptedRunError: if the run was asked to stop; its state is saved.
        """
        run, pending = self.run, self._pending
        with computing_in(run.config.model.dtype):
            kept = self.first_step if pending is None else self.first_step - 1
            self.tracker.start(kept)
            if self.samples is not None:
                self.samples.start(kept)
            last = describe_last_step(run.sampler, run.num_steps)
            warmup = describe_warmup(run.config.optimizer, run.num_steps)
            for line in filter(None, (*self._resume_notes, *describe_run(run), last, warmup)):
                _logger.info(line)
            # Further stop signals are ignored until the final checkpoint is complete.
            with self._stop.on_signals(), self.checkpoints:
                if pending is not None:
                    self.tracker.log(self.first_step, pending)
                starts = run.config.trainer.eval_on_start and self.first_step == 0
                is_due = starts or pending is not None
                if is_due and self._evaluate_and_log(self.first_step) is None:
                    raise InterruptedRunError(_stopped_after(self.first_step))
                try:
                    for _ in progress(self._steps(), run.num_steps - self.first_step):
                        pass
                finally:
                    self._profiler.close()
            digest = parameters_sha256(run.state.trainable, run.frozen)
            finished = {"event": "finished", "step": run.num_steps, "parameters_sha256": digest}
            if self._best.step is not None:
                name = run.config.trainer.metric_for_best_model
                _logger.info(
                    "best checkpoint: step %d, %s %.6g", self._best.step, name, self._best.value
                )
                finished |= {"best_step": self._best.step, "best_value": self._best.value}
            self.tracker.finish(finished)
        return run

    def evaluate(self) -> dict[str, float] | None:
        """Measure the held-out pairs under the current policy.

        Returns:
            Metrics, each name with the prefix ``eval_``, and with ``eval_NAME_`` for a named set;
            empty without held-out pairs. None if the run was asked to stop meanwhile.

        Raises:
            NonFiniteError: if a log-probability of the policy is not finite.
        """
        run, metrics = self.run, {}
        with computing_in(run.config.model.dtype):
            constants = self._constants()
            for name, pairs in run.data.evaluation_sets.items():
                measured = measure_pairs(
                    run, pairs, self._reference.attach, constants, self._stop.is_set
                )
                if measured is None:
                    return None
                prefix = f"eval_{name}_" if name else "eval_"
                metrics |= {f"{prefix}{key}": value for key, value in measured.items()}
            if self.coverage is not None:
                if self._stop.is_set():
                    return None
                covered = self.coverage.measure(run.model()).metrics()
                metrics |= {f"eval_{key}": value for key, value in covered.items()}
            if self.samples is not None:
                try:
                    metrics |= self.samples.measure(run.model(), self._stop.is_set)
                except StopRequestedError:
                    return None
        return metrics

    def _steps(self) -> Iterator[int]:
        """Make one step after another; yield the number of updates made."""
        run, config = self.run, self.run.config.trainer
        displacement = DisplacementMonitor(run.config.objective.beta)
        timer = SaveTimer(config.save_minutes)
        for step, batch in iterate_batches(run.sampler, self.first_step, run.num_steps):
            started = time.perf_counter()
            self._reference.before_step(step)
            batch = self._reference.attach(run.assign_to_shards(batch))
            self._profiler.before(step)
            first = measure_first_step(run, batch) if step == 0 else FirstStep(None, None)
            run.state, result = run.train_step(run.state, run.frozen, run.put_on_devices(batch))
            metrics = {name: float(on_host(value)) for name, value in result.metrics.items()}
            self._profiler.after(step)
            done, is_last = step + 1, step + 1 == run.num_steps
            bad = locate_non_finite(metrics, on_host(result.non_finite), batch)
            if bad is not None:
                raise self._non_finite_error(done, bad)
            if step == 0:
                check_first_loss(run.config, first.metrics or metrics, first.exact)
            metrics |= _progress_metrics(run, batch, step, time.perf_counter() - started)
            logged = metrics if done % config.logging_steps == 0 or is_last else {}
            self.tracker.log(done, logged)
            warning = displacement.update(metrics)
            if warning is not None:
                _logger.warning("step %d: %s", done, warning)
            is_due = config.eval_steps and (done % config.eval_steps == 0 or is_last)
            failure: RewardError | None = None
            try:
                measured = self._evaluate_and_log(done) if is_due else {}
            except RewardError as error:  # once the function is mended, --resume repeats this
                measured, failure = None, error
            is_pending = measured is None
            score = self._best.update(done, measured or {})
            is_better = score is not None
            stops = is_pending or (not is_last and self._stop.is_set())
            is_step = bool(config.save_steps) and done % config.save_steps == 0
            if timer.is_due() or is_last or stops or is_better or is_step:
                if not bool(on_host(all_finite(run.state))):
                    rows = name_rows(batch, batch.present)
                    where = f"the updated parameters of the step on {rows}"
                    raise self._non_finite_error(done, where)
                pending = logged if is_pending else None
                self.checkpoints.save(done, run.state, self._loop_state(pending), score=score)
                timer.restart()
            if failure is not None:
                raise RewardError(f"{failure}; {_stopped_after(done)}")
            if stops:
                raise InterruptedRunError(_stopped_after(done))
            yield done

    def _constants(self) -> ObjectiveConstants | None:
        """Return the scheduled constants after the updates made so far; None if constant."""
        schedule = self.run.constants
        return None if schedule is None else schedule(int(on_host(self.run.state.step)))

    def _loop_state(self, pending: Mapping[str, float] | None) -> dict[str, Any]:
        """Return what a checkpoint records beside the arrays."""
        return {
            PENDING_EVALUATION: pending,
            NUM_STEPS: self.run.num_steps,
            EXECUTION: self._execution,
            BEST: self._best.record(),
        }

    def _evaluate_and_log(self, done: int) -> dict[str, float] | None:
        """Return None if the evaluation was interrupted: it may take longer than a stop may."""
        try:
            metrics = self.evaluate()
        except NonFiniteError as error:
            latest = self.checkpoints.describe_latest()
            raise NonFiniteError(f"step {done}: {error}; {latest}") from None
        if metrics is not None:
            self.tracker.log(done, metrics)
            if self.samples is not None:
                self.samples.write(done)
        return metrics

    def _non_finite_error(self, done: int, where: str) -> NonFiniteError:
        latest = self.checkpoints.describe_latest()
        return NonFiniteError(f"step {done}: not finite in {where}; {latest}")


def _progress_metrics(run: Run, batch: Batch, step: int, seconds: float) -> dict[str, float]:
    segments = np.asarray(batch.rows.segments)
    tokens = int(np.count_nonzero(segments))
    return {
        "learning_rate": float(np.asarray(run.learning_rate(step))),
        "epoch": (step + 1) / run.sampler.steps_per_epoch,
        "num_tokens": float(tokens),
        "perf/tokens_per_second": tokens / seconds,
        "perf/padding_fraction": 1.0 - tokens / segments.size,
    }


def _stopped_after(done: int) -> str:
    return f"stopped after step {done}: continue with --resume"
