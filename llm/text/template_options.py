"""Options of the tokenizer with which an exported model was trained, in the model's folder."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

from llm.data.model_folder import TEMPLATE_OPTIONS_NAME, model_file, read_json_object

from .tokenizer import DEFAULT_OPTIONS, TokenizerOptions

STORED = ("chat_template_kwargs", "template_date", "special_tokens", "format")
"""Options that are stored; the template itself is a file of its own."""


def stored_template_options(options: TokenizerOptions) -> dict[str, Any]:
    """Return the options that a copy of the tokenizer needs beside its files.

    Args:
        options: options of the training run.

    Returns:
        Plain values by name; defaults are left out.

    Examples:
        >>> stored_template_options(TokenizerOptions(template_date="2024-07-26"))
        {'template_date': '2024-07-26'}
    """
    values = {name: getattr(options, name) for name in STORED}
    values["chat_template_kwargs"] = dict(values["chat_template_kwargs"])
    return {
        name: value for name, value in values.items() if value != getattr(DEFAULT_OPTIONS, name)
    }


def read_template_options(folder: Path) -> dict[str, Any]:
    """Read the options that :func:`stored_template_options` returned for a folder.

    Args:
        folder: folder of a model.

    Returns:
        The options; empty if the folder has none.

    Raises:
        ValueError: if the file is damaged or a value is invalid; the message names file and key.
    """
    path = model_file(folder, TEMPLATE_OPTIONS_NAME)
    if not path.exists():
        return {}
    stored = read_json_object(folder, TEMPLATE_OPTIONS_NAME)
    for name, value in stored.items():
        kind = dict if name == "chat_template_kwargs" else str
        if name not in STORED or not isinstance(value, kind):
            raise ValueError(
                f"{path}: `{name:.60}` must be one of {', '.join(STORED)} with its value, got "
                f"{reprlib.repr(value)}"
            )
    try:
        TokenizerOptions(**stored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return stored
