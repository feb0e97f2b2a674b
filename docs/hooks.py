"""MkDocs hooks of the site: formulas, references of modules and pages for linked files.

Formulas become MathML at build time, so that pages need neither scripts nor a network. Files
outside this folder that a document links to become pages of the site.

``python docs/hooks.py`` writes the generated parts of the references of commands and configuration
keys, from the parsers and the dataclasses.
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
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any, Literal, get_args, get_origin, get_type_hints

CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.S)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.S)
INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])")
ROLE = re.compile(r":math:<code>(.*?)</code>", re.S)
NAME = re.compile(r":(?:func|class|attr|mod|data|meth):<code>(.*?)</code>", re.S)
BLOCK = re.compile(r"<p>\.\. math::\s+(.*?)</p>", re.S)
EMPHASIS = re.compile(r"</?em>")
CELL_CODE = re.compile(r"(?<=<code>)[\w.,{}\[\] -]{12,}(?=</code>)")
FUNCTION = re.compile(r"<m[io]>(log|exp|tanh)</m[io]>")
LINK = re.compile(r"(?<=\]\()(\.\./[^)#:\s]+)(?=\))")
TABLE = re.compile(r"<table>\n.*?</table>", re.S)
CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.S)
TAG = re.compile(r"<[^>]*>")
WORDY = 48
ROW = re.compile(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", re.M)
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io")
KEYS = '<div class="keys" markdown>'
OUTSIDE = "files/"
GENERATED = (
    "<!-- Generated from the code by `make references`: edit the code, not what follows. -->"
)
REFERENCES = Path(__file__).parent / "reference"
LANGUAGES = {".yaml": "yaml", ".py": "python", ".md": "markdown", ".json": "json"}


def on_files(files: Any, *, config: Any) -> Any:
    """Add a page for every file outside the documents that a document links to."""
    pages = list(files.documentation_pages())
    linked = {_outside(page, link) for page in pages for link in LINK.findall(page.content_string)}
    for path in sorted(filter(None, linked)):
        source = Path(config.config_file_path).parent / path
        if source.is_file():
            files.append(_file_page(path, source.read_text(encoding="utf-8"), config))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Add the generated parts of a page and convert its formulas and links to outside files."""
    match page.file.src_uri:
        case uri if uri.startswith(OUTSIDE):
            page.meta["search"] = {"exclude": True}
            return markdown
        case uri if (package := uri.removeprefix("reference/").removesuffix(".md")) in PACKAGES:
            page.meta["search"] = {"boost": 0.3}  # in searches, guides rank above references
            markdown += "\n".join(f"::: {module}\n" for module in modules(package))
    parts = CODE.split(markdown)
    parts[::2] = (_formulas(part) for part in parts[::2])
    return LINK.sub(lambda match: _to_page(page.file, match[1]), "".join(parts))


def on_page_content(html: str, **_: Any) -> str:
    """Convert the Sphinx roles of docstrings: formulas and names."""
    html = BLOCK.sub(lambda match: _mathml(unescape(EMPHASIS.sub("_", match[1])), "block"), html)
    html = ROLE.sub(lambda match: _mathml(unescape(match[1]), "inline"), html)
    html = NAME.sub(lambda match: f"<code>{match[1].lstrip('~')}</code>", html)
    html = TABLE.sub(lambda match: _stackable(match[0]), html)
    # Long names in tables may break after a dot, an underscore or a comma.
    return CELL_CODE.sub(lambda match: re.sub(r"([._,])(?=\w)", r"\1<wbr>", match[0]), html)


def generated_pages() -> dict[Path, str]:
    """Return the pages whose second part is generated, with that part up to date."""
    pages = {}
    for name, lines in (("cli.md", command_reference()), ("config.md", config_reference())):
        written = (REFERENCES / name).read_text(encoding="utf-8").partition(GENERATED)[0]
        generated = "\n".join(line.rstrip() for line in lines).rstrip()
        pages[REFERENCES / name] = f"{written.rstrip()}\n\n{GENERATED}\n\n{generated}\n"
    return pages


