"""Sources of data rows: files, folders of shards, patterns, lists of these, and hub data sets.

A source is resolved to files before anything is read. What could mix splits, subsets or copies of
the same rows is refused with the names to choose from.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .hub import (
    HubRepository,
    download_from_hub,
    list_hub_files,
    missing_source,
    parse_hub_name,
)

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".ndjson.gz")
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
PARQUET_SUFFIX = ".parquet"
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
SUFFIXES = (*JSON_SUFFIXES, PARQUET_SUFFIX, *CSV_SUFFIXES, *ARROW_SUFFIXES)


_PATTERN = re.compile(r"[*?\[]")
_SHARD = re.compile(r"(.+?)[-_.]\d+-of-\d+(?:-[0-9a-f]+)?")
_NUMBER = re.compile(r"(?:[-_. ]?\d+)+$")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
"""Names of splits, and the split that each means."""
_METADATA_FILES = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json"))
_METADATA_FILES |= {"state.json", "_success", "license", "makefile", ".ds_store"}
_MAX_CARD_BYTES = 2**20
_SHOWN = 8


class SourceFile(NamedTuple):
    """A local file of a source.

    Attributes:
        path: the file.
        shown: name of the file in error messages.
    """

    path: Path
    shown: str


Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str] | SourceFile]
"""Rows by name: a file, a folder of shards, a pattern such as ``shards/*.parquet``, a data set on
the hub as ``owner/name[@revision][/subset][:split]``, or a list of these or of their files."""


def source_files(source: Source) -> list[SourceFile]:
    """Return the local files of a source, in the order in which they are read.

    The files of a hub data set are downloaded.

    Args:
        source: see :data:`Source`. The default split of a hub data set is ``train``.

    Returns:
        The files, at least one, no file twice.

    Raises:
        ValueError: if there is no such source, it is ambiguous, or a file is named twice.
    """
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise ValueError("a list of data files must name at least one, got none")
    files: list[SourceFile] = []
    for name in names:
        files += [name] if isinstance(name, SourceFile) else _files_of(os.fspath(name))
    seen: dict[tuple[int, int], str] = {}
    for path, shown in files:
        identity = _identity(path)
        if identity in seen:
            raise ValueError(f"{shown} is the same file as {seen[identity]}: name it once")
        seen[identity] = shown
    return files


def shown_source(source: Source) -> str:
    """Return the name of a source for error messages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return _listed(
        each.shown if isinstance(each, SourceFile) else os.fspath(each) for each in source
    )


def check_distinct(train: Sequence[SourceFile], evaluation: Sequence[SourceFile]) -> None:
    """Raise an error if training and evaluation rows have a file in common, under whatever name.

    Args:
        train: files of the training rows.
        evaluation: files of the evaluation rows.

    Raises:
        ValueError: if a file belongs to both.
    """
    trained = {_identity(path): shown for path, shown in train}
    for path, shown in evaluation:
        same = trained.get(_identity(path))
        if same is not None:
            name = shown if same == shown else f"{shown}, which is the file {same},"
            raise ValueError(
                f"`data.eval` must be other rows than `data.train`, got {name} in both: leave "
                "`data.eval` out and hold rows out with `data.eval_rows`"
            )


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _files_of(source: str) -> list[SourceFile]:
    path = Path(source)
    if not source.strip() or "\0" in source:
        raise ValueError(f"a data file must have a name, got {source!r}")
    if path.is_file():
        return [SourceFile(path, source)]
    if path.is_dir():
        return _files_of_folder(path)
    if path.exists():
        raise ValueError(
            f"{source} must be a regular file, because it is read twice: save it first"
        )
    if "://" in source and not source.startswith("hf://"):
        scheme = source.split("://", 1)[0]
        raise ValueError(
            f"{source}: `{scheme}://` is not read: download the file, or name a hub data set"
        )
    if _PATTERN.search(source):
        return _files_of_pattern(source)
    name, split = _divide_split(source)
    repository = parse_hub_name(name, kind="dataset")
    if repository is None:
        raise missing_source(source, what="a file or folder of rows")
    return _files_of_repository(repository, split, source)


def _files_of_pattern(pattern: str) -> list[SourceFile]:
    found = [name for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not found:
        raise ValueError(f"{pattern} matches no file")
    return [SourceFile(Path(name), name) for name in found]


def _files_of_folder(folder: Path) -> list[SourceFile]:
    """Return the shards of a folder; refuse one that holds splits, subsets or two formats."""
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    paths = [path for path in entries if path.is_file() and _is_data(path.name)]
    below = [path for path in entries if path.is_dir() and _holds_data(path)]
    other = [path.name for path in entries if path.is_file() and _is_unknown(path.name)]
    if below:
        raise ValueError(
            f"{folder} has folders of rows ({_listed(path.name for path in below)}): name one of "
            f"them, or a pattern such as {folder}/*/*.parquet"
        )
    if other:
        raise ValueError(
            f"{folder} has files that are not read ({_listed(other)}): remove them, or name the "
            f"files with a pattern such as {folder}/*.jsonl"
        )
    if not paths:
        raise ValueError(
            f"{folder} has no file of rows, whose name ends with one of {', '.join(SUFFIXES)}"
        )
    found = {_split_of(path.name) or "" for path in paths}
    splits = found.intersection(_SPLITS.values())
    if len(splits) > 1:
        raise ValueError(
            f"{folder} has files of several splits ({_listed(sorted(splits))}): name the files of "
            f"one split, for example {folder}/train*"
        )
    _check_one_format([path.name for path in paths], str(folder))
    return [SourceFile(path, str(path)) for path in paths]


