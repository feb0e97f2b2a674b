"""What must be the same in all processes of a group, as texts by name, and where it differs."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from glob import glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rpo_io.digests import sha256_hex, sha256_of_file
from rpo_io.locations import parse_location
from rpo_io.versions import DISTRIBUTION

MISSING = "missing"
"""Value of a file that is not there."""
LIBRARIES = (
    *(DISTRIBUTION, "jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("grain", "safetensors", "tokenizers", "jinja2", "pyarrow"),
)
"""Distributions whose version must be the same."""
PACKAGES = ("rpo_theory", "bandits", "llm", "rpo_io", "rpo")
MAX_SAMPLED_BYTES = 2**20
"""Bytes at the start and at the end of a file of weights that are compared."""
MAX_NAMES = 4
_DIGEST = re.compile("[0-9a-f]{64}")


def describe_difference(
    facts: Sequence[Mapping[str, str]], name: Callable[[int], str]
) -> str | None:
    """Describe which processes differ from the others, and in what.

    Args:
        facts: the values of each process.
        name: returns the name of a process.

    Returns:
        One line that names processes and values; None if all are the same.

    Examples:
        >>> describe_difference([{"`seed`": "0"}, {"`seed`": "1"}], "process {}".format)[:53]
        'process 1 differs from process 0 in `seed` (1, not 0)'
    """
    expected: dict[str, str] = {}
    for key in dict.fromkeys(key for each in facts for key in each):
        counts = Counter(each.get(key, MISSING) for each in facts)
        most = max(counts.values())
        # Without a majority, process 0 is right: its value comes first.
        expected[key] = next(value for value, count in counts.items() if count == most)
    odd: dict[int, list[str]] = {}
    for index, each in enumerate(facts):
        for key, value in expected.items():
            if each.get(key, MISSING) != value:
                odd.setdefault(index, []).append(_phrase(key, each.get(key, MISSING), value))
    if not odd:
        return None
    others = [index for index in range(len(facts)) if index not in odd]
    rest = name(others[0]) if len(others) == 1 else "the other processes"
    lines = [
        f"{name(index)} differs from {rest} in {_listed(phrases)}" for index, phrases in odd.items()
    ]
    return f"{_listed(lines, '; ')}: start all processes with the same command, files and versions"


def _phrase(key: str, value: str, expected: str) -> str:
    if MISSING in (value, expected):
        return f"{key} ({'missing' if value == MISSING else 'not missing'})"
    if _DIGEST.fullmatch(value) or _DIGEST.fullmatch(expected):
        return key
    return f"{key} ({value}, not {expected})"


def _listed(phrases: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(phrases) - MAX_NAMES} more" if len(phrases) > MAX_NAMES else ""
    return separator.join(phrases[:MAX_NAMES]) + more


def code_facts() -> dict[str, str]:
    """Return the versions of this program and its libraries, and digests of its source files."""
    facts = {f"the version of {name}": _version(name) for name in LIBRARIES}
    root = Path(__file__).resolve().parents[2]
    return facts | {f"the source code of {name}": _source_digest(root / name) for name in PACKAGES}


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


@cache
def _source_digest(package: Path) -> str:
    digests = [
        f"{path.relative_to(package)} {sha256_of_file(path)}"
        for path in sorted(package.rglob("*.py"))
    ]
    return sha256_hex("\n".join(digests))


def configuration_facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the name and the value of every key of a nested configuration.

    Args:
        values: the configuration as plain values.
        prefix: name of the section, with a dot behind.

    Yields:
        Pairs of name and value, for example of ``objective.eta``.

    Examples:
        >>> dict(configuration_facts({"objective": {"eta": 0.1}}))
        {'`objective.eta`': '0.1'}
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from configuration_facts(value, f"{prefix}{key}.")
        else:
            text = repr(value)
            yield f"`{prefix}{key}`", text if len(text) <= 200 else sha256_hex(text)


def file_facts(names: Iterable[str]) -> dict[str, str]:
    """Return digests of files and folders by their names; names of the hub stand for themselves.

    Args:
        names: files, folders, patterns of files, also in buckets, or names on the hub.

    Returns:
        One digest for each name; in a bucket, of names and versions. Of a local file of weights
        that is larger than 2 MiB, only size, start and end count.

    Examples:
        >>> file_facts(["org/model"])
        {'org/model': 'missing'}
    """
    from llm.data.bucket_sources import objects_of

    facts = {}
    for name in dict.fromkeys(names):
        location = parse_location(name)
        if location.is_bucket:
            versions = [f"{item.location} {item.version}" for item in objects_of(location)]
            facts[name] = sha256_hex("\n".join(versions)) if versions else MISSING
            continue
        pattern = str(location)
        paths = [Path(found) for found in sorted(glob(pattern, recursive=True))] or [Path(pattern)]
        files = [file for path in paths for file in _files_of(path)]
        lines = [f"{path.relative_to(root)} {_file_digest(path)}" for root, path in files]
        lines += [f"checkpoint {step}" for path in paths for step in checkpoint_steps(path)]
        facts[name] = sha256_hex("\n".join(lines)) if lines else MISSING
    return facts


def checkpoint_steps(run: Path) -> list[int]:
    """Return the steps of the checkpoints in the folder of a training run.

    Args:
        run: the folder; None of its checkpoints is opened.

    Examples:
        >>> checkpoint_steps(Path("no_run"))
        []
    """
    return sorted(int(p.name) for p in (run / "checkpoints").glob("*") if p.name.isdigit())


def _files_of(path: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a file, or the files in a folder, each with the folder that its name is relative to."""
    if path.is_file():
        yield path.parent, path
    elif path.is_dir():
        yield from ((path, file) for file in sorted(path.iterdir()) if file.is_file())


def _file_digest(path: Path) -> str:
    """Return the digest of a file, or of the size, the start and the end of a large one."""
    size = path.stat().st_size
    if path.suffix != ".safetensors" or size <= 2 * MAX_SAMPLED_BYTES:
        return sha256_of_file(path)
    digest = hashlib.sha256(f"{size}\n".encode())
    with path.open("rb") as file:
        digest.update(file.read(MAX_SAMPLED_BYTES))
        file.seek(-MAX_SAMPLED_BYTES, 2)
        digest.update(file.read())
    return digest.hexdigest()
