"""Options of generation from model folders: used, replaced by given ones, listed or refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from llm.inference.generation_settings import (
    NEUTRAL,
    WITHOUT_EFFECT,
    GenerationSettings,
    read_generation_settings,
)
from llm.inference.sampling import GenerationConfig


def read(
    folder: Path, generation: dict[str, Any] | None, config: Any = None, **given: Any
) -> GenerationSettings:
    (folder / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_generation_settings(folder, given, max_new_tokens=512)


SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}


def test_closed_form_settings_of_the_folder_are_defaults_of_the_options(tmp_path: Path) -> None:
    settings = read(tmp_path, SAMPLED | {"max_new_tokens": 300, "min_p": 0.05})
    expected = {"temperature": 0.6, "top_p": 0.9, "top_k": 50, "min_p": 0.05}
    assert settings.config == GenerationConfig(
        **expected, repetition_penalty=1.1, max_new_tokens=300
    )
    assert all(f"`{name}`" in settings.notes[0] for name in (*expected, "repetition_penalty"))
    given = {"temperature": 0.0, "max_new_tokens": 7, "seed": 3, "top_p": None}
    greedy = read(tmp_path, SAMPLED, **given)
    assert greedy.config == GenerationConfig(repetition_penalty=1.1, max_new_tokens=7, seed=3)
    sampled = read(tmp_path, {"top_k": 20, "top_p": 0.8}, temperature=0.3, top_p=0.5)
    assert sampled.config == GenerationConfig(temperature=0.3, top_p=0.5, top_k=20)


def test_limit_without_a_file_or_sampling_decoding_is_greedy(tmp_path: Path) -> None:
    assert read(tmp_path, None) == (GenerationConfig(), frozenset(), ())
    settings = read(tmp_path, {"temperature": 0.6, "top_k": 20, "do_sample": False})
    assert settings.config == GenerationConfig()
    assert "`temperature` 0.6, `top_k` 20 without effect, because" in settings.notes[0]
    unused = read(tmp_path, {}, top_p=0.9, min_p=0.1)
    assert unused.notes == (
        "--top-p, --min-p without effect: at temperature 0 the likeliest token is taken",
    )


def test_limit_a_folder_may_ask_for_half_of_the_positions(tmp_path: Path) -> None:
    settings = read(tmp_path, {"max_new_tokens": 2048})
    assert settings.config.max_new_tokens == 512
    assert "`max_new_tokens` 2,048 is cut to 512" in settings.notes[0]
    assert read(tmp_path, {"max_new_tokens": 2048}, max_new_tokens=600).config.max_new_tokens == 600


def test_property_all_end_ids_end_a_reply(tmp_path: Path) -> None:
    listed = {"model_type": "llama", "eos_token_id": [1, 7]}
    assert read(tmp_path, None, listed).end_ids == {1, 7}
    assert read(tmp_path, {"eos_token_id": 9}, listed).end_ids == {1, 7, 9}
    assert read(tmp_path, {"eos_token_id": [2, 3]}).end_ids == {2, 3}


def test_property_a_setting_is_used_listed_or_without_effect(tmp_path: Path) -> None:
    generator = random.Random(0)
    used = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")
    names = [*NEUTRAL, "watermarking_config", "forced_eos_token_id", "dola_layers", "max_time"]
    for _ in range(60):
        key = generator.choice([*names, f"key{generator.randrange(99)}"])
        value = generator.choice([2, 0.37, True, [4], "x", {"a": 1}])
        notes = read(tmp_path, {key: value}).notes
        assert [f"settings that are not followed: `{key}`" in note for note in notes] == [True]
    for key in used:
        notes = read(tmp_path, {"do_sample": True, key: 1}).notes
        assert f"`{key}` 1" in notes[0]
    neutral = {key: values[0] for key, values in NEUTRAL.items()}
    assert read(tmp_path, neutral | dict.fromkeys(WITHOUT_EFFECT, 1)).notes == ()


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"temperature": "hot", "do_sample": True}, "`temperature` must be a number, got 'hot'"),
        ({"do_sample": 1}, "`do_sample` must be true or false, got 1"),
        ({"top_k": 2.5, "do_sample": True}, "`top_k` must be a whole number, got 2.5"),
        ({"top_p": 1.5, "do_sample": True}, "`top_p` must be above 0 and at most 1, got 1.5"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be from 1e-30"),
        ({"max_new_tokens": [5]}, "`max_new_tokens` must be a number, got [5]"),
        ({"temperature": 10**400, "do_sample": True}, "`temperature` must be a number of float64"),
        ({"eos_token_id": "</s>"}, "`eos_token_id` must be a token id or a list of them"),
        ({"eos_token_id": [1, -2]}, "`eos_token_id` must be a token id or a list of them"),
    ],
)
def test_raises_with_file_and_key(generation: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"generation_config\.json: ") as caught:
        read(tmp_path, generation)
    assert message in str(caught.value)