def _stackable(table: str) -> str:
    """Mark a table with long texts: a phone shows its cells below each other, with their heads."""
    head, _, body = table.partition("</thead>")
    names = [TAG.sub("", name).strip() for name in CELL.findall(head)]
    lengths = [len(unescape(TAG.sub("", cell))) for cell in CELL.findall(body)]
    if len(names) < 3 or max(lengths, default=0) < WORDY:
        return table

    def labeled(row: re.Match[str]) -> str:
        heads = iter(names)
        return re.sub(r"<td", lambda _: f'<td data-head="{next(heads, "")}"', row[0])

    rows = re.sub(r"<tr>.*?</tr>", labeled, body, flags=re.S)
    return f'<div class="stack">{head}</thead>{rows}</div>'


def command_reference() -> Iterator[str]:
    """Yield the Markdown lines of the reference of commands and their options."""
    cli = importlib.import_module("rpo.cli")
    for name, summary in cli.COMMANDS.items():
        yield from (f"## rpo {name}", "", f"{summary[0].upper()}{summary[1:]}.", "")
        actions = list(options_of(name))
        yield from (KEYS, "", "| option | default | meaning |", "|---|---|---|")
        for action in actions:
            default, meaning = _default(action.default), action.help or ""
            meaning = re.sub(r" \(default:? [^)]*\)$", "", meaning) if default else meaning
            yield f"| {_spell(action)} | {default} | {_cell(meaning)} |"
        examples = importlib.import_module(f"rpo.commands.{name}").EXAMPLES
        yield from ("", "</div>", "", "```text", *(f"$ {line}" for line in examples), "```", "")


def options_of(command: str) -> Iterator[argparse.Action]:
    """Yield the options and arguments of a command."""
    cli = importlib.import_module("rpo.cli")
    parser = cli.Parser(prog=command)
    cli.declare(command, parser)
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            yield action


def config_reference() -> Iterator[str]:
    """Yield the Markdown lines of the reference of training and study configuration keys."""
    kinds = {
        "Training, `rpo train`": "llm.config.TrainConfig",
        "Studies, `rpo study`": "bandits.study.config.StudyConfig",
        "Studies of minimax regret, `kind: minimax_regret`": (
            "bandits.minimax_regret.config.MinimaxRegretConfig"
        ),
        "Studies of overoptimization laws, `kind: laws`": (
            "bandits.overoptimization.config.LawsConfig"
        ),
        "Studies in rounds, `kind: rounds`": "bandits.rounds.config.RoundsConfig",
    }
    for title, where in kinds.items():
        module, name = where.rsplit(".", 1)
        yield from (f"## {title}", "", KEYS, "")
        yield from ("| key | type | default | meaning |", "|---|---|---|---|")
        for key, kind, default, meaning in keys_of(getattr(importlib.import_module(module), name)):
            yield f"| `{key}` | {_cell(kind)} | {default} | {_cell(meaning)} |"
        yield from ("", "</div>", "")
    yield from loss_reference()
    yield from method_reference()


def loss_reference() -> Iterator[str]:
    """Yield the Markdown lines of the table of preference losses and their options."""
    losses = importlib.import_module("llm.config").PREFERENCE_LOSSES
    yield from ("## Preference losses of training runs", "")
    yield from ("| `method` or `preference` | uses | options and their defaults |", "|---|---|---|")
    for loss in losses.values():
        uses = {"$\\beta$": loss.uses_beta, "reference": loss.needs_reference}
        uses["whole batch"] = loss.scope == "batch"
        used = ", ".join(name for name, is_used in uses.items() if is_used)
        options = (f"`{name}: {value}`" for name, value in vars(loss.options()).items())
        listed = ", ".join(options).replace("True", "true").replace("False", "false")
        yield f"| `{loss.name}` | {used} | {listed} |"
    yield from (
        "",
        "Definitions are in [Every objective](../trainer_conventions.md#every-objective).",
        "",
    )


def method_reference() -> Iterator[str]:
    """Yield the Markdown lines of the table of built-in methods and their options."""
    methods = importlib.import_module("bandits.methods.registry").METHODS
    yield from ("## Methods of studies", "")
    yield from ("| `method` | title | uses | `options` and their defaults |", "|---|---|---|---|")
    for method in methods.values():
        options = (f"`{name}: {value}`" for name, value in vars(method.options()).items())
        weights = {"$\\eta$": method.uses_eta, "$\\beta$": method.uses_beta}
        used = ", ".join(name for name, is_used in weights.items() if is_used)
        listed = ", ".join(options).replace("None", "null").replace("True", "true")
        yield f"| `{method.name}` | {method.title} | {used} | {listed} |"
    yield from ("", "The meanings of the options are in [`bandits.methods`](bandits.md).", "")


