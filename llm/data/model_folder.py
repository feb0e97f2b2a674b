"""Model folders: finding them, and reading their files without trusting them.

A folder that was downloaded may hold symbolic links to anywhere, special files, or files of any
size. Every file is therefore opened through :func:`model_file`.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from rpo_io.hub import download_from_hub, missing_source, parse_hub_name
from rpo_io.locations import parse_location

from .bucket_sources import copy_model_folder
from .messages import JSON_WITH_NAN

CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"

TEMPLATE_OPTIONS_NAME = "rpo_template.json"
"""Options of the tokenizer with which an exported model was trained."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE_NAME,
    "generation_config.json",
)
MORE_TEMPLATES_NAME = "additional_chat_templates"
"""Folder of chat templates with other names, such as ``tool_use.jinja``."""

MAX_JSON_BYTES = 16 * 2**20
"""Largest configuration or weight index; the index of a model of 100,000 tensors has 8 MB."""


def resolve_model_folder(source: str | os.PathLike[str]) -> Path:
    """Return the local folder of a model; a hub model is downloaded into the hub's cache.

    Only configuration, tokenizer and safetensors files are downloaded. From a bucket, only
    configuration and tokenizer are copied, and weights are read in place.

    Args:
        source: a folder, also one in a bucket; or the name of a model on the Hugging Face hub as
            ``hf://owner/name[@revision]``, or ``owner/name`` if nothing local resembles it.

    Returns:
        The folder.

    Raises:
        ValueError: if there is no such folder or hub model.
    """
    weights = ("*.safetensors", "*.safetensors.index.json", "*processor_config.json")
    return _resolve(source, weights, what="a model folder")


def _resolve(source: str | os.PathLike[str], weights: tuple[str, ...], *, what: str) -> Path:
    """Return a local folder, or download configuration, tokenizer and the given weights."""
    location = parse_location(source)
    patterns = [CONFIG_NAME, *TOKENIZER_FILES]
    patterns.append(ADAPTER_CONFIG_NAME)  # to recognize an adapter
    patterns += [TEMPLATE_OPTIONS_NAME, f"{MORE_TEMPLATES_NAME}/*.jinja"]
    if location.is_bucket:
        return copy_model_folder(location, patterns, what=what)
    name = str(location)
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"{name} must be a folder with {CONFIG_NAME}, got a file")
    repository = parse_hub_name(name)
    if repository is None:
        raise missing_source(name, what=what)
    return download_from_hub(repository, [*weights, *patterns])


def resolve_tokenizer_folder(source: str) -> Path | None:
    """Return the local folder of a tokenizer, or None for the byte tokenizer.

    The weights of a hub model are not downloaded.

    Args:
        source: ``bytes``, or a folder or hub name as in :func:`resolve_model_folder`.

    Returns:
        The folder, as :func:`llm.text.tokenizer.load_tokenizer` takes it.

    Raises:
        ValueError: if there is no such folder or hub model.

    Examples:
        >>> resolve_tokenizer_folder("bytes") is None
        True
    """
    return None if source == "bytes" else _resolve(source, (), what="a tokenizer folder")


def model_file(folder: Path, name: str) -> Path:
    """Return the path of a file in a model folder; the file need not exist.

    A symbolic link could name any file of this machine, which an export would then copy. Links
    into the blob store of the hub's own cache are allowed.

    Args:
        folder: folder of the model.
        name: name of the file.

    Returns:
        The path.

    Raises:
        ValueError: if the path is a link out of the folder, or exists and is not a regular file.

    Examples:
        >>> model_file(Path("model"), "config.json").as_posix()
        'model/config.json'
    """
    path, home = folder / name, folder.resolve()
    is_special = False
    try:
        target = path.resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            is_special = not stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, an invalid name
        raise ValueError(f"{folder}: {name!r} is not a usable file name: {error}") from error
    roots = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(root) for root in roots):
        raise ValueError(f"{path} leads out of its folder, to {target}: copy the file there")
    if is_special:
        raise ValueError(f"{path} must be a file")
    return path


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Read a file of limited size.

    Args:
        path: the file.
        max_bytes: largest size that is read.

    Returns:
        The content.

    Raises:
        ValueError: if the file is missing or larger than ``max_bytes``.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path} must have at most {max_bytes:,} bytes")
    return path.read_bytes()


def read_limited_text(path: Path, max_bytes: int) -> str:
    """Read a text file of limited size.

    Args:
        path: the file.
        max_bytes: largest size that is read.

    Returns:
        The text.

    Raises:
        ValueError: if the file is missing, larger than ``max_bytes`` or not UTF-8.
    """
    try:
        return read_limited(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}: save the file as UTF-8") from error


def read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from a file of a model folder.

    Args:
        folder: folder of the model.
        name: name of the file.

    Returns:
        The object.

    Raises:
        ValueError: if the file is missing, outside the folder, larger than
            :data:`MAX_JSON_BYTES`, or not a JSON object; or if an object in it has a key twice.
    """
    path = model_file(folder, name)
    content = read_limited(path, MAX_JSON_BYTES)
    try:
        document = JSON_WITH_NAN.decode(content.decode("utf-8"))
    # ValueError: invalid JSON or UTF-8, a key twice, or a number with thousands of digits.
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON: nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document
