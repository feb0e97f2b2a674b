"""Claims about the language check: what it finds, what it lets pass, and that nothing is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .check import (
    FIELD_TERMS,
    MAX_LINE_LENGTH,
    ROOT,
    WORDS,
    findings,
    identifier_words,
    long_line_findings,
    phrase_findings,
    tracked_files,
    word_findings,
)

LONG = "word " * 30


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("the pair law of a data set", "pair law"),
        ("draws from the law of the prompts", "law of the"),
        ("the user is told", "told"),
        ("rows are dealt to steps", "dealt"),
        ("def dealt_rows(): ...", "dealt"),
        ("evaluations that are owed", "owed"),
        ("a frugal copy", "frugal"),
        ("a catalogue of environments", "catalogue"),  # codespell:ignore catalogue
        ("on so many devices", "so many"),
        ("the paper's figure in small.", "in small"),
        ("an activation is made again", "is made again"),
        ("where there are none", "where there are none"),
        ("a value that has no say", "has no say"),
    ],
)
def test_golden_a_planted_phrase_is_found(text: str, phrase: str) -> None:
    assert list(phrase_findings(f"first line\n{text}")) == [(2, phrase)]


def test_golden_a_phrase_across_a_line_break_of_a_comment_is_found_at_its_first_line() -> None:
    assert list(phrase_findings("x = 1\n    # on so\n    # many devices")) == [(2, "so many")]


@pytest.mark.parametrize(
    "text",
    [
        "a scaling law",
        "the overoptimization laws",
        "in small steps",
        "an untold story",
        "it is made for JAX",
        "there is none",
    ],
)
def test_limit_ordinary_prose_is_not_a_finding(text: str) -> None:
    assert not list(phrase_findings(text))


@pytest.mark.parametrize("word", sorted(WORDS))
def test_property_every_banned_word_is_found_in_an_identifier(word: str) -> None:
    source = f"def first_{word}(): ...\nclass Of{word.title()}: ...\nx.{word} = 1\n"
    assert [line for line, _ in word_findings(Path("module.py"), source)] == [1, 2, 3]


def test_golden_banned_words_are_found_in_arguments_options_keys_and_file_names() -> None:
    source = 'def f(total): ...\nadd_argument("--own-folder")\n'
    assert [line for line, _ in word_findings(Path("m.py"), source)] == [1, 2]
    assert [line for line, _ in word_findings(Path("c.yaml"), "a: 1\nchoice: 2\n")] == [2]
    assert [line for line, _ in word_findings(Path("docs", "elsewhere.md"), "text")] == [1]


@pytest.mark.parametrize("term", FIELD_TERMS)
def test_limit_terms_of_the_field_are_not_findings(term: str) -> None:
    assert not WORDS.intersection(identifier_words(term))
    assert not list(word_findings(Path("m.py"), f"{term}_bound = 1\n"))


def test_limit_words_count_in_prose_and_in_longer_words_are_not_findings() -> None:
    source = '"""The total of the words."""\nbackground = 1\nreturned_owner = 2\n'
    assert not list(word_findings(Path("m.py"), source))


def test_golden_a_long_line_of_prose_is_found() -> None:
    exact = "x" * MAX_LINE_LENGTH
    assert list(long_line_findings(f"short\n{exact}\n{exact}x\n")) == [(3, MAX_LINE_LENGTH + 1)]
    assert [line for line, _ in long_line_findings(f"* item\n\n    {LONG}\n")] == [3]


@pytest.mark.parametrize(
    "text",
    [
        f"| {LONG} | {LONG} |",
        f"```text\n{LONG}\n```",
        f"~~~~\n```\n{LONG}\n~~~~",
        f"text\n\n    {LONG}\n    {LONG}",
        f"see https://example.org/{'x' * MAX_LINE_LENGTH}",
    ],
    ids=["table", "fence", "nested fence", "indented code", "URL"],
)
def test_limit_tables_code_blocks_and_urls_may_be_long(text: str) -> None:
    assert not list(long_line_findings(text))


def test_property_the_repository_has_no_findings() -> None:
    lines = [line for path in tracked_files() for line in findings(path)]
    assert not lines, "\n".join(lines)


def test_property_the_repository_is_spelled_in_american_english() -> None:
    pytest.importorskip("codespell_lib", reason="needs the extra `test`")
    command = [sys.executable, "-m", "codespell_lib"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
