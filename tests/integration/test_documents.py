"""Claims about the documentation: names, links, commands and Python code are real and run."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import jax
import pytest

from llm.config import TrainConfig
from rpo.cli import COMMANDS, Parser, declare, main
from rpo.jobs.study_kinds import config_class
from rpo.runtime.config_files import read_config, read_kind

ROOT = Path(__file__).resolve().parents[2]
IDENTIFIER = re.compile(r"`((?:rpo_theory|bandits|llm|rpo)(?:\.[A-Za-z_0-9]+)+)`")
TEST = re.compile(r"`(test_[a-z0-9_]+)`")
CITATION = re.compile(r"`([a-z]+:\d\d)`")


def read(name: str) -> str:
    """Return the text of a file, by its path from the root."""
    return (ROOT / name).read_text(encoding="utf-8")


def resolve(identifier: str) -> object:
    """Return the object of a dotted name.

    The longest prefix that is a module is imported; the rest are attributes.
    """
    parts = identifier.split(".")
    for end in range(len(parts), 0, -1):
        try:
            resolved: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for name in parts[end:]:
            resolved = getattr(resolved, name)
        return resolved
    raise ModuleNotFoundError(identifier)


DOCUMENTS = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
]
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.S | re.M)
COMMAND = re.compile(r"^ *(?:host \d)?\$? ?(rpo [a-z]+ .*?(?:\\\n.*?)*)(?: *(?:#|&$).*)?$", re.M)
WALKED = [name for name in DOCUMENTS if name == "README.md" or "/howto/" in name]
"""Pages whose commands :mod:`test_first_hour` runs as printed."""
COMMANDS_NOT_RUN = {
    r"rpo (train|export) .*smollm2_hh.*": "real weights; howto/train_a_model.md has a tiny model",
    r"rpo (score|generate|evaluate) --model policy .*": "real weights; the same page",
    r"rpo evaluate .*--judgments .*": "annotations of a benchmark; test_judgments has small ones",
    r"rpo (plan|train) configs/rpo_mistral_7b.yaml .*(v5litepod-16|--resume|--workload .*)": "real "
    "weights, or minutes; test_plan has small models",
    r"rpo verify --instances 1000": "a minute; test_api checks two instances",
    r"rpo study configs/\w+\.yaml": "minutes; one of them runs below with --quick",
}
"""Patterns of commands of the other pages that no test runs as printed, and what they need."""
SOLVE_THE_VOTES = "rpo solve --votes examples/votes.csv --confidence 0.95"
COMMANDS_OF_THE_REPOSITORY = {
    "rpo study configs/study_rate_in_n.yaml --seeds 500 --eta '[theorem, 0.01]' --dry-run": (),
    "rpo study configs/study_rate_in_n.yaml --quick": pytest.mark.slow,
    "rpo plan configs/rpo_mistral_7b.yaml --model.path configs/shapes/mistral_7b "
    "--topology v5e:4x4 --trainer.per_device_train_batch_size 8": (),
}
"""Commands on files of the repository, and the mark of their test."""
PYTHON_NOT_RUN = {
    ("docs/finetuning.md", "read_metrics"): "draws two runs of a language model",
}
ROUNDOFF = re.compile(r"duality gap|KKT residual|TV to the exact policy")
"""Lines of the README's output whose digits depend on the machine."""
PLACEHOLDERS = {
    "CONFIG.yaml",
    "STUDY.yaml",
    "answers.yaml",
    "coverage.yaml",
    "study.yaml",
    "tiny.yaml",
}
"""Names that stand for a configuration of the reader."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_every_identifier_in_the_documents_can_be_imported(document: str) -> None:
    identifiers = IDENTIFIER.findall(read(document))
    assert len(identifiers) > 1 or document not in ("docs/notation.md", "docs/theorems.md")
    for identifier in identifiers:
        resolve(identifier)


def test_property_every_test_named_in_the_list_of_theorems_exists() -> None:
    defined = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M))
    named = set(TEST.findall(read("docs/theorems.md")))
    assert len(named) > 30
    assert named <= defined, named - defined


def test_property_every_citation_is_in_the_bibliography() -> None:
    known = set(re.findall(r"^@\w+\{([^,]+),", read("docs/references.bib"), re.M))
    for path in [
        *ROOT.glob("rpo_theory/**/*.py"),
        *ROOT.glob("bandits/**/*.py"),
        *ROOT.glob("llm/**/*.py"),
    ]:
        cited = set(CITATION.findall(path.read_text(encoding="utf-8")))
        assert cited <= known, (path.name, cited - known)


def test_raises_if_an_identifier_does_not_exist() -> None:
    with pytest.raises(AttributeError):
        resolve("rpo_theory.losses.no_such_loss")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_every_code_block_is_closed_before_the_next_one_opens(document: str) -> None:
    """A block that is not closed turns the rest of a page into code."""
    lines = [line.strip() for line in read(document).splitlines()]
    fences = [line for line in lines if line.startswith("```")]
    assert len(fences) % 2 == 0
    assert set(fences[1::2]) <= {"```"}, document


def test_property_targets_of_local_links_exist() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), (document.name, target)


def test_property_the_python_of_the_readme_runs_and_its_three_routes_agree() -> None:
    source = re.search(r"```python\n(.*?)```", read("README.md"), re.S)
    assert source is not None
    assert sum(bool(line) for line in source.group(1).splitlines()) < 10
    names: dict = {}
    exec(source.group(1), names)
    exact, maximin, direct = (names[name].policy for name in ("exact", "maximin", "direct"))
    assert abs(exact - maximin).max() < 1e-9
    assert abs(exact - direct).max() < 1e-6
    assert float(names["proof"].duality_gap) < 1e-9


def commands(document: str) -> list[list[str]]:
    """Return the arguments of every `rpo` command line of a document.

    ``test_interfaces`` parses the examples of the commands, which are the generated parts.
    """
    lines = COMMAND.findall(read(document).partition("<!-- Generated from the code")[0])
    return [shlex.split(line.replace("\\\n", " "))[1:] for line in lines]


def runnable(document: str) -> list[tuple[str, str, str]]:
    """Return kind, title and text of the blocks to write or to run, in the document's order."""
    kinds = ("python", "console")
    blocks = FENCE.findall(read(document))
    return [(kind, title, text) for kind, title, text in blocks if kind in kinds or title]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_rpo_accepts_every_command_of_the_documents(document: str) -> None:
    for command, *arguments in commands(document):
        assert command in COMMANDS, command
        parser = Parser(prog=command, allow_abbrev=False)
        declare(command, parser)
        args, rest = parser.parse_known_args(arguments)
        config = getattr(args, "config", None)
        assert not rest or config is not None, (command, rest)
        if config is not None and Path(config).name not in PLACEHOLDERS:
            path = ROOT / config
            kind = config_class(read_kind(path)) if command == "study" else TrainConfig
            read_config(path, kind, rest)


