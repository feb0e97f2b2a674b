"""Chat templates of a folder, built-in templates, and the variables that templates read."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from llm.data.model_folder import read_limited_text
from rpo_io.staging import local_file

from .chat_template import ChatTemplate
from .tokenizer import TokenizerOptions
from .tokenizer_files import MAX_TEMPLATE_BYTES, TokenizerFiles, read_tokenizer

RESERVED = ("messages", "tools", "add_generation_prompt")
"""Variables of a template that come from the data."""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ END + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The format of ChatML; ``END`` stands for the token that ends a message."""


class ChatTemplates(NamedTuple):
    """The chat templates of a tokenizer.

    Attributes:
        by_name: the template of most conversations, with an empty name, and ``tool_use`` for
            conversations with tools if there is one.
        notes: sentences about the templates.
    """

    by_name: Mapping[str, ChatTemplate]
    notes: tuple[str, ...]


def open_templates(folder: Path, files: TokenizerFiles, options: TokenizerOptions) -> ChatTemplates:
    """Compile the chat templates of a tokenizer.

    Args:
        folder: folder of the tokenizer.
        files: its files.
        options: the options that choose a template and its variables.

    Returns:
        The templates.

    Raises:
        ValueError: if there is no chat template, it is not valid, or it does not read one of the
            given variables.
    """
    notes: tuple[str, ...] = ()
    if options.chat_template is None:
        name = f"{folder}: `chat_template`"
        sources = dict(files.templates)
        if "default" not in sources:
            got = f"only templates named {', '.join(sorted(sources))}" if sources else "none"
            raise ValueError(
                f"{folder}: `chat_template` is missing in tokenizer_config.json, got {got}: "
                "set `data.chat_template` to `chatml` or to a template file, or `data.format` to "
                "`text` for raw text without a template"
            )
        unused = sorted(sources.keys() - {"default", "tool_use"})
        if unused:
            notes = (f"chat templates that are not used: {', '.join(unused)}",)
    elif options.chat_template == "chatml":
        name, (source, notes) = "`chat_template` chatml", _chatml(folder, files)
        sources = {"default": source}
    else:
        name = f"`chat_template` {options.chat_template}"
        sources = {"default": _read_template(options.chat_template)}
    date = options.template_date
    now = None if date is None else datetime.datetime.fromisoformat(date)
    templates = {"": ChatTemplate(sources["default"], name=name, now=now)}
    if "tool_use" in sources:
        templates["tool_use"] = ChatTemplate(sources["tool_use"], name=f"{name} tool_use", now=now)
    _check_variables(options.chat_template_kwargs, templates, name)
    return ChatTemplates(templates, notes)


def replaced_template(folder: Path, options: TokenizerOptions) -> str | None:
    """Return the template that takes the place of a folder's own, for a copy of the folder.

    Args:
        folder: folder of the tokenizer.
        options: the options that choose a template.

    Returns:
        Jinja source code; None if the folder's own templates are used.

    Raises:
        ValueError: if the template file is missing.

    Examples:
        >>> replaced_template(Path("model"), TokenizerOptions()) is None
        True
    """
    if options.chat_template is None:
        return None
    if options.chat_template == "chatml":
        return _chatml(folder, read_tokenizer(folder))[0]
    return _read_template(options.chat_template)


def _read_template(source: str) -> str:
    path = local_file(source)
    if not path.is_file():
        raise ValueError(f"`chat_template` must be `chatml` or a template file, got {source}")
    return read_limited_text(path, MAX_TEMPLATE_BYTES)


def _check_variables(
    variables: Mapping[str, object], templates: Mapping[str, ChatTemplate], name: str
) -> None:
    read = frozenset[str]().union(*(each.variables for each in templates.values()))
    for key in variables:
        if key in RESERVED:
            raise ValueError(f"`chat_template_kwargs.{key}` comes from the data: remove it")
        if key not in read:
            known = ", ".join(sorted(read - {*RESERVED, "raise_exception", "namespace"}))
            raise ValueError(
                f"`chat_template_kwargs.{key}` has no effect: {name} reads only {known or 'none'}"
            )
    try:
        json.dumps(variables)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`chat_template_kwargs` must be JSON values: {error}") from error


def _chatml(folder: Path, files: TokenizerFiles) -> tuple[str, tuple[str, ...]]:
    """Return the template of ChatML for a tokenizer, which may lack the tokens of ChatML."""
    if files.fast.token_to_id("<|im_end|>") is not None:
        return CHATML.replace("END", "'<|im_end|>'"), ()
    if "eos_token" not in files.special_texts:
        raise ValueError(
            f"{folder}: `chat_template: chatml` needs the token `<|im_end|>` or an `eos_token` in "
            "tokenizer_config.json, got none"
        )
    end = files.special_texts["eos_token"]
    note = f"the tokenizer has no token '<|im_end|>': messages of chatml end with {end!r}"
    return CHATML.replace("END", "eos_token"), (note,)
