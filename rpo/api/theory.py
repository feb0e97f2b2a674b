"""The functions ``demo``, ``verify`` and ``solve``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rpo.results import Answer, Demonstration, Verification
from rpo.runtime.errors import UsageError, check_number, check_whole_number, user_input
from rpo_io.staging import local_file

if TYPE_CHECKING:
    from rpo_theory.rewards import RewardClass
    from rpo_theory.types import ArrayLike, Problem

PathLike = str | os.PathLike[str]

N_OF_USER_CLASS = 20
"""Number of random bandits of a class of the user's own in ``verify``."""


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
    from rpo.runtime.compilation import worker_environment
    from rpo_io.atomic import write_atomic
    from rpo_io.outputs import local_folder, output_folder
    from rpo_io.strict_json import format_document

    with ExitStack() as stack:
        with user_input():
            folder = local_folder(out, "demo")
            stack.enter_context(
                output_folder(folder, "demo", is_earlier_run=_holds_demo, locked=False)
            )
        run = run_demo(worker_environment(fast_compilation=True))
        page = render_page(INTRODUCTION, run.claims, report_sections(run.images, run.summary))
        for name, image in run.images.items():
            write_atomic(folder / name, image)
        write_atomic(folder / "summary.json", format_document(run.summary).encode())
        write_atomic(folder / "report.html", page.encode())
    rows = (tuple(run.summary[name]) for name in ("instances", "negative_controls"))
    return Demonstration(run.claims, *rows, folder=folder, summary=run.summary)


def verify(
    *,
    instances: int = 200,
    seed: int = 0,
    out: PathLike = "out/verify",
    rigorous: bool = False,
    reward_class: str | RewardClass | None = None,
    problem: PathLike | Mapping[str, Any] | None = None,
) -> Verification:
    """Check Theorem 5.6 on random bandits by three routes, and on negative controls.

    Bandits are solved on the CPU, in one process per core.

    Args:
        instances: number of random bandits, at least 1; half are tabular, half linear. From 500 on,
            one in 50, and at most 20, is of each further class: kernel, Lipschitz, polytope.
        seed: seed of the bandits, at least 0.
        out: folder for ``verify.json`` and ``verify.png``.
        rigorous: whether to prove the duality gaps in ball arithmetic too, which needs the extra
            ``rigorous``.
        reward_class: a convex, compact class of your own, ``"module:Class"`` or an instance, of
            which 20 random bandits are added; None for none.
        problem: with ``reward_class``, a problem as of :func:`solve`, which has the parameters of
            the named class and gives the numbers of contexts and actions; None for a class without
            parameters, 2 contexts and 3 actions.

    Returns:
        The claims and the records. A claim that fails raises nothing: see ``holds``.

    Raises:
        ValueError: if an argument is out of range, or nothing can be written to the folder.

    Examples:
        >>> api.verify(instances=50).holds  # doctest: +SKIP
        True
    """
    from rpo.report.claims import check_claims, verification_document, verification_figure
    from rpo.runtime.compilation import worker_environment
    from rpo.runtime.progress import track_progress
    from rpo.solving.checked_classes import class_to_check
    from rpo_io.atomic import write_atomic
    from rpo_io.figures import png_bytes
    from rpo_io.outputs import local_folder, output_folder
    from rpo_io.strict_json import format_document

    check_whole_number("instances", instances, 1)
    check_whole_number("seed", seed, 0)
    if rigorous:
        _check_ball_arithmetic()
    with user_input():
        folder = local_folder(out, "verify")
        user_class = class_to_check(reward_class, problem, rigorous=rigorous)
    from bandits.theorem_check.agreement import measure_agreement, measure_class
    from bandits.theorem_check.negative_controls import solve_negative_controls

    with ExitStack() as stack:
        with user_input():
            stack.enter_context(
                output_folder(folder, "verify", is_earlier_run=_holds_checks, locked=False)
            )
        measured = measure_agreement(
            instances, seed, rigorous=rigorous, environment=worker_environment()
        )
        records = list(track_progress(measured, instances, "bandits solved three ways"))
        if user_class is not None:
            records += measure_class(
                N_OF_USER_CLASS, seed, rigorous=rigorous, **user_class._asdict()
            )
        controls = solve_negative_controls()
        claims = check_claims(records, controls)
        document = verification_document(claims, records, controls)
        write_atomic(folder / "verify.json", format_document(document).encode())
        write_atomic(folder / "verify.png", png_bytes(verification_figure(records, controls)))
    rows = (tuple(document[name]) for name in ("instances", "negative_controls"))
    return Verification(claims, *rows, folder=folder)


