"""What commands found, with types, for notebooks: tables, and figures that draw themselves.

Nothing is computed here: a result holds what its command prints as ``--json``, and reads the files
that the command wrote when they are asked for. A plot draws into the axes that it is given, or
into new ones, and returns them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bandits.study.lines import despine, plot_gap
from rpo_io.figures import PALETTE

if TYPE_CHECKING:
    import pyarrow as pa

    from llm.train.memory_plan import MemoryPlan

MOST_ROWS = 50
"""Rows of a table that a notebook shows."""
MOST_LETTERS = 80
"""Letters of a cell."""
MOST_NAMES = 30
"""Names beside the rows of a figure; more are numbered."""
GIB = 2**30


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        document: what it prints as JSON.
        code: its exit code; 1 where a claim failed, a problem has no answer or a plan does not fit.
    """

    document: dict[str, Any]
    code: int

    def _repr_html_(self) -> str:
        return _table(self.rows())

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """What a notebook shows, a mapping a row."""
        return [{"what": name, "value": value} for name, value in self.document.items()]


@dataclass(frozen=True)
class Verification(Result):
    """Which claims hold: of ``rpo verify``, and of ``rpo demo``, which writes a report too."""

    @property
    def holds(self) -> bool:
        """Whether all of them do."""
        return all(claim["holds"] for claim in self.document["claims"])

    @property
    def folder(self) -> Path:
        """Where records and figures are."""
        return Path(self.document["out"])

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A claim a row."""
        return self.document["claims"]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw what was measured as a share of what is allowed; what is infinite has no bar."""
        ax, claims = _axes(ax), self.document["claims"]
        shares = [(claim["measured"] or np.nan) / claim["bar"] for claim in claims]
        colours = [PALETTE["blue" if claim["holds"] else "orange"] for claim in claims]
        ax.barh(range(len(claims)), shares, color=colours)
        ax.set_yticks(
            range(len(claims)), [claim["name"].partition(":")[0] for claim in claims], wrap=True
        )
        ax.invert_yaxis()
        ax.axvline(1.0, color="black", lw=1.5)
        ax.set_xscale("log")
        ax.set_xlabel("measured, as a share of what is allowed")
        return despine(ax)


@dataclass(frozen=True)
class Answer(Result):
    """The solution of a problem: of ``rpo solve``."""

    @property
    def policy(self) -> Float[np.ndarray, "x a"]:
        """Probability of every action in every context."""
        return np.array(self.document["policy"], float)

    @property
    def reward(self) -> Float[np.ndarray, "x a"]:
        """What the adversary chose; nan where it tends to minus infinity."""
        return np.array(self.document["reward"], float)

    @property
    def duality_gap(self) -> float:
        """How far the value can be from optimal, nats; infinite where nothing is proven."""
        gap = self.document["duality_gap"]
        return float("inf") if gap is None else gap

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """An action a row, the most likely first, where actions have names."""
        if "ranking" not in self.document:
            return super().rows()
        ranked = zip(self.document["ranking"], self.document["ranking_probability"], strict=True)
        return [{"action": name, "probability": chance} for name, chance in ranked]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the policy, a context a row."""
        ax = _axes(ax)
        image = ax.imshow(self.policy, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
        ax.figure.colorbar(image, ax=ax, label="probability")
        for axis, kind in ((ax.xaxis, "action"), (ax.yaxis, "context")):
            names = self.document.get(f"{kind}s", ())
            if 0 < len(names) <= MOST_NAMES:
                axis.set_ticks(range(len(names)), names)
            else:
                axis.set_major_locator(MaxNLocator(integer=True))
            axis.set_label_text(kind)
        if sum(map(len, self.document.get("actions", ()))) > MOST_LETTERS // 2:
            for label in ax.get_xticklabels():
                label.set(rotation=30, ha="right")
        return ax


@dataclass(frozen=True)
class StudyResult(Result):
    """Records and figures of a study: of ``rpo study``."""

    @property
    def folder(self) -> Path:
        """Where they are."""
        return Path(self.document["out"])

    @property
    def records(self) -> pa.Table:
        """A fit a row; ``to_pandas()`` makes a data frame of it."""
        from pyarrow import parquet

        return parquet.read_table(self.folder / "records.parquet")

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """A cell of the study a row, with its mean gap."""
        cells = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))["cells"]
        dials = [name for name in cells[0] if name.startswith("design.")]
        shown = ("label", "environment", "comparisons", "eta_rule", "beta_rule", *dials, "gap")
        return [{name: cell[name] for name in shown} for cell in cells]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the gap of every method against the comparisons, its mean over all other axes."""
        from bandits.study.summary import labels, summarize

        summary = summarize([self.records])
        return plot_gap(summary, _axes(ax), order=labels(summary))


