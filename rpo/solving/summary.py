"""The answer of ``rpo solve`` for people: a few lines and two small tables."""

from __future__ import annotations

from typing import Any, TextIO

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_LISTED = 10
_PLAIN_WIDTH = 100
_TIE = 1e-9  # probabilities this close are a tie, which rounding would break at random


def write_summary(result: dict[str, Any], stream: TextIO) -> None:
    """Write the summary of an answer.

    Args:
        result: what :func:`rpo.solving.answer.answer` returns.
        stream: where to; tables have frames and colour if it is a terminal.
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
    console.print(Text(result["message"], style="green" if _is_solved(result) else "bold red"))
    for name, value in _numbers(result):
        console.print(f"  {name:<27} {value}")
    console.print(_ranking(result, frame) if "ranking" in result else _policy(result, frame))
    if "dpo" in result:
        console.print(_contrast(result))
    for note in result["notes"]:
        console.print(Text(f"Note: {_printable(note)}", style="yellow"))


def _is_solved(result: dict[str, Any]) -> bool:
    return result["status"] in ("solved", "not_attained")


def _numbers(result: dict[str, Any]) -> list[tuple[str, str]]:
    data = f"{len(result['policy'])} contexts, {len(result['policy'][0])} actions, "
    data += f"{result['comparisons']:g} comparisons; beta {result['beta']:.4g}, "
    rows = [("problem", data + f"eta {result['eta']:.4g}")]
    rows.append(("value F, nats", _shown(result["value"], "{:.10g}")))
    if result["duality_gap"] is None and "stationarity_residual" in result:
        rows.append(("stationarity residual", _shown(result["stationarity_residual"], "{:.1e}")))
    else:
        rows.append(("duality gap, nats", _shown(result["duality_gap"], "{:.1e}")))
    rows.append(("KKT residual", _shown(result["kkt_residual"], "{:.1e}")))
    if "gap" in result:
        rows.append(("gap to the comparator", _shown(result["gap"], "{:.6g}")))
        rows.append(("coverage of the comparator", _shown(result["coverage"], "{:.6g}")))
    return rows


def _ranking(result: dict[str, Any], frame: box.Box | None) -> Table:
    """Rankings of the answer and of DPO side by side."""
    table = Table("rank", "RPO", "probability", "DPO (eta = 0)", "probability", box=frame)
    dpo = result["dpo"]
    columns = (
        result["ranking"],
        result["ranking_probability"],
        dpo["ranking"],
        dpo["ranking_probability"],
    )
    for rank, (name, p, dpo_name, dpo_p) in enumerate(zip(*columns, strict=True), start=1):
        if rank > _LISTED:
            break
        cells = (_printable(name), f"{p:.4f}", _printable(dpo_name), f"{dpo_p:.4f}")
        table.add_row(str(rank), *cells)
    return table


def _policy(result: dict[str, Any], frame: box.Box | None) -> Table:
    """The most likely action of the first contexts."""
    policy = np.asarray(result["policy"], np.float64)
    title = "context (of the first)" if len(policy) > _LISTED else "context"
    table = Table(title, "most likely action", "probability", box=frame)
    for x, row in enumerate(policy[:_LISTED]):
        best = int(np.argmax(row))
        table.add_row(str(x), str(best), f"{row[best]:.4f}")
    return table


def _contrast(result: dict[str, Any]) -> str:
    rpo = np.asarray(result["policy"], np.float64)
    dpo = np.asarray(result["dpo"]["policy"], np.float64)
    chosen = np.take_along_axis(dpo, rpo.argmax(axis=1)[:, None], axis=1)[:, 0]
    differ = int(np.sum(chosen < dpo.max(axis=1) - _TIE))
    return (
        f"The most likely action differs in {differ} of {len(rpo)} contexts; "
        f"its mean probability is {rpo.max(axis=1).mean():.2f} under RPO "
        f"and {dpo.max(axis=1).mean():.2f} under DPO."
    )


def _shown(value: float | None, form: str) -> str:
    return "infinite or undefined" if value is None else form.format(value)


def _printable(text: str) -> str:
    """Names come from files: no character of theirs may act on the terminal."""
    return text if text.isprintable() else ascii(text)
