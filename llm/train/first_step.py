r"""Check of the first step: the loss of a policy that is still equal to its reference.

Its preference loss is known: :math:`\log 2` for DPO, another constant or a function of the data for
other losses. If the first loss is another one, the run would optimize another objective.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm.config import TrainConfig
from llm.evaluation.metrics import finalize_metrics
from llm.parallel.mesh import on_host
from llm.types import Batch

from .run import Run

STEP0_TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "bfloat16": 5e-2}
r"""Largest relative error of the first loss, by the dtype of the model.

On SmolLM2-135M in float32 the compiled forward passes of reference and step differ by under 2e-6.
The rest is a margin for deeper models."""


def exact_preference_loss(run: Run, batch: Batch) -> float | None:
    """Return the preference loss of the first step from a forward pass without gradients.

    Args:
        run: a run that has made no update.
        batch: batch of the first step with reference log-probabilities, ``[parts, shards, ...]``.

    Returns:
        The sum of the preference losses with their weights; None if the loss at the reference is
        known without data, or some loss is of the whole batch.
    """
    objective = run.config.objective
    if objective.preference_at_reference is not None or objective.needs_global_batch:
        return None
    sums, _ = run.evaluation_step(run.state.trainable, run.frozen, run.put_on_devices(batch))
    means = finalize_metrics(objective, sums)
    return sum(term.weight * float(on_host(means[term.metric])) for term in objective.terms)


def check_first_loss(
    config: TrainConfig, metrics: Mapping[str, float], preference: float | None = None
) -> None:
    r"""Raise an error if the first loss is not that of a policy equal to its reference.

    Args:
        config: configuration of the run.
        metrics: metrics of the first step.
        preference: exact preference loss, from :func:`exact_preference_loss`; None for the one that
            is known without data. If there is none, nothing is checked.

    Raises:
        ValueError: if the relative error exceeds the tolerance of the dtype.
    """
    objective = config.objective
    known = objective.preference_at_reference if preference is None else preference
    if known is None:
        return
    exact = known + objective.sft_weight * metrics["loss/sft"]
    tolerance = first_step_tolerance(config)
    error = abs(metrics["loss"] - exact)
    if not error <= tolerance * max(1.0, abs(exact)):
        raise ValueError(
            f"the first loss must be {exact:.6f}, that of a policy equal to its reference, got "
            f"{metrics['loss']:.6f}, {error:.1e} off (`trainer.step0_tolerance` is {tolerance:g}): "
            "the reference log-probabilities are not those of this model on these rows"
        )


def first_step_tolerance(config: TrainConfig) -> float:
    """Return the largest relative error of the first loss.

    Args:
        config: configuration of the run.

    Returns:
        ``trainer.step0_tolerance``, or :data:`STEP0_TOLERANCE` of the dtype.

    Examples:
        >>> from llm.config import DataConfig, ModelConfig
        >>> model, data = ModelConfig(path="policy"), DataConfig(train="rows.jsonl")
        >>> first_step_tolerance(TrainConfig(name="run", model=model, data=data))
        0.0002
    """
    return config.trainer.step0_tolerance or STEP0_TOLERANCE[config.model.dtype]