def keys_of(
    cls: type, prefix: str = "", shown: set[type] | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """Yield key, type, default and meaning of every field, including nested dataclasses.

    The keys of a dataclass that several fields take as items of a list come once, after the first.
    """
    shown = set() if shown is None else shown
    described = ROW.findall(inspect.cleandoc(cls.__doc__ or ""))
    meanings = {name: re.sub(r"\s+", " ", text) for name, text in described}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind, meaning = hints[field.name], meanings.get(field.name, "")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from keys_of(kind, f"{prefix}{field.name}.", shown)
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        is_required = default is dataclasses.MISSING
        yield (
            prefix + field.name,
            _kind(kind, field.type),
            "required" if is_required else f"`{default}`" if default != "" else "",
            meaning,
        )
        for item in _items_of(kind):
            if item not in shown:
                shown.add(item)
                yield from keys_of(item, f"{prefix}{field.name}[].", shown)


def _items_of(hint: Any) -> Iterator[type]:
    """Yield the dataclasses within a type, such as that of the items of a list."""
    for inner in get_args(hint):
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield inner
        yield from _items_of(inner)


def modules(package: str) -> list[str]:
    """Return the dotted names of the public modules of a package."""
    path = importlib.import_module(package).__path__
    names = (
        module.name for module in pkgutil.walk_packages(path, f"{package}.") if not module.ispkg
    )
    return sorted(name for name in names if "._" not in name and ".numerics." not in name)


def _outside(page: Any, target: str) -> str | None:
    """Return the path of a link's target from the repository root, or None inside the documents."""
    path = normpath(PurePosixPath(page.src_uri).parent / target)
    outside = path.startswith("../") and not path.startswith("../../")
    return path.removeprefix("../") if outside else None


def _file_page(path: str, text: str, config: Any) -> Any:
    from mkdocs.structure.files import File, InclusionLevel

    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    content = f"# {path}\n\n~~~~{language}\n{text}\n~~~~\n"
    hidden = InclusionLevel.NOT_IN_NAV
    return File.generated(config, f"{OUTSIDE}{path}.md", content=content, inclusion=hidden)


def _to_page(page: Any, target: str) -> str:
    path = _outside(page, target)
    return relpath(f"{OUTSIDE}{path}.md", PurePosixPath(page.src_uri).parent) if path else target


def _formulas(text: str) -> str:
    text = DISPLAY.sub(lambda match: _mathml(match[1], "block"), text)
    return INLINE.sub(lambda match: _mathml(match[1], "inline"), text)


def _mathml(latex: str, display: str) -> str:
    latex = re.sub(r"\s+", " ", latex).strip().replace(r"\Vert", r"\|").replace(r"\mid", "|")
    latex = re.sub(r"_\{(base|ref|max)\}", r"_{\\mathrm{\1}}", latex).replace(
        r"\arg", r"\mathrm{arg}"
    )
    latex = re.sub(r"(KL\([^()|]+?)\\?\|(?!\|)", r"\1\\|", latex)  # Markdown removes the backslash
    latex = re.sub(r"\\(mathbb|mathcal) ?(\w)", r"\\\1{\2}", latex)
    from latex2mathml.converter import convert

    formula = convert(latex, display=display).replace("\n", " ")
    formula = FUNCTION.sub(r'<mo lspace="0.12em" rspace="0.12em">\1</mo>', formula)
    if display == "block" and len(TAG.sub("", formula)) > WORDY:
        formula = formula.replace("<math ", '<math class="long" ', 1)  # smaller on a phone
    # Without a span, Markdown reads a formula at the start of a line as a block.
    return f"<span>{formula}</span>" if display == "inline" else formula


def _spell(action: argparse.Action) -> str:
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
        return "one of " + ", ".join(f"`{name}`" for name in get_args(hint))
    return f"`{annotation}`".replace(" | ", " or ")


def _cell(text: str) -> str:
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    text = re.sub(r":(?:func|class|attr|mod|data|meth):`~?([^`]*)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", r"\|").replace("%%", "%")


if __name__ == "__main__":
    for page, content in generated_pages().items():
        page.write_text(content, encoding="utf-8")
