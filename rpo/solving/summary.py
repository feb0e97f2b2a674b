"""The human-readable summary of ``rpo solve``: a few lines and a table."""

from __future__ import annotations

import math
from typing import TextIO

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rpo.results import Answer, CertifiedSolution

_MAX_ROWS = 10
_PLAIN_WIDTH = 100
_TIE = 1e-9  # differences of probabilities below this are rounding


def write_summary(answer: Answer, stream: TextIO) -> None:
    """Write the summary of an answer.

    Args:
        answer: the answer of ``rpo solve``.
        stream: receives the text; on a terminal, tables have frames and text has colors.
    """
    terminal = stream.isatty()
    console = Console(
        file=stream,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
        width=None if terminal else _PLAIN_WIDTH,
    )
    frame = box.SIMPLE_HEAD if terminal else None
    console.print(Text(answer.message, style="green" if answer.is_solved else "bold red"))
    for name, value in _numbers(answer):
        console.print(f"  {name:<27} {value}")
    if answer.dpo is None:
        console.print(_policy_table(answer, frame))
    else:
        console.print(_ranking_table(answer, answer.dpo, frame))
        console.print(_contrast(answer, answer.dpo))
    for note in answer.notes:
        console.print(Text(f"Note: {_printable(note)}", style="yellow"))


def _numbers(answer: Answer) -> list[tuple[str, str]]:
    """Return names and values of the numbers to show."""
    n_contexts, n_actions = answer.policy.shape
    data = f"{n_contexts} contexts, {n_actions} actions, "
    data += f"{answer.comparisons:g} comparisons; beta {answer.beta:.4g}, "
    rows = [("problem", data + f"eta {answer.eta:.4g}")]
    rows.append(("value F, nats", _format(answer.value, "{:.10g}")))
    if math.isinf(answer.duality_gap) and answer.stationarity_residual is not None:
        rows.append(("stationarity residual", _format(answer.stationarity_residual, "{:.1e}")))
    else:
        rows.append(("duality gap, nats", _format(answer.duality_gap, "{:.1e}")))
    rows.append(("KKT residual", _format(answer.kkt_residual, "{:.1e}")))
    if answer.gap is not None:
        rows.append(("gap to the comparator", _format(answer.gap, "{:.6g}")))
        rows.append(("coverage of the comparator", _format(answer.coverage, "{:.6g}")))
    return rows


def _ranking_table(answer: Answer, dpo: CertifiedSolution, frame: box.Box | None) -> Table:
    """Return the rankings of the answer and of DPO side by side."""
    table = Table("rank", "RPO", "probability", "DPO (eta = 0)", "probability", box=frame)
    pairs = zip(answer.ranking or (), dpo.ranking or (), strict=True)
    for rank, ((name, share), (dpo_name, dpo_share)) in enumerate(pairs, start=1):
        if rank > _MAX_ROWS:
            break
        cells = (_printable(name), f"{share:.4f}", _printable(dpo_name), f"{dpo_share:.4f}")
        table.add_row(str(rank), *cells)
    return table


def _policy_table(answer: Answer, frame: box.Box | None) -> Table:
    """Return the most likely action of each of the first contexts."""
    title = "context (the first ones)" if len(answer.policy) > _MAX_ROWS else "context"
    table = Table(title, "most likely action", "probability", box=frame)
    for x, row in enumerate(answer.policy[:_MAX_ROWS]):
        best = int(np.argmax(row))
        table.add_row(str(x), str(best), f"{row[best]:.4f}")
    return table


def _contrast(answer: Answer, dpo: CertifiedSolution) -> str:
    """Return a sentence that compares the answer with DPO."""
    rpo_policy, dpo_policy = answer.policy, dpo.policy
    best_of_rpo = rpo_policy.argmax(axis=1)[:, None]
    dpo_probability = np.take_along_axis(dpo_policy, best_of_rpo, axis=1)[:, 0]
    differ = int(np.sum(dpo_probability < dpo_policy.max(axis=1) - _TIE))
    return (
        f"The most likely action differs in {differ} of {len(rpo_policy)} contexts; "
        f"its mean probability is {rpo_policy.max(axis=1).mean():.2f} under RPO "
        f"and {dpo_policy.max(axis=1).mean():.2f} under DPO."
    )


def _format(value: float | None, template: str) -> str:
    is_number = value is not None and math.isfinite(value)
    return template.format(value) if is_number else "infinite or undefined"


def _printable(text: str) -> str:
    """Return a name from a file in a form that no terminal acts on."""
    return text if text.isprintable() else ascii(text)
