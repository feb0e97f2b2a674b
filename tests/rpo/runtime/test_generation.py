"""Settings of generation: those of a folder, given ones in their place, and what is noted."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm.inference.sampling import GenerationConfig
from llm.text.tokenizer import ByteTokenizer
from rpo.runtime.generation import ModelSettings, given_settings, model_settings
from rpo.runtime.loading import LoadingOptions

SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}


def settings(
    folder: Path,
    stored: dict[str, Any],
    *,
    config: Any = None,
    tokenizer: str | None = None,
    positions: int = 1024,
    **given: Any,
) -> ModelSettings:
    (folder / "config.json").write_text(json.dumps(config or {}))
    (folder / "generation_config.json").write_text(json.dumps(stored))
    decoder = SimpleNamespace(architecture=SimpleNamespace(max_position_embeddings=positions))
    model: Any = SimpleNamespace(folder=folder, decoder=decoder, tokenizer=ByteTokenizer())
    return model_settings(model, LoadingOptions(tokenizer=tokenizer), given_settings(**given))


def test_closed_form_settings_of_the_folder_are_defaults_of_the_options(tmp_path: Path) -> None:
    found = settings(tmp_path, SAMPLED | {"max_new_tokens": 300, "min_p": 0.05})
    expected = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0.05}
    assert found.config == GenerationConfig(**expected, repetition_penalty=1.1, max_new_tokens=300)
    assert found.record()["top_k"] == 50  # the default of transformers
    assert all(name in found.notes[-1] for name in (*expected, "repetition_penalty 1.1"))
    given = {"temperature": 0.0, "max_new_tokens": 7, "seed": 3, "top_p": None}
    greedy = settings(tmp_path, SAMPLED, **given)
    assert greedy.config == GenerationConfig(repetition_penalty=1.1, max_new_tokens=7, seed=3)
    sampled = settings(tmp_path, SAMPLED | {"top_k": 20}, temperature=0.3, top_p=0.5)
    assert sampled.config == GenerationConfig(
        temperature=0.3, top_p=0.5, top_k=20, repetition_penalty=1.1
    )


def test_limit_without_sampling_decoding_is_greedy_and_filters_are_noted(tmp_path: Path) -> None:
    assert settings(tmp_path, {}).config == GenerationConfig()
    idle = settings(tmp_path, {"top_k": 20, "temperature": 0.7})
    assert idle.config.greedy
    assert "no effect without `do_sample`: temperature, top_k" in idle.notes[0]
    unused = settings(tmp_path, {}, top_p=0.9, min_p=0.1)
    assert unused.config == GenerationConfig()
    assert unused.notes[0].startswith("--top-p, --min-p without effect: at temperature 0")


def test_limit_a_folder_may_ask_for_half_of_the_positions(tmp_path: Path) -> None:
    found = settings(tmp_path, {"max_new_tokens": 2048})
    assert found.config.max_new_tokens == 512
    assert "`max_new_tokens` 2,048 is cut to 512" in found.notes[0]
    short = settings(tmp_path, {}, positions=64)
    assert short.config.max_new_tokens == 32
    assert "`max_new_tokens` 256 is cut to 32" in short.notes[0]
    given = settings(tmp_path, {"max_new_tokens": 2048}, max_new_tokens=600)
    assert given.config.max_new_tokens == 600


def test_property_all_end_ids_of_the_folder_end_replies(
    tmp_path: Path,
) -> None:
    config = {"eos_token_id": [1, 7]}
    assert settings(tmp_path, {"eos_token_id": 9}, config=config).end_ids == {1, 7, 9}
    assert settings(tmp_path, {}, config=config).end_ids == {1, 7}
    other = settings(tmp_path, {}, config=config, tokenizer="bytes")
    assert other.end_ids == frozenset()
    assert "its end tokens 1, 7 are of its own tokenizer" in other.notes[-1]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"top_p": 1.5}, "`top_p` must be above 0"), ({"min_p": 2.0}, "`min_p` must be from 0 to 1")],
)
def test_raises_for_given_settings_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        given_settings(**given)
