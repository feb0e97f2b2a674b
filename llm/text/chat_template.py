"""Chat templates: Jinja programs that come with a model, run in a process that is kept small.

A template turns messages into the text that the model was trained to read. It is code from
elsewhere: it can neither reach Python nor change its arguments, and is stopped when it runs, takes
memory or writes without end (:mod:`llm.text.template_sandbox`).
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_EXTRA_CHARACTERS = 1_000_000
"""A text may be longer than all strings that went into it by this much."""
MAX_SECONDS = 1.0
"""Of a processor; ordinary templates take less than a millisecond."""
PROGRAM = Path(__file__).with_name("template_sandbox.py")


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        name: where it comes from, for messages.
        now: what time the template is told that it is, if it asks: one for a whole run, so that a
            conversation has one text.

    Raises:
        ValueError: the text is no template.

    Examples:
        >>> template = ChatTemplate("{% for m in messages %}{{ m.content }};{% endfor %}", name="t")
        >>> template.render([{"role": "user", "content": "hello"}], add_generation_prompt=True)
        'hello;'
    """

    def __init__(self, source: str, *, name: str, now: datetime.datetime | None = None) -> None:
        """Compile the template."""
        self.name = name
        now = now or datetime.datetime.now()
        self._program = _Program(source, now.isoformat())
        try:
            _PROCESS.load(self._program)
        except _FailedError as error:
            raise ValueError(f"{name} is not a chat template: {error}") from error
        # The date is part of the text that some templates write: of their identity, then.
        dated = now.date().isoformat() if "strftime_now" in source else ""
        self.digest = hashlib.sha256(f"{source}\0{dated}".encode("utf-8", "replace")).hexdigest()

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as the model reads it.

        Args:
            messages: each with ``role`` and ``content``.
            add_generation_prompt: end with what comes before a reply.
            variables: others that templates ask for, as ``bos_token``.

        Returns:
            The text.

        Raises:
            ValueError: the template refuses these messages, fails, or does not end.
        """
        given = {**(variables or {}), "messages": [dict(message) for message in messages]}
        limit = MAX_EXTRA_CHARACTERS + sum(len(m["content"]) for m in messages)
        given["add_generation_prompt"] = add_generation_prompt
        try:
            return _PROCESS.render(self._program, given, limit)
        except _FailedError as error:
            raise ValueError(f"{self.name} cannot write this conversation: {error}") from error


class _FailedError(Exception):
    """A template failed, or was stopped."""


class _Program:
    """What the process needs to know of a template; compared by identity."""

    def __init__(self, source: str, now: str) -> None:
        self.source = source
        self.now = now


class _Process:
    """The process of all templates: started when it is needed, and again after a template's end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._loaded: _Program | None = None
        atexit.register(self._end)

    def load(self, program: _Program) -> None:
        """Compile a template."""
        with self._lock:
            self._load(program)

    def render(self, program: _Program, variables: Mapping[str, Any], limit: int) -> str:
        """Render a template, compiled again where another one was used meanwhile."""
        with self._lock:
            if self._loaded is not program or self._owner != os.getpid():
                self._load(program)
            return self._ask({"source": None, "variables": variables, "limit": limit})

    def _load(self, program: _Program) -> None:
        self._loaded = None
        self._ask({"source": program.source, "now": program.now})
        self._loaded = program

    def _ask(self, request: Mapping[str, Any]) -> str:
        running = self._running
        if running is None or self._owner != os.getpid():  # a fork has no process of its own
            running = self._start()
        line = json.dumps({**request, "seconds": MAX_SECONDS}).encode() + b"\n"
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            running.stdin.write(line)
            running.stdin.flush()
            answer = running.stdout.readline()
        except BrokenPipeError:
            answer = b""
        except BaseException:  # interrupted: what it would answer now is of no request
            self._end()
            raise
        if not answer.endswith(b"\n"):
            raise _FailedError(_cause_of_death(self._end()))
        reply = json.loads(answer)
        if "error" in reply:
            raise _FailedError(reply["error"])
        return reply["text"]

    def _start(self) -> subprocess.Popen[bytes]:
        # It finds what this process has found, and nothing of its environment: that has secrets.
        found = os.pathsep.join(path for path in sys.path if path)
        self._running = subprocess.Popen(
            [sys.executable, "-S", "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": found},
            start_new_session=True,  # an interrupt from the keyboard does not reach it
        )
        self._owner = os.getpid()
        return self._running

    def _end(self) -> int:
        """End the process.

        Returns:
            What it ended with; minus a signal.
        """
        running, self._running, self._loaded = self._running, None, None
        if running is None or self._owner != os.getpid():
            return 0
        running.kill()  # of one that is ending already it changes nothing
        with contextlib.suppress(BrokenPipeError), running:
            pass
        return running.returncode


def _cause_of_death(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"it takes longer than {MAX_SECONDS} seconds"
    return f"it has ended the process that runs it, which returned {code}"


_PROCESS = _Process()
