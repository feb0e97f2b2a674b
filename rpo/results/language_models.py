"""Results of the functions that train, run and measure language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rpo_io.bucket_paths import AnyPath, BucketPath
from rpo_io.figures import PALETTE, axes_or_new

from .base import Result, without_frame

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

    from llm.config import TrainConfig
    from llm.hf.merging import RoundingReport
    from llm.train.inference_plan import InferencePlan
    from llm.train.memory_plan import MemoryPlan

GIB = 2**30
"""Bytes of a gibibyte."""


@dataclass(frozen=True)
class TrainResult(Result):
    """Result of ``train``.

    Attributes:
        folder: folder of the metrics, checkpoints and configuration.
        step: number of training steps.
        parameters_sha256: SHA-256 digest of the final parameters, in hexadecimal.
    """

    folder: AnyPath
    step: int
    parameters_sha256: str

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One mapping per step, with TRL's names; ``pandas.DataFrame`` accepts the list."""
        from llm.plots import read_metrics

        return read_metrics(self.folder / "metrics.jsonl")

    def to_dict(self) -> dict[str, Any]:
        """Return the folder and the last line of ``metrics.jsonl`` as plain values."""
        return {
            "out": str(self.folder),
            "event": "finished",
            "step": self.step,
            "parameters_sha256": self.parameters_sha256,
        }

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return one row per metric of the last training step."""
        last = next(line for line in reversed(self.metrics) if "loss" in line)
        return [{"metric": name, "value": value} for name, value in last.items()]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the log-probabilities of the chosen and rejected responses against the step."""
        ax, metrics = axes_or_new(ax), self.metrics
        for name, color in (("chosen", "blue"), ("rejected", "orange")):
            lines = [line for line in metrics if f"logps/{name}" in line]
            values = [line[f"logps/{name}"] for line in lines]
            ax.plot([line["step"] for line in lines], values, label=name, color=PALETTE[color])
        ax.set_xlabel("training step")
        ax.set_ylabel("log-probability of the responses, nats")
        ax.legend(frameon=False)
        return without_frame(ax)


@dataclass(frozen=True)
class TrainEstimate(Result):
    """Result of ``estimate_train``.

    Attributes:
        config: the resolved configuration.
        pairs: number of training pairs.
        pairs_per_step: pairs of one step, over all devices.
        steps: number of training steps.
        tokens_per_step: mean number of tokens of one step.
        flops_per_step: floating-point operations of one step.
        peak_bytes_per_device: estimated peak memory of one device.
        seconds: estimated duration of the training steps.
        limit_bytes_per_device: memory of one device; None if the device does not report it.
        notes: sentences about the inputs: counts of rows, what is cut, keys without an effect.
    """

    config: TrainConfig
    pairs: int
    pairs_per_step: int
    steps: int
    tokens_per_step: int
    flops_per_step: int
    peak_bytes_per_device: int
    seconds: float
    limit_bytes_per_device: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether the estimated peak is within the memory of a device; None if it is unknown."""
        limit = self.limit_bytes_per_device
        return None if limit is None else self.peak_bytes_per_device <= limit

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved configuration as plain values."""
        return asdict(self.config)


@dataclass(frozen=True)
class InferencePlanResult(Result):
    """Result of ``plan_inference``.

    Attributes:
        plan: memory of a batch of scoring or generation, per device.
    """

    plan: InferencePlan

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if the program does not fit."""
        return 0 if self.plan.fits else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self.plan)


@dataclass(frozen=True)
class PlanResult(Result):
    """Result of ``plan``.

    Attributes:
        plan: memory, operations and tokens of one training step, per device.
    """

    plan: MemoryPlan

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 1 if the step does not fit."""
        return 0 if self.plan.fits else 1

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return asdict(self.plan)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the memory of one device by its use, and the limit as a line."""
        ax, plan = axes_or_new(ax), self.plan
        parts = {
            "parameters": plan.parameter_bytes_per_device,
            "optimizer": plan.optimizer_bytes_per_device,
            **(
                {"reference": plan.reference_bytes_per_device}
                if plan.reference_bytes_per_device
                else {}
            ),
            "activations\nand gradients": plan.activation_bytes_per_device or 0,
        }
        ax.bar(list(parts), [size / GIB for size in parts.values()], color=PALETTE["blue"])
        ax.axhline(plan.limit_bytes_per_device / GIB, color="black", lw=1.5)
        ax.set_ylabel("GiB per device (line: limit)")
        ax.set_title(f"{plan.topology}: {'fits' if plan.fits else 'does not fit'}", loc="left")
        return without_frame(ax)


@dataclass(frozen=True)
class Scores(Result):
    """Result of ``score``.

    Attributes:
        path: the JSON lines file of the scores.
        n_rows: number of scored rows.
        report: number of rows that were read, skipped and cut, by name.
        notes: what was passed over or changed, as sentences.
    """

    path: AnyPath
    n_rows: int
    report: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def records(self) -> pa.Table:
        """One row per scored row of the data; ``to_pandas()`` makes a data frame of it."""
        from pyarrow import json as json_lines

        source = self.path.open() if isinstance(self.path, BucketPath) else self.path
        return json_lines.read_json(source)

    def to_dict(self) -> dict[str, Any]:
        """Return the file, the number of rows and what was noticed as plain values."""
        noticed = {"report": dict(self.report), "notes": list(self.notes)}
        return {"out": str(self.path), "rows": self.n_rows, **noticed}

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the scored rows."""
        return self.records.to_pylist()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw a histogram of chosen minus rejected log-probability."""
        ax, records = axes_or_new(ax), self.records
        margins = records["chosen_logp"].to_numpy() - records["rejected_logp"].to_numpy()
        ax.hist(margins, bins="auto", color=PALETTE["blue"])
        ax.axvline(0.0, color="black", lw=1.5)
        ax.set_xlabel("log-probability of chosen minus rejected, nats")
        ax.set_ylabel("rows")
        return without_frame(ax)


@dataclass(frozen=True)
class Reply(Result):
    """Result of ``generate`` for one prompt.

    Attributes:
        text: the reply.
        finished: whether the model ended it with an end token.
        tokens: number of generated tokens, without the end token.
        settings: settings of generation, by the names of ``llm.GenerationConfig``.
        notes: what was passed over or has no effect, as sentences.
    """

    text: str
    finished: bool
    tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the reply as plain values."""
        noticed = {"settings": dict(self.settings), "notes": list(self.notes)}
        return {"text": self.text, "finished": self.finished, "tokens": self.tokens, **noticed}


