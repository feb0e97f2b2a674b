"""Files that a study reads or runs, by content: a changed file makes another study."""

from __future__ import annotations

from pathlib import Path

from bandits.environments.registry import find_environment
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
    files = {}
    sources = {}
    for name in study.environment_names:
        environment = find_environment(name)
        for path in environment.files:
            files[f"environments {name}"] = path
        if environment.source is not None:
            sources[f"environments {name}"] = environment.source
    features = study.design.get("features_file")
    for path in features if isinstance(features, list) else [features]:
        if isinstance(path, str):
            files[f"design.features_file {path}"] = path
    digests = {name: sha256_of_file(Path(path)) for name, path in files.items()}
    kind = (study.class_values or {}).get("kind", "")
    if is_reference(kind):
        sources[f"reward_class {kind}"] = load_object(kind, "class")
    for method in study.method_configs:
        if method.reference not in METHODS:
            sources[f"methods {method.reference}"] = method.record.source or method.record.fit
    return digests | {name: sha256_hex(source_text(code)) for name, code in sources.items()}
