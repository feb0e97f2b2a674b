"""The experiments of ``rpo demo``: reward hacking, data coverage, transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

COMPARISONS = (30, 100, 300, 1000, 3000, 10_000)
"""Numbers of comparisons at which reward hacking is measured."""
METHODS: dict[str, Literal["chosen", "reference"] | None] = {
    "DPO": None,
    "RPO, baseline chosen": "chosen",
    "RPO, baseline reference": "reference",
}
"""Baseline of each method; DPO has none."""
BETA, ETA = 0.1, 0.1
Curve = tuple[list[int], list[float], list[float]]
STUDY: dict[str, Any] = {
    "name": "partial_coverage",
    "comparisons": [1000, 10_000, 100_000],
    "seeds": 100,
    "design": {
        "actions": 8,
        "rare": 4,
        "rare_comparisons": 1.0,
        "target_coverage": 1.5,
        "reward_max": 2.0,
        "gaps": "log_uniform",
    },
}
"""The study of ``configs/study_rate_in_n.yaml`` with fewer seeds."""
SEEDS = (0, 1)
"""Seeds of the transformers that are compared with the minimax policy."""


def measure_hacking_gaps() -> dict[str, list[float]]:
    """Measure the gap to the best response on the instance of Type I reward hacking.

    Returns:
        For each method of :data:`METHODS` its gap at each of :data:`COMPARISONS`.
    """
    import jax
    import numpy as np

    from bandits.environments.instances import type_i_hacking
    from rpo_theory import minimax, objectives

    instances = [
        type_i_hacking(n, baseline=baseline or "chosen", eta=None if baseline else 0.0)
        for baseline in METHODS.values()
        for n in COMPARISONS
    ]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *instances)
    policies = minimax.solve_batch(batch.problem, batch.reward_class).policy
    gaps = jax.jit(jax.vmap(objectives.gap))(
        policies, batch.comparator, batch.true_reward, batch.problem.context_weights
    )
    rows = np.reshape(gaps, (len(METHODS), len(COMPARISONS)))
    return dict(zip(METHODS, rows.tolist(), strict=True))


def train_on_toy_task() -> dict[str, Curve]:
    """Train a tiny transformer with DPO and with RPO on a task whose true reward is known.

    Returns:
        For each method the steps, the mean log-probability of the chosen responses and the true
        reward of the policy.
    """
    from llm.config import ObjectiveConfig
    from llm.finite.overoptimization import make_toy_problem, train_on_toy_problem

    toy = make_toy_problem(0)
    curves = {}
    objectives = {
        "DPO": ObjectiveConfig(method="dpo", beta=BETA),
        "RPO": ObjectiveConfig(method="rpo", beta=BETA, eta=ETA),
    }
    for name, objective in objectives.items():
        curve = train_on_toy_problem(toy, objective, steps=300, measure_every=15)
        curves[name] = (curve.steps.tolist(), curve.chosen.tolist(), curve.true_reward.tolist())
    return curves


def study_partial_coverage() -> Mapping[str, np.ndarray]:
    """Run a study in which the data cover the best policy, but not its rivals.

    Returns:
        Its summary, as :func:`bandits.study.summary.summarize` returns it.
    """
    from bandits.methods.method_config import MethodConfig
    from bandits.study.config import StudyConfig
    from bandits.study.parts import draw_part, plan_parts
    from bandits.study.run import run_part
    from bandits.study.summary import summarize

    rpo = MethodConfig(method="rpo", options={"baseline": "given"})
    study = StudyConfig(methods=[rpo, "dpo", "two_stage", "greedy_mle"], **STUDY)
    tables = [run_part(study, part, draw_part(part))[0] for part in plan_parts(study)]
    return summarize(tables)


def train_to_minimax_policy() -> dict[str, list[tuple[list[int], list[float]]]]:
    """Train transformers of two sizes with the RPO loss, and compare them with the exact policy.

    Returns:
        For each size one curve per seed: the steps, and the total variation from the minimax
        policy.
    """
    from llm.finite.minimax_agreement import DECODER_SIZES, train_to_minimax

    curves_of = {}
    for size in DECODER_SIZES:
        curves = [train_to_minimax(size, seed=seed) for seed in SEEDS]
        curves_of[size] = [(curve.steps.tolist(), curve.variation.tolist()) for curve in curves]
    return curves_of
