"""Remarks on a configuration: values that have no effect, and data that mislead no method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bandits.environments.designs import Design
from bandits.environments.registry import find_environment
from bandits.environments.votes import read_votes
from bandits.methods.method_config import MethodConfig, method_labels

from .config import StudyConfig
from .parts import class_of_study, missing_for_bounds


def study_notes(study: StudyConfig) -> tuple[str, ...]:
    """Return remarks on a study: keys without effect, and rare responses that are never compared.

    Args:
        study: configuration of the study.

    Returns:
        Sentences, each of which names its key.

    Examples:
        >>> methods = [MethodConfig(method="rpo")]
        >>> study = StudyConfig(
        ...     name="a", methods=methods, comparisons=[9], seeds=1, design={"features": 3})
        >>> study_notes(study)
        ('`design.features` has no effect: it is for linear rewards.',)
    """
    checks = (_never_compared, _no_bounds, _unused_design, _unused_weights, _votes)
    return tuple(note for check in checks for note in check(study))


def _never_compared(study: StudyConfig) -> list[str]:
    zero = 0 in _values(study, "rare_comparisons", None)
    if "design" not in study.environments or not zero or not any(_values(study, "rare", 0)):
        return []
    return [
        "`design.rare_comparisons` is 0, so the rare responses are never compared: no data mislead "
        "a method, and the caution of RPO only costs. Without the key it is 1."
    ]


def _no_bounds(study: StudyConfig) -> list[str]:
    """Return a note for every reason why bounds on the gap are left out."""
    reasons = {
        "label_noise": "labels do not follow the Bradley-Terry model of the true reward",
        "misspecification": "the true reward is not in the class",
    }
    notes = [
        f"The columns `bound*` are null where design.{name} is above 0: {reason} (Assumption 5.1). "
        "`bound_projected` is for `gap_projected`, at the reward of the class that explains the "
        "labels best."
        for name, reason in reasons.items()
        if any(_values(study, name, 0.0))
    ]
    reward_class = class_of_study(study)
    if reward_class is not None and study.class_values is not None:
        missing = missing_for_bounds(reward_class)
        kind = study.class_values["kind"]
        reason = f"{kind} has no {' and no '.join(missing)}"
        notes.append(
            f"The columns `bound*` are null: {reason}."
            if missing
            else "The columns `bound*` are null where the true reward is not in `reward_class` "
            "(Assumption 5.1)."
        )
    for index, method in enumerate(study.method_configs):
        rewards = getattr(method.options, "rewards", "given")
        if method.record.bound and rewards == "unbounded":
            notes.append(
                f"The columns `bound*` of methods[{index}] are null: the bounds need a finite "
                "range of rewards (Assumption 5.1)."
            )
    return notes


def _unused_design(study: StudyConfig) -> list[str]:
    """Return a note for every field of the design that no scenario uses."""
    fields = [find_environment(name).design_fields for name in study.environment_names]
    if None not in fields:
        used = {name for names in fields for name in names or ()}
        reason = "no environment of the study uses it"
        unused = [name for name in study.design if name not in used]
        return [_without_effect(f"design.{name}", reason) for name in unused]
    linear = "linear" in _values(study, "reward", "tabular")
    tabular = "tabular" in _values(study, "reward", "tabular")
    from_file = None not in _values(study, "features_file", None)
    random = "they are read from a file" if linear else "it is for linear rewards"
    # Pairs among the baseline and the ordinary responses need two responses beside the best one.
    n_core = max(_values(study, "actions", Design.actions)) - min(_values(study, "rare", 0))
    rules = {
        "imbalance": (n_core > 3, "`design.actions` leaves one pair to compare"),
        "missing_edges": (n_core > 2, "`design.actions` leaves no pair to compare"),
        "features": (linear and not from_file, random),
        "features_file": (linear, "it is for linear rewards"),
        "misspecification": (linear, "it is for linear rewards"),
        "gaps": (tabular, "it is for tabular rewards"),
        "coverage_all": (any(_values(study, "rare", 0)), "`design.rare` is 0"),
        "rare_comparisons": (any(_values(study, "rare", 0)), "`design.rare` is 0"),
        "prompts_shift": (max(_values(study, "contexts", 1)) > 1, "there is one prompt"),
    }
    return [
        _without_effect(f"design.{name}", reason)
        for name, (is_used, reason) in rules.items()
        if name in study.design and not is_used
    ]


def _unused_weights(study: StudyConfig) -> list[str]:
    """Return a note for each weight that has several values or a given one, and no effect."""
    notes = []
    labels = method_labels(study.method_configs)
    for name, is_used in (("eta", _uses_eta), ("beta", _uses_beta)):
        values = getattr(study, name)
        unused = [
            label
            for label, method in zip(labels, study.method_configs, strict=True)
            if not is_used(method)
        ]
        if not unused or values == ["theorem"]:
            continue
        if len(unused) == len(study.methods):
            notes.append(_without_effect(name, "no method of the study uses it"))
        elif len(values) > 1:
            listed = ", ".join(unused)
            notes.append(f"`{name}` has no effect on {listed}: all its values share one fit.")
    return notes


def _votes(study: StudyConfig) -> list[str]:
    """Return the notes on files of votes, such as columns that are not read."""
    paths = [
        Path(name.removeprefix("votes:"))
        for name in study.environment_names
        if name.startswith("votes:")
    ]
    found = filter(Path.is_file, paths)  # a missing file is refused when it is drawn from
    return [f"{path}: {note}" for path in found for note in read_votes(path).notes]


def _uses_eta(method: MethodConfig) -> bool:
    return method.record.uses_eta and not method.options.sets_eta()


def _uses_beta(method: MethodConfig) -> bool:
    return method.record.uses_beta


def _values(study: StudyConfig, name: str, default: Any) -> list[Any]:
    """Return the values of a field of the design."""
    value = study.design.get(name, default)
    return value if isinstance(value, list) else [value]


def _without_effect(key: str, reason: str) -> str:
    return f"`{key}` has no effect: {reason}."
