"""Data sets on the Hugging Face hub: which files of a repository a name stands for."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

from rpo_io.hub import HubRepository, download_from_hub, glob_escaped, list_hub_files

from .splits import (
    SPLITS,
    SUFFIXES,
    check_one_format,
    is_data_file,
    listed,
    split_of,
    subset_of,
)

_MAX_CARD_BYTES = 2**20


def repository_files(
    repository: HubRepository, split: str | None, source: str
) -> list[tuple[Path, str]]:
    """Download the files of one split of one subset of a hub data set.

    Args:
        repository: the data set; ``inner`` is a subset, or a file.
        split: name of the split; None for ``train``.
        source: the name that was given, for errors.

    Returns:
        Local files, each with its name for error messages.

    Raises:
        ValueError: if the name stands for no files, or for those of several subsets.
    """
    listed = list_hub_files(repository, kind="dataset")
    names = [name for name in listed if _is_data_path(name)]
    if repository.inner in names:
        chosen = [repository.inner]
        if split is not None:
            raise ValueError(f"{source} names a file: leave out the split `{split}`")
    else:
        configured = _configured_subsets(repository, has_card="README.md" in listed)
        if configured:
            chosen = _by_card(configured, names, repository, split or "train", source)
        else:
            chosen = _by_path(names, repository, split or "train", source)
    folder = download_from_hub(repository, [glob_escaped(name) for name in chosen], kind="dataset")
    return [(folder / name, f"{repository.name}/{name}") for name in chosen]


def _is_data_path(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and is_data_file(name.rpartition("/")[2])


def _by_path(names: list[str], repository: HubRepository, split: str, source: str) -> list[str]:
    """Return the files of a split by their names, see :func:`_split_of`."""
    inner = repository.inner
    inside = [
        name
        for name in names
        if not inner or name.startswith(f"{inner}/") or subset_of(name) == inner
    ]
    subset = f"/{inner}" if inner else ""
    if not inside:
        subsets = sorted({subset_of(name) for name in names} - {""})
        has = f"its subsets are {listed(subsets)}" if subsets else "it has no subsets"
        if not names:
            has = f"it has no file that ends with one of {', '.join(SUFFIXES)}"
        raise ValueError(f"{source}: {repository.name} has no files of rows in `{inner}`: {has}")
    splits = {name: split_of(name) for name in inside}
    if not set(splits.values()) - {None}:
        splits = dict.fromkeys(inside, "train")
    wanted = SPLITS.get(split.lower(), split)
    chosen = [name for name in inside if splits[name] == wanted]
    if not chosen:
        found = listed(sorted({name for name in splits.values() if name}))
        raise ValueError(
            f"{source} has no file of split `{split}`; its splits are {found}: name one as "
            f"{repository.name}{subset}:SPLIT"
        )
    subsets = sorted({subset_of(name) for name in chosen})
    if len(subsets) > 1:
        choices = [
            f"{repository.name}/{name}:{split}" if name else f"{repository.name}/FILE"
            for name in subsets
        ]
        raise ValueError(f"{source} has several subsets: name one of {listed(choices)}")
    check_one_format(chosen, source)
    return sorted(chosen)


def _configured_subsets(
    repository: HubRepository, *, has_card: bool
) -> dict[str, dict[str, list[str]]]:
    """Return the subsets that the card of a data set declares: patterns by split, by subset."""
    if not has_card:
        return {}
    card = download_from_hub(repository, ["README.md"], kind="dataset") / "README.md"
    import yaml

    with open(card, "rb") as file:
        text = file.read(_MAX_CARD_BYTES).decode("utf-8", "replace")
    front = re.match(r"\s*---\r?\n(.*?)\n---", text, re.DOTALL)
    try:
        metadata = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return {}
    configs = metadata.get("configs") if isinstance(metadata, dict) else None
    subsets = {}
    for config in configs if isinstance(configs, list) else ():
        if isinstance(config, dict) and config.get("data_files"):
            name = str(config.get("config_name", "default"))
            folder = str(config.get("data_dir") or "").strip("/")
            patterns = _patterns_by_split(config["data_files"], folder)
            subsets[name] = patterns
            if config.get("default") is True:
                subsets = {"default": patterns} | subsets
    return subsets


def _patterns_by_split(data_files: Any, folder: str) -> dict[str, list[str]]:
    """Return the patterns of ``data_files`` of a data set card by split."""
    if isinstance(data_files, str | dict):
        data_files = [data_files]
    patterns: dict[str, list[str]] = {}
    for entry in data_files if isinstance(data_files, list) else ():
        split, paths = ("train", entry)
        if isinstance(entry, dict):
            split, paths = str(entry.get("split", "train")), entry.get("path", [])
        for path in [paths] if isinstance(paths, str) else paths:
            full = f"{folder}/{path}" if folder else str(path)
            patterns.setdefault(SPLITS.get(split.lower(), split), []).append(full)
    return patterns


def _by_card(
    subsets: dict[str, dict[str, list[str]]],
    names: list[str],
    repository: HubRepository,
    split: str,
    source: str,
) -> list[str]:
    """Return the files of a split of a subset that the card of the data set declares."""
    subset = repository.inner or (next(iter(subsets)) if len(subsets) == 1 else "default")
    if subset not in subsets:
        if repository.inner and any(name.startswith(f"{subset}/") for name in names):
            return _by_path(names, repository, split, source)
        choices = listed(f"{repository.name}/{name}:{split}" for name in sorted(subsets))
        raise ValueError(f"{source} has several subsets: name one of {choices}")
    patterns = subsets[subset].get(SPLITS.get(split.lower(), split))
    if patterns is None:
        raise ValueError(
            f"{source} has no split `{split}`; its splits are {listed(sorted(subsets[subset]))}"
        )
    chosen = sorted(name for name in names if any(_matches(name, pattern) for pattern in patterns))
    if not chosen:
        raise ValueError(f"{source}: no file that is read matches {listed(patterns)}")
    check_one_format(chosen, source)
    return chosen


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./")
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, pattern.replace("**/", ""))
