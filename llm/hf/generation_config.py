"""Generation settings of a model folder: ``generation_config.json``, and end ids of all files."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm.data.model_folder import CONFIG_NAME, read_json_object

Number = int | float
GENERATION_CONFIG_NAME = "generation_config.json"
SAMPLING_DEFAULTS: dict[str, Number] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}
"""Values of ``transformers`` for keys that are absent when ``do_sample`` is true."""
RANGES: dict[str, tuple[Number, Number, str]] = {
    "temperature": (0.0, math.inf, "0 or more and finite"),
    "top_k": (0, 2**31, "a whole number from 0"),
    "top_p": (0.0, 1.0, "from 0 to 1"),
    "min_p": (0.0, 1.0, "from 0 to 1"),
    "repetition_penalty": (1e-30, 1e30, "positive"),
    "max_new_tokens": (1, 2**31, "a whole number from 1"),
}
WHOLE = ("top_k", "max_new_tokens")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "typical_p": (1,),
    "length_penalty": (1,),
    "encoder_repetition_penalty": (1,),
    "guidance_scale": (1,),
    "diversity_penalty": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "top_h": (1,),
    "penalty_alpha": (0,),
}
"""Keys that would change the tokens, with the values at which they do not."""
NO_EFFECT = frozenset(
    {
        *("transformers_version", "_from_model_config", "_commit_hash", "bos_token_id"),
        *("pad_token_id", "use_cache", "return_dict_in_generate", "output_attentions"),
        *("output_hidden_states", "output_scores", "output_logits", "cache_implementation"),
        *("cache_config", "max_cache_len", "compile_config", "disable_compile", "is_assistant"),
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_lookbehind"),
        *("assistant_confidence_threshold", "target_lookbehind", "low_memory", "name_or_path"),
        *("prefill_chunk_size", "continuous_batching_config", "use_mtp", "speculation_type"),
        *("assistant_early_exit", "assistant_ensemble_weight", "prompt_lookup_num_tokens"),
        *("max_matching_ngram_size", "remove_invalid_values", "early_stopping"),
        *("decoder_start_token_id", "renormalize_logits"),
    }
)
"""Keys about memory, speed or the form of the output, and keys of encoder-decoders."""


class GenerationSettings(NamedTuple):
    """Generation settings of a model folder.

    Attributes:
        end_ids: ids that end a reply, of ``config.json`` and ``generation_config.json`` together.
        options: options of :class:`llm.inference.sampling.GenerationConfig` that the folder sets:
            ``temperature`` (0 unless ``do_sample`` is true), ``top_k``, ``top_p``, ``min_p``,
            ``repetition_penalty``, ``max_new_tokens``. Empty without ``generation_config.json``.
        notes: sentences about keys that have no effect.
    """

    end_ids: frozenset[int]
    options: Mapping[str, Number]
    notes: tuple[str, ...]


def read_generation_settings(folder: Path | None) -> GenerationSettings:
    """Read the generation settings of a model folder.

    Args:
        folder: folder of the model; each of the two files may be missing. None for no folder.

    Returns:
        The settings.

    Raises:
        ValueError: if a file is damaged or a value is invalid; the message names file and key.
    """
    if folder is None:
        return GenerationSettings(frozenset(), {}, ())
    documents = {
        name: read_json_object(folder, name)
        for name in (CONFIG_NAME, GENERATION_CONFIG_NAME)
        if (folder / name).exists()
    }
    end_ids: set[int] = set()
    for name, document in documents.items():
        sections = [document, document.get("text_config")]
        for section in sections if name == CONFIG_NAME else sections[:1]:
            if isinstance(section, Mapping):
                end_ids |= _end_ids(section, folder / name)
    settings = documents.get(GENERATION_CONFIG_NAME)
    if settings is None:
        return GenerationSettings(frozenset(end_ids), {}, ())
    path = folder / GENERATION_CONFIG_NAME
    given = {key: value for key in RANGES if (value := _number(settings, key, path)) is not None}
    samples = settings.get("do_sample")
    if not isinstance(samples, bool | None):
        got = reprlib.repr(samples)
        raise ValueError(f"{path}: `do_sample` must be true or false, got {got}")
    options: dict[str, Number] = {key: given[key] for key in given if key not in SAMPLING_DEFAULTS}
    if samples:
        options |= {key: given.get(key, default) for key, default in SAMPLING_DEFAULTS.items()}
        if options["top_p"] == 0:
            options["temperature"] = 0.0  # only the most likely token is left
    else:
        options["temperature"] = 0.0
    return GenerationSettings(
        frozenset(end_ids), options, _notes(settings, given, samples=bool(samples))
    )


def _end_ids(section: Mapping[str, Any], path: Path) -> set[int]:
    value = section.get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    for token in ids:
        if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
            raise ValueError(
                f"{path}: `eos_token_id` must be a token id or a list of them, got "
                f"{reprlib.repr(value)}"
            )
    return {token for token in ids if token is not None and token >= 0}


def _number(settings: Mapping[str, Any], key: str, path: Path) -> Number | None:
    value = settings.get(key)
    if value is None:
        return None
    low, high, rule = RANGES[key]
    kinds = (int,) if key in WHOLE else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{path}: `{key}` must be {rule}, got {reprlib.repr(value)}")
    if value == math.inf:
        raise ValueError(f"{path}: `{key}` must be {rule}, got {reprlib.repr(value)}")
    return value


def _notes(
    settings: Mapping[str, Any], given: Mapping[str, Number], *, samples: bool
) -> tuple[str, ...]:
    used = {*RANGES, *NO_EFFECT, "eos_token_id", "do_sample"}
    unused = sorted(
        key
        for key, value in settings.items()
        if key not in used and value not in (None, False, "", [], {}, *NEUTRAL.get(key, ()))
    )
    notes = []
    if unused:
        notes.append(f"{GENERATION_CONFIG_NAME}: keys without effect: {', '.join(unused)}")
    idle = [key for key, neutral in SAMPLING_DEFAULTS.items() if given.get(key, neutral) != neutral]
    if idle and not samples:
        notes.append(f"{GENERATION_CONFIG_NAME}: no effect without `do_sample`: {', '.join(idle)}")
    return tuple(notes)
