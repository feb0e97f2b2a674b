"""Everything in small, without downloads: the theorem checked, overoptimization cured, a report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rpo.report.page import Section

INSTANCES = 24
PADDED_SHAPES = ((20, 30),)  # one shape, so that every solver is compiled once for each family
INTRODUCTION = (
    "An imperfect reward model sends a language model to responses that only look good. RPO lets "
    "an adversary pick the reward: the policy must do well against every reward that explains the "
    "preferences. Under a convexity condition this max-min problem has the same solution as a "
    "simple loss, DPO plus a little SFT. This page checks that on random bandits, solved three "
    "ways; shows where it fails because the condition fails; and shows what it cures."
)

EXAMPLES = (
    "rpo demo",
    "rpo demo --out report --json > numbers.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        metavar="DIR",
        help="folder for page.html, summary.json and the figures (default out/demo)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, draw, write the report and name it; 1 if a claim fails."""
    from rpo.runtime.errors import user_input
    from rpo.runtime.output import tell
    from rpo.runtime.progress import with_progress
    from rpo_io.atomic import write_atomic
    from rpo_io.figures import png_bytes
    from rpo_io.paths import prepare_folder
    from rpo_io.strict_json import format_document

    with user_input():
        prepare_folder(args.out)
    from matplotlib.figure import Figure

    from bandits.study.figures import draw_figure
    from bandits.theorem_check import plots
    from bandits.theorem_check.agreement import measure_agreement
    from bandits.theorem_check.negative_controls import solve_negative_controls
    from llm.plots import plot_minimax_agreement
    from rpo.report import page
    from rpo.report.demo_measurements import (
        COMPARISONS,
        bridge_curves,
        hacking_gaps,
        partial_coverage,
        training_curves,
    )

    from . import study, verify

    measured = measure_agreement(INSTANCES, 0, padded_shapes=PADDED_SHAPES)
    records = list(with_progress(measured, INSTANCES, "bandits solved three ways"))
    controls = solve_negative_controls()
    gaps = hacking_gaps()
    coverage = partial_coverage()
    bridge = bridge_curves()
    curves = training_curves()
    images = {
        "agreement.png": png_bytes(_figure(plots.plot_agreement, records, verify.BARS)),
        "controls.png": png_bytes(_figure(plots.plot_negative_controls, controls)),
        "hacking.png": png_bytes(_figure(plots.plot_gap_against_comparisons, COMPARISONS, gaps)),
        "coverage.png": png_bytes(draw_figure(coverage, "gap_against_comparisons", Figure())),
        "bridge.png": png_bytes(_figure(plot_minimax_agreement, bridge)),
        "transformer.png": png_bytes(_two(plots.plot_training, curves)),
    }
    checked = verify.document(records, controls)
    names = ("steps", "logps/chosen", "true_reward")
    trained = {name: dict(zip(names, curve, strict=True)) for name, curve in curves.items()}
    hacking = {"comparisons": COMPARISONS, "gap": gaps}
    cells = study.rows(coverage)
    summary = {
        **checked,
        "hacking": hacking,
        "coverage": cells,
        "bridge": bridge,
        "transformer": trained,
    }
    claims = [(c["name"], c["bar"], c["measured"], c["holds"]) for c in checked["claims"]]
    page = page.render(INTRODUCTION, claims, sections(images, summary))
    for name, content in images.items():
        write_atomic(args.out / name, content)
    write_atomic(args.out / "summary.json", format_document(summary).encode())
    write_atomic(args.out / "report.html", page.encode())
    said = [verify.sentence(claim) for claim in checked["claims"]]
    said.append(f"report: {args.out / 'report.html'}")
    tell(args, {**summary, "out": str(args.out)}, "\n".join(said) + "\n")
    return 0 if all(claim["holds"] for claim in checked["claims"]) else 1


def _two(plot: Callable[..., Any], *data: Any) -> Figure:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9.6, 4.2), layout="constrained")
    plot(*data, list(canvas.subplots(1, 2)))
    return canvas


