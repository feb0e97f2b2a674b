"""Options of the training run in an exported folder: written, used, replaced or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm.data.preferences import Message
from llm.text.template_options import read_template_options, stored_template_options
from llm.text.tokenizer import TokenizerOptions
from rpo.runtime.loading import LoadedModel, LoadingOptions, load_model_and_tokenizer

DATED = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{% if brief %} brief{% endif %}"
    "{% for m in messages %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
STORED = {"template_date": "2025-03-09", "chat_template_kwargs": {"brief": True}}


@pytest.fixture
def load(
    write_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., LoadedModel]:
    """Return a function that loads the tokenizer of a folder as the commands do."""
    sizes = SimpleNamespace(vocab_size=1000, max_position_embeddings=64)
    decoder = SimpleNamespace(architecture=sizes)
    folder = write_folder(DATED)
    resolved = SimpleNamespace(folder=folder, notes=(), architecture=sizes)
    monkeypatch.setattr("llm.hf.factory.resolve_model", lambda config: resolved)
    monkeypatch.setattr("llm.hf.factory.abstract_model", lambda model: decoder)
    monkeypatch.setattr("llm.hf.factory.build_model", lambda model, mesh: decoder)
    monkeypatch.setattr("llm.parallel.mesh.make_devices", lambda mesh, model: None)
    (folder / "config.json").write_text("{}")

    def load_folder(stored: Any = None, **options: Any) -> LoadedModel:
        if stored is not None:
            (folder / "rpo_template.json").write_text(json.dumps(stored))
        return load_model_and_tokenizer(str(folder), LoadingOptions(**options))

    return load_folder


def opening(model: LoadedModel) -> str:
    tokens = model.tokenizer.encode_prompt([Message("user", "x")])
    return model.tokenizer.decode(tokens).partition("user")[0]


def test_roundtrip_options_that_are_not_defaults(tmp_path: Path) -> None:
    values: dict[str, Any] = {**STORED, "special_tokens": "as_text"}
    stored = stored_template_options(TokenizerOptions(**values, chat_template="chatml"))
    assert stored == values
    (tmp_path / "rpo_template.json").write_text(json.dumps(stored))
    assert read_template_options(tmp_path) == values
    assert stored_template_options(TokenizerOptions()) == {}
    (tmp_path / "rpo_template.json").unlink()
    assert read_template_options(tmp_path) == {}


def test_roundtrip_an_exported_folder_keeps_the_date_and_the_variables_of_its_run(
    load: Callable[..., LoadedModel],
) -> None:
    today = load()
    assert "writes today's date" in today.notes[-1]
    stored = load(STORED)
    assert opening(stored) == "09 Mar 2025 brief"
    assert "options of the training run are used: `template_date` 2025-03-09" in stored.notes[-1]
    given = load(STORED, template_date="2024-01-02")
    assert opening(given) == "02 Jan 2024 brief"
    # Another template has other variables.
    assert "brief" not in opening(load(STORED, chat_template="chatml"))
    assert load({"format": "text"}).raw_text
    assert load(STORED, data_format="text").raw_text
    assert not load({"format": "text"}, data_format="chat").raw_text


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"template_date": 3}, "`template_date` must be one of"),
        ({"template_date": "yesterday"}, "yesterday"),
        ({"chat_template": "chatml"}, "`chat_template` must be one of chat_template_kwargs, "),
    ],
)
def test_raises_with_the_file_for_damaged_options(
    stored: dict[str, Any], message: str, load: Callable[..., LoadedModel]
) -> None:
    with pytest.raises(ValueError, match=r"rpo_template\.json: ") as caught:
        load(stored)
    assert message in str(caught.value)
