"""The page ``docs/reference/model_configs.md``, generated from :mod:`llm.hf.families`.

``python -m llm.hf.config_reference > docs/reference/model_configs.md`` writes it anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from .config_keys import NO_EFFECT, REFUSED, ROPE_KEYS
from .families import COMPOSITES, FAMILIES

INTRODUCTION = """\
# Keys of config.json

This page says what every key of a model's `config.json` does. A key is **used**, has **no
effect** on the log-probabilities, or is **refused** unless it has its neutral value. The meaning
of a key, and the value that stands for an absent one, are those of the family's class in
Transformers 5. Keys that are not on this page have no effect there either; if one has content,
`rpo train` and the other commands list it once in their log.

Two keys that contradict each other are refused, and the message names both: for example
`layer_types` with sliding attention beside `use_sliding_window: false`, or `rope_scaling` beside
other values in `rope_parameters`.

The page is generated: `python -m llm.hf.config_reference > docs/reference/model_configs.md`.
"""
ROPE_TEXT = """\
The settings stand in `rope_parameters` (Transformers 5), in `rope_scaling` (Transformers 4) or,
for `rope_theta`, at the top level. `type` is an older name of `rope_type`. Gemma 3 has one set
each for `full_attention` and `sliding_attention`; only the first may be scaled.
"""


def config_reference() -> str:
    """Return the page as Markdown.

    Examples:
        >>> config_reference().splitlines()[0]
        '# Keys of config.json'
    """
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield from (INTRODUCTION, "## Rotary settings", "", ROPE_TEXT)
    yield from ("| `rope_type` | further keys |", "|---|---|")
    for kind, keys in ROPE_KEYS.items():
        yield f"| `{kind}` | {', '.join(f'`{key}`' for key in keys) or 'none'} |"
    yield from ("", "Every other type, such as `mrope`, is refused.", "")
    yield from ("## Refused in every family", "", "| key | accepted | reason |", "|---|---|---|")
    for key, (neutral, reason) in REFUSED.items():
        yield f"| `{key}` | {_values(neutral)} | {reason} |"
    yield from ("", "## Without effect in every family", "", "| key | reason |", "|---|---|")
    for key, reason in NO_EFFECT.items():
        yield f"| `{key}` | {reason} |"
    for family, settings in FAMILIES.items():
        yield from ("", f"## {family}", "", f"Exported as `{settings.class_name}`.", "")
        yield from ("| key | effect | if absent |", "|---|---|---|")
        for key, default in settings.keys.items():
            yield f"| `{key}` | used | {_value(default)} |"
        for key, (neutral, reason) in settings.refused.items():
            yield f"| `{key}` | refused unless {_values(neutral)}: {reason} | {_value(None)} |"
    for name, composite in COMPOSITES.items():
        texts = " or ".join(f"`{family}`" for family in composite.families)
        line = f"Only the text model is read: `{composite.section}`, as {texts}."
        yield from ("", f"## {name}", "", line)


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value}"


def _values(values: tuple[Any, ...]) -> str:
    return " or ".join("absent" if value is None else f"`{_value(value)}`" for value in values)


if __name__ == "__main__":
    sys.stdout.write(config_reference())