def _figure(plot: Callable[..., Axes], *data: Any) -> Figure:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 4.6), layout="constrained")
    plot(*data, canvas.subplots())
    return canvas


def sections(images: dict[str, bytes], summary: dict[str, Any]) -> list[Section]:
    """The findings, their numbers from the summary.

    Args:
        images: of the figures, by file name.
        summary: content of ``summary.json``.

    Returns:
        Sections in the order of the page.
    """
    from rpo.report.page import Section

    gaps = {name: values[-1] for name, values in summary["hacking"]["gap"].items()}
    most = summary["hacking"]["comparisons"][-1]
    reward = {name: curve["true_reward"] for name, curve in summary["transformer"].items()}
    last = max(cell["comparisons"] for cell in summary["coverage"])
    covered = {c["label"]: c["gap"] for c in summary["coverage"] if c["comparisons"] == last}
    near, far = (
        max(values[-1] for _, values in summary["bridge"][name]) for name in ("large", "small")
    )
    return [
        Section(
            title="Three routes, one policy",
            text="Each dot is a random bandit: how far its exact solution is from a proof of "
            "optimality, and how far the policies of the two other routes are from the exact one. "
            "All lie far below the bars, with eta and beta over four decades.",
            image=images["agreement.png"],
            alt="Distances from exact agreement on random bandits, all far below the bars.",
            command="rpo verify --instances 1000",
        ),
        Section(
            title="Without its assumption the theorem fails",
            text="The theorem needs a convex class of rewards and all Gibbs policies. Where one of "
            "them is missing, the max-min and the min-max differ, by the gap known in advance.",
            image=images["controls.png"],
            alt="Gap between the two formulations on six negative controls, as expected.",
            command="rpo verify --instances 1000",
        ),
        Section(
            title="A transformer trained with the loss is the minimax policy",
            text="A decoder is trained by the RPO loss on token sequences, and compared with the "
            "policy that solves the max-min problem of the same data exactly. They become the same "
            f"(total variation at most {near:.0e} over two seeds), unless the decoder is too small "
            f"to be every policy: then they stay up to {far:.1f} apart.",
            image=images["bridge.png"],
            alt="Total variation from the exact policy against steps of training, for two sizes.",
            command="rpo demo",
        ),
        Section(
            title="What it cures: a response that looks good because it was hardly ever seen",
            text="Two responses are compared again and again, and a third, worthless one won its "
            f"only comparison: DPO moves to it for good (gap {gaps['DPO']:.2f} after "
            f"{most:,} comparisons). RPO with the SFT term on the chosen responses "
            f"stays with what the data support (gap {gaps['RPO, baseline chosen']:.3f}); on the "
            "uniform reference policy it keeps the worthless response away too, but learns "
            f"little else (gap {gaps['RPO, baseline reference']:.2f}).",
            image=images["hacking.png"],
            alt="Gap against the number of comparisons for DPO and RPO.",
            command="rpo demo",
        ),
        Section(
            title="The same on a transformer",
            text="A small decoder is trained on responses of three letters whose true reward is "
            "known; some bad ones won the only comparison they were in. DPO first learns (true "
            f"reward {max(reward['DPO']):.2f}), then moves to those ({reward['DPO'][-1]:.2f}), and "
            "the log-probability of the chosen responses falls without end. RPO, the same loss "
            f"with a little SFT, keeps both ({reward['RPO'][-1]:.2f}).",
            image=images["transformer.png"],
            alt="Chosen log-probability and true reward against steps, for DPO and RPO.",
            command="rpo demo",
        ),
        Section(
            title="Partial coverage is enough",
            text="In these bandits the data cover the best policy, but not its rivals, each seen "
            "about once however many comparisons there are. The gap of RPO falls to "
            f"{covered['rpo']:.4f} at {last:,} comparisons; that of DPO stays at "
            f"{covered['dpo']:.2f}, since one lucky label is always found.",
            image=images["coverage.png"],
            alt="Gap to the best policy against comparisons: RPO falls, other methods stay.",
            command="rpo study configs/study_rate_in_n.yaml",
        ),
    ]
