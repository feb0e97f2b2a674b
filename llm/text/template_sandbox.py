"""A process of its own in which chat templates run: what a template does ends with it.

Jinja's sandbox keeps a template from Python's inside; that it neither takes all memory nor runs for
ever, wherever in the interpreter it is, only the operating system can see to. Should it break out
of the sandbox after all, it finds a process that can open no file and no connection. Requests and
replies are JSON objects, a line each. Nothing of the package is imported here.
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
"""Memory of the process; a long conversation takes a hundredth of it."""
LATER = (
    "encodings.unicode_escape",
    "html",
    "jinja2.constants",
    "jinja2.debug",
    "pprint",
    "textwrap",
    "unicodedata",
)
"""What Jinja imports only when a template needs it: then no file can be opened any more."""
SHOWN = 300
"""Characters of a template's own error message."""


class _Generation(Extension):
    """``{% generation %}``, which marks replies for other trainers; its body is plain text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse the body in place of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str, now: datetime.datetime) -> jinja2.Template:
    """Compile a template in the sandbox; what it sees is what ``transformers`` shows it.

    Args:
        source: the Jinja text.
        now: what time it is told that it is, if it asks.

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
    """Render a template.

    Args:
        template: which.
        variables: that it sees.
        limit: most characters of the text.

    Returns:
        The text.

    Raises:
        ValueError: it writes more.

    Examples:
        >>> twice = compile_template("{{ text }}{{ text }}", datetime.datetime(2024, 5, 6))
        >>> render(twice, {"text": "ab"}, limit=4)
        'abab'
        >>> render(twice, {"text": "ab"}, limit=3)
        Traceback (most recent call last):
        ValueError: it writes too much
    """
    parts = []
    for part in template.generate(variables):
        limit -= len(part)
        if limit < 0:
            raise ValueError("it writes too much")
        parts.append(part)
    return "".join(parts)


def _confine() -> None:
    """Give up what a template needs not; nothing gives it back."""
    for module in LATER:
        importlib.import_module(module)
    limits = {
        resource.RLIMIT_AS: MAX_BYTES,
        resource.RLIMIT_NOFILE: 0,  # those that are open stay so
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for limit, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # macOS knows no bound on memory
            resource.setrlimit(limit, (most, most))
    # Whoever started the process may ignore the signal of the clock, and that is inherited.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _serve() -> None:
    """Answer requests until there are no more."""
    _confine()
    template = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # It ends the process, even where that is in the middle of a multiplication.
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
        # A template can fail as any program can: all but an interruption is its failure.
        except Exception as error:
            reply = {"error": str(error)[:SHOWN] or type(error).__name__}
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
    """As ``transformers`` has it; Jinja's own would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


if __name__ == "__main__":
    _serve()
