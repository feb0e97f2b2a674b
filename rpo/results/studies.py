"""Results of ``study`` and ``estimate_study``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpo_io.config_types import to_plain
from rpo_io.figures import axes_or_new

from .base import Result

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

    from bandits.minimax_regret.config import MinimaxRegretConfig
    from bandits.minimax_regret.run import MinimaxRegretResult
    from bandits.overoptimization.config import LawsConfig
    from bandits.overoptimization.run import LawsResult
    from bandits.rounds.config import RoundsConfig
    from bandits.rounds.run import RoundsResult
    from bandits.study.config import StudyConfig
    from bandits.study.figures import FigureKind
    from bandits.study.summary import Summary


@dataclass(frozen=True)
class StudyResult(Result):
    """Result of ``study``.

    Attributes:
        name: name of the study.
        folder: folder of the records, figures and configuration.
        files: names of the written files.
        bound_violations: per method and form of the bound, the number of draws whose gap exceeds
            the bound.
        notes: remarks on the configuration, such as keys without effect.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    bound_violations: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> pa.Table:
        """One row per fit; ``to_pandas()`` makes a data frame of it, if pandas is installed."""
        from pyarrow import parquet

        return parquet.read_table(self.folder / "records.parquet")

    @property
    def figure_kinds(self) -> tuple[FigureKind, ...]:
        """Kinds of figures that the axes of the study allow."""
        from bandits.study.figures import figure_kinds

        return figure_kinds(self._summary())

    def to_dict(self) -> dict[str, Any]:
        """Return the name, the folder, its files and the violations as plain values."""
        return {
            "study": self.name,
            "out": str(self.folder),
            "written": list(self.files),
            "bounds": [dict(row) for row in self.bound_violations],
            "notes": list(self.notes),
        }

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return one row per cell of the study, with its mean gap."""
        cells = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))["cells"]
        axes = [name for name in cells[0] if name.startswith("design.")]
        columns = ("label", "environment", "comparisons", "eta_rule", "beta_rule", *axes, "gap")
        return [{name: cell[name] for name in columns} for cell in cells]

    def plot(
        self,
        kind: FigureKind | None = None,
        ax: Axes | None = None,
        *,
        environment: str | None = None,
        label: str | None = None,
    ) -> Axes:
        """Draw a figure of the study into axes.

        Args:
            kind: one of :attr:`figure_kinds`. By default the mean gap of every method, over all
                other axes of the study, against the number of comparisons.
            ax: axes to draw into, in a figure of its final size; new ones by default.
            environment: draw only this environment; needed if the study has several.
            label: draw only this method; needed for phase diagrams of several.

        Returns:
            The axes.

        Raises:
            ValueError: if the study does not allow this kind, or has no such environment or label.
        """
        from bandits.study.figures import plot_figure
        from bandits.study.lines import plot_gap
        from bandits.study.summary_queries import labels

        summary = self._summary()
        for name, value in (("environment", environment), ("label", label)):
            present = list(dict.fromkeys(map(str, summary[name])))
            if value is not None and value not in present:
                raise ValueError(f"`{name}` must be one of {', '.join(present)}, got {value!r}")
            if value is not None:
                rows = summary[name].astype(str) == value
                summary = {column: values[rows] for column, values in summary.items()}
        if kind is None:
            return plot_gap(summary, axes_or_new(ax), order=labels(summary))
        return plot_figure(summary, kind, axes_or_new(ax))

    def _summary(self) -> Summary:
        from bandits.study.failures import count_failures
        from bandits.study.summary import summarize
        from bandits.study.summary_queries import without_labels

        records = self.records
        failed = [row["label"] for row in count_failures([records])]
        return without_labels(summarize([records]), failed)


@dataclass(frozen=True)
class StudyKindResult(Result):
    """Result of ``study`` for a kind of study other than the comparison of methods.

    Attributes:
        name: name of the study.
        kind: kind of the study, such as "rounds".
        folder: folder of the records, figures and configuration.
        files: names of the written files.
        outcome: configuration and all tables, as the function of ``bandits`` returns them.
    """

    name: str
    kind: str
    folder: Path
    files: tuple[str, ...]
    outcome: MinimaxRegretResult | LawsResult | RoundsResult

    @property
    def records(self) -> pa.Table:
        """The main table of the study; ``to_pandas()`` makes a data frame of it."""
        from pyarrow import parquet

        return parquet.read_table(self.folder / "records.parquet")

    @property
    def figure_kinds(self) -> tuple[str, ...]:
        """Names of the figures of the study."""
        return self.outcome.figure_kinds

    def to_dict(self) -> dict[str, Any]:
        """Return name, kind, folder and files as plain values."""
        return {
            "study": self.name,
            "kind": self.kind,
            "out": str(self.folder),
            "written": list(self.files),
        }

    def plot(
        self, kind: str | None = None, ax: Axes | None = None, *, panel: str | None = None
    ) -> Axes:
        """Draw a figure of the study into axes.

        Args:
            kind: one of :attr:`figure_kinds`, by default the first.
            ax: axes to draw into, in a figure of its final size; new ones by default.
            panel: draw this panel of a figure with several: "regret" (the default) or "prior" of
                ``regret_by_world``; a method of ``laws_CLASS_N``, by default the true gains of all;
                "alpha, CLASS" (the default) or "gamma, CLASS" of ``coefficients``.

        Returns:
            The axes.

        Raises:
            ValueError: if the study has no such figure or panel.
        """
        return self.outcome.plot(kind, ax, panel=panel)

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows of the summary."""
        return json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))["rows"]


@dataclass(frozen=True)
class StudyEstimate(Result):
    """Result of ``estimate_study``.

    Attributes:
        config: the resolved configuration.
        fits: number of fits.
        parts: number of parts that the study is run in.
        seconds: estimated duration.
        bytes: estimated memory.
        trial_fits: number of fits that were timed for the estimate.
        notes: remarks on the configuration, such as keys without effect.
    """

    config: StudyConfig
    fits: int
    parts: int
    seconds: float
    bytes: float
    trial_fits: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        return to_plain(self.config)


@dataclass(frozen=True)
class StudyKindEstimate(Result):
    """Result of ``estimate_study`` for a kind of study other than the comparison of methods.

    Attributes:
        config: the resolved configuration.
        cells: what is combined in the study, one line for each axis.
        fits: number of fits.
        files: names of the files that the study would write; figures without their ending.
        seconds: estimated duration, without compilation; NaN if it is not estimated.
    """

    config: MinimaxRegretConfig | LawsConfig | RoundsConfig
    cells: tuple[str, ...]
    fits: int
    files: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        return to_plain(self.config)
