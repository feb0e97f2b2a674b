"""Claims about the site: every option, key and module is documented, and the build is strict."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rpo.cli import COMMANDS

from ..rpo.report.browser import find_browser

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"<(pre|code|head|script)\b.*?</\1>", re.S)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """Return the module ``docs/hooks.py``."""
    pytest.importorskip("latex2mathml", reason="the site needs the extra `docs`")
    return load("hooks")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli.md", "config.md"])
def test_golden_the_references_are_what_the_code_generates(hooks: ModuleType, page: str) -> None:
    (path,) = (path for path in hooks.generated_pages() if path.name == page)
    generated = hooks.generated_pages()[path]
    assert path.read_text(encoding="utf-8") == generated, "run `make references`"
    assert generated.count("| `--json` |") == (len(COMMANDS) if page == "cli.md" else 0)
    assert ("| `objective.eta` |" in generated) == (page == "config.md")


def test_closed_form_tables_of_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="the site needs the extra `docs`")
    table = """Before.

    ====== ==========
    name   meaning
    ====== ==========
    ``a``  first, |x|
           continued
    b      last, wider than its rule
    ====== ==========

    After."""
    lines = [line.strip() for line in load("docstring_tables").to_markdown(table).splitlines()]
    assert [line for line in lines if line] == [
        "Before.",
        "| name | meaning |",
        "|---|---|",
        r"| ``a`` | first, \|x\| continued |",
        "| b | last, wider than its rule |",
        "After.",
    ]
    assert load("docstring_tables").to_markdown("a === b\n===\n") == "a === b\n===\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_property_every_option_of_every_command_has_a_help_text(
    hooks: ModuleType, command: str
) -> None:
    for action in hooks.options_of(command):
        assert action.help, f"rpo {command}: {action.option_strings or action.dest}"


def test_property_every_key_of_a_configuration_has_a_meaning(hooks: ModuleType) -> None:
    from bandits.study.config import StudyConfig
    from llm.config import TrainConfig

    rows = [row for cls in (TrainConfig, StudyConfig) for row in hooks.keys_of(cls)]
    assert len(rows) > 60
    assert not [key for key, _, _, meaning in rows if len(meaning) < 5]


def test_golden_a_key_without_a_meaning_is_detected(hooks: ModuleType) -> None:
    from dataclasses import dataclass

    @dataclass
    class Bare:
        """Keys.

        Attributes:
            documented: what it is.
        """

        documented: int = 1
        undocumented: int = 2

    meanings = {key: meaning for key, _, _, meaning in hooks.keys_of(Bare)}
    assert meanings == {"documented": "what it is.", "undocumented": ""}


def test_property_every_public_module_is_in_the_reference(hooks: ModuleType) -> None:
    for package in hooks.PACKAGES:
        paths = [path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")]
        public = {
            ".".join(path.with_suffix("").parts)
            for path in paths
            if "numerics" not in path.parts and not any(p.startswith("_") for p in path.parts)
        }
        assert set(hooks.modules(package)) == public


def test_closed_form_formulas_become_mathml_and_code_stays(hooks: ModuleType) -> None:
    class Page:
        class file:  # noqa: N801
            src_uri = "index.md"

    html = hooks.on_page_markdown("$\\beta$ and `$x$`", page=Page)
    assert html.startswith("<span><math")
    assert html.endswith("and `$x$`")


def test_property_the_reference_shows_every_example_of_a_command(hooks: ModuleType) -> None:
    shown = list(hooks.command_reference())
    for command in COMMANDS:
        for example in importlib.import_module(f"rpo.commands.{command}").EXAMPLES:
            assert f"$ {example}" in shown


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` builds it; warnings are errors."""
    pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.mark.parametrize("package", ["rpo_theory", "bandits", "llm"])
def test_property_the_site_shows_every_public_module(
    site: Path, hooks: ModuleType, package: str
) -> None:
    page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
    for module in hooks.modules(package):
        assert f'id="{module}"' in page


def test_property_the_site_loads_nothing_from_the_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]* src=["'](https?:[^"']*)""", text)
        loaded += re.findall(r"""<link[^>]* href=["'](https?:[^"']*)""", text)
        assert not loaded, (page.name, loaded)


def test_property_no_formula_is_left_as_latex(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        assert not re.findall(r"\\[a-zA-Z]{2,}|\.\. math::|:math:|&#x0003C;em", text), page.name


def test_property_no_markup_of_docstrings_is_left(site: Path) -> None:
    """Roles, literals and tables of reStructuredText."""
    pages = [page for page in site.rglob("*.html") if "files" not in page.parts]
    for page in pages:
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        found = re.findall(r":(?:func|class|mod|attr|meth|data|exc|ref):|``|\.\. \w+::|====", text)
        assert not found, (page.name, found)


def test_property_the_site_is_searched_without_a_server(site: Path) -> None:
    """Search needs no JSON request and no worker, which browsers refuse for files."""
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    assert index.startswith("var __index = {")
    for name in ("index.html", "howto/resume.html"):
        page = (site / name).read_text(encoding="utf-8")
        script, bundle = (page.index(part) for part in ("iframe-worker.js", "bundle."))
        assert script < bundle
    browser = find_browser()
    if browser is None:
        pytest.skip("needs Chromium, to search")
    address = (site / "howto" / "resume.html").as_uri() + "?q=checkpoint"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", address]
    command += [f"--user-data-dir={site / 'profile'}", "--virtual-time-budget=15000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert re.search(r"[1-9]\d* matching documents", done.stdout)


def test_property_a_file_outside_the_documents_becomes_a_page(site: Path) -> None:
    reference = (site / "reference" / "config.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(\.\./files/[^"]+)"', reference)
    assert links
    for link in links:
        assert (site / "reference" / link).resolve().is_file()
    page = (site / "files" / "configs" / "rpo_smollm2_hh.yaml.html").read_text(encoding="utf-8")
    assert "learning_rate" in page
