"""Settings of generation: those of the model's folder, with the given ones in their place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from .loading import LoadedModel, LoadingOptions

if TYPE_CHECKING:
    from llm.inference.sampling import GenerationConfig


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

    Args:
        model: the model.
        options: how it was loaded. End tokens of its folder are those of its own tokenizer.
        given: see :func:`given_settings`.

    Returns:
        The settings.

    Raises:
        ValueError: if a value in the folder is invalid; the message names file and key.
    """
    from llm.inference.generation_settings import read_generation_settings

    half = max(1, model.decoder.architecture.max_position_embeddings // 2)
    config, end_ids, notes = read_generation_settings(model.folder, given, max_new_tokens=half)
    if options.tokenizer is not None and end_ids - model.tokenizer.end_ids:
        unused = ", ".join(map(str, sorted(end_ids - model.tokenizer.end_ids)))
        notes += (
            f"{model.folder}: its end tokens {unused} are of its own tokenizer and do not end "
            f"replies with --tokenizer {options.tokenizer}",
        )
        end_ids = frozenset()
    return ModelSettings(config, end_ids, notes)
