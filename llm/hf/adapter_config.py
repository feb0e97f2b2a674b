"""The file ``adapter_config.json`` of PEFT: fields that are read, refused and written.

PEFT has many kinds of adapters in one file format. A field that would change the outputs and that
this package does not compute is refused by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm.config import LINEAR, LoraConfig
from llm.config.lora import ALL_LINEAR, TEXT_PREFIX
from llm.data.model_folder import ADAPTER_CONFIG_NAME, read_json_object
from rpo_io.config_types import convert

FIELDS: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_type": "LORA",
    "peft_version": "0.21.0",
    "qalora_group_size": 16,
    "r": 8,
    "rank_pattern": {},
    "revision": None,
    "target_modules": None,
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
"""Fields that PEFT 0.21 writes, with its defaults; ``inference_mode`` as it is written."""
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
"""Fields that do not change the outputs of a saved adapter, whatever their value."""
ALLOWED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # Others, such as PiSSA, take a part of the weights of the base model away.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
}
"""Values of the other fields that are read without :class:`llm.config.LoraConfig`."""
TYPES: dict[str, Any] = {
    "r": int,
    "lora_alpha": float,
    "lora_dropout": float,
    "use_rslora": bool,
    "target_modules": list[str] | str,
    "layers_to_transform": list[int] | int | None,
    "layers_pattern": list[str] | str | None,
    "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None,
    "modules_to_save": list[str] | None,
}
"""Fields that :class:`llm.config.LoraConfig` has."""


class AdapterSettings(NamedTuple):
    """What ``adapter_config.json`` says.

    Attributes:
        lora: ranks, scales and modules.
        base: name or path of the base model; None if the file has none.
    """

    lora: LoraConfig
    base: str | None


def read_adapter_config(folder: Path) -> AdapterSettings:
    """Read the file ``adapter_config.json`` of a folder.

    Args:
        folder: folder of the adapter.

    Returns:
        The adapters and their base model.

    Raises:
        ValueError: if the file is missing or damaged, or a field has a value that this package
            does not compute; the message names file and field.

    Examples:
        >>> read_adapter_config(Path("adapter")).lora.r  # doctest: +SKIP
        16
    """
    document = read_json_object(folder, ADAPTER_CONFIG_NAME)
    path = folder / ADAPTER_CONFIG_NAME
    try:
        for name, value in document.items():
            _check_field(name, value)
        return AdapterSettings(_lora(document), _text(document.get("base_model_name_or_path")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_adapter_config(folder: Path, lora: LoraConfig, *, base: str | None) -> None:
    """Write ``adapter_config.json`` as PEFT does: all fields, sorted by name.

    Args:
        folder: an existing folder.
        lora: the adapters.
        base: name or path of the base model; None for none.
    """
    targets = LINEAR if lora.target_modules == ALL_LINEAR else lora.target_modules
    written = FIELDS | {
        "r": lora.r,
        "lora_alpha": _whole(lora.lora_alpha),
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": _written_targets(lora, targets),
        "layers_to_transform": _list_or_none(lora.layers_to_transform),
        "layers_pattern": _list_or_none(lora.layers_pattern),
        "rank_pattern": dict(lora.rank_pattern),
        "alpha_pattern": {pattern: _whole(alpha) for pattern, alpha in lora.alpha_pattern},
        "modules_to_save": _list_or_none(lora.modules_to_save),
        "base_model_name_or_path": base,
    }
    text = json.dumps(written, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG_NAME).write_text(text, encoding="utf-8")


def _written_targets(lora: LoraConfig, targets: tuple[str, ...] | str) -> list[str] | str:
    """Return ``target_modules``; in a multi-modal model a pattern that leaves the images out."""
    if isinstance(targets, str):
        return targets
    if lora.module_prefix == TEXT_PREFIX or lora.layers_to_transform:
        return sorted(targets)
    text, ends = re.escape(lora.module_prefix), "|".join(map(re.escape, sorted(targets)))
    head = "|lm_head" if "lm_head" in targets else ""
    return rf"{text}(.*\.)?({ends}){head}"


def _check_field(name: str, value: Any) -> None:
    """Refuse a value that changes the outputs and is not computed."""
    if name in WITHOUT_EFFECT or name in TYPES:
        return
    if name in ALLOWED:
        if not any(
            value is each or (value == each and isinstance(each, str)) for each in ALLOWED[name]
        ):
            shown = " or ".join(json.dumps(each) for each in ALLOWED[name])
            raise ValueError(f"`{name}` must be {shown}, got {json.dumps(value)}")
        return
    if value not in (None, False, {}, []) or (value == 0 and not isinstance(value, bool)):
        known = "" if name in FIELDS else " (an unknown field)"
        raise ValueError(
            f"`{name}`{known} is not supported, got {json.dumps(value)}: it may change the "
            "outputs; merge the adapter with PEFT's `merge_and_unload`, and give the merged model"
        )


def _lora(document: Mapping[str, Any]) -> LoraConfig:
    given = {
        name: convert(kind, document[name], name)
        for name, kind in TYPES.items()
        if name in document
    }
    targets = given.get("target_modules")
    if targets is None:
        raise ValueError("`target_modules` is missing: name the modules that have an adapter")
    layers, patterns = given.get("layers_to_transform"), given.get("layers_pattern") or []
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        targets = ALL_LINEAR
    return LoraConfig(
        r=given.get("r", FIELDS["r"]),
        lora_alpha=given.get("lora_alpha", float(FIELDS["lora_alpha"])),
        target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        lora_dropout=given.get("lora_dropout", 0.0),
        use_rslora=given.get("use_rslora", False),
        layers_to_transform=_tuple([layers] if isinstance(layers, int) else layers),
        layers_pattern=(patterns,) if isinstance(patterns, str) else tuple(patterns),
        rank_pattern=tuple((given.get("rank_pattern") or {}).items()),
        alpha_pattern=tuple((given.get("alpha_pattern") or {}).items()),
        modules_to_save=tuple(given.get("modules_to_save") or ()),
    )


def _tuple(values: list[int] | None) -> tuple[int, ...] | None:
    return tuple(values) if values else None


def _list_or_none(values: tuple[Any, ...] | None) -> list[Any] | None:
    return list(values) if values else None


def _whole(value: float) -> float | int:
    """Return a whole number as an integer, as PEFT writes ``lora_alpha``."""
    return int(value) if float(value).is_integer() else value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
