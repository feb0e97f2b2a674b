"""Claims about the site: every option, key and module is documented, and it is built whole."""

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

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"<(pre|code|head|script)\b.*?</\1>", re.S)


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    pytest.importorskip("latex2mathml", reason="the site needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", COMMANDS)
def test_property_every_option_of_every_command_says_what_it_is(
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


def test_raises_a_key_without_a_meaning_is_seen(hooks: ModuleType) -> None:
    from dataclasses import dataclass

    @dataclass
    class Bare:
        """Keys.

        Attributes:
            told: what it is.
        """

        told: int = 1
        untold: int = 2

    meanings = {key: meaning for key, _, _, meaning in hooks.keys_of(Bare)}
    assert meanings == {"told": "what it is.", "untold": ""}


def test_property_every_public_module_is_in_the_reference(hooks: ModuleType) -> None:
    for package in hooks.PACKAGES:
        named = set(hooks.modules(package))
        files = {path.stem for path in (ROOT / package).glob("*.py")}
        assert named == {f"{package}.{name}" for name in files if not name.startswith("_")}


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
    """The site, built as `make docs` builds it; a warning is an error."""
    pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("package", ["rpo_theory", "bandits", "llm"])
def test_property_the_site_shows_every_public_module(
    site: Path, hooks: ModuleType, package: str
) -> None:
    page = (site / "reference" / f"{package}.html").read_text(encoding="utf-8")
    for module in hooks.modules(package):
        assert f'id="{module}"' in page


def test_property_the_site_asks_no_network_for_anything(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]* src=["'](https?:[^"']*)""", text)
        loaded += re.findall(r"""<link[^>]* href=["'](https?:[^"']*)""", text)
        assert not loaded, (page.name, loaded)


def test_property_no_formula_stays_as_it_was_typed(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = CODE.sub("", page.read_text(encoding="utf-8"))
        assert not re.findall(r"\\[a-zA-Z]{2,}|\.\. math::|:math:|&#x0003C;em", text), page.name


def test_property_a_file_outside_the_documents_becomes_a_page(site: Path) -> None:
    reference = (site / "reference" / "config.html").read_text(encoding="utf-8")
    links = re.findall(r'href="(\.\./files/[^"]+)"', reference)
    assert links
    for link in links:
        assert (site / "reference" / link).resolve().is_file()
    page = (site / "files" / "configs" / "rpo_smollm2_hh.yaml.html").read_text(encoding="utf-8")
    assert "learning_rate" in page
