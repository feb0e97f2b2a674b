"""Every command of the README and of the how-to pages works as printed, in a fresh clone.

The clone has this environment's programs on PATH, an empty HOME and no network. All pages run in
one clone, in order, as a reader would work through them. The README trains, exports and samples a
model, and one page runs a whole study; the how-to pages that train further models, or run the study
again, are slow tests.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/howto/*.md")),
]
TRAINING = (
    *("evaluate_a_model", "publish_a_model", "publish_and_continue_adapters"),
    *("python", "resume", "train_a_model"),
)
"""Pages whose commands train models."""
SAME_STUDY = ("figures_for_a_paper",)
"""Pages whose commands run the study of another page."""
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.S | re.M)
SHELL = ("console", "sh")
CLUSTER = "cluster"
"""Title of blocks whose commands need several hosts or an accelerator."""
NOT_RUN = re.compile(
    r"^(make|pip|git|cd|\.) "  # installation
    r"|\bconfigs/\w+_(smollm2_hh|mistral_7b|gemma_7b)\.yaml"  # models on the hub
    r"|\b(hf|gs|s3)://"
)
"""Commands that need a network, or change the environment."""


class Block(NamedTuple):
    """A fenced block of a page.

    Attributes:
        language: word after the fence.
        title: name of the file that it shows, or ``cluster``; empty if there is none.
        text: content of the block.
    """

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in their order."""
    return [Block(*found) for found in FENCE.findall((ROOT / page).read_text(encoding="utf-8"))]


def commands(block: Block) -> list[str]:
    """Return the commands of a block: after a prompt in a console, every line in a script."""
    if block.language not in SHELL or block.title == CLUSTER:
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    # shlex drops the comments; the shell would, too.
    return [line for line in lines if shlex.split(line, comments=True)]


def run(command: list[str] | str, clone: Path, environment: Mapping[str, str]) -> None:
    """Run a command in the clone; it must succeed, without a traceback or a warning."""
    process = subprocess.run(
        command,
        shell=isinstance(command, str),
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, (command, process.stderr[-2000:])
    assert "Traceback" not in process.stderr, (command, process.stderr)
    assert "Warning" not in process.stderr, (command, process.stderr)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone of the repository, with nothing beside it."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, which this copy is not")
    folder = tmp_path_factory.mktemp("first_hour") / "rpo-theory"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of a new user: an empty HOME, this environment's programs, and no network."""
    nowhere = "http://127.0.0.1:9"
    return {
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "LANG": "C.UTF-8",
        "HF_ENDPOINT": nowhere,
        "HTTPS_PROXY": nowhere,
        "HTTP_PROXY": nowhere,
        # Compiled programs are shared with the other tests, which saves a minute.
        **{name: os.environ[name] for name in os.environ if name.startswith(("JAX_", "XLA_"))},
    }


@pytest.fixture(scope="module")
def solved() -> set[str]:
    """Commands of earlier pages that write no files, and that need not run again."""
    return set()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, marks=pytest.mark.slow if Path(page).stem in (*TRAINING, *SAME_STUDY) else ()
        )
        for page in PAGES
    ],
)
def test_property_the_commands_of_a_page_run_in_a_fresh_clone(
    page: str, clone: Path, environment: dict[str, str], solved: set[str]
) -> None:
    script = ""
    for block in blocks(page):
        if block.language == "python":
            script += block.text
        elif block.language not in (*SHELL, "bash") and block.title:
            assert (clone / block.title).read_text(encoding="utf-8") == block.text, block.title
        for command in commands(block):
            if not NOT_RUN.search(command) and command not in solved:
                run(command, clone, environment)
                if command.startswith("rpo solve "):
                    solved.add(command)
    if script:
        (clone / "script.py").write_text(script, encoding="utf-8")
        run([sys.executable, "script.py"], clone, environment)


def test_property_the_readme_shows_a_command_of_every_kind_of_user() -> None:
    shown = [shlex.split(line) for block in blocks("README.md") for line in commands(block)]
    used = {arguments[1] for arguments in shown if arguments[0] == "rpo"}
    assert {"solve", "study", "train", "export", "generate"} <= used, used


def test_property_the_clone_has_no_data_of_anyone_else(clone: Path) -> None:
    assert not (clone / ".." / "shared").exists()
    for path in [*(clone / "configs").glob("*.yaml"), *(clone / "docs").rglob("*.md")]:
        assert "../shared" not in path.read_text(encoding="utf-8"), path
