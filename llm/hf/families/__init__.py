"""Model families of Hugging Face: one file for each, and the registry that collects them.

A file defines ``FAMILY``, and ``COMPOSITE`` if its text model is also part of models with images.
``docs/howto/add_a_model_family.md`` shows how to add one.
"""

from __future__ import annotations

from ..config_values import ConfigReader
from . import (
    gemma,
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    ministral,
    ministral3,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
)
from .key_tables import ROPE, SIZES
from .record import Composite, Family

__all__ = [
    "COMPOSITES",
    "FAMILIES",
    "ROPE",
    "SIZES",
    "Composite",
    "ConfigReader",
    "Family",
    "register_family",
]

MODULES = (
    *(llama, mistral, ministral, ministral3, qwen2, qwen3, gemma, gemma2, gemma3),
    *(olmo2, olmo3, phi3, smollm3, granite, mixtral, qwen3_moe, olmoe, gpt_oss),
)
FAMILIES: dict[str, Family] = {module.FAMILY.model_type: module.FAMILY for module in MODULES}
"""The supported families by ``model_type``."""
COMPOSITES: dict[str, Composite] = {
    module.COMPOSITE.model_type: module.COMPOSITE
    for module in MODULES
    if hasattr(module, "COMPOSITE")
}
"""Multi-modal families whose text model is read, by ``model_type``."""


def register_family(family: Family) -> Family:
    """Add a family, such as that of a user's own module.

    Args:
        family: the family.

    Returns:
        The same family.

    Raises:
        ValueError: if another family has the model type.

    Examples:
        >>> register_family(FAMILIES["llama"]).class_name
        'LlamaForCausalLM'
    """
    known = FAMILIES.setdefault(family.model_type, family)
    if known is not family:
        raise ValueError(f"`model_type` {family.model_type!r} is registered already")
    return family