def _holds_data(folder: Path) -> bool:
    return any(_is_data(name) for _, _, names in os.walk(folder) for name in names)


def _is_data(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and name.lower() not in _METADATA_FILES


def _is_unknown(name: str) -> bool:
    """Return whether a file may hold rows in a format that is not read."""
    lower = name.lower()
    described = lower in _METADATA_FILES or lower.startswith(("readme", "license", "licence"))
    return not (described or _is_data(name) or lower.endswith((".md", ".crc", ".lock", ".py")))


def _check_one_format(names: Sequence[str], where: str) -> None:
    """Refuse files of several formats, which usually hold the same rows."""
    formats = sorted({_suffix(name) for name in names})
    if len(formats) > 1:
        raise ValueError(
            f"{where} has files of several formats ({', '.join(formats)}), which may hold the same "
            "rows: name the files of one format"
        )


def _suffix(name: str) -> str:
    return next(s for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _divide_split(source: str) -> tuple[str, str | None]:
    """Divide a name of a hub data set from the split after it."""
    scheme, rest = ("hf://", source[5:]) if source.startswith("hf://") else ("", source)
    name, colon, split = rest.rpartition(":")
    if not colon or "/" in split:
        return source, None
    if not split:
        raise ValueError(f"{source}: a name of a split must follow the colon")
    return scheme + name, split


def _files_of_repository(
    repository: HubRepository, split: str | None, source: str
) -> list[SourceFile]:
    """Download the files of one split of one subset of a hub data set."""
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
    folder = download_from_hub(repository, [_escaped(name) for name in chosen], kind="dataset")
    return [SourceFile(folder / name, f"{repository.name}/{name}") for name in chosen]


def _is_data_path(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and _is_data(name.rpartition("/")[2])


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _by_path(names: list[str], repository: HubRepository, split: str, source: str) -> list[str]:
    """Return the files of a split by their names, see :func:`_split_of`."""
    inner = repository.inner
    inside = [
        name
        for name in names
        if not inner or name.startswith(f"{inner}/") or _subset_of(name) == inner
    ]
    subset = f"/{inner}" if inner else ""
    if not inside:
        subsets = sorted({_subset_of(name) for name in names} - {""})
        has = f"its subsets are {_listed(subsets)}" if subsets else "it has no subsets"
        if not names:
            has = f"it has no file that ends with one of {', '.join(SUFFIXES)}"
        raise ValueError(f"{source}: {repository.name} has no files of rows in `{inner}`: {has}")
    splits = {name: _split_of(name) for name in inside}
    if not set(splits.values()) - {None}:
        splits = dict.fromkeys(inside, "train")
    wanted = _SPLITS.get(split.lower(), split)
    chosen = [name for name in inside if splits[name] == wanted]
    if not chosen:
        found = _listed(sorted({name for name in splits.values() if name}))
        raise ValueError(
            f"{source} has no file of split `{split}`; its splits are {found}: name one as "
            f"{repository.name}{subset}:SPLIT"
        )
    subsets = sorted({_subset_of(name) for name in chosen})
    if len(subsets) > 1:
        choices = [
            f"{repository.name}/{name}:{split}" if name else f"{repository.name}/FILE"
            for name in subsets
        ]
        raise ValueError(f"{source} has several subsets: name one of {_listed(choices)}")
    _check_one_format(chosen, source)
    return sorted(chosen)


def _split_of(name: str) -> str | None:
    """Return the one split of a file: by its own name, otherwise by the nearest folder."""
    *folders, file = name.split("/")
    stem = file[: -len(_suffix(file))]
    shard = _SHARD.fullmatch(stem)
    if shard is not None:
        return _SPLITS.get(shard[1].lower(), shard[1])
    for word in re.split(r"[-. ]", _NUMBER.sub("", stem).lower()):
        if word in _SPLITS:
            return _SPLITS[word]
    for folder in reversed(folders):
        if folder.lower() in _SPLITS:
            return _SPLITS[folder.lower()]
    is_custom = any(word in _SPLITS for word in stem.lower().split("_"))
    return stem if is_custom else None


def _subset_of(name: str) -> str:
    folders = name.split("/")[:-1]
    kept = [folder for folder in folders if folder.lower() not in (*_SPLITS, "data")]
    return "/".join(kept)


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
            patterns.setdefault(_SPLITS.get(split.lower(), split), []).append(full)
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
        choices = _listed(f"{repository.name}/{name}:{split}" for name in sorted(subsets))
        raise ValueError(f"{source} has several subsets: name one of {choices}")
    patterns = subsets[subset].get(_SPLITS.get(split.lower(), split))
    if patterns is None:
        raise ValueError(
            f"{source} has no split `{split}`; its splits are {_listed(sorted(subsets[subset]))}"
        )
    chosen = sorted(name for name in names if any(_matches(name, pattern) for pattern in patterns))
    if not chosen:
        raise ValueError(f"{source}: no file that is read matches {_listed(patterns)}")
    _check_one_format(chosen, source)
    return chosen


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.removeprefix("./")
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name, pattern.replace("**/", ""))