@dataclass(frozen=True)
class GeneratedReplies(Result):
    """Result of ``generate`` for a file of prompts.

    Attributes:
        path: the file of the replies.
        format: ``"rows"``, ``"alpaca_eval"`` or ``"mt_bench"``, that of the prompts.
        questions: number of answered questions.
        truncated: number of replies that reached the length limit.
        settings: settings of generation, by the names of ``llm.GenerationConfig``.
        notes: what was passed over or has no effect, as sentences.
        tokens: number of generated tokens, without end tokens.
        tokens_per_second: tokens by the time of reading prompts and decoding, with compilation.
    """

    path: AnyPath
    format: str
    questions: int
    truncated: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tokens: int = 0
    tokens_per_second: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the file, the counts and the settings as plain values."""
        counts: dict[str, Any] = {"answers": self.questions, "cut": self.truncated}
        counts |= {"tokens": self.tokens, "tokens_per_second": self.tokens_per_second}
        noticed = {"settings": dict(self.settings), "notes": list(self.notes)}
        return {"out": str(self.path), **counts, **noticed}


@dataclass(frozen=True)
class Evaluation(Result):
    """Result of ``evaluate``.

    Attributes:
        metrics: the metrics by name, such as ``"rewards/margins"`` and ``"win_rate"``; None for a
            standard error of a single value.
        report: number of rows that were read, skipped and cut, by name; empty for judgments.
        notes: what was passed over, changed or has no effect, as sentences.
        settings: settings of generation of both models, if they answered prompts.
    """

    metrics: Mapping[str, Any]
    report: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as plain values, with what was noticed."""
        noticed = {"report": dict(self.report), "settings": dict(self.settings)}
        kept = {name: value for name, value in noticed.items() if value}
        return {**self.metrics, **kept, "notes": list(self.notes)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw wins, ties and losses if they were counted, otherwise the mean rewards."""
        ax, colors = axes_or_new(ax), [PALETTE[name] for name in ("blue", "gray", "orange")]
        names, label = ["wins", "ties", "losses"], "questions"
        if "wins" not in self.metrics:
            names = [f"rewards/{name}" for name in ("chosen", "margins", "rejected")]
            label = r"mean of $\beta\,\log(\pi/\pi_{ref})$, nats"
        ax.set_ylabel(label)
        bars = ax.bar(names, [self.metrics[name] for name in names], color=colors)
        ax.bar_label(bars, fmt="{:.4g}")
        return without_frame(ax)


@dataclass(frozen=True)
class ExportResult(Result):
    """Result of ``export``.

    Attributes:
        folder: the written Hugging Face folder.
        step: training step of the exported checkpoint.
        dtype: name of the dtype of the tensors.
        n_bytes: size of all tensors together.
        rounding: what rounding has lost of the update; None if nothing was rounded or compared.
        url: URL of the commit on the hub; None if nothing was uploaded.
    """

    folder: AnyPath
    step: int
    dtype: str
    n_bytes: int
    rounding: RoundingReport | None = None
    url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; ``rounding`` and ``url`` only if there are any."""
        document = {
            "out": str(self.folder),
            "step": self.step,
            "dtype": self.dtype,
            "bytes": self.n_bytes,
        }
        if self.rounding is not None:
            document["rounding"] = {
                "changed": self.rounding.n_changed,
                "unchanged_share": self.rounding.unchanged_share,
                "lost_norm": self.rounding.lost_norm,
            }
        if self.url is not None:
            document["url"] = self.url
        return document
