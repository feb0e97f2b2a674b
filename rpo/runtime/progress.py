"""How far a command is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
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

from .output import duration, inert

Item = TypeVar("Item")
EVERY = 30.0
"""Seconds between plain lines."""


def with_progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass items on, and tell how many are done, at what rate, and the time left.

    On a terminal a bar does; elsewhere a line on standard error, each half minute. The first item,
    in which programs are compiled, does not count for the rate.

    Args:
        items: what is worked on; each counts when the next is asked for.
        total: how many there will be.
        what: their name.

    Yields:
        The items.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, total, inert(what))
        return
    # As a description the name is no markup and no format of rich.
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield from bar.track(items, total=total, description=inert(what))


class _RateColumn(ProgressColumn):
    """Items a second; nothing before there are two."""

    def render(self, task: Task) -> Text:
        """The text."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g}/s")


def _with_lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    start = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == 1:
            start = now  # programs are compiled in the first item: it tells nothing of the others
        if now - told < EVERY or done >= total:
            continue
        line, told = f"{what}: {done:,} of {total:,}", now
        if done > 1:
            rate = (done - 1) / (now - start)
            line += f", {rate:.3g} a second, {duration((total - done) / rate)} left"
        sys.stderr.write(line + "\n")
