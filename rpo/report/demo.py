"""The demonstration of ``rpo demo``: experiments, their figures and the sections of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rpo.results import Claim
from rpo.runtime.progress import track_progress
from rpo_io.processes import run_in_processes

from .claims import check_claims, verification_document
from .demo_figures import FIGURES, draw_figure
from .demo_measurements import COMPARISONS, STUDY
from .page import Section

if TYPE_CHECKING:
    from bandits.theorem_check.agreement import Agreement
    from bandits.theorem_check.negative_controls import NegativeControl

INSTANCES = 24
"""Number of random bandits."""
PADDED_SHAPES = ((20, 30),)
"""A single shape, so that every solver is compiled once for each family."""
REDUCED = {
    "instances": f"Reduced run: {INSTANCES} random bandits.",
    "coverage": f"Reduced run: {STUDY['seeds']} seeds and {len(STUDY['comparisons'])} numbers of "
    "comparisons.",
}
"""Parts of the summary that are smaller than what the command under their figure computes."""
INTRODUCTION = (
    "An imperfect reward model sends a language model to responses that only look good. RPO lets "
    "an adversary pick the reward: the policy must do well against every reward that explains the "
    "preferences. Under a convexity condition this max-min problem has the same solution as a "
    "simple loss, DPO plus a little SFT, over the policies of these rewards. This page checks the "
    "theorem on random bandits, solved "
    "three ways; shows where it fails because the condition fails; and shows what RPO cures."
)


class DemoRun(NamedTuple):
    """Everything that ``rpo demo`` computes.

    Attributes:
        claims: the checked claims.
        summary: content of ``summary.json``.
        images: the figures as PNG, by file name.
    """

    claims: tuple[Claim, ...]
    summary: dict[str, Any]
    images: dict[str, bytes]


def run_demo(environment: Mapping[str, str] | None = None) -> DemoRun:
    """Run the experiments of the demonstration in processes, and draw their figures.

    Args:
        environment: variables that are added to those of this process, for the processes.

    Returns:
        Claims, numbers and figures.
    """
    from .demo_measurements import (
        measure_hacking_gaps,
        study_partial_coverage,
        train_on_toy_task,
        train_to_minimax_policy,
    )
    from .study_files import summary_rows

    # The longest first, so that no core is idle at the end.
    experiments: dict[str, Callable[[], Any]] = {
        "minimax_agreement": train_to_minimax_policy,
        "transformer": train_on_toy_task,
        "tabular": partial(_measure_family, "tabular"),
        "linear": partial(_measure_family, "linear"),
        "controls": _solve_controls,
        "coverage": study_partial_coverage,
        "hacking": measure_hacking_gaps,
    }
    results = run_in_processes(list(experiments.values()), environment=environment)
    tracked = track_progress(results, len(experiments), "experiments")
    found: dict[str, Any] = {}
    images: dict[str, bytes] = {}
    for name, result in zip(experiments, tracked, strict=True):
        found[name] = result
        for figure, parts in FIGURES.items():  # other experiments run meanwhile
            if name in parts and found.keys() >= set(parts):
                images[f"{figure}.png"] = draw_figure(figure, found)
    records, controls = [*found["tabular"], *found["linear"]], found["controls"]
    claims = check_claims(records, controls)
    names = ("steps", "logps/chosen", "true_reward")
    summary = {
        **verification_document(claims, records, controls),
        "reduced": REDUCED,
        "hacking": {"comparisons": COMPARISONS, "gap": found["hacking"]},
        "coverage": summary_rows(found["coverage"]),
        "minimax_agreement": found["minimax_agreement"],
        "transformer": {
            name: dict(zip(names, curve, strict=True))
            for name, curve in found["transformer"].items()
        },
    }
    return DemoRun(claims, summary, images)


def _measure_family(family: Literal["tabular", "linear"]) -> list[Agreement]:
    """Measure the random bandits of one family."""
    from bandits.theorem_check.agreement import measure_family

    return measure_family(INSTANCES, 0, family, PADDED_SHAPES)


def _solve_controls() -> list[NegativeControl]:
    """Solve the negative controls."""
    from bandits.theorem_check.negative_controls import solve_negative_controls

    return solve_negative_controls()


def report_sections(images: Mapping[str, bytes], summary: Mapping[str, Any]) -> list[Section]:
    """Return the sections of the report, with their numbers from the summary.

    Args:
        images: the figures as PNG, by file name.
        summary: content of ``summary.json``.

    Returns:
        The sections in the order of the page.
    """
    gaps = {name: values[-1] for name, values in summary["hacking"]["gap"].items()}
    most = summary["hacking"]["comparisons"][-1]
    reward = {name: curve["true_reward"] for name, curve in summary["transformer"].items()}
    last = max(cell["comparisons"] for cell in summary["coverage"])
    gap_at_last = {c["label"]: c["gap"] for c in summary["coverage"] if c["comparisons"] == last}
    curves = summary["minimax_agreement"]
    near, far = (max(values[-1] for _, values in curves[name]) for name in ("large", "small"))
    return [
        Section(
            title="Three routes, one policy",
            text="Each dot is a random bandit. It shows how far the exact solution is from a proof "
            "of optimality, and how far the policies of the two other routes are from the exact "
            "one. All dots lie far below the bars, for eta and beta over four decades.",
            image=images["agreement.png"],
            alt="Distances from exact agreement on random bandits, all far below the bars.",
            command="rpo verify --instances 1000",
            reduced=REDUCED["instances"],
        ),
        Section(
            title="Without its assumption the theorem fails",
            text="The theorem needs a convex class of rewards and all Gibbs policies. If one of "
            "them is missing, the max-min and the min-max differ by a gap that is known in "
            "advance.",
            image=images["controls.png"],
            alt="Gap between the two formulations on seven controls, as expected.",
            command="rpo verify",
        ),
        Section(
            title="A transformer trained with the loss is the minimax policy",
            text="A decoder is trained with the RPO loss on token sequences, and compared with the "
            "policy that solves the max-min problem of the same data exactly. The two become the "
            f"same (total variation at most {near:.0e} over two seeds). A decoder that is too "
            f"small to represent every policy stays up to {far:.1f} away.",
            image=images["minimax_agreement.png"],
            alt="Total variation from the exact policy against training steps, for two sizes.",
            command="rpo demo",
        ),
        Section(
            title="What RPO cures: a response that looks good because it was hardly ever seen",
            text="Two responses are compared again and again; a third, worthless one won its only "
            f"comparison. DPO moves to it for good (gap {gaps['DPO']:.2f} after {most:,} "
            "comparisons). RPO with the SFT term on the chosen responses stays with what the data "
            f"support (gap {gaps['RPO, baseline chosen']:.3f}). With the uniform reference policy "
            "as baseline it avoids the worthless response too, but learns little else "
            f"(gap {gaps['RPO, baseline reference']:.2f}).",
            image=images["hacking.png"],
            alt="Gap against the number of comparisons for DPO and RPO.",
            command="rpo demo",
        ),
        Section(
            title="The same on a transformer",
            text="A small decoder is trained on responses of three letters whose true reward is "
            "known; some bad responses won the only comparison they were in. DPO first learns "
            f"(true reward {max(reward['DPO']):.2f}), then moves to the bad responses "
            f"({reward['DPO'][-1]:.2f}), and the log-probability of the chosen responses falls "
            "without end. RPO, the same loss with a little SFT, keeps both "
            f"({reward['RPO'][-1]:.2f}).",
            image=images["transformer.png"],
            alt="Chosen log-probability and true reward against steps, for DPO and RPO.",
            command="rpo demo",
        ),
        Section(
            title="Partial coverage is enough",
            text="In these bandits the data cover the best policy, but not its rivals: each rival "
            "is seen about once, whatever the number of comparisons. The gap of RPO falls to "
            f"{gap_at_last['rpo']:.4f} at {last:,} comparisons. That of DPO stays at "
            f"{gap_at_last['dpo']:.2f}, since one of the rivals always has a lucky label.",
            image=images["coverage.png"],
            alt="Gap to the best policy against comparisons: RPO falls, other methods stay.",
            command="rpo study configs/study_rate_in_n.yaml",
            reduced=REDUCED["coverage"],
        ),
    ]
