"""Names of files of rows: their format, and the split and subset that a name stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

JSON_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".ndjson", ".ndjson.gz")
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
PARQUET_SUFFIX = ".parquet"
ARROW_SUFFIXES = (".arrow", ".feather", ".ipc")
SUFFIXES = (*JSON_SUFFIXES, PARQUET_SUFFIX, *CSV_SUFFIXES, *ARROW_SUFFIXES)

_SHARD = re.compile(r"(.+?)[-_.]\d+-of-\d+(?:-[0-9a-f]+)?")
_NUMBER = re.compile(r"(?:[-_. ]?\d+)+$")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("eval", "evaluation"), "eval"),
}
"""Names of splits, and the split that each means."""
METADATA_FILES = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json"))
METADATA_FILES |= {"state.json", "_success", "license", "makefile", ".ds_store"}
_SHOWN = 8


def is_data_file(name: str) -> bool:
    """Return whether a file has rows in a format that is read, by its name.

    Examples:
        >>> is_data_file("train.jsonl.gz"), is_data_file("dataset_info.json")
        (True, False)
    """
    return name.lower().endswith(SUFFIXES) and name.lower() not in METADATA_FILES


def may_hold_rows(name: str) -> bool:
    """Return whether a file may hold rows in a format that is not read.

    Examples:
        >>> may_hold_rows("rows.jsonl.zst"), may_hold_rows("README.md")
        (True, False)
    """
    lower = name.lower()
    described = lower in METADATA_FILES or lower.startswith(("readme", "license", "licence"))
    return not (described or is_data_file(name) or lower.endswith((".md", ".crc", ".lock", ".py")))


def check_one_format(names: Sequence[str], where: str) -> None:
    """Raise an error if files have several formats, which usually hold the same rows.

    Args:
        names: names of the files.
        where: what holds them, for the message.

    Raises:
        ValueError: if they have several formats.

    Examples:
        >>> check_one_format(["a.jsonl", "b.jsonl"], "shards")
    """
    formats = sorted({suffix_of(name) for name in names})
    if len(formats) > 1:
        raise ValueError(
            f"{where} has files of several formats ({', '.join(formats)}), which may hold the same "
            "rows: name the files of one format"
        )


def shards_of(names: Iterable[str], folder: str) -> list[str]:
    """Return the shards of a folder; refuse one that holds splits, subsets or two formats.

    Args:
        names: paths of all files below the folder, relative to it.
        folder: the folder, for messages.

    Returns:
        Names of files directly in the folder, sorted, at least one.

    Raises:
        ValueError: if the folder is ambiguous or has no file of rows.

    Examples:
        >>> shards_of(["b.jsonl", "a.jsonl", "README.md", ".cache/a.jsonl"], "shards")
        ['a.jsonl', 'b.jsonl']
    """
    seen = sorted(name for name in names if not name.startswith("."))
    hidden = [name for name in seen if name.startswith("_")]
    inside = [name for name in seen if name not in hidden]
    direct = [name for name in inside if "/" not in name]
    shards = [name for name in direct if is_data_file(name)]
    below = {
        name.partition("/")[0]
        for name in inside
        if "/" in name and is_data_file(name.rpartition("/")[2])
    }
    if below:
        raise ValueError(
            f"{folder} has folders of rows ({listed(sorted(below))}): name one of them, or a "
            f"pattern such as {folder}/*/*.parquet"
        )
    other = [name for name in hidden if "/" not in name and is_data_file(name)]
    other += [name for name in direct if may_hold_rows(name)]
    if other:
        raise ValueError(
            f"{folder} has files that are not read ({listed(other)}): remove them, or name the "
            f"files with a pattern such as {folder}/*.jsonl"
        )
    if not shards:
        raise ValueError(
            f"{folder} has no file of rows, whose name ends with one of {', '.join(SUFFIXES)}"
        )
    splits = {split_of(name) or "" for name in shards} - {""}
    if len(splits) > 1:
        raise ValueError(
            f"{folder} has files of several splits ({listed(sorted(splits))}): name the files of "
            f"one split, for example {folder}/train*"
        )
    check_one_format(shards, folder)
    return shards


def suffix_of(name: str) -> str:
    """Return the suffix of a file of rows in lower case.

    Examples:
        >>> suffix_of("train.JSONL.gz")
        '.jsonl.gz'
    """
    return next(s for s in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(s))


def listed(names: Iterable[str]) -> str:
    """Return the first names on one line.

    Examples:
        >>> listed(["a", "b"])
        'a, b'
    """
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def split_of(name: str) -> str | None:
    """Return the one split of a file: by its own name, otherwise by the nearest folder.

    Args:
        name: path of the file in its repository or folder.

    Returns:
        The split; None if the path names none.

    Examples:
        >>> split_of("train/test-questions.jsonl"), split_of("train_prefs-00000-of-00002.parquet")
        ('test', 'train_prefs')
    """
    *folders, file = name.split("/")
    stem = file[: -len(suffix_of(file))]
    shard = _SHARD.fullmatch(stem)
    if shard is not None:
        return SPLITS.get(shard[1].lower(), shard[1])
    for word in re.split(r"[-. ]", _NUMBER.sub("", stem).lower()):
        if word in SPLITS:
            return SPLITS[word]
    for folder in reversed(folders):
        if folder.lower() in SPLITS:
            return SPLITS[folder.lower()]
    is_custom = any(word in SPLITS for word in stem.lower().split("_"))
    return stem if is_custom else None


def subset_of(name: str) -> str:
    """Return the subset of a file: its folders without those that are named like a split.

    Examples:
        >>> subset_of("harmless/data/train-0.parquet")
        'harmless'
    """
    folders = name.split("/")[:-1]
    kept = [folder for folder in folders if folder.lower() not in (*SPLITS, "data")]
    return "/".join(kept)
