"""Commands that work on a model, in one process or in all processes of a group."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .facts import code_facts, configuration_facts, file_facts
from .meeting import meet
from .processes import ProcessGroup

if TYPE_CHECKING:
    from rpo_io.bucket_paths import AnyPath


@contextmanager
def work_together(
    processes: ProcessGroup | None,
    *,
    options: Mapping[str, Any],
    inputs: Iterable[str],
    check_out: Callable[[], object],
    out: AnyPath | None,
) -> Iterator[None]:
    """Connect the processes of a group for a block that loads a model, and refuse other inputs.

    Args:
        processes: the group; None for the processes that JAX has connected, or else this one alone.
        options: arguments of the command by name.
        inputs: files and folders that the command reads, and names on the hub.
        check_out: checks the output; called by process 0 alone.
        out: folder that process 0 writes into; None if it only prints.

    Raises:
        UsageError: if a process does not come, or differs from the others in an option, a file or
            a version, or does not see the folder of the output.
        ValueError: if ``check_out`` refuses the output.
    """

    def describe(_: object) -> dict[str, str]:
        # Some chat templates write the date, which in UTC is the same in all time zones.
        today = {"today's date": datetime.datetime.now(datetime.UTC).date().isoformat()}
        return code_facts() | dict(configuration_facts(options)) | today | file_facts(inputs)

    with meet(processes) as meeting:
        meeting.agree(lambda: None, describe)
        meeting.decide(check_out)
        if out is not None:
            meeting.check_shared(out)
        meeting.connect()
        yield
