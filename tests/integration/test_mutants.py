"""Claims about the mutants of tests/mutation: each still fits the code and names default tests."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from ..mutation.mutants import CHECKOUT, Mutant, read_mutants

MUTANTS = read_mutants()
MIN_MUTANTS = 75


def default_tests(path: Path) -> set[str]:
    """Return the names of a file's tests that are part of the default run."""
    functions = [
        node
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    return {
        function.name
        for function in functions
        if function.name.startswith("test_")
        and not any(ast.unparse(mark) == "pytest.mark.slow" for mark in function.decorator_list)
    }


def test_property_every_mutant_changes_its_module_once_and_leaves_valid_python() -> None:
    for mutant in MUTANTS:
        text = (CHECKOUT / mutant.file).read_text("utf-8")
        faulty = mutant.applied(text)
        assert faulty != text, mutant.name
        ast.parse(faulty)


def test_property_every_mutant_names_tests_of_the_default_run() -> None:
    files = {test.partition("::")[0] for mutant in MUTANTS for test in mutant.tests}
    known = {file: default_tests(CHECKOUT / file) for file in files}
    for mutant in MUTANTS:
        for file, _, name in (test.partition("::") for test in mutant.tests):
            assert name in known[file] or (not name and known[file]), f"{mutant.name}: {name}"


def test_property_there_are_many_mutants_with_distinct_names() -> None:
    assert len(MUTANTS) >= MIN_MUTANTS
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1


def test_raises_if_the_old_text_does_not_occur_exactly_once() -> None:
    mutant = Mutant("dpo drops beta", "rpo_theory/losses/margins.py", "beta * ", "", ())
    assert mutant.applied("a + beta * h") == "a + h"
    for text in ("a + h", "beta * h + beta * k"):
        with pytest.raises(ValueError, match=r"dpo drops beta: .* once, not [02] times"):
            mutant.applied(text)