def solve(
    problem: PathLike | Mapping[str, Any] | Problem | ArrayLike | Sequence[Any] | None = None,
    *,
    votes: PathLike | None = None,
    formulation: Literal["minimax", "maximin", "policy"] = "minimax",
    beta: float | None = None,
    eta: float | None = None,
    reward_max: float | None = None,
    reward_class: str | RewardClass | None = None,
    baseline: Literal["chosen", "reference"] | None = None,
    context_weights: Literal["votes", "uniform"] | None = None,
    tie_model: Literal["davidson", "rao_kupper"] | None = None,
    tie_parameter: float | None = None,
    contexts: bool = False,
    rigorous: bool = False,
    confidence: float | None = None,
    seed: int | None = None,
) -> Answer:
    r"""Solve one problem with a certificate, or rank systems from votes.

    Give either ``problem`` or ``votes``.

    Args:
        problem: JSON file, see :mod:`rpo.solving.problem_files`; ``"-"`` reads standard input.
            Also its content as a mapping, whose values may be arrays; a :class:`Problem`; or win
            counts ``wins[x, w, l]``, with a uniform reference policy.
        votes: file of votes, see :mod:`bandits.environments.votes`.
        formulation: ``"minimax"`` solves the minimax problem exactly, ``"maximin"`` runs
            Algorithm 1, ``"policy"`` minimizes the RPO loss over policies (Algorithm 2).
        beta: weight of the KL term, greater than 0; by default that of the problem, and
            :math:`1/\sqrt N` for N votes or win counts.
        eta: weight of the adversarial term, at least 0; by default likewise.
        reward_max: upper bound of the rewards of a tabular class, greater than 0; by default that
            of the problem file, and 4 for votes and arrays.
        reward_class: a class of your own, ``"module:Class"``, whose parameters are the keys of
            ``reward_class`` in the problem; or an instance of any class, for a problem without
            ``reward_class``.
        baseline: baseline policy: ``"chosen"`` for the distribution of the winners in each
            context, or ``"reference"`` for the reference policy; by default that of the problem,
            and ``"chosen"`` for votes and win counts.
        context_weights: for votes only: ``"votes"`` (default) to weight a context by its share of
            the votes, or ``"uniform"``.
        tie_model: for votes only: model of wins and ties; by default a tie counts as half a win
            for either side.
        tie_parameter: for votes with a model of ties: its parameter, greater than 0 for
            ``"davidson"`` and greater than 1 for ``"rao_kupper"``; by default that of maximum
            likelihood over the reward class.
        contexts: whether the table of the answer shows every context, not only the ranking.
        rigorous: whether to prove the duality gap in ball arithmetic too, which needs the extra
            ``rigorous`` and a compact class with an exact form.
        confidence: level, between 0 and 1, of a confidence interval for the value of the policy
            minus that of the baseline; None for no interval. It needs whole counts and a compact
            class that contains the true reward.
        seed: with ``confidence``, the seed of the random split of the data, at least 0; 0 if None.

    Returns:
        The answer. A problem without a solution raises nothing: see ``status``.

    Raises:
        ValueError: if the input or an argument is invalid; the message names line and field.
        OSError: if the file cannot be read.

    Examples:
        >>> wins = np.array([[[0, 3], [1, 0]]])
        >>> solve(wins, beta=1.0, eta=0.001).policy.round(3).tolist()
        [[0.75, 0.25]]
    """
    if (problem is None) == (votes is None):
        raise UsageError("give either a problem file or --votes FILE.csv; see rpo solve --help")
    if votes is not None and not isinstance(votes, str | os.PathLike):
        raise UsageError(f"`votes` must be the path of a file, got {type(votes).__name__}")
    if votes is None and context_weights is not None:
        rule = "goes with --votes, not with a problem: set its `context_weights`"
        raise UsageError(f"argument --context-weights: {rule}")
    check_number("beta", beta, 0.0, inclusive=False)
    check_number("eta", eta, 0.0, inclusive=True)
    check_number("reward_max", reward_max, 0.0, inclusive=False)
    _check_ties(votes, tie_model, tie_parameter)
    _check_confidence(confidence, seed)
    if rigorous:
        _check_ball_arithmetic()
    from rpo.solving.answer import SOLVERS, check_provable, solve_task
    from rpo.solving.improvement import check_confidence
    from rpo.solving.tasks import task_from_problem, task_from_votes

    for name, value, choices in (
        ("formulation", formulation, tuple(SOLVERS)),
        ("baseline", baseline, ("chosen", "reference", None)),
        ("context_weights", context_weights, ("votes", "uniform", None)),
        ("tie_model", tie_model, ("davidson", "rao_kupper", None)),
    ):
        if not isinstance(value, str | None) or value not in choices:
            names = ", ".join(repr(name) for name in choices if name is not None)
            raise UsageError(f"`{name}` must be one of {names}, got {value!r}")
    options: dict[str, Any] = {
        "beta": beta,
        "eta": eta,
        "reward_max": reward_max,
        "baseline": baseline,
        "reward_class": reward_class,
    }
    with user_input():
        if votes is not None:
            options["context_weights"] = context_weights
            options |= {"tie_model": tie_model, "tie_parameter": tie_parameter}
            given = {name: value for name, value in options.items() if value is not None}
            task = task_from_votes(os.fspath(local_file(votes)), **given)
        else:
            source: Any = problem
            is_file = isinstance(source, str | os.PathLike)
            path = os.fspath(local_file(source)) if is_file else source
            task = task_from_problem(path, **options)
        if rigorous:
            check_provable(task)
        if confidence is not None:
            check_confidence(task, seed or 0)
    answer = solve_task(task, formulation, rigorous=rigorous, confidence=confidence, seed=seed or 0)
    return replace(answer, by_context=contexts)


