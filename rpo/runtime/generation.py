"""Settings of generation: those of the model's folder, with the given ones in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from .loading import LoadedModel, LoadingOptions

if TYPE_CHECKING:
    from llm.inference.sampling import GenerationConfig


DEFAULT_LENGTH = 256
"""Tokens of a reply if neither the folder nor an option says another number."""
FILTERS = ("top_p", "top_k", "min_p")
"""Settings that only sampling has."""


class ModelSettings(NamedTuple):
    """Settings with which a model generates.

    Attributes:
        config: the options of generation.
        end_ids: ids of end tokens that the model's folder names.
        notes: where the settings are from, and which have no effect.
    """

    config: GenerationConfig
    end_ids: frozenset[int]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """Return the settings as plain values, for a result."""
        return asdict(self.config)


def given_settings(**values: Any) -> dict[str, Any]:
    """Check the settings that were given, before a model is loaded.

    Args:
        **values: settings by the names of ``llm.GenerationConfig``; None for one that is not given.

    Returns:
        The given settings.

    Raises:
        ValueError: if a value is out of range.
    """
    from llm.inference.sampling import GenerationConfig

    given = {name: value for name, value in values.items() if value is not None}
    GenerationConfig(**given)
    return given


def model_settings(
    model: LoadedModel, options: LoadingOptions, given: Mapping[str, Any]
) -> ModelSettings:
    """Return the settings of a model's folder, with the given ones in their place.

    Without ``do_sample`` in the folder and without a given temperature, decoding is greedy.

    Args:
        model: the model.
        options: how it was loaded. End tokens of its folder are those of its own tokenizer.
        given: see :func:`given_settings`.

    Returns:
        The settings.

    Raises:
        ValueError: if a value in the folder is invalid; the message names file and key.
    """
    from llm.hf.generation_config import read_generation_settings

    folder = model.folder
    end_ids, stored, stored_notes = read_generation_settings(folder)
    notes = [f"{folder}: {note}" for note in stored_notes]
    taken = {name: value for name, value in stored.items() if name not in given}
    half = max(1, model.decoder.architecture.max_position_embeddings // 2)
    length = given.get("max_new_tokens", taken.get("max_new_tokens", DEFAULT_LENGTH))
    if "max_new_tokens" not in given and length > half:
        notes.append(
            f"{folder}: `max_new_tokens` {length:,} is cut to {half:,}, half of what the model "
            "reads: give --max-new-tokens for another length"
        )
        taken["max_new_tokens"] = half
    config = _merge(taken, given)
    if config.greedy:
        # Neither the folder's filters nor the given ones can change the most likely token.
        taken = {name: value for name, value in taken.items() if name not in FILTERS}
        config = _merge(taken, {name: given[name] for name in given if name not in FILTERS})
        unused = ", ".join(f"--{name.replace('_', '-')}" for name in FILTERS if name in given)
        if unused:
            notes.append(f"{unused} without effect: at temperature 0 the likeliest token is taken")
    if stored and taken:
        shown = ", ".join(f"{name} {value:g}" for name, value in taken.items())
        notes.append(f"{folder}: settings of generation_config.json: {shown}")
    if options.tokenizer is not None and end_ids - model.tokenizer.end_ids:
        ignored = ", ".join(map(str, sorted(end_ids - model.tokenizer.end_ids)))
        notes.append(
            f"{folder}: its end tokens {ignored} are of its own tokenizer and do not end replies "
            f"with --tokenizer {options.tokenizer}"
        )
        end_ids = frozenset()
    return ModelSettings(config, end_ids, tuple(notes))


def _merge(stored: Mapping[str, Any], given: Mapping[str, Any]) -> GenerationConfig:
    from llm.inference.sampling import GenerationConfig

    whole = ("max_new_tokens", "top_k", "seed")
    values: dict[str, Any] = {**stored, **given}
    values = {name: value if name in whole else float(value) for name, value in values.items()}
    return GenerationConfig(**values)
