"""Check the language of the project: banned phrases, words banned in identifiers, long lines.

Run ``python tests/language/check.py [PATH ...]``. Without paths it checks every tracked text file.
It prints one line a finding and the count, and exits with 1 if there is a finding. Three rules:

* phrase: a phrase of the list below, in any text file;
* identifier: a word of the list below, in an identifier or a file name;
* line: a line of Markdown prose over 120 characters (tables, code blocks and URLs may be longer).
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".cff", ".css", ".txt", ".bib", ".sh"}
NAMES = {"Makefile", "run"}
EXEMPT_FILES = {"tests/language/check.py", "tests/language/test_check.py", "LICENSE"}

PHRASES = (
    r"pair laws?",
    r"laws? of (?:the|a|an|its|their|all|these|those)",
    r"told",
    r"dealt",
    r"owed",
    r"frugal",
    r"catalogues?",  # codespell:ignore catalogues
    r"what is for people",
    r"so many",
    r"in small(?= (?:and|or|as|by|of|with|for|the|a|is|are)\b|[^\w ]|$)",
    r"(?:is|are) made again",
    r"where there (?:are|is) none",
    r"has no say",
)
"""Regular expressions of the banned phrases, matched as whole words; underscores are spaces."""

PHRASE = re.compile(rf"\b(?:{'|'.join(PHRASES)})(?!\w)".replace(" ", r"\s+"), re.IGNORECASE)

WORDS = frozenset(
    {
        *("spread", "total", "everyone", "back", "own", "alone", "turn", "turns", "words"),
        *("products", "place", "places", "choice", "regret", "networks", "expectation"),
        *("learned", "learners", "bridge", "offline", "elsewhere"),
    }
)
"""Words that no identifier or file name of the project may hold."""

FIELD_TERMS = (
    "total_variation",
    "minimax_regret",
    "cumulative_regret",
    "multi_turn",
    "save_total_limit",
    "best_of_n_choice",
)
"""Terms of the field, and names of other projects, in which those words stay."""

MAX_LINE_LENGTH = 120
"""Characters of a line of Markdown outside tables, code blocks and URLs."""

FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
LIST_ITEM = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s")
URL = re.compile(r"https?://[^\s)>\]]+")
OPTION = re.compile(r"--[a-z][a-z0-9_-]+")
YAML_KEY = re.compile(r"^\s*(?:- )?([A-Za-z_]\w*):", re.MULTILINE)


def tracked_files() -> list[Path]:
    """List the text files that git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(line) for line in listed.splitlines() if (ROOT / line).is_file()]


def phrase_findings(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and phrase of every banned phrase; a phrase may cross a line break."""
    plain = text.replace("_", " ")
    joined = re.sub(r"\n[ \t]*(?:#[: ]?|\*)?[ \t]*", lambda match: " " * len(match[0]), plain)
    for match in PHRASE.finditer(joined):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())


def identifier_words(name: str) -> list[str]:
    """Split an identifier or a file name into lower-case words."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    text = text.replace("-", "_")
    for term in FIELD_TERMS:
        text = text.replace(term, "")
    return [word for word in re.split(r"[^a-z0-9]+", text) if word]


def defined_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of every definition, argument, assigned name and keyword field."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.alias(asname=str(name)):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.Constant(value=str(text)) if OPTION.fullmatch(text):
                yield node.lineno, text


def word_findings(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield line and identifier for every banned word in an identifier or in the file's name."""
    names: list[tuple[int, str]] = [(1, part) for part in path.parts]
    if path.suffix == ".py":
        names += defined_names(ast.parse(text))
    elif path.suffix in {".yaml", ".yml"}:
        names += [(text.count("\n", 0, m.start(1)) + 1, m[1]) for m in YAML_KEY.finditer(text)]
    for line, name in names:
        if banned := WORDS.intersection(identifier_words(name)):
            yield line, f"{name} ({', '.join(sorted(banned))})"


def prose_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a Markdown file outside tables and code blocks."""
    fence, in_list, in_code, blank_above = "", False, False, True
    for number, line in enumerate(text.splitlines(), start=1):
        marker = FENCE.match(line)
        if fence:
            if marker and marker[1].startswith(fence):
                fence = ""
            continue
        if marker:
            fence = marker[1]
            continue
        if not line.strip():
            blank_above = True
            continue
        if LIST_ITEM.match(line) and not in_code:
            in_list = True
        elif not line[0].isspace():
            in_list = False
        in_code = line.startswith("    ") and not in_list and (blank_above or in_code)
        blank_above = False
        if not in_code and not line.lstrip().startswith("|"):
            yield number, line


def long_line_findings(text: str) -> Iterator[tuple[int, int]]:
    """Yield number and length of every line of Markdown prose that is too long, URLs left out."""
    for number, line in prose_lines(text):
        length = len(URL.sub("", line))
        if length > MAX_LINE_LENGTH:
            yield number, length


def notebook_text(text: str) -> str:
    """Return the source cells of a notebook; its outputs are checked where they are made."""
    cells = json.loads(text)["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def findings(path: Path) -> Iterator[str]:
    """Yield one line for every finding in a file."""
    if path.as_posix() in EXEMPT_FILES or (path.suffix not in SUFFIXES and path.name not in NAMES):
        return
    text = (ROOT / path).read_text(encoding="utf-8")
    text = notebook_text(text) if path.suffix == ".ipynb" else text
    for line, phrase in phrase_findings(text):
        yield f"{path}:{line}: phrase: {phrase}"
    for line, name in word_findings(path, text):
        yield f"{path}:{line}: identifier: {name}"
    if path.suffix == ".md":
        for line, length in long_line_findings(text):
            yield f"{path}:{line}: line: {length} characters, at most {MAX_LINE_LENGTH}"


def main(arguments: list[str]) -> int:
    """Print the findings of the given files or folders, or of all tracked files."""
    selected = [Path(argument).resolve().relative_to(ROOT) for argument in arguments]
    files = tracked_files()
    if selected:
        files = [path for path in files if any(path.is_relative_to(root) for root in selected)]
    lines = [line for path in files for line in findings(path)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{len(lines)} findings in {len(files)} files\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
