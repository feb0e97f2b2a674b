"""What a ``config.json`` asks for that has no effect, as sentences for a log."""

from __future__ import annotations

from .config import text_config
from .config_keys import unused_keys
from .config_values import HfConfig
from .families import COMPOSITES, FAMILIES
from .families.record import Family
from .rope_config import LAYER_SETS, unused_rope_keys


def config_notes(config: HfConfig) -> tuple[str, ...]:
    """Describe what a configuration asks for that has no effect.

    Args:
        config: content of ``config.json`` that :func:`from_hf_config` accepts.

    Returns:
        Sentences for a log, each about one matter; empty if every key is used or neutral.

    Examples:
        >>> sizes = dict(vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=1)
        >>> config_notes({"model_type": "llama", "num_attention_heads": 2, **sizes, "color": 3})
        ('config.json: keys without effect: color',)
    """
    notes = []
    text, name = text_config(config)
    family = FAMILIES[name]
    composite = COMPOSITES.get(config.get("model_type", ""))
    if composite is not None:
        notes.append("config.json: only the text model is read, its images are not")
        tied = "tie_word_embeddings"
        known = {composite.section, *composite.keys, tied}
        inner = config[composite.section].get(tied)
        if inner is not None and text[tied] != inner:
            notes.append(
                f"config.json: `{composite.section}.{tied}` {inner} has no effect beside "
                f"{text[tied]} outside"
            )
        outer = {
            key: value
            for key, value in config.items()
            if key not in known and value is not None and text.get(key) != value
        }
        unused = [key for key in unused_keys(outer, family) if not key.endswith("_token_index")]
        # The text model reads these keys from its own section.
        unused += [key for key in outer if key in family.keys]
    else:
        unused = []
    class_name = family.class_name
    unused = sorted({*unused, *unused_keys(text, family), *unused_rope_keys(text, family)})
    if "auto_map" in unused:
        unused.remove("auto_map")
        notes.append(
            f"config.json: the folder's own code (auto_map) is not run; read as {class_name}"
        )
    if unused:
        notes.append(f"config.json: keys without effect: {', '.join(unused)}")
    names = text.get("architectures") or [class_name]
    if text is config and class_name not in names and name != "ministral":
        notes.append(f"config.json: `architectures` names {names}; read as {class_name}")
    if text.get("attention_dropout"):
        notes.append("config.json: `attention_dropout` has no effect, training has no dropout")
    if text.get("layer_types") is not None and "sliding_window_pattern" in text:
        notes.append("config.json: `sliding_window_pattern` has no effect beside `layer_types`")
    return (*notes, *_rope_notes(text, family), *_token_notes(text, family))


def _rope_notes(config: HfConfig, family: Family) -> list[str]:
    """Describe rotary settings that stand at the top and in a section, with other values."""
    section = config.get("rope_scaling") or config.get("rope_parameters") or {}
    full, local = ((config.get("rope_parameters") or {}).get(key) or {} for key in LAYER_SETS)
    inner = section.get("rope_theta", full.get("rope_theta"))
    notes = [
        f"config.json: `{key}` at the top has no effect beside {value} inside"
        for key, value in (("rope_theta", inner), ("rope_local_base_freq", local.get("rope_theta")))
        if value is not None and config.get(key) not in (None, value)
    ]
    key = "original_max_position_embeddings"
    top, inner = config.get(key), section.get(key)
    if key in family.keys and top is not None and inner not in (None, top):
        notes.append(f"config.json: `{key}` {inner} has no effect beside {top} at the top")
    return notes


def _token_notes(config: HfConfig, family: Family) -> list[str]:
    """Describe ids of special tokens that are not in the vocabulary."""
    size = config.get("vocab_size", family.keys["vocab_size"])
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    given = [(key, value) for key in keys if (value := config.get(key)) is not None]
    tokens = [
        (key, token)
        for key, value in given
        for token in (value if isinstance(value, list) else [value])
    ]
    return [
        f"config.json: `{key}` {token} is not a token of the model"
        for key, token in tokens
        if not 0 <= token < size
    ]
