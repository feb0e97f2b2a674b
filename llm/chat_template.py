"""Chat templates: Jinja programs that come with a model, run in a sandbox and within limits.

A template turns messages into the text that the model was trained to read. It is code from
elsewhere, so that it can neither reach Python nor change its arguments, and is stopped when it runs
or writes without end. What it sees is what ``transformers`` shows it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_EXTRA_CHARACTERS = 1_000_000
"""A text may be longer than all strings that went into it by this much."""
MAX_SECONDS = 5.0
"""Ordinary templates take less than a millisecond."""
STEP = " step"
"""Runs once for every turn of a loop and call of a macro. No identifier: no template can set it."""


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
        self._now = now or datetime.datetime.now()
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: self._now.strftime(form)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ValueError(f"{name} is not a chat template: {error}") from error
        # The date is part of the text that some templates write: of their identity, then.
        dated = self._now.date().isoformat() if "strftime_now" in source else ""
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
        parts: list[str] = []
        budget = _Budget(time.monotonic() + MAX_SECONDS)
        try:
            for part in self._template.generate(
                **given, add_generation_prompt=add_generation_prompt, **{STEP: budget.step}
            ):
                budget.step()
                limit -= len(part)
                if limit < 0:
                    raise _LimitError("it writes too much")
                parts.append(part)
        # A template can fail as any program can: all but an interruption is its failure.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{self.name} cannot write this conversation: {reason}") from error
        return "".join(parts)


class _LimitError(Exception):
    """A template runs or writes without end."""


class _Budget:
    """Time that a rendering may take."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def step(self) -> str:
        """Stop if the time is over.

        Returns:
            Nothing to write.
        """
        if time.monotonic() > self._deadline:
            raise _LimitError(f"it takes longer than {MAX_SECONDS} seconds")
        return ""


class _Environment(ImmutableSandboxedEnvironment):
    """A sandbox in which every turn of a loop and every call of a macro looks at the clock."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for block in template.find_all((nodes.For, nodes.Macro)):
            call = nodes.Call(nodes.ContextReference(), [], [], None, None)
            call.node = nodes.Getitem(nodes.ContextReference(), nodes.Const(STEP), "load")
            step = nodes.ExprStmt(call)
            step.set_lineno(block.lineno)
            step.set_environment(self)
            block.body.insert(0, step)
        return template


class _Generation(Extension):
    """``{% generation %}``, which marks replies for other trainers; its body is plain text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Parse the body in place of the block."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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
