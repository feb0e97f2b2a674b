"""Claims about what must be the same in all processes, and how a difference is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rpo.runtime import facts
from rpo.runtime.facts import (
    MISSING,
    checkpoint_steps,
    code_facts,
    configuration_facts,
    describe_difference,
    file_facts,
)

END = ": start all processes with the same command, files and versions"


def difference(*values: dict[str, str]) -> str | None:
    message = describe_difference(values, "process {}".format)
    return None if message is None else message.removesuffix(END)


def test_closed_form_the_process_that_differs_from_the_majority_is_named() -> None:
    a, b = {"`eta`": "0.1", "rows": "a" * 64}, {"`eta`": "0.2", "rows": "b" * 64}
    assert difference(a) is None
    assert difference(a, a, dict(reversed(a.items()))) is None
    assert difference(a, b) == "process 1 differs from process 0 in `eta` (0.2, not 0.1), rows"
    assert difference(b, a, a) == (
        "process 0 differs from the other processes in `eta` (0.2, not 0.1), rows"
    )
    # Without a majority process 0 is right.
    assert difference(a, b, a | {"`eta`": "0.3"}) == (
        "process 1 differs from process 0 in `eta` (0.2, not 0.1), rows; "
        "process 2 differs from process 0 in `eta` (0.3, not 0.1)"
    )
    half = difference(a, b, a, b)
    assert half is not None
    assert half.startswith("process 1 differs from the other processes in")
    assert "; process 3 differs" in half


def test_closed_form_a_file_that_one_host_lacks_is_missing() -> None:
    there, gone = {"cache": "a" * 64}, {"cache": MISSING}
    assert difference(there, there, gone) == (
        "process 2 differs from the other processes in cache (missing)"
    )
    assert difference(gone, gone, there) == (
        "process 2 differs from the other processes in cache (not missing)"
    )
    assert difference(there, {}) == "process 1 differs from process 0 in cache (missing)"
    many = {str(key): "1" for key in range(9)}
    assert difference(many, {}) == (
        "process 1 differs from process 0 in "
        "0 (missing), 1 (missing), 2 (missing), 3 (missing) and 5 more"
    )


def test_closed_form_keys_of_a_configuration_have_their_values() -> None:
    nested = {"data": {"train": "rows.jsonl", "columns": {}}, "seed": None, "long": "x" * 999}
    found = dict(configuration_facts(nested))
    assert found["`data.train`"] == "'rows.jsonl'"
    assert found["`seed`"] == "None"
    assert len(found["`long`"]) == 64


def test_property_every_change_of_a_file_changes_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MAX_SAMPLED_BYTES", 4)
    model, rows = tmp_path / "model", tmp_path / "rows.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"0123456789")
    rows.write_text("{}\n")
    names = [str(model), str(rows), str(tmp_path / "*.jsonl"), "org/name"]
    seen = [file_facts(names)]
    assert seen[0]["org/name"] == MISSING
    for path, content in (
        (model / "config.json", b"[]"),
        (model / "model.safetensors", b"012345678X"),
        (model / "model.safetensors", b"X12345678X"),
        (model / "model.safetensors", b"012345678"),
        (model / "tokenizer.json", b"{}"),
        (rows, b"[]\n"),
        (tmp_path / "more.jsonl", b"{}\n"),
    ):
        path.write_bytes(content)
        seen.append(file_facts(names))
        assert seen[-1] != seen[-2]
    (model / "checkpoints" / "12").mkdir(parents=True)
    (model / "checkpoints" / "9").mkdir()
    (model / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert checkpoint_steps(model) == [9, 12]
    assert file_facts(names)[str(model)] != seen[-1][str(model)]


def test_property_versions_and_source_files_are_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = code_facts()
    assert found["the version of jax"][0].isdigit()
    assert len(found["the source code of llm"]) == 64
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "a.py").write_text("x = 1\n")
    first = facts._source_digest(tmp_path / "llm")
    facts._source_digest.cache_clear()
    (tmp_path / "llm" / "a.py").write_text("x = 2\n")
    assert facts._source_digest(tmp_path / "llm") != first
    monkeypatch.setattr(facts, "version", lambda name: os.fspath(name))
    assert code_facts()["the version of flax"] == "flax"
