"""The functions ``demo``, ``verify`` and ``solve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from rpo.results import Answer, Demonstration, Verification
from rpo.runtime.errors import UsageError, check_number, check_whole_number, user_input

PathLike = str | os.PathLike[str]


def demo(*, out: PathLike = "out/demo") -> Demonstration:
    """Run every part at small scale, without downloads, and write a report.

    Args:
        out: folder for ``report.html``, ``summary.json`` and the figures.

    Returns:
        The claims and all numbers of the report.

    Raises:
        ValueError: if nothing can be written to the folder.

    Examples:
        >>> api.demo(out="out/demo").holds  # doctest: +SKIP
        True
    """
    from rpo.report.demo import INTRODUCTION, report_sections, run_demo
    from rpo.report.page import render_page
    from rpo_io.atomic import write_atomic
    from rpo_io.folders import prepare_folder
    from rpo_io.strict_json import format_document

    folder = Path(out)
    with user_input():
        prepare_folder(folder)
    run = run_demo()
    page = render_page(INTRODUCTION, run.claims, report_sections(run.images, run.summary))
    for name, image in run.images.items():
        write_atomic(folder / name, image)
    write_atomic(folder / "summary.json", format_document(run.summary).encode())
    write_atomic(folder / "report.html", page.encode())
    rows = (tuple(run.summary[name]) for name in ("instances", "negative_controls"))
    return Demonstration(run.claims, *rows, folder=folder, summary=run.summary)


def verify(*, instances: int = 200, seed: int = 0, out: PathLike = "out/verify") -> Verification:
    """Check Theorem 5.6 on random bandits by three routes, and on negative controls.

    Bandits are solved in one process per core: a script that calls this function needs the
    ``if __name__ == "__main__"`` guard.

    Args:
        instances: number of random bandits, at least 1; half are tabular, half linear.
        seed: seed of the bandits, at least 0.
        out: folder for ``verify.json`` and ``verify.png``.

    Returns:
        The claims and the records. A claim that fails raises nothing: see ``holds``.

    Raises:
        ValueError: if an argument is out of range, or nothing can be written to the folder.

    Examples:
        >>> api.verify(instances=50).holds  # doctest: +SKIP
        True
    """
    from rpo.report.claims import check_claims, verification_document, verification_figure
    from rpo.runtime.progress import track_progress
    from rpo_io.atomic import write_atomic
    from rpo_io.figures import png_bytes
    from rpo_io.folders import prepare_folder
    from rpo_io.strict_json import format_document

    check_whole_number("instances", instances, 1)
    check_whole_number("seed", seed, 0)
    folder = Path(out)
    with user_input():
        prepare_folder(folder)
    from bandits.theorem_check.agreement import measure_agreement
    from bandits.theorem_check.negative_controls import solve_negative_controls

    measured = measure_agreement(instances, seed)
    records = list(track_progress(measured, instances, "bandits solved three ways"))
    controls = solve_negative_controls()
    claims = check_claims(records, controls)
    document = verification_document(claims, records, controls)
    write_atomic(folder / "verify.json", format_document(document).encode())
    write_atomic(folder / "verify.png", png_bytes(verification_figure(records, controls)))
    rows = (tuple(document[name]) for name in ("instances", "negative_controls"))
    return Verification(claims, *rows, folder=folder)


def solve(
    problem: PathLike | None = None,
    *,
    votes: PathLike | None = None,
    formulation: Literal["minimax", "maximin", "policy"] = "minimax",
    beta: float | None = None,
    eta: float | None = None,
    reward_max: float | None = None,
    baseline: Literal["chosen", "reference"] | None = None,
    context_weights: Literal["votes", "uniform"] | None = None,
) -> Answer:
    r"""Solve one problem with a certificate, or rank systems from votes.

    Give either ``problem`` or ``votes``; the arguments after ``formulation`` go with ``votes``.

    Args:
        problem: JSON file, see :mod:`rpo.solving.problem_files`; ``"-"`` reads standard input.
        votes: CSV file with the columns context, winner, loser and optionally count.
        formulation: ``"minimax"`` solves the minimax problem exactly, ``"maximin"`` runs
            Algorithm 1, ``"policy"`` minimizes the RPO loss over policies (Algorithm 2).
        beta: weight of the KL term, greater than 0; :math:`1/\sqrt N` for N votes by default.
        eta: weight of the adversarial term, at least 0; :math:`1/\sqrt N` by default.
        reward_max: upper bound of the rewards, greater than 0; 4 by default.
        baseline: baseline policy: ``"chosen"`` (default) for the distribution of the winners in
            each context, or ``"reference"`` for the uniform reference policy.
        context_weights: ``"votes"`` (default) to weight a context by its share of the votes, or
            ``"uniform"``.

    Returns:
        The answer. A problem without a solution raises nothing: see ``status``.

    Raises:
        ValueError: if the file or an argument is invalid; the message names line and field.
        OSError: if the file cannot be read.

    Examples:
        >>> api.solve("problem.json").duality_gap < 1e-10  # doctest: +SKIP
        True
    """
    if (problem is None) == (votes is None):
        raise UsageError("give either a problem file or --votes FILE.csv; see rpo solve --help")
    options = {
        "beta": beta,
        "eta": eta,
        "reward_max": reward_max,
        "baseline": baseline,
        "context_weights": context_weights,
    }
    vote_options: dict[str, Any] = {
        name: value for name, value in options.items() if value is not None
    }
    if votes is None and vote_options:
        option = "--" + next(iter(vote_options)).replace("_", "-")
        raise UsageError(f"argument {option}: goes with --votes, not with a problem file")
    check_number("beta", beta, 0.0, inclusive=False)
    check_number("eta", eta, 0.0, inclusive=True)
    check_number("reward_max", reward_max, 0.0, inclusive=False)
    from rpo.solving.answer import SOLVERS, solve_task
    from rpo.solving.tasks import task_from_file, task_from_votes

    for name, value, choices in (
        ("formulation", formulation, tuple(SOLVERS)),
        ("baseline", baseline, ("chosen", "reference", None)),
        ("context_weights", context_weights, ("votes", "uniform", None)),
    ):
        if value not in choices:
            names = ", ".join(repr(name) for name in choices if name is not None)
            raise UsageError(f"`{name}` must be one of {names}, got {value!r}")
    with user_input():
        if votes is not None:
            task = task_from_votes(os.fspath(votes), **vote_options)
        else:
            task = task_from_file(os.fspath(problem or ""))
    return solve_task(task, formulation)
