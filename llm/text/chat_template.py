"""Chat templates, rendered in a sandboxed process with limits of time, memory and output.

A template is a Jinja program that comes with a model and turns messages into the text that the
model was trained to read. It is untrusted code: it can neither reach Python nor change its
arguments, and it is stopped if it exceeds a limit (:mod:`llm.text.template_sandbox`).
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rpo_io.digests import sha256_hex

MAX_EXTRA_CHARACTERS = 1_000_000
"""Largest number of characters by which the output may exceed the messages."""
MAX_SECONDS = 1.0
"""Limit of processor time; ordinary templates take less than a millisecond."""
PROGRAM = "llm.text.template_sandbox"
PACKAGES = Path(__file__).parents[2]
"""Folder of the package ``llm``, which the process imports."""


class TracedText(NamedTuple):
    """A rendered conversation.

    Attributes:
        text: the text that the model reads.
        spans: ranges of its characters that come from the conversation, in order: start, end and
            origin, ``index.field`` for a field of a message or ``tools.index`` for a tool. The
            template wrote the other characters.
    """

    text: str
    spans: list[tuple[int, int, str]]


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja source code.
        name: origin of the template, for error messages.
        now: time that ``strftime_now`` uses in the template; None for the time of construction.
            It is fixed, so that a conversation always renders to the same text.

    Raises:
        ValueError: if the source is not a valid template.

    Examples:
        >>> template = ChatTemplate("{% for m in messages %}{{ m.content }};{% endfor %}", name="t")
        >>> template.render([{"role": "user", "content": "hello"}], add_generation_prompt=True)
        'hello;'
    """

    def __init__(self, source: str, *, name: str, now: datetime.datetime | None = None) -> None:
        """Compile the template."""
        self.name = name
        now = now or datetime.datetime.now(datetime.UTC).replace(
            hour=0, minute=0, second=0, microsecond=0, tzinfo=None
        )
        self._program = _Program(source, now.isoformat())
        try:
            description = _PROCESS.load(self._program)
        except _FailedError as error:
            raise ValueError(f"{name} is not a chat template: {error}") from error
        self.literals: list[str] = description["literals"]
        self.variables: frozenset[str] = frozenset(description["variables"])
        self.fields: frozenset[str] = frozenset(description["fields"])
        # Some templates write the date, which is then part of their identity.
        date = now.date().isoformat() if "strftime_now" in source else ""
        self.date: str | None = date or None
        self.digest: str = sha256_hex(f"{source}\0{date}".encode("utf-8", "replace"))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation as the text that the model reads.

        Args:
            messages: messages with ``role``, ``content`` and possibly other fields.
            add_generation_prompt: end with the text that precedes a response.
            variables: other template variables, such as ``bos_token``.

        Returns:
            The text.

        Raises:
            ValueError: if the template rejects these messages, fails, or exceeds a limit.
        """
        kwargs = {"add_generation_prompt": add_generation_prompt, "variables": variables}
        return self.trace(messages, **kwargs).text

    def trace(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> TracedText:
        """Render a conversation, with the origins of its characters.

        Args:
            messages: messages with ``role``, ``content`` and possibly other fields.
            tools: tools that the assistant may call; None for no tools.
            add_generation_prompt: end with the text that precedes a response.
            variables: other template variables, such as ``bos_token``.

        Returns:
            The text and its origins.

        Raises:
            ValueError: if the template rejects these messages, fails, or exceeds a limit.
        """
        messages = [_with_reasoning(message) for message in messages]
        context = {
            "tools": None if tools is None else list(tools),
            "documents": None,
            **(variables or {}),
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        limit = MAX_EXTRA_CHARACTERS + len(json.dumps([messages, context["tools"]]))
        try:
            reply = _PROCESS.render(self._program, context, limit)
        except _FailedError as error:
            raise ValueError(f"{self.name} cannot render this conversation: {error}") from error
        return TracedText(reply["text"], [tuple(span) for span in reply["spans"]])


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """Give the reasoning of a message the names under which templates read it."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


class _FailedError(Exception):
    """A template failed or was stopped."""


class _Program:
    """Source and time of a template, as the process compiles it; compared by identity."""

    def __init__(self, source: str, now: str) -> None:
        self.source = source
        self.now = now


class _Process:
    """The process that renders all templates; it is started on demand and after it was killed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._loaded: _Program | None = None
        atexit.register(self._end)

    def load(self, program: _Program) -> dict[str, Any]:
        """Compile a template in the process, and return what its source shows."""
        with self._lock:
            return self._load(program)

    def render(self, program: _Program, variables: Mapping[str, Any], limit: int) -> dict[str, Any]:
        """Render a template; compile it first if another template was used meanwhile."""
        with self._lock:
            if self._loaded is not program or self._owner != os.getpid():
                self._load(program)
            return self._ask({"source": None, "variables": variables, "limit": limit})

    def _load(self, program: _Program) -> dict[str, Any]:
        self._loaded = None
        description = self._ask({"source": program.source, "now": program.now})
        self._loaded = program
        return description

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        running = self._running
        if running is None or self._owner != os.getpid():  # after a fork, start a new process
            running = self._start()
        line = json.dumps({**request, "seconds": MAX_SECONDS}).encode() + b"\n"
        assert running.stdin is not None
        assert running.stdout is not None
        try:
            running.stdin.write(line)
            running.stdin.flush()
            response = running.stdout.readline()
        except BrokenPipeError:
            response = b""
        except BaseException:  # interrupted: a late response would be read by the next request
            self._end()
            raise
        if not response.endswith(b"\n"):
            raise _FailedError(_exit_reason(self._end()))
        reply = json.loads(response)
        if "error" in reply:
            raise _FailedError(reply["error"])
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        # The process gets the import path, but no environment variables: they may hold secrets.
        import_path = os.pathsep.join([str(PACKAGES), *(path for path in sys.path if path)])
        self._running = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"PYTHONPATH": import_path},
            start_new_session=True,  # an interrupt from the keyboard does not reach it
        )
        self._owner = os.getpid()
        return self._running

    def _end(self) -> int:
        """Kill the process and return its exit code, which is minus the signal that ended it."""
        running, self._running, self._loaded = self._running, None, None
        if running is None or self._owner != os.getpid():
            return 0
        running.kill()  # no effect on the exit code if it has ended already
        with contextlib.suppress(BrokenPipeError), running:
            pass
        return running.returncode


def _exit_reason(code: int) -> str:
    if code == -signal.SIGPROF:
        return f"it runs longer than {MAX_SECONDS} seconds"
    return f"it ended the process that renders it, with exit code {code}"


_PROCESS = _Process()
