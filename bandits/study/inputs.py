"""Files that a study reads or runs, by content: a changed file makes another study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bandits.environments.registry import find_environment
from bandits.methods.method_config import MethodConfig
from bandits.methods.registry import METHODS
from rpo_io.digests import sha256_hex, sha256_of_file
from rpo_io.user_modules import is_reference, load_object, source_text

from .config import StudyConfig


def input_digests(study: StudyConfig) -> dict[str, str]:
    """Return the SHA-256 of every file that a study reads, and of the source of its own code.

    Args:
        study: configuration of the study.

    Returns:
        Digests in hexadecimal by the key and the name of the file, such as
        ``"environments votes:v.csv"``.

    Raises:
        OSError: if a file cannot be read.

    Examples:
        >>> input_digests(StudyConfig(name="a", methods=["rpo"], comparisons=[9], seeds=1))
        {}
    """
    features = study.design.get("features_file")
    kind = (study.class_values or {}).get("kind", "")
    return code_and_file_digests(
        environments=study.environment_names,
        features_files=features if isinstance(features, list) else [features],
        reward_class=kind if is_reference(kind) else None,
        methods=study.method_configs,
    )


def code_and_file_digests(
    *,
    environments: Sequence[str],
    features_files: Sequence[str | None],
    reward_class: str | None = None,
    methods: Sequence[MethodConfig],
) -> dict[str, str]:
    """Return the SHA-256 of files, and of the source of environments, classes and methods.

    Args:
        environments: names of environments; those of the package have no files or source.
        features_files: paths of files of features; None for random features.
        reward_class: ``module:Class`` of a class of the user's own; None if there is none.
        methods: methods, of which only the user's own count.

    Returns:
        Digests in hexadecimal by the key and the name, see :func:`input_digests`.

    Raises:
        OSError: if a file cannot be read.

    Examples:
        >>> code_and_file_digests(environments=["design"], features_files=[None], methods=[])
        {}
    """
    files, sources = {}, {}
    for name in environments:
        environment = find_environment(name)
        for path in environment.files:
            files[f"environments {name}"] = path
        if environment.source is not None:
            sources[f"environments {name}"] = environment.source
    for path in features_files:
        if path is not None:
            files[f"design.features_file {path}"] = path
    digests = {name: sha256_of_file(Path(path)) for name, path in files.items()}
    if reward_class is not None:
        sources[f"reward_class {reward_class}"] = load_object(reward_class, "class")
    for method in methods:
        if method.reference not in METHODS:
            sources[f"methods {method.reference}"] = method.record.source or method.record.fit
    return digests | {name: sha256_hex(source_text(code)) for name, code in sources.items()}