def consoles(document: str) -> list[str]:
    """Return the lines of a document's console blocks, which its test runs."""
    blocks = [text for kind, _, text in runnable(document) if kind == "console"]
    return [line for text in blocks for line in text.splitlines()]


def is_not_run(document: str, python: str) -> bool:
    """Tell whether a Python block of a document is listed in ``PYTHON_NOT_RUN``."""
    return any(name == document and word in python for name, word in PYTHON_NOT_RUN)


def test_property_every_command_of_the_documents_is_run_or_has_a_reason() -> None:
    remaining = set()
    for document in sorted({*DOCUMENTS} - {*WALKED}):
        run = [shlex.split(line)[2:] for line in consoles(document)]
        remaining |= {shlex.join(["rpo", *args]) for args in commands(document) if args not in run}
    excused = {
        line
        for line in remaining
        if any(re.fullmatch(pattern, line) for pattern in COMMANDS_NOT_RUN)
    }
    assert remaining - excused == {*COMMANDS_OF_THE_REPOSITORY}
    for pattern in COMMANDS_NOT_RUN:
        assert any(re.fullmatch(pattern, line) for line in excused), pattern


def test_property_every_excused_python_block_is_in_the_documents() -> None:
    for document, word in PYTHON_NOT_RUN:
        blocks = [text for kind, _, text in runnable(document) if kind == "python"]
        assert sum(word in text for text in blocks) == 1, (document, word)


@pytest.mark.parametrize(
    "command",
    [pytest.param(line, marks=marks) for line, marks in COMMANDS_OF_THE_REPOSITORY.items()],
)
def test_property_a_command_on_files_of_the_repository_succeeds(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        assert main(shlex.split(command)[1:]) == 0


def test_golden_the_readme_shows_the_output_of_solve_on_the_votes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.search(rf"^\$ {SOLVE_THE_VOTES}\n(.*?)^```$", read("README.md"), re.S | re.M)
    assert shown is not None
    assert main(shlex.split(SOLVE_THE_VOTES)[1:]) == 0
    printed = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    lines = [line for line in shown[1].splitlines() if not line.startswith("$ ")]
    assert len(lines) > 5
    for line in lines:
        assert ROUNDOFF.search(line) or line in printed, line


def test_golden_the_readme_shows_the_problem_file_of_the_examples() -> None:
    shown = re.search(r"^```json\n(.*?)^```$", read("README.md"), re.S | re.M)
    assert shown is not None
    assert shown[1] == read("examples/problem.json")


@pytest.mark.parametrize(
    "document", [name for name in DOCUMENTS if name not in WALKED and runnable(name)]
)
def test_property_the_blocks_of_a_document_run_in_their_order(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for kind, title, content in runnable(document):
        if title:
            (tmp_path / title).parent.mkdir(exist_ok=True)
            (tmp_path / title).write_text(content, encoding="utf-8")
        elif kind == "python" and not is_not_run(document, content):
            with jax.enable_x64(True):
                exec(content, names)
        elif kind == "console":
            for line in content.splitlines():
                assert line.startswith("$ rpo "), line
                with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
                    assert main(shlex.split(line)[2:]) == 0, line
