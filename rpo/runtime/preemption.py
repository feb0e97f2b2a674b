"""Notice that Compute Engine is about to take this machine away, by its metadata server.

A preempted machine stops about 30 seconds after the notice. Containers and services receive SIGTERM
then, but a process that was started over SSH may receive no signal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread

from .clusters import is_compute_engine

SECONDS_BETWEEN_REQUESTS = 3.0
MOST_FAILURES = 3
"""Number of failures one after another that end the watch, as where the server is blocked."""

_logger = logging.getLogger(__name__)


@contextmanager
def watched_preemption(
    on_notice: Callable[[], object], environment: Mapping[str, str]
) -> Iterator[None]:
    """Call a function once if this machine is to be preempted during a block of work.

    Args:
        on_notice: the function, called from a thread of its own.
        environment: variables of the process; ``GCE_METADATA_IP`` names another server.

    Yields:
        Control; machines that are not of Compute Engine are not watched.
    """
    if not is_compute_engine(environment):
        yield
        return
    ended = Event()
    Thread(target=_watch, args=(on_notice, environment, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(on_notice: Callable[[], object], environment: Mapping[str, str], ended: Event) -> None:
    from .cluster_services import is_preempted  # it loads HTTP and TLS

    failures = 0
    while failures < MOST_FAILURES:
        try:
            if is_preempted(environment):
                _logger.warning("this machine is about to be preempted: the run stops and is saved")
                on_notice()
                return
            failures = 0
        except OSError as error:
            failures += 1
            _logger.debug("notices of preemption cannot be read: %s", error)
        if ended.wait(SECONDS_BETWEEN_REQUESTS):
            return
