"""Results of ``verify``, ``demo`` and ``solve``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from rpo_io.figures import PALETTE, axes_or_new
from rpo_io.strict_json import null_non_finite

from .base import MAX_CELL_CHARACTERS, Result, without_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TICK_NAMES = 30
"""Named ticks of an axis; an axis with more is numbered."""


@dataclass(frozen=True)
class Claim:
    """One checked claim.

    Attributes:
        name: the claim in words, with the measured quantity after a colon.
        bar: largest value of the quantity for which the claim holds.
        measured: the measured value; NaN if it is undefined.
        holds: whether the measured value is at most the bar.
    """

    name: str
    bar: float
    measured: float
    holds: bool

    @property
    def sentence(self) -> str:
        """Verdict, name, bar and measured value in one line."""
        verdict = "holds" if self.holds else "FAILS"
        measured = f"{self.measured:.1e}" if math.isfinite(self.measured) else "not a number"
        return f"{verdict}: {self.name} at most {self.bar:.0e}, measured {measured}"


@dataclass(frozen=True)
class Verification(Result):
    """Result of ``verify``.

    Attributes:
        claims: the checked claims.
        instances: one record per random instance, as in ``verify.json``.
        negative_controls: one record per negative control, as in ``verify.json``.
        folder: folder of ``verify.json`` and ``verify.png``.
    """

    claims: tuple[Claim, ...]
    instances: tuple[Mapping[str, Any], ...]
    negative_controls: tuple[Mapping[str, Any], ...]
    folder: Path

    @property
    def holds(self) -> bool:
        """Whether every claim holds."""
        return all(claim.holds for claim in self.claims)

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if a claim fails."""
        return 0 if self.holds else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the claims and the folder as plain values."""
        return {"claims": self.table_rows(), "out": str(self.folder)}

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return one row per claim."""
        return [null_non_finite(asdict(claim)) for claim in self.claims]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each measured value as a share of its bar; values that are not finite have none."""
        ax = axes_or_new(ax)
        shares = [
            claim.measured / claim.bar if 0 < claim.measured < math.inf else math.nan
            for claim in self.claims
        ]
        colors = [PALETTE["blue" if claim.holds else "orange"] for claim in self.claims]
        ax.barh(range(len(shares)), shares, color=colors)
        names = [claim.name.partition(":")[0] for claim in self.claims]
        ax.set_yticks(range(len(shares)), names, wrap=True)
        ax.invert_yaxis()
        ax.axvline(1.0, color="black", lw=1.5)
        ax.set_xscale("log")
        ax.set_xlabel("measured value as a share of the bar")
        return without_frame(ax)


@dataclass(frozen=True)
class Demonstration(Verification):
    """Result of ``demo``.

    Attributes:
        summary: content of ``summary.json``: all numbers of the report.
    """

    summary: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary and the folder as plain values."""
        return {**self.summary, "out": str(self.folder)}


@dataclass(frozen=True)
class Improvement:
    """Confidence interval for the value of a policy minus that of the baseline policy.

    Attributes:
        confidence: level of the interval.
        seed: seed of the split of the data.
        lower: lower end, in units of reward.
        upper: upper end.
    """

    confidence: float
    seed: int
    lower: float
    upper: float

    @property
    def is_proven(self) -> bool:
        """Whether the policy improves on the baseline at the confidence level."""
        return self.lower > 0.0

    @property
    def sentence(self) -> str:
        """Verdict in one sentence."""
        level = f"{100.0 * self.confidence:.10g} % confidence"
        if self.is_proven:
            return f"At {level} the policy improves on the baseline policy."
        if self.upper < 0.0:
            return f"At {level} the policy is worse than the baseline policy."
        return f"The data do not prove at {level} that the policy improves on the baseline policy."

    def to_dict(self) -> dict[str, Any]:
        """Return the interval as plain values."""
        return {**null_non_finite(asdict(self)), "proven": self.is_proven}


@dataclass(frozen=True, kw_only=True)
class CertifiedSolution(Result):
    """A policy, the adversary's reward, and the proof of how good they are.

    Attributes:
        policy: probability of every action in every context.
        reward: the adversary's reward; infinite where it diverges.
        value: F at the reward (eq. 4.4), in nats; NaN if it is undefined.
        duality_gap: bound on the distance of the value from the optimum, in nats; infinite if
            nothing is proven, as for the unbounded class.
        kkt_residual: largest violation of the optimality conditions.
        policy_kl_bound: bound on the mean KL divergence from the exact policy that the duality gap
            proves, nats.
        policy_tv_bound: the same for the mean total variation distance.
        stationarity_residual: largest violation of identity S1; None unless the class is unbounded.
        status: ``"solved"``, ``"not_attained"`` or the reason why there is no solution.
        message: the status as a sentence.
        ranking: names of the actions by decreasing probability, with that probability under the
            context weights; None unless the problem comes from votes.
    """

    policy: Float[np.ndarray, "x a"]
    reward: Float[np.ndarray, "x a"]
    value: float
    duality_gap: float
    kkt_residual: float
    policy_kl_bound: float
    policy_tv_bound: float
    stationarity_residual: float | None
    status: str
    message: str
    ranking: tuple[tuple[str, float], ...] | None = None

    @property
    def is_solved(self) -> bool:
        """Whether the policy is optimal, possibly as a limit that no reward attains."""
        return self.status in ("solved", "not_attained")

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if there is no solution."""
        return 0 if self.is_solved else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the solution as plain values; None stands for a number that is not finite."""
        document: dict[str, Any] = {
            name: null_non_finite(getattr(self, name))
            for name in ("policy", "reward", "value", "duality_gap", "kkt_residual")
        }
        for name in ("policy_kl_bound", "policy_tv_bound"):
            document[name] = null_non_finite(getattr(self, name))
        if self.stationarity_residual is not None:
            document["stationarity_residual"] = null_non_finite(self.stationarity_residual)
        document |= {"status": self.status, "message": self.message}
        return document | self._ranking_to_dict()

    def _ranking_to_dict(self) -> dict[str, Any]:
        if self.ranking is None:
            return {}
        names, probabilities = zip(*self.ranking, strict=True)
        return {
            "ranking": list(names),
            "ranking_probability": null_non_finite(probabilities),
        }


