"""Options of generation from a model folder, as ``transformers`` reads them.

``generation_config.json`` says how the authors of a model want it to be decoded. Its values are the
defaults here; an option that is given takes precedence. Values that nothing reads are reported.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm.data.model_folder import CONFIG_NAME, model_file, read_json_object

from .sampling import GenerationConfig

GENERATION_NAME = "generation_config.json"
DEFAULT_TOP_K = 50
"""``transformers``' default of ``top_k`` for models that are sampled."""
SAMPLING = ("temperature", "top_p", "top_k", "min_p")
"""Settings that only sampling has."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "num_return_sequences": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_length": (20,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "renormalize_logits": (False,),
    "remove_invalid_values": (False,),
    "token_healing": (False,),
    "bad_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "stop_strings": ([],),
}
"""Values without effect of the settings that are not followed."""
WITHOUT_EFFECT = frozenset(
    [
        *("transformers_version", "_from_model_config", "use_cache", "cache_implementation"),
        *("cache_config", "max_cache_len", "compile_config", "disable_compile", "low_memory"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "return_legacy_cache", "bos_token_id", "pad_token_id"),
        *("decoder_start_token_id", "is_assistant", "num_assistant_tokens", "use_mtp"),
        *("num_assistant_tokens_schedule", "assistant_confidence_threshold", "speculation_type"),
        *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"),
        *("assistant_ensemble_weight", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
        *("prefill_chunk_size", "continuous_batching_config", "generation_kwargs"),
    ]
)
"""Settings that change no reply: memory, speed, and outputs that are not text."""


class GenerationSettings(NamedTuple):
    """Options of generation and what they were taken from.

    Attributes:
        config: the options.
        end_ids: ids of tokens that end a reply, from ``config.json`` and
            ``generation_config.json``.
        notes: sentences about what was taken from the file, and about what has no effect.
    """

    config: GenerationConfig
    end_ids: frozenset[int]
    notes: tuple[str, ...]


def read_generation_settings(
    folder: Path, given: Mapping[str, Any], *, max_new_tokens: int
) -> GenerationSettings:
    """Read the options of generation of a model.

    Args:
        folder: folder of the model.
        given: options by the names of :class:`GenerationConfig`; None leaves the choice to the
            folder. A given temperature decides whether replies are sampled.
        max_new_tokens: largest number of tokens of a reply that the file may ask for.

    Returns:
        The options. Without a file and a given temperature, decoding is greedy.

    Raises:
        ValueError: if a value of the file is of a wrong type or out of range; the message names
            file and key.
    """
    name = GENERATION_NAME if model_file(folder, GENERATION_NAME).exists() else CONFIG_NAME
    stored = read_json_object(folder, name)
    reader = _Reader(str(folder / name), stored)
    options = {key: value for key, value in given.items() if value is not None}
    do_sample = reader.flag("do_sample")
    defaults: dict[str, Any] = {"repetition_penalty": reader.number("repetition_penalty")}
    notes: list[str] = []
    if options.get("temperature") is None and not do_sample:
        unused = [key for key in SAMPLING if stored.get(key) is not None and key not in options]
        if unused and name == GENERATION_NAME:
            shown = ", ".join(f"`{key}` {stored[key]!r:.40}" for key in unused)
            notes.append(
                f"{reader.path}: {shown} without effect, because `do_sample` is not true: give "
                "--temperature to sample"
            )
    elif options.get("temperature") != 0:
        defaults |= {key: reader.number(key) for key in ("temperature", "top_p", "min_p")}
        defaults["top_k"] = reader.whole_number("top_k")
        if do_sample:
            default = {"temperature": 1.0, "top_k": DEFAULT_TOP_K}
            defaults |= {key: value for key, value in default.items() if defaults[key] is None}
    length = reader.whole_number("max_new_tokens")
    if length is not None:
        defaults["max_new_tokens"] = min(length, max_new_tokens)
        if "max_new_tokens" not in options and length > max_new_tokens:
            notes.append(
                f"{reader.path}: `max_new_tokens` {length:,} is cut to {max_new_tokens:,}, half of "
                "what the model reads: give --max-new-tokens for another length"
            )
    taken = {key: value for key, value in defaults.items() if value is not None}
    taken = {key: value for key, value in taken.items() if key not in options}
    try:
        GenerationConfig(**taken)
    except ValueError as error:
        raise ValueError(f"{reader.path}: {error}") from error
    config = GenerationConfig(**{**taken, **options})
    if taken:
        shown = ", ".join(f"`{key}` {value:g}" for key, value in taken.items())
        notes.append(f"settings of {reader.path}: {shown}; options of the command replace them")
    if name == GENERATION_NAME:
        notes += reader.not_followed()
    given_filters = [key for key in ("top_p", "top_k", "min_p") if key in options]
    if config.greedy and given_filters:
        shown = ", ".join(f"--{key.replace('_', '-')}" for key in given_filters)
        notes.append(f"{shown} without effect: at temperature 0 the likeliest token is taken")
    return GenerationSettings(config, _end_ids(folder), tuple(notes))


class _Reader:
    """Reads the settings of a file, with its name in errors."""

    def __init__(self, path: str, stored: Mapping[str, Any]) -> None:
        self.path, self._stored = path, stored

    def flag(self, key: str) -> bool:
        """Return a flag; False if it is missing."""
        value = self._stored.get(key)
        if not isinstance(value, bool | None):
            raise self._error(key, "true or false")
        return bool(value)

    def number(self, key: str) -> float | None:
        """Return a number, or None if it is missing."""
        value = self._stored.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise self._error(key, "a number")
        try:
            return None if value is None else float(value)
        except OverflowError as error:
            raise self._error(key, "a number of float64") from error

    def whole_number(self, key: str) -> int | None:
        """Return a whole number, or None if it is missing."""
        value = self.number(key)
        if value is not None and not value.is_integer():
            raise self._error(key, "a whole number")
        return None if value is None else int(value)

    def not_followed(self) -> list[str]:
        """Return one sentence that lists the settings that would change replies; maybe none."""
        read = {*SAMPLING, "do_sample", "repetition_penalty", "max_new_tokens", "eos_token_id"}
        others = {
            key: value
            for key, value in self._stored.items()
            if key not in read | WITHOUT_EFFECT
            and value is not None
            and not any(_equal(value, neutral) for neutral in NEUTRAL.get(key, ()))
        }
        if not others:
            return []
        shown = ", ".join(f"`{key:.60}` {reprlib.repr(value)}" for key, value in others.items())
        return [f"{self.path}: settings that are not followed: {shown}"]

    def _error(self, key: str, rule: str) -> ValueError:
        value = reprlib.repr(self._stored[key])
        return ValueError(f"{self.path}: `{key}` must be {rule}, got {value}")


def _equal(value: Any, neutral: Any) -> bool:
    """Compare values; unlike in Python, True is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _end_ids(folder: Path) -> frozenset[int]:
    """Return the end tokens that the two configurations of a folder name."""
    ids: list[int] = []
    for name in (CONFIG_NAME, GENERATION_NAME):
        if not model_file(folder, name).exists():
            continue
        value = read_json_object(folder, name).get("eos_token_id")
        listed = value if isinstance(value, list) else [] if value is None else [value]
        for token in listed:
            if isinstance(token, bool) or not isinstance(token, int) or token < 0:
                raise ValueError(
                    f"{folder / name}: `eos_token_id` must be a token id or a list of them, got "
                    f"{reprlib.repr(value)}"
                )
        ids += listed
    return frozenset(ids)
