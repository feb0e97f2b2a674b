"""The preference data and their tokenization."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from rpo_io.locations import has_scheme

from .checks import at_least, positive


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Rows of one source, with their part in a mixture.

    Attributes:
        path: the rows, in the forms of ``data.train``; a list of files is one source.
        subset: subset of a data set on the hub.
        revision: revision of a data set on the hub.
        split: split of a data set on the hub; None for ``train``.
        columns: as ``data.columns``, for this source alone; None for ``data.columns``.
        weight: proportion of the source in an epoch. The epoch has as many pairs as it can without
            repeating any; other pairs come in the next epoch. Either all sources have a weight, or
            none has.
        rows: number of pairs of the source in an epoch; more than it has repeats pairs. None for
            all, each once.

    Raises:
        ValueError: if a value is out of range.

    Examples:
        >>> DataSource(path="owner/votes", subset="en", split="test").name
        'owner/votes/en:test'
    """

    SHORTHAND: ClassVar[str] = "path"

    path: list[str] | str
    subset: str | None = None
    revision: str | None = None
    split: str | None = None
    columns: dict[str, str] | None = None
    weight: float | None = None
    rows: int | None = None

    def __post_init__(self) -> None:
        """Check the ranges; files have neither subsets nor revisions."""
        if self.weight is not None:
            positive("data.train.weight", self.weight)
        if self.rows is not None:
            at_least("data.train.rows", self.rows, 1)
        if self.weight is not None and self.rows is not None:
            raise ValueError("`data.train.weight` and `data.train.rows` must not both be given")
        for name in ("subset", "revision", "split"):
            if getattr(self, name) is None:
                continue
            if not isinstance(self.path, str) or _is_file(self.path):
                raise ValueError(
                    f"`data.train.{name}` must be left out for files, got {getattr(self, name)!r} "
                    f"for {self.path}: only data sets on the hub have one"
                )

    @property
    def name(self) -> list[str] | str:
        """The rows in the forms of ``data.train``, as one text for a data set on the hub."""
        if not isinstance(self.path, str):
            return self.path
        revision = f"@{self.revision}" if self.revision else ""
        subset = f"/{self.subset}" if self.subset else ""
        return f"{self.path}{revision}{subset}" + (f":{self.split}" if self.split else "")


