"""Claims about generation settings: end ids of all files, options honored or listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm.hf.generation_config import GenerationSettings, read_generation_settings


def read(folder: Path, config: Any = None, generation: Any = None) -> GenerationSettings:
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return read_generation_settings(folder)


def test_closed_form_end_ids_of_all_files_are_joined(tmp_path: Path) -> None:
    assert read(tmp_path).end_ids == frozenset()
    assert read(tmp_path, {"eos_token_id": [1, 7]}).end_ids == {1, 7}
    assert read(tmp_path, {"eos_token_id": 1}, {"eos_token_id": [7, 8]}).end_ids == {1, 7, 8}
    nested = {"eos_token_id": None, "text_config": {"eos_token_id": [3, -1]}}
    assert read(tmp_path, nested, {"eos_token_id": 2}).end_ids == {2, 3}


def test_closed_form_sampling_options_count_only_with_do_sample(tmp_path: Path) -> None:
    sampled = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05}
    expected = {"temperature": 0.6, "top_k": 50, "top_p": 0.9, "min_p": 0.0}
    settings = read(tmp_path, generation=sampled)
    assert settings.options == expected | {"repetition_penalty": 1.05}
    assert settings.notes == ()
    greedy = read(tmp_path, generation={**sampled, "do_sample": False})
    assert greedy.options == {"temperature": 0.0, "repetition_penalty": 1.05}
    (note,) = greedy.notes
    assert note == "generation_config.json: no effect without `do_sample`: temperature, top_p"
    assert read(tmp_path, {"eos_token_id": 1}).options == {}
    assert read(tmp_path, generation={"max_new_tokens": 5}).options["max_new_tokens"] == 5


def test_property_an_extra_key_with_content_is_listed(tmp_path: Path) -> None:
    for key, value in (("num_beams", 4), ("bad_words_ids", [[1]]), ("unknown", 0.5), ("a", [0])):
        (note,) = read(tmp_path, generation={"do_sample": True, key: value}).notes
        assert note == f"generation_config.json: keys without effect: {key}"
    neutral = {"num_beams": 1, "bad_words_ids": None, "use_cache": True, "bos_token_id": 3}
    assert read(tmp_path, generation=neutral | {"transformers_version": "5.0"}).notes == ()


@pytest.mark.parametrize(
    "settings",
    [
        *({"temperature": -1}, {"temperature": "hot"}, {"top_k": 0.5}, {"top_p": 2}),
        *({"min_p": True}, {"repetition_penalty": 0}, {"max_new_tokens": 0}, {"do_sample": "yes"}),
        *({"do_sample": 1}, {"do_sample": 0.0}, {"do_sample": []}),
        *({"eos_token_id": "</s>"}, {"eos_token_id": [1, None, 2.5]}),
    ],
)
def test_raises_with_file_and_key(settings: dict[str, Any], tmp_path: Path) -> None:
    (key,) = settings
    with pytest.raises(ValueError, match=rf"generation_config\.json: `{key}` must be"):
        read(tmp_path, generation=settings)