@dataclass(frozen=True)
class TrainResult(Result):
    """A finished run: of ``rpo train``."""

    @property
    def folder(self) -> Path:
        """Where metrics and checkpoints are."""
        return Path(self.document["out"])

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A mapping a step, under TRL's names; ``pandas.DataFrame`` takes it as it is."""
        from llm.plots import read_metrics

        return read_metrics(self.folder / "metrics.jsonl")

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The last step of training, a metric a row."""
        last = next(line for line in reversed(self.metrics) if "loss" in line)
        return [{"metric": name, "value": value} for name, value in last.items()]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the log-probabilities of both responses."""
        ax = _axes(ax)
        for name, colour in (("chosen", "blue"), ("rejected", "orange")):
            lines = [line for line in self.metrics if f"logps/{name}" in line]
            values = [line[f"logps/{name}"] for line in lines]
            ax.plot([line["step"] for line in lines], values, label=name, color=PALETTE[colour])
        ax.set_xlabel("step of training")
        ax.set_ylabel("log-probability of the responses, nats")
        ax.legend(frameon=False)
        return despine(ax)


@dataclass(frozen=True)
class PlanResult(Result):
    """Whether a step fits: of ``rpo plan``."""

    @property
    def plan(self) -> MemoryPlan:
        """All of it."""
        from llm.train.memory_plan import MemoryPlan

        return MemoryPlan(**self.document)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the memory of a device and its limit."""
        ax, plan = _axes(ax), self.plan
        parts = {
            "parameters": plan.parameter_bytes_per_device,
            "optimizer": plan.optimizer_bytes_per_device,
            "activations\nand gradients": plan.activation_bytes_per_device or 0,
        }
        ax.bar(list(parts), [size / GIB for size in parts.values()], color=PALETTE["blue"])
        ax.axhline(plan.limit_bytes_per_device / GIB, color="black", lw=1.5)
        ax.set_ylabel("GiB of a device (line: all that it has)")
        ax.set_title(f"{plan.topology}: {'fits' if plan.fits else 'does not fit'}", loc="left")
        return despine(ax)


@dataclass(frozen=True)
class Scores(Result):
    """Log-probabilities of responses: of ``rpo score``."""

    @property
    def records(self) -> pa.Table:
        """A row of the data a row; ``to_pandas()`` makes a data frame of it."""
        from pyarrow import json as lines

        return lines.read_json(self.document["out"])

    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The first rows."""
        return self.records.to_pylist()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how much likelier the chosen responses are than the rejected ones."""
        ax, records = _axes(ax), self.records
        margins = records["chosen_logp"].to_numpy() - records["rejected_logp"].to_numpy()
        ax.hist(margins, bins="auto", color=PALETTE["blue"])
        ax.axvline(0.0, color="black", lw=1.5)
        ax.set_xlabel("log-probability of chosen minus rejected, nats")
        ax.set_ylabel("rows")
        return despine(ax)


@dataclass(frozen=True)
class Evaluation(Result):
    """Rewards, margins and win rates: of ``rpo evaluate``."""

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw wins, ties and losses, where there was a judge or a reward; else mean rewards."""
        ax, colours = _axes(ax), [PALETTE[name] for name in ("blue", "grey", "orange")]
        names = ["wins", "ties", "losses"]
        ax.set_ylabel("questions")
        if "wins" not in self.document:
            names = [f"rewards/{name}" for name in ("chosen", "margins", "rejected")]
            ax.set_ylabel(r"mean of $\beta\,\log(\pi/\pi_{ref})$, nats")
        bars = ax.bar(names, [self.document[name] for name in names], color=colours)
        ax.bar_label(bars, fmt="{:.4g}")
        return despine(ax)


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as an HTML table; the first of many."""

    def cell(value: Any) -> str:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        return escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…")

    shown = rows[:MOST_ROWS]
    head = "".join(f"<th>{cell(name)}</th>" for name in rows[0])
    lines = ("".join(f"<td>{cell(value)}</td>" for value in row.values()) for row in shown)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    rest = f"<p>… {len(rows) - len(shown):,} more rows</p>" if len(rows) > len(shown) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"
