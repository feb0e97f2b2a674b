"""Progress of long work: a bar on a terminal, log messages elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .output import are_messages_muted, escape_control_characters, format_duration

T = TypeVar("T")
SECONDS_BETWEEN_MESSAGES = 30.0
_logger = logging.getLogger(__name__)
_bars_are_shown: ContextVar[bool] = ContextVar("bars_are_shown", default=False)


@contextmanager
def progress_bars() -> Iterator[None]:
    """Show progress as a bar during a block, if stderr is a terminal. The command line does so."""
    token = _bars_are_shown.set(True)
    try:
        yield
    finally:
        _bars_are_shown.reset(token)


def track_progress(items: Iterable[T], n_items: int, description: str) -> Iterator[T]:
    """Yield items, and report the number done, the rate and the time left.

    Without a bar, a message is logged every half minute. The rate leaves out the first item, in
    which programs are compiled.

    Args:
        items: the items to work on; an item is done when the next one is requested.
        n_items: number of items.
        description: name of the items, such as ``"steps of tiny"``.

    Yields:
        The items.
    """
    description = escape_control_characters(description)
    console = Console(stderr=True)
    has_bar = _bars_are_shown.get() and not are_messages_muted()
    if not (has_bar and console.is_terminal):
        yield from _with_messages(items, n_items, description)
        return
    # Without markup, brackets in the description are shown as they are.
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=n_items, description=description)


class _RateColumn(ProgressColumn):
    """Items per second; empty until two items are done."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


def _with_messages(items: Iterable[T], n_items: int, description: str) -> Iterator[T]:
    start = last_message = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == 1:
            start = now  # programs are compiled in the first item, so its time predicts nothing
        if now - last_message < SECONDS_BETWEEN_MESSAGES or done >= n_items:
            continue
        message, last_message = f"{description}: {done:,} of {n_items:,}", now
        if done > 1:
            rate = (done - 1) / (now - start)
            left = format_duration((n_items - done) / rate)
            message += f", {rate:.3g} per second, {left} left"
        _logger.info("%s", message)
