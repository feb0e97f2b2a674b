"""The preference data and their tokenization."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .checks import at_least


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The preference data and their tokenization.

    Attributes:
        train: preference rows: a file (JSON lines, a JSON list, CSV, TSV, Parquet or Arrow), a
            folder of such files, a pattern such as ``shards/*.parquet``, a data set on the hub as
            ``owner/name[@revision][/subset][:split]``, or a list of these.
        eval: rows for evaluation, in the same forms; None for no evaluation file.
        eval_rows: number of rows at the end of ``train`` to hold out; 0 if ``eval`` is given.
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

    train: list[str] | str
    eval: list[str] | str | None = None
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
