"""Every command as one call from Python.

A call is the command: the same options under the same names (with underscores), the same checks,
the same files. What it would print as ``--json`` comes back typed, shows itself in a notebook and
draws itself; what is for people goes to standard error, as it does there. A mistake is a
``ValueError`` or ``OSError`` with the line that the command would have said.

Examples:
    >>> from rpo import api
    >>> answer = api.solve(votes="votes.csv", eta=0.01)  # doctest: +SKIP
    >>> answer.policy, answer.plot()  # doctest: +SKIP
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

# A process of its own is settled for a command that comes before JAX; this one is the caller's.
import jax  # noqa: F401
import numpy as np

from .cli import run_command
from .results import (
    Answer,
    Evaluation,
    PlanResult,
    Result,
    Scores,
    StudyResult,
    TrainResult,
    Verification,
)

PathLike = str | os.PathLike[str]
OF_THE_COMMAND = {"coordinator", "dry_run", "help", "json", "process", "processes"}
"""Options that make no sense within a program."""


def demo(**options: Any) -> Verification:
    """Everything in small, with a report: ``rpo demo``.

    Args:
        **options: of the command: ``out``.

    Returns:
        The claims; ``report.html`` is in its ``folder``.
    """
    return Verification(*_call("demo", [], options))


def verify(**options: Any) -> Verification:
    """Check the theorem on random instances: ``rpo verify``.

    Args:
        **options: of the command, such as ``instances=1000``.

    Returns:
        The claims.
    """
    return Verification(*_call("verify", [], options))


def solve(problem: PathLike | None = None, **options: Any) -> Answer:
    """Solve a problem, or rank systems from votes: ``rpo solve``.

    Args:
        problem: a JSON file; none with ``votes``.
        **options: of the command, such as ``votes="votes.csv"``, ``eta=0.01``.

    Returns:
        The answer with its certificate.

    Raises:
        ValueError: a mistake in the problem or in an option.
    """
    return Answer(*_call("solve", [] if problem is None else [problem], options))


def study(
    config: PathLike, overrides: Mapping[str, Any] | None = None, **options: Any
) -> StudyResult:
    """Run a study: ``rpo study``.

    Args:
        config: a YAML file.
        overrides: keys of the configuration that are to be different, such as ``{"seeds": 50}``.
        **options: of the command, such as ``quick=True``.

    Returns:
        Records and figures.

    Raises:
        ValueError: a mistake in the configuration, or a study that is there already.
    """
    return StudyResult(*_call("study", [config], options, overrides))


def train(
    config: PathLike, overrides: Mapping[str, Any] | None = None, **options: Any
) -> TrainResult:
    """Fine-tune a model: ``rpo train``.

    Args:
        config: a YAML file.
        overrides: keys of the configuration that are to be different, such as
            ``{"objective.eta": 0.1}``.
        **options: of the command, such as ``out="out/run"``.

    Returns:
        The run.

    Raises:
        ValueError: a mistake in the configuration or the data, or a run that is there already.
        KeyboardInterrupt: it was stopped; ``resume=True`` continues it.
    """
    return TrainResult(*_call("train", [config], options, overrides))


def plan(
    config: PathLike, topology: str, overrides: Mapping[str, Any] | None = None, **options: Any
) -> PlanResult:
    """Will it fit: ``rpo plan``.

    Args:
        config: a YAML file.
        topology: such as ``v5e:4x4``.
        overrides: keys of the configuration that are to be different.
        **options: of the command, such as ``largest=True``.

    Returns:
        The plan.

    Raises:
        ValueError: a mistake in the configuration, or an unknown slice.
    """
    return PlanResult(*_call("plan", [config], {"topology": topology, **options}, overrides))


def score(**options: Any) -> Scores:
    """Log-probabilities of responses, row by row: ``rpo score``.

    Args:
        **options: of the command: ``model``, ``data``, ``out`` and others.

    Returns:
        The rows.

    Raises:
        ValueError: a mistake in the model, the data or an option.
    """
    return Scores(*_call("score", [], options))


def generate(**options: Any) -> Result:
    """Answer prompts: ``rpo generate``.

    Args:
        **options: of the command: ``model``, ``prompt`` or ``data`` with ``out``, and others.

    Returns:
        ``text`` and more of the answer to a prompt; ``out`` and counts of those to a file.

    Raises:
        ValueError: a mistake in the model, the data or an option.
    """
    return Result(*_call("generate", [], options))


def evaluate(**options: Any) -> Evaluation:
    """Rewards, margins and win rates: ``rpo evaluate``.

    Args:
        **options: of the command: ``model``, ``reference``, ``data`` or ``judgments``, and others.

    Returns:
        The numbers.

    Raises:
        ValueError: a mistake in a model, the data or an option.
    """
    return Evaluation(*_call("evaluate", [], options))


def export(run: PathLike, **options: Any) -> Result:
    """Write a trained policy as a Hugging Face folder: ``rpo export``.

    Args:
        run: a folder that ``rpo train`` wrote.
        **options: of the command: ``out``, ``step``, ``dtype``.

    Returns:
        ``out`` and the ``step`` of the checkpoint.

    Raises:
        ValueError: no checkpoint is there, or ``out`` is not empty.
    """
    return Result(*_call("export", [run], options))


def _call(
    command: str,
    arguments: list[PathLike],
    options: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], int]:
    """The document and the exit code of a command."""
    if alone := OF_THE_COMMAND & set(options):
        raise ValueError(f"`{min(alone)}` is for `rpo {command}` in a shell: leave it out")
    words = [command, *(os.fspath(argument) for argument in arguments), "--json"]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words.append(f"{option}={value}")
    words += [f"--{key}={_in_yaml(value)}" for key, value in (overrides or {}).items()]
    said = io.StringIO()
    with redirect_stdout(said):
        code = run_command(words)
    if not said.getvalue():
        raise KeyboardInterrupt(f"rpo {command} was stopped")
    return json.loads(said.getvalue()), code


def _in_yaml(value: Any) -> str:
    """A value as a configuration has it; JSON is YAML."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return json.dumps(value.tolist() if isinstance(value, np.generic | np.ndarray) else value)
