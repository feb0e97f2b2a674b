"""Files and model folders in buckets: which objects a name stands for, and copying the small ones.

An object store has no folders, so that every question is answered from one listing.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from rpo_io.hub import missing_source
from rpo_io.locations import Location
from rpo_io.object_stores import RemoteObject, list_objects, stat_object
from rpo_io.remote_errors import StoreError
from rpo_io.staging import check_bucket, stage_folder

_WILDCARD = re.compile(r"[*?\[]")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
"""Endings of files that are not copied: safetensors are read by range, the others never."""
_CONFIGURATIONS = ("*.safetensors.index.json", "*processor_config.json")


def objects_at(location: Location) -> list[RemoteObject]:
    """Return the object at a location, or else all objects below it.

    Args:
        location: an object or a folder in a bucket.

    Returns:
        The objects with their digests, sorted; an empty list if there are none.

    Raises:
        ValueError: if the bucket cannot be read.
    """
    below = list_objects(location)
    if below or not location.key:
        return below
    try:
        return [stat_object(location)]
    except StoreError as error:
        if error.failure == "missing":
            return []
        raise


def objects_of(source: Location) -> list[RemoteObject]:
    """Return the objects that a file, a folder or a pattern in a bucket stands for.

    Args:
        source: location whose key may have wildcards; ``**`` stands for any number of folders.

    Returns:
        The objects, sorted; an empty list if there are none.

    Raises:
        ValueError: if the bucket cannot be read.
    """
    return objects_of_pattern(source) if _WILDCARD.search(source.key) else objects_at(source)


def objects_of_pattern(pattern: Location) -> list[RemoteObject]:
    """Return the objects that match a pattern such as ``gs://bucket/rows/*.jsonl``.

    Args:
        pattern: location whose key has wildcards; ``**`` stands for any number of folders.

    Returns:
        The objects, sorted; an empty list if none matches.

    Raises:
        ValueError: if the bucket cannot be read.
    """
    root = pattern
    while _WILDCARD.search(root.key):
        root = root.parent
    parts = pattern.key.split("/")
    return [item for item in list_objects(root) if _matches(item.location.key.split("/"), parts)]


def copy_model_folder(folder: Location, patterns: Sequence[str], *, what: str) -> Path:
    """Copy the configuration and tokenizer of a model in a bucket, and list its weights.

    Args:
        folder: folder of the model.
        patterns: names, or patterns of names, of the files to copy.
        what: noun phrase for what is looked for, for messages.

    Returns:
        A local folder. Its weight files are empty; :mod:`llm.hf.safetensors` reads them in place.

    Raises:
        ValueError: if there is no such folder, or it cannot be read.
    """
    check_bucket(folder)
    found = objects_at(folder)
    if not found:
        raise missing_source(str(folder), what=what)
    if found[0].location == folder:
        raise ValueError(f"{folder} must be a folder with config.json, got a file")
    names = {item.location.path.removeprefix(f"{folder.path}/"): item for item in found}
    copied = [
        item
        for name, item in names.items()
        if any(fnmatch.fnmatchcase(name, each) for each in (*patterns, *_CONFIGURATIONS))
    ]
    listed = [
        item
        for name, item in names.items()
        if "/" not in name and (name.endswith(_WEIGHTS) or name == "config.yaml")
    ]
    return stage_folder(folder, copied, listed)


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return whether the components of a key match those of a pattern, as in the glob module."""
    if not patterns or not names:
        return not patterns and not names
    if patterns[0] == "**":
        rest = patterns[1:] or ["*"]
        return any(_matches(names[index:], rest) for index in range(len(names)))
    if names[0].startswith(".") and not patterns[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])