Rows = list[DataSource | str] | list[DataSource] | list[str] | DataSource | str
"""Sources of rows: one, or a list."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The preference data and their tokenization.

    Attributes:
        train: preference rows: a file (JSON lines, a JSON list, CSV, TSV, Parquet or Arrow), a
            folder of such files, a pattern such as ``shards/*.parquet``, each local or in a
            bucket; a data set on the hub as ``owner/name[@revision][/subset][:split]``; or a list
            of these. An item of the list can also be a mapping such as
            ``{path: rows.jsonl, weight: 0.3}``, see :class:`DataSource`.
        eval: rows for evaluation, in the same forms; or a mapping of names to such rows, which are
            evaluated one after another, with the metrics ``eval_NAME_*``. None for no rows.
        eval_rows: number of rows at the end of ``train`` to hold out; 0 if ``eval`` is given, or
            if ``train`` is a mixture.
        columns: name of the column for a field of a row, as in ``{prompt: question, chosen:
            preferred}``; the value ``ignore`` passes a column over, and the key ``"*"`` stands for
            all columns that are not named.
        tokenizer: folder or hub name, or ``bytes``; None for the tokenizer of the model.
        format: ``chat`` writes conversations with the chat template; ``text`` tokenizes prompt and
            response as raw text, for base models.
        chat_template: ``chatml``, or the path of a Jinja file; None for the template of the
            tokenizer's folder.
        chat_template_kwargs: variables of the chat template, such as ``enable_thinking: false``.
        template_date: date that the chat template reads as today, ``YYYY-MM-DD``. None for today
            (UTC) in a new run, which writes the date into its ``config.yaml``.
        special_tokens: ``refuse`` rows in whose text a control token stands, such as
            ``<|im_end|>``, or write it ``as_text``, with ordinary tokens.
        max_length: largest number of tokens of prompt and response together.
        max_prompt_length: largest number of tokens of a prompt. None leaves room for the longest
            response of the row, but at least half of ``max_length`` for the prompt.
        truncation_mode: which part of a prompt that is too long stays: its end or its start. Only
            contents of messages are cut, never what the chat template writes.
        on_overlong: ``truncate`` and count rows that are too long, ``skip`` and count them, or
            ``refuse`` them.
        on_error: stop at a row that cannot be used (``raise``), or skip and count it (``skip``).
        layout: ``separate`` repeats the prompt with each response; ``shared`` stores the prompt of
            a pair once.

    Raises:
        ValueError: if a value is out of range.
    """

    train: Rows
    eval: dict[str, Rows] | Rows | None = None
    eval_rows: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    format: Literal["chat", "text"] = "chat"
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    special_tokens: Literal["refuse", "as_text"] = "refuse"
    max_length: int = 1024
    max_prompt_length: int | None = None
    truncation_mode: Literal["keep_end", "keep_start"] = "keep_end"
    on_overlong: Literal["truncate", "skip", "refuse"] = "truncate"
    on_error: Literal["raise", "skip"] = "raise"
    layout: Literal["separate", "shared"] = "shared"

    def __post_init__(self) -> None:
        """Check the ranges; a response must have room for a token."""
        at_least("data.eval_rows", self.eval_rows, 0)
        at_least("data.max_length", self.max_length, 2)
        if self.max_prompt_length is not None:
            at_least("data.max_prompt_length", self.max_prompt_length, 1)
            if self.max_prompt_length >= self.max_length:
                raise ValueError(
                    f"`data.max_prompt_length` must be less than `data.max_length` "
                    f"{self.max_length}, got {self.max_prompt_length}"
                )
        if self.eval is not None and self.eval_rows:
            raise ValueError("`data.eval_rows` must be 0 if `data.eval` is given")
        parts = self.train_sources
        if len(parts) > 1 and self.eval_rows:
            raise ValueError(
                "`data.eval_rows` must be 0 if `data.train` is a mixture: name the rows for "
                "evaluation with `data.eval`"
            )
        if len({part.weight is None for part in parts}) > 1:
            raise ValueError("`data.train.weight` must be given for all sources or for none")
        for name, sources in self.evaluation_sources.items():
            if any(each.weight is not None or each.rows is not None for each in sources):
                raise ValueError(
                    "`data.eval` must have no `weight` and no `rows`: all are evaluated"
                )
            if name and not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    "`data.eval` must name its sets with letters, digits, `_` and `-`, got "
                    f"{name!r}"
                )
            if name == "path":
                raise ValueError(
                    "`data.eval` maps names of sets to rows, got the name 'path': write "
                    "`eval: {NAME: {path: ...}}`"
                )

    @property
    def train_sources(self) -> list[DataSource]:
        """The sources of the training rows; a list of names alone is one source.

        Examples:
            >>> len(DataConfig(train=["a.jsonl", "b.jsonl"]).train_sources)
            1
            >>> len(DataConfig(train=["a.jsonl", DataSource(path="b.jsonl")]).train_sources)
            2
        """
        return _as_sources(self.train)

    @property
    def evaluation_sources(self) -> dict[str, list[DataSource]]:
        """The sources of each set of rows for evaluation by name; the name is "" for a single set.

        Examples:
            >>> list(DataConfig(train="a", eval={"new": "b", "old": "c"}).evaluation_sources)
            ['new', 'old']
        """
        if self.eval is None:
            return {}
        if isinstance(self.eval, dict):
            return {name: _as_sources(rows) for name, rows in self.eval.items()}
        return {"": _as_sources(self.eval)}


def _is_file(path: str) -> bool:
    """Return whether a source is a file or folder, here or in a bucket."""
    return Path(path).exists() or (has_scheme(path) and not path.startswith("hf://"))


def _as_sources(rows: Rows) -> list[DataSource]:
    if isinstance(rows, DataSource):
        return [rows]
    names = [each for each in rows if isinstance(each, str)]
    if isinstance(rows, str) or len(names) == len(rows):
        return [DataSource(path=rows if isinstance(rows, str) else names)]
    return [DataSource(path=each) if isinstance(each, str) else each for each in rows]
