"""Training of a policy: data, objective, step, loop, checkpoints, trackers and memory plans.

:class:`Trainer` runs the loop, :func:`load_policy` reads a trained policy back, and
:func:`make_plan` computes the memory that a run needs. Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import CheckpointRecord, Checkpoints
    from .dataset import TrainingData, load_training_data
    from .diagnostics import DisplacementMonitor, NonFiniteError, linear_coverage
    from .fingerprint import Fingerprint, make_fingerprint
    from .first_step import (
        FirstStep,
        check_first_loss,
        exact_first_loss,
        first_step_tolerance,
        measure_first_step,
    )
    from .inference_plan import InferencePlan, plan_inference
    from .memory_plan import MemoryPlan, largest_fitting_plan, make_plan
    from .moving_reference import (
        ReferenceLogProbs,
        ReferenceWeights,
        average_reference,
        policy_as_reference,
    )
    from .objective import (
        Normalizers,
        flag_non_finite_pairs,
        loss_share,
        normalizers,
        whole_batch_sums,
    )
    from .objective_schedule import ConstantsSchedule, make_constants_schedule, make_schedule
    from .optimizer import clip_by_global_norm, make_optimizer, per_layer, scale_groups
    from .planned_step import PlannedStep, estimate_peak_bytes
    from .policy import Policy, load_policy, resolve_policy
    from .reference_cache import (
        Provenance,
        ReferenceCache,
        attach_reference,
        cache_from_rows,
        compute_reference,
        load_cache,
        merge_caches,
        save_cache,
    )
    from .reference_model import (
        ReferenceScores,
        ResolvedReference,
        resolve_reference,
        score_reference,
    )
    from .run import Run
    from .run_estimate import RunEstimate, estimate_run
    from .run_notes import describe_run
    from .run_services import MlflowTracker, TrackioTracker, WandbTracker
    from .sample_coverage import SampleCoverage
    from .schedules import learning_rate_schedule
    from .scorer import Scorer
    from .step import (
        StepResult,
        TrainState,
        all_finite,
        gradients,
        init_train_state,
        make_evaluation_step,
        make_train_step,
    )
    from .topology import Topology, known_topologies, parse_topology
    from .tracking import (
        CompositeTracker,
        JsonLinesTracker,
        TensorBoardTracker,
        Tracker,
        make_tracker,
    )
    from .trainer import InterruptedRunError, Trainer
    from .trainer_conventions import (
        CONVENTIONS,
        RpoLoss,
        TrainerConvention,
        TrainerName,
        from_trainer_options,
        to_trainer_options,
    )

_EXPORTS = {
    "CONVENTIONS": "trainer_conventions",
    "CheckpointRecord": "checkpoint",
    "Checkpoints": "checkpoint",
    "CompositeTracker": "tracking",
    "ConstantsSchedule": "objective_schedule",
    "DisplacementMonitor": "diagnostics",
    "Fingerprint": "fingerprint",
    "FirstStep": "first_step",
    "InferencePlan": "inference_plan",
    "InterruptedRunError": "trainer",
    "JsonLinesTracker": "tracking",
    "MemoryPlan": "memory_plan",
    "MlflowTracker": "run_services",
    "NonFiniteError": "diagnostics",
    "Normalizers": "objective",
    "PlannedStep": "planned_step",
    "Policy": "policy",
    "Provenance": "reference_cache",
    "ReferenceCache": "reference_cache",
    "ReferenceLogProbs": "moving_reference",
    "ReferenceScores": "reference_model",
    "ReferenceWeights": "moving_reference",
    "ResolvedReference": "reference_model",
    "RpoLoss": "trainer_conventions",
    "Run": "run",
    "RunEstimate": "run_estimate",
    "SampleCoverage": "sample_coverage",
    "Scorer": "scorer",
    "StepResult": "step",
    "TensorBoardTracker": "tracking",
    "Topology": "topology",
    "Tracker": "tracking",
    "TrackioTracker": "run_services",
    "TrainState": "step",
    "Trainer": "trainer",
    "TrainerConvention": "trainer_conventions",
    "TrainerName": "trainer_conventions",
    "TrainingData": "dataset",
    "WandbTracker": "run_services",
    "all_finite": "step",
    "attach_reference": "reference_cache",
    "average_reference": "moving_reference",
    "cache_from_rows": "reference_cache",
    "check_first_loss": "first_step",
    "clip_by_global_norm": "optimizer",
    "compute_reference": "reference_cache",
    "describe_run": "run_notes",
    "estimate_peak_bytes": "planned_step",
    "estimate_run": "run_estimate",
    "exact_first_loss": "first_step",
    "first_step_tolerance": "first_step",
    "flag_non_finite_pairs": "objective",
    "from_trainer_options": "trainer_conventions",
    "gradients": "step",
    "init_train_state": "step",
    "known_topologies": "topology",
    "largest_fitting_plan": "memory_plan",
    "learning_rate_schedule": "schedules",
    "linear_coverage": "diagnostics",
    "load_cache": "reference_cache",
    "load_policy": "policy",
    "load_training_data": "dataset",
    "loss_share": "objective",
    "make_constants_schedule": "objective_schedule",
    "make_evaluation_step": "step",
    "make_fingerprint": "fingerprint",
    "make_optimizer": "optimizer",
    "make_plan": "memory_plan",
    "make_schedule": "objective_schedule",
    "make_tracker": "tracking",
    "make_train_step": "step",
    "measure_first_step": "first_step",
    "merge_caches": "reference_cache",
    "normalizers": "objective",
    "parse_topology": "topology",
    "per_layer": "optimizer",
    "plan_inference": "inference_plan",
    "policy_as_reference": "moving_reference",
    "resolve_policy": "policy",
    "resolve_reference": "reference_model",
    "save_cache": "reference_cache",
    "scale_groups": "optimizer",
    "score_reference": "reference_model",
    "to_trainer_options": "trainer_conventions",
    "whole_batch_sums": "objective",
}

__all__ = [
    "CONVENTIONS",
    "CheckpointRecord",
    "Checkpoints",
    "CompositeTracker",
    "ConstantsSchedule",
    "DisplacementMonitor",
    "Fingerprint",
    "FirstStep",
    "InferencePlan",
    "InterruptedRunError",
    "JsonLinesTracker",
    "MemoryPlan",
    "MlflowTracker",
    "NonFiniteError",
    "Normalizers",
    "PlannedStep",
    "Policy",
    "Provenance",
    "ReferenceCache",
    "ReferenceLogProbs",
    "ReferenceScores",
    "ReferenceWeights",
    "ResolvedReference",
    "RpoLoss",
    "Run",
    "RunEstimate",
    "SampleCoverage",
    "Scorer",
    "StepResult",
    "TensorBoardTracker",
    "Topology",
    "Tracker",
    "TrackioTracker",
    "TrainState",
    "Trainer",
    "TrainerConvention",
    "TrainerName",
    "TrainingData",
    "WandbTracker",
    "all_finite",
    "attach_reference",
    "average_reference",
    "cache_from_rows",
    "check_first_loss",
    "clip_by_global_norm",
    "compute_reference",
    "describe_run",
    "estimate_peak_bytes",
    "estimate_run",
    "exact_first_loss",
    "first_step_tolerance",
    "flag_non_finite_pairs",
    "from_trainer_options",
    "gradients",
    "init_train_state",
    "known_topologies",
    "largest_fitting_plan",
    "learning_rate_schedule",
    "linear_coverage",
    "load_cache",
    "load_policy",
    "load_training_data",
    "loss_share",
    "make_constants_schedule",
    "make_evaluation_step",
    "make_fingerprint",
    "make_optimizer",
    "make_plan",
    "make_schedule",
    "make_tracker",
    "make_train_step",
    "measure_first_step",
    "merge_caches",
    "normalizers",
    "parse_topology",
    "per_layer",
    "plan_inference",
    "policy_as_reference",
    "resolve_policy",
    "resolve_reference",
    "save_cache",
    "scale_groups",
    "score_reference",
    "to_trainer_options",
    "whole_batch_sums",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
