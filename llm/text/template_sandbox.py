"""Program of the separate process in which chat templates are rendered.

Jinja's sandbox keeps a template from Python's internals. Memory and time are limited by the
operating system, which can stop a template anywhere in the interpreter. A template that broke out
of the sandbox would find a process that can open neither files nor connections. Requests and
replies are JSON objects, one per line. This module imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import resource
import signal
import sys
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_BYTES = 2**30
"""Memory limit of the process; a long conversation takes a hundredth of it."""
PRELOADED = (
    "encodings.unicode_escape",
    "html",
    "jinja2.constants",
    "jinja2.debug",
    "pprint",
    "textwrap",
    "unicodedata",
)
"""Modules that Jinja imports on demand, which fails once files can no longer be opened."""
MAX_MESSAGE = 300
"""Largest number of characters of a template's error message."""


class _Generation(Extension):
    """The ``{% generation %}`` block, which marks responses for other trainers; a no-op here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements of the block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, now: datetime.datetime) -> jinja2.Template:
    """Compile a template in the sandbox, with the filters and functions of ``transformers``.

    Args:
        source: Jinja source code.
        now: time that ``strftime_now`` formats.

    Returns:
        The template.

    Examples:
        >>> year = compile_template("{{ strftime_now('%Y') }}", datetime.datetime(2024, 5, 6))
        >>> year.render()
        '2024'
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = now.strftime
    return environment.from_string(source)


def render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> str:
    """Render a template with a limit on its output.

    Args:
        template: a compiled template.
        variables: variables of the template by name.
        limit: largest number of characters of the output.

    Returns:
        The output.

    Raises:
        ValueError: if the output is longer than ``limit``.

    Examples:
        >>> twice = compile_template("{{ text }}{{ text }}", datetime.datetime(2024, 5, 6))
        >>> render(twice, {"text": "ab"}, limit=4)
        'abab'
        >>> render(twice, {"text": "ab"}, limit=3)
        Traceback (most recent call last):
        ValueError: its output is too long
    """
    parts = []
    for part in template.generate(variables):
        limit -= len(part)
        if limit < 0:
            raise ValueError("its output is too long")
        parts.append(part)
    return "".join(parts)


def _confine() -> None:
    """Limit the resources of this process for good: memory, files, processes, core dumps."""
    for module in PRELOADED:
        importlib.import_module(module)
    limits = {
        resource.RLIMIT_AS: MAX_BYTES,
        resource.RLIMIT_NOFILE: 0,  # standard input and output stay open
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of memory
            resource.setrlimit(limit, (value, value))
    # A parent process that ignores the timer's signal would pass that on.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _serve() -> None:
    """Serve requests from standard input until it is closed."""
    _confine()
    template = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # The timer's signal ends the process, even in the middle of one long operation.
        signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        try:
            if template is None or request["source"] is not None:
                now = datetime.datetime.fromisoformat(request["now"])
                template, text = compile_template(request["source"], now), ""
            else:
                text = render(template, request["variables"], request["limit"])
            reply = {"text": text}
        except MemoryError:
            reply = {"error": f"it needs more than {MAX_BYTES // 2**20} MiB of memory"}
        # Whatever a template raises is reported, except for an interruption.
        except Exception as error:
            reply = {"error": str(error)[:MAX_MESSAGE] or type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Format JSON as ``transformers`` does; Jinja's filter would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


if __name__ == "__main__":
    _serve()
