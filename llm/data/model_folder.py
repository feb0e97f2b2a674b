"""Files of a model's folder, which may come from anywhere: none of them leads out of it."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

CONFIG_NAME = "config.json"


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)

MAX_JSON_BYTES = 16 * 2**20
"""Bytes of a configuration or an index at most; that of a model of 100,000 tensors has 8 MB."""


def model_file(folder: Path, name: str) -> Path:
    """Where a file of a folder is; it need not exist.

    A link in a folder that was downloaded could name any file of this machine, and an export would
    copy it. Links into the store of the hub's own cache are what the hub's library makes.

    Args:
        folder: of a model.
        name: of the file.

    Returns:
        The path.

    Raises:
        ValueError: it is a link out of the folder, or neither absent nor a regular file.

    Examples:
        >>> model_file(Path("model"), "config.json").as_posix()
        'model/config.json'
    """
    path, home = folder / name, folder.resolve()
    is_other = False
    try:
        target = path.resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            is_other = not stat.S_ISREG(path.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, an impossible name
        raise ValueError(f"{folder}: {name!r} cannot be a file: {error}") from error
    inside = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(target.is_relative_to(place) for place in inside):
        raise ValueError(f"{path} leads out of its folder, to {target}: copy the file there")
    if is_other:
        raise ValueError(f"{path} must be a file")
    return path


def read_limited(path: Path, largest: int) -> bytes:
    """Read a file that is not too large.

    Args:
        path: the file.
        largest: bytes that it may have.

    Returns:
        Its content.

    Raises:
        ValueError: it is missing or larger.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if path.stat().st_size > largest:
        raise ValueError(f"{path} must have at most {largest:,} bytes")
    return path.read_bytes()


def read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """Read an object from a JSON file of a folder.

    Args:
        folder: of a model.
        name: of the file.

    Returns:
        The object.

    Raises:
        ValueError: the file is missing, elsewhere or too large, or holds something else.
    """
    path = model_file(folder, name)
    content = read_limited(path, MAX_JSON_BYTES)
    try:
        document = json.loads(content.decode("utf-8"))
    # ValueError: broken text or JSON, numbers of thousands of digits.
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON: nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def resolve_model_folder(source: str | os.PathLike[str]) -> Path:
    """Find the folder of a model, fetched from the Hugging Face hub if it is not here.

    Args:
        source: a folder, or a name on the hub.

    Returns:
        The folder.

    Raises:
        ValueError: there is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    # Loaded only here: it takes long, and a folder needs no hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", CONFIG_NAME, *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(os.fspath(source), allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{source} is neither a folder nor a model that the Hugging Face hub gives: {reason}"
        ) from error


def resolve_tokenizer_folder(source: str) -> Path | None:
    """Return the local folder of a tokenizer, or None for the byte tokenizer.

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
    return None if source == "bytes" else resolve_model_folder(source)