def _check_ties(votes: PathLike | None, model: str | None, parameter: float | None) -> None:
    """Refuse options on ties that do not apply."""
    for option, value in (("model", model), ("parameter", parameter)):
        if votes is None and value is not None:
            rule = f"goes with --votes, not with a problem: set its `tie_{option}`"
            raise UsageError(f"argument --tie-{option}: {rule}")
    if parameter is not None and model is None:
        raise UsageError("argument --tie-parameter: needs --tie-model")
    limit = 1.0 if model == "rao_kupper" else 0.0
    check_number("tie_parameter", parameter, limit, inclusive=False)


def _check_confidence(confidence: float | None, seed: int | None) -> None:
    """Refuse a level that is not between 0 and 1, and a seed without a level."""
    check_number("confidence", confidence, 0.0, inclusive=False)
    if confidence is not None and not confidence < 1.0:
        raise UsageError(f"`confidence` must be less than 1, got {confidence}")
    check_whole_number("seed", seed, 0)
    if seed is not None and confidence is None:
        raise UsageError("argument --seed: needs --confidence, whose split of the data it draws")


def _check_ball_arithmetic() -> None:
    """Refuse to prove anything if python-flint is not installed."""
    from rpo_theory.rigorous import check_installed

    try:
        check_installed()
    except ImportError as error:
        raise UsageError(f"argument --rigorous: {error}") from error


def _holds_demo(folder: Path) -> bool:
    """Return whether a folder holds the report of an earlier version of ``rpo demo``."""
    return all((folder / name).is_file() for name in ("report.html", "summary.json"))


def _holds_checks(folder: Path) -> bool:
    """Return whether a folder holds the checks of an earlier version of ``rpo verify``."""
    return all((folder / name).is_file() for name in ("verify.json", "verify.png"))