@dataclass(frozen=True, kw_only=True)
class Answer(CertifiedSolution):
    """Result of ``solve``.

    Attributes:
        formulation: ``"minimax"``, ``"maximin"`` or ``"policy"``.
        beta: weight of the KL term.
        eta: weight of the adversarial term.
        reward_class: kind of the reward class, and its bound ``max`` or ``radius`` if it has one.
        baseline: ``"chosen"`` or ``"reference"``, or ``"given"`` for a table.
        comparisons: number of comparisons in the data.
        observations: number of all observations: comparisons, rankings, choices and ties.
        further_data: number of ``rankings``, ``choices`` and ``ties``, and the ``tie_model`` with
            its ``tie_parameter``; without the kinds that the data do not have.
        notes: remarks on the input and on the solution.
        gap: expected true reward of the comparator minus that of the policy; None if no true
            reward is known.
        coverage: coverage of the comparator by the data; None if no true reward is known or if it
            is not in the class.
        proven_duality_gap: upper bound on the duality gap that encloses all rounding errors, nats;
            None unless asked for.
        improvement: confidence interval for the value of the policy minus that of the baseline;
            None unless asked for.
        contexts: names of the contexts; None unless the problem comes from votes.
        actions: names of the actions; None unless the problem comes from votes.
        occurs: whether an action occurs in a context, shape ``[x a]``; None unless the problem
            comes from votes.
        by_context: whether the table shows the policy of every context, not the ranking.
        dpo: solution of the same problem with ``eta = 0``; None unless it comes from votes.
    """

    formulation: str
    beta: float
    eta: float
    comparisons: float
    observations: float
    further_data: Mapping[str, float | str] = field(default_factory=dict)
    reward_class: Mapping[str, Any] = field(default_factory=dict)
    baseline: str = "given"
    notes: tuple[str, ...] = ()
    gap: float | None = None
    coverage: float | None = None
    proven_duality_gap: float | None = None
    improvement: Improvement | None = None
    contexts: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    occurs: Bool[np.ndarray, "x a"] | None = None
    by_context: bool = False
    dpo: CertifiedSolution | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values; None stands for a number that is not finite."""
        document = super().to_dict()
        ranking = {name: document.pop(name) for name in self._ranking_to_dict()}
        if self.proven_duality_gap is not None:
            document["proven_duality_gap"] = null_non_finite(self.proven_duality_gap)
        if self.improvement is not None:
            document["improvement"] = self.improvement.to_dict()
        if self.gap is not None:
            document |= null_non_finite({"gap": self.gap, "coverage": self.coverage})
        document |= ranking
        if self.ranking is not None and self.actions is not None and self.occurs is not None:
            count = dict(zip(self.actions, self.occurs.sum(axis=0).tolist(), strict=True))
            document["ranking_contexts"] = [count[name] for name, _ in self.ranking]
        if self.dpo is not None:
            document["dpo"] = self.dpo.to_dict()
        if self.contexts is not None and self.actions is not None:
            document |= {"contexts": list(self.contexts), "actions": list(self.actions)}
        for name in ("formulation", "beta", "eta", "baseline", "comparisons", "observations"):
            document[name] = getattr(self, name)
        document |= self.further_data
        document["reward_class"] = dict(self.reward_class)
        return document | {"notes": list(self.notes)}

    def context_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return one row per context and action: its probability, and that under DPO if known.

        Actions are in decreasing order of their probability. An action that does not occur in a
        context has no row there.
        """
        contexts = self.contexts or range(len(self.policy))
        actions = self.actions or range(self.policy.shape[1])
        rows = []
        for x, context in enumerate(contexts):
            for a in np.argsort(-self.policy[x], kind="stable"):
                if self.occurs is not None and not self.occurs[x, a]:
                    continue
                row = {
                    "context": context,
                    "action": actions[a],
                    "probability": float(self.policy[x, a]),
                }
                if self.dpo is not None:
                    row["DPO"] = float(self.dpo.policy[x, a])
                rows.append(row)
        return rows

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return one row per action, the most likely first, if the actions have names."""
        if self.by_context:
            return self.context_rows()
        if self.ranking is None:
            return super().table_rows()
        return [{"action": name, "probability": share} for name, share in self.ranking]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the policy as an image, one row per context."""
        from matplotlib.ticker import MaxNLocator

        ax = axes_or_new(ax)
        image = ax.imshow(self.policy, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        ax.figure.colorbar(image, ax=ax, label="probability")
        labels = ((ax.xaxis, "action", self.actions), (ax.yaxis, "context", self.contexts))
        for axis, label, names in labels:
            if names is not None and len(names) <= MAX_TICK_NAMES:
                axis.set_ticks(range(len(names)), names)
            else:
                axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_label_text(label)
        if sum(map(len, self.actions or ())) > MAX_CELL_CHARACTERS // 2:
            for tick in ax.get_xticklabels():
                tick.set(rotation=30, ha="right")
        return ax
