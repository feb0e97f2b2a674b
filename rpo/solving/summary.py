"""The human-readable summary of ``rpo solve``: a few lines and a table."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Context
from typing import TextIO

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rpo.results import Answer, CertifiedSolution

_MAX_ROWS = 10
_FEW_ROWS = 20
_LISTED = 5
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
    style = "green" if answer.is_solved else "bold red"
    if answer.dpo is not None and answer.is_solved:
        console.print(Text(_verdict(answer, answer.dpo), style="bold"))
    console.print(Text(answer.message, style=style))
    for name, value in _numbers(answer):
        console.print(f"  {name:<27} {value}")
    if answer.improvement is not None:
        console.print(answer.improvement.sentence)
    if answer.dpo is not None:
        console.print(_ranking_table(answer, answer.dpo, frame))
        console.print(_contrast(answer, answer.dpo))
    if answer.by_context or (answer.dpo is not None and len(answer.context_rows()) <= _FEW_ROWS):
        console.print(_context_table(answer, frame))
    elif answer.dpo is None:
        console.print(_policy_table(answer, frame))
    else:
        console.print("The policy of every context: `policy` in the JSON document, or --contexts.")
    for note in answer.notes:
        console.print(Text(f"Note: {_printable(note)}", style="yellow"))


def _verdict(answer: Answer, dpo: CertifiedSolution) -> str:
    """Return the first choices of the answer and of DPO in one line."""
    names = []
    for solution in (answer, dpo):
        name, share = (solution.ranking or (("", 0.0),))[0]
        names.append(f"{_printable(name)} (probability {share:.2f})")
    if len(answer.policy) == 1:
        return f"RPO chooses {names[0]}, DPO {names[1]}."
    return f"First over all contexts: {names[0]} under RPO, {names[1]} under DPO."


def _numbers(answer: Answer) -> list[tuple[str, str]]:
    """Return names and values of the numbers to show."""
    n_contexts, n_actions = answer.policy.shape
    counts = [(n_contexts, "context"), (n_actions, "action"), (answer.comparisons, "comparison")]
    further = answer.further_data
    counts += [
        (further[f"{kind}s"], kind)
        for kind in ("ranking", "choice", "tie")
        if f"{kind}s" in further
    ]
    data = ", ".join(f"{n:.15g} {name}{'' if n == 1 else 's'}" for n, name in counts)
    weights = f"beta {answer.beta:.4g}, eta {answer.eta:.4g}, baseline {answer.baseline}"
    rows = [("problem", data), ("weights", weights)]
    if "tie_model" in answer.further_data:
        parameter = answer.further_data["tie_parameter"]
        rows.append(("model of ties", f"{answer.further_data['tie_model']}, {parameter:.6g}"))
    rows.append(("value F, nats", _format(answer.value, "{:.10g}")))
    if math.isinf(answer.duality_gap) and answer.stationarity_residual is not None:
        rows.append(("stationarity residual", _format(answer.stationarity_residual, "{:.1e}")))
    else:
        rows.append(("duality gap, nats", _format(answer.duality_gap, "{:.1e}")))
    if answer.proven_duality_gap is not None:
        rows.append(("duality gap, proven at most", _rounded_up(answer.proven_duality_gap)))
    rows.append(("KKT residual", _format(answer.kkt_residual, "{:.1e}")))
    if math.isfinite(answer.duality_gap):
        rows.append(("TV to the exact policy", f"at most {answer.policy_tv_bound:.1e}"))
    if answer.improvement is not None:
        interval = answer.improvement
        name = f"J - J(base), {100.0 * interval.confidence:.10g} %"
        rows.append((name, f"{interval.lower:.4f} to {interval.upper:.4f}"))
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


def _context_table(answer: Answer, frame: box.Box | None) -> Table:
    """Return the probability of every action in every context."""
    table = Table("context", "action", "RPO", *(["DPO"] if answer.dpo else []), box=frame)
    previous = None
    for row in answer.context_rows():
        context, action, *shares = row.values()
        name = "" if context == previous else _printable(str(context))
        cells = [f"{share:.4f}" for share in shares]
        table.add_row(name, _printable(str(action)), *cells)
        previous = context
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
    differs = np.flatnonzero(dpo_probability < dpo_policy.max(axis=1) - _TIE)
    contexts = answer.contexts or tuple(map(str, range(len(rpo_policy))))
    names = [_printable(contexts[x]) for x in differs[:_LISTED]]
    listed = f" ({', '.join(names)}{', ...' if len(differs) > _LISTED else ''})" if names else ""
    probabilities = (
        f"probability is {rpo_policy.max(axis=1).mean():.2f} under RPO "
        f"and {dpo_policy.max(axis=1).mean():.2f} under DPO."
    )
    if len(rpo_policy) == 1:
        verdict = "differs" if len(differs) else "is the same"
        return f"The most likely action {verdict}; its {probabilities}"
    return (
        f"The most likely action differs in {len(differs)} of {len(rpo_policy)} contexts{listed}; "
        f"its mean {probabilities}"
    )


def _format(value: float | None, template: str) -> str:
    is_number = value is not None and math.isfinite(value)
    return template.format(value) if is_number else "infinite or undefined"


def _rounded_up(bound: float) -> str:
    """Return two digits of a proven upper bound that are not below it."""
    if not math.isfinite(bound):
        return "infinite"
    digits = Context(prec=2, rounding=ROUND_CEILING)
    return f"{digits.create_decimal_from_float(bound):.1e}"


def _printable(text: str) -> str:
    """Return a name from a file in a form that no terminal acts on."""
    return text if text.isprintable() else ascii(text)
