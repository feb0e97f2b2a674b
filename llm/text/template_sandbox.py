"""Program of the separate process in which chat templates are rendered.

Jinja's sandbox keeps a template from Python's internals. Memory and time are limited by the
operating system, which can stop a template anywhere in the interpreter. A template that broke out
of the sandbox would find a process that can open neither files nor connections. Requests and
replies are JSON objects, one per line.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from llm.text.tracked_text import TrackedText, concat, dump_json, follow, mark, track

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
    """The ``{% generation %}`` block, which marks responses for other trainers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Return a call block, so that the block has a scope of its own, as in ``transformers``."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_content"), [], [], body)
        return block.set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """The function ``dict`` of templates."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Return a dictionary with the same value for all keys."""
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """A namespace whose attributes do not begin with an underscore, as in ``transformers``."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that an attribute may be called `self`
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _Namespace._check(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r}")


class _Generator(CodeGenerator):
    """Code in which output and ``~`` keep the origins of their operands."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802  # Jinja's name
        """Write a concatenation."""
        self.write("environment.concat((")
        for operand in node.nodes:
            self.write("environment.to_text(")
            self.visit(operand, frame)
            self.write("), ")
        self.write("))")

    def _output_child_pre(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        self.write("environment.to_text(")


class _Environment(ImmutableSandboxedEnvironment):
    """The environment of ``transformers`` with strings that keep their origins."""

    concat = staticmethod(concat)
    code_generator_class = _Generator
    intercepted_binops = frozenset({"%"})

    @staticmethod
    def to_text(value: Any) -> str:
        """Return the text of a value that a template writes."""
        text = str(value)
        return mark(text, value) if type(text) is str and not isinstance(value, str) else text

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a plain string as a method of a tracked one."""
        owner = getattr(function, "__self__", None)
        if type(owner) is str:
            function = getattr(TrackedText(owner), function.__name__)
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Format by ``%`` with values that keep their origins."""
        if isinstance(left, str):
            return TrackedText(left) % right if type(left) is str else left % right
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return ``str.format`` with checked access to attributes."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        @functools.wraps(formatted)
        def tracked(*args: Any, **kwargs: Any) -> str:
            owner = value.__self__
            if isinstance(owner, TrackedText) and owner.get_spans():
                return mark(str.__str__(formatted(*args, **kwargs)), owner)
            return follow(lambda values, names: formatted(*values, **names), args, kwargs)

        return tracked


def compile_template(source: str, now: datetime.datetime) -> jinja2.Template:
    """Compile a template in the sandbox, with the filters and functions of ``transformers``.

    Args:
        source: Jinja source code.
        now: time that ``strftime_now`` formats.

    Returns:
        The template.

    Raises:
        ValueError: if the template draws at random.

    Examples:
        >>> year = compile_template("{{ strftime_now('%Y') }}", datetime.datetime(2024, 5, 6))
        >>> year.render()
        '2024'
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    filters = environment.filters
    environment.filters = {name: _tracked_filter(filters[name]) for name in filters}
    environment.filters["tojson"] = _to_json
    environment.filters["join"] = _join_filter(filters["join"])
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = now.strftime
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    # A random prompt could be neither cached nor resumed.
    for names in (environment.filters, environment.globals):
        for name in ("random", "lipsum"):
            names.pop(name, None)
    return environment.from_string(source)


def describe(source: str, template: jinja2.Template) -> dict[str, Any]:
    """Return what the source of a template shows about it.

    Args:
        source: Jinja source code.
        template: the compiled template.

    Returns:
        ``literals``, its constant texts; ``variables``, the names that it reads; and ``fields``,
        the attributes and keys that it reads.

    Examples:
        >>> template = compile_template("<a>{{ x.y }}", datetime.datetime(2024, 5, 6))
        >>> describe("<a>{{ x.y }}", template)
        {'literals': ['<a>'], 'variables': ['x'], 'fields': ['y']}
    """
    tree = template.environment.parse(source)
    constants = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}.union(constants)
    fields = {node.attr for node in tree.find_all(nodes.Getattr)}.union(constants)
    return {
        "literals": sorted(texts),
        "variables": sorted(jinja2.meta.find_undeclared_variables(tree)),
        "fields": sorted(fields),
    }


def render(template: jinja2.Template, variables: dict[str, Any], limit: int) -> TrackedText:
    """Render a template with a limit on its output.

    Args:
        template: a compiled template.
        variables: variables of the template by name.
        limit: largest number of characters of the output.

    Returns:
        The output; tracked strings among the variables keep their origins.

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
    parts: list[str] = []
    for part in template.generate(variables):
        limit -= len(part)
        if limit < 0:
            raise ValueError("its output is too long")
        parts.append(part)
    return concat(parts)


def track_inputs(variables: dict[str, Any]) -> dict[str, Any]:
    """Track the contents and fields of messages, and the tools.

    Args:
        variables: variables of a chat template, with ``messages``.

    Returns:
        The variables; origins are ``index.field`` of a message, or ``tools.index``.

    Examples:
        >>> messages = [{"role": "user", "content": "a"}]
        >>> track_inputs({"messages": messages})["messages"][0]["content"].get_spans()
        ((0, 1, '0.content'),)
    """
    messages = [
        {
            name: value if name == "role" else track(value, f"{index}.{name}")
            for name, value in message.items()
        }
        for index, message in enumerate(variables["messages"])
    ]
    tools = variables.get("tools")
    if tools is not None:
        tools = [track(tool, f"tools.{index}") for index, tool in enumerate(tools)]
    return {**variables, "messages": messages, "tools": tools}


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
                template = compile_template(request["source"], now)
                reply = describe(request["source"], template)
            else:
                text = render(template, track_inputs(request["variables"]), request["limit"])
                reply = {"text": text, "spans": text.get_spans()}
        except MemoryError:
            reply = {"error": f"it needs more than {MAX_BYTES // 2**20} MiB of memory"}
        # Whatever a template raises is reported, except for an interruption.
        except Exception as error:
            message = str(error).replace(
                "TrackedText", "str"
            )  # the name that template authors know
            reply = {"error": message[:MAX_MESSAGE] or type(error).__name__}
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
    return dump_json(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _tracked_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark the result of a filter that builds a new string from tracked ones."""

    @functools.wraps(function)
    def tracked(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return mark(result, [*args, kwargs]) if type(result) is str else result

    return tracked


def _join_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    """Join with a separator that keeps the origins of what it joins."""

    @functools.wraps(function)
    def tracked(context: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
        return function(context, value, TrackedText(d), attribute)

    return tracked


if __name__ == "__main__":
    _serve()
