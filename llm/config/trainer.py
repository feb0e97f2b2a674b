"""Length of a run, its batches, evaluations, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .checks import at_least, positive
from .samples import SamplesConfig

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length of a run, its batches, evaluations, checkpoints and logs.

    Attributes:
        max_steps: number of steps; None for ``num_train_epochs``.
        num_train_epochs: number of passes over the data.
        per_device_train_batch_size: pairs of a microbatch on each device; devices along
            ``mesh.tensor`` count as one.
        gradient_accumulation_steps: microbatches of a step.
        global_batch_size: pairs of a step over all devices; None for the product of the two keys
            above and the number of devices. With a number, ``gradient_accumulation_steps`` is
            computed, and ``per_device_train_batch_size`` is the largest size of a microbatch.
        dataloader_drop_last: leave the last step of an epoch out if it has fewer pairs than the
            others. By default it is made, as in Transformers, and its pairs count more.
        eval_steps: number of steps between evaluations, which also follow the last step; 0 for no
            evaluation.
        eval_on_start: evaluate also before the first step.
        coverage_samples: number of held-out prompts that the policy answers at an evaluation, to
            measure how well the data cover its replies; 0 for none. Full fine-tuning keeps a copy
            of the initial parameters for it.
        samples: replies of the policy at evaluations, see :class:`SamplesConfig`.
        save_steps: number of steps between checkpoints; 0 for none by number of steps.
        save_minutes: minutes between checkpoints, besides those by number of steps, the last one
            and that of a stop; 0 for none by time.
        save_total_limit: number of checkpoints to keep.
        metric_for_best_model: metric of an evaluation, such as ``eval_loss``. The checkpoint with
            its best value is kept beside the last ones; every better evaluation makes one. None
            keeps the last ones only.
        greater_is_better: whether a larger value of that metric is better.
        logging_steps: number of steps between logged metrics.
        profile_steps: number of steps of which a trace is written to ``profile`` in the folder of
            the run, for TensorBoard or Perfetto; they follow the first step, which compiles.
        seed: seed of the order of the data.
        report_to: further trackers of metrics: ``tensorboard``, ``wandb``, ``mlflow``, ``trackio``.
        step0_tolerance: largest relative error of the first loss; None for a measured value by
            dtype.

    Raises:
        ValueError: if a value is out of range.
    """

    max_steps: int | None = None
    num_train_epochs: float = 1.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    global_batch_size: int | None = None
    dataloader_drop_last: bool = False
    eval_steps: int = 0
    eval_on_start: bool = False
    coverage_samples: int = 0
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    save_steps: int = 0
    save_minutes: float = 15.0
    save_total_limit: int = 2
    metric_for_best_model: str | None = None
    greater_is_better: bool = False
    logging_steps: int = 1
    profile_steps: int = 0
    seed: int = 0
    report_to: list[TrackerName] = field(default_factory=list)
    step0_tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "eval_steps": 0,
            "coverage_samples": 0,
            "save_steps": 0,
            "save_total_limit": 1,
            "logging_steps": 1,
            "profile_steps": 0,
            "seed": 0,
        }
        for name, bound in least.items():
            at_least(f"trainer.{name}", getattr(self, name), bound)
        if self.save_minutes != 0:
            positive("trainer.save_minutes", self.save_minutes)
        if self.global_batch_size is not None:
            at_least("trainer.global_batch_size", self.global_batch_size, 1)
            if self.gradient_accumulation_steps != 1:
                raise ValueError(
                    "`trainer.gradient_accumulation_steps` must not be given with "
                    "`trainer.global_batch_size`, from which it is computed, got "
                    f"{self.gradient_accumulation_steps}: remove one of them"
                )
        if self.max_steps is not None:
            at_least("trainer.max_steps", self.max_steps, 1)
        positive("trainer.num_train_epochs", self.num_train_epochs)
        if self.metric_for_best_model is not None and not self.eval_steps:
            raise ValueError(
                "`trainer.metric_for_best_model` needs evaluations: set `trainer.eval_steps`"
            )
        if self.step0_tolerance is not None:
            positive("trainer.step0_tolerance", self.step0_tolerance)
