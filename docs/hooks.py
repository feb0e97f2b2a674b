"""What the site adds to the documents: formulas without scripts, references that cannot go stale.

Formulas become MathML when the site is built, so that pages need neither scripts nor a network. The
references of commands and of configuration keys are written from the parsers and the dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from html import unescape
from typing import Any, Literal, get_args, get_origin, get_type_hints

from latex2mathml.converter import convert

CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.S)
INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])")
ROLE = re.compile(r":math:<code>(.*?)</code>", re.S)
NAME = re.compile(r":(?:func|class|attr|mod|data|meth):<code>(.*?)</code>", re.S)
BLOCK = re.compile(r"<p>\.\. math:: (.*?)</p>", re.S)
CELL_CODE = re.compile(r"(?<=<code>)[\w.]{12,}(?=</code>)")
ROW = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.M)
PACKAGES = ("rpo_theory", "bandits", "llm")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Write the generated parts of a page, and its formulas."""
    match page.file.src_uri:
        case "reference/cli.md":
            markdown += "\n".join(command_reference())
        case "reference/config.md":
            markdown += "\n".join(config_reference())
        case uri if (package := uri.removeprefix("reference/").removesuffix(".md")) in PACKAGES:
            markdown += "\n".join(f"::: {module}\n" for module in modules(package))
    parts = CODE.split(markdown)
    parts[::2] = (_formulas(part) for part in parts[::2])
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Formulas and names of docstrings, which are written as in Sphinx."""
    html = BLOCK.sub(lambda found: _mathml(unescape(found[1]), "block"), html)
    html = ROLE.sub(lambda found: _mathml(unescape(found[1]), "inline"), html)
    html = NAME.sub(lambda found: f"<code>{found[1].lstrip('~')}</code>", html)
    # Long names of tables break where a reader would break them.
    return CELL_CODE.sub(lambda found: re.sub(r"([._])(?=\w)", r"\1<wbr>", found[0]), html)


def command_reference() -> Iterator[str]:
    """Every command with its options, as Markdown."""
    cli = importlib.import_module("rpo.cli")
    for name, summary in cli.COMMANDS.items():
        yield from (f"## rpo {name}", "", f"{summary[0].upper()}{summary[1:]}.", "")
        actions = list(options_of(name))
        if actions:
            yield from ("| option | default | meaning |", "|---|---|---|")
        for action in actions:
            default, meaning = _default(action.default), action.help or ""
            meaning = re.sub(r" \(default:? [^)]*\)$", "", meaning) if default else meaning
            yield f"| {_spelt(action)} | {default} | {_cell(meaning)} |"
        yield ""


def options_of(command: str) -> Iterator[argparse.Action]:
    """Options and arguments of a command."""
    cli = importlib.import_module("rpo.cli")
    parser = cli.Parser(prog=command)
    cli.declare(command, parser)
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield action


def config_reference() -> Iterator[str]:
    """Every key of the two kinds of configuration, as Markdown."""
    kinds = {
        "Training, `rpo train`": "llm.config.TrainConfig",
        "Studies, `rpo study`": "bandits.grid.Study",
    }
    for title, where in kinds.items():
        module, name = where.rsplit(".", 1)
        yield from (f"## {title}", "", "| key | type | default | meaning |", "|---|---|---|---|")
        for key, kind, default, meaning in keys_of(getattr(importlib.import_module(module), name)):
            yield f"| `{key}` | {_cell(kind)} | {default} | {_cell(meaning)} |"
        yield ""


def keys_of(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Key, type, default and meaning of every field, those of nested dataclasses inside."""
    described = ROW.findall(inspect.cleandoc(cls.__doc__ or ""))
    meanings = {name: re.sub(r"\s+", " ", text) for name, text in described}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, meaning = hints[field.name], meanings.get(field.name, "")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from keys_of(kind, f"{prefix}{field.name}.")
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        needed = default is dataclasses.MISSING
        yield (
            prefix + field.name,
            _kind(kind, field.type),
            "needed" if needed else f"`{default}`",
            meaning,
        )


def modules(package: str) -> list[str]:
    """Public modules of a package."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(f"{package}.{module.name}" for module in found if not module.name.startswith("_"))


def _formulas(text: str) -> str:
    text = DISPLAY.sub(lambda found: _mathml(found[1], "block"), text)
    return INLINE.sub(lambda found: _mathml(found[1], "inline"), text)


def _mathml(latex: str, display: str) -> str:
    latex = re.sub(r"\s+", " ", latex).strip().replace(r"\Vert", r"\|").replace(r"\mid", "|")
    latex = re.sub(r"_\{(base|ref|max)\}", r"_{\\mathrm{\1}}", latex).replace(
        r"\arg", r"\mathrm{arg}"
    )
    formula = convert(latex, display=display).replace("\n", " ")
    # By itself at the start of a line, a formula would be taken for a block.
    return f"<span>{formula}</span>" if display == "inline" else formula


def _spelt(action: argparse.Action) -> str:
    names = action.option_strings or [str(action.metavar or action.dest)]
    takes_value = action.option_strings and action.nargs != 0
    value = (action.metavar or action.dest.upper()) if takes_value else None
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    return _cell(", ".join(f"`{name}{f' {value}' if value else ''}`" for name in names))


def _default(value: Any) -> str:
    hidden = value is None or value is False or value == argparse.SUPPRESS
    return "" if hidden else f"`{value}`"


def _kind(hint: Any, annotation: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in get_args(hint))
    return f"`{annotation}`".replace(" | ", " or ")


def _cell(text: str) -> str:
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r":(?:func|class|attr|mod|data|meth):`~?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", r"\|").replace("%%", "%")
