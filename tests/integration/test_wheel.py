"""Claims about the distribution: its name, its version and the files that a user installs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel of the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_golden_the_wheel_holds_all_files_of_the_five_packages_and_nothing_else(
    wheel: zipfile.ZipFile,
) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert installed == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= installed


def test_golden_the_wheel_is_named_rpo_theory_and_installs_the_command_rpo(
    wheel: zipfile.ZipFile,
) -> None:
    def metadata(file: str) -> str:
        (name,) = [name for name in wheel.namelist() if name.endswith(f".dist-info/{file}")]
        return wheel.read(name).decode()

    assert "\nName: rpo-theory\n" in metadata("METADATA")
    assert re.search(
        r"^rpo = rpo\.program:run_program$", metadata("entry_points.txt"), re.MULTILINE
    )
    assert "Apache License" in metadata("licenses/LICENSE")


def test_golden_the_version_has_the_release_part_of_the_fallback_before_the_first_tag() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    fallback = project["tool"]["hatch"]["version"]["fallback-version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", fallback)
    installed = re.match(r"\d+\.\d+\.\d+", version("rpo-theory"))
    assert installed is not None
    assert tuple(map(int, installed[0].split("."))) >= tuple(map(int, fallback.split(".")))


def test_golden_a_source_archive_without_git_has_the_fallback_version(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "hatchling", "version"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert done.stdout.strip() == project["tool"]["hatch"]["version"]["fallback-version"]
