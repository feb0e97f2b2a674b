"""Methods of a study: built-in ones by name, the user's own by module or as Python objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .base import Method
from .registry import find_method


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A method of a study with its options; a method's name alone stands for its defaults.

    Attributes:
        method: name in :data:`bandits.methods.registry.METHODS`, or ``module:name`` for a method of
            your own: a function that returns a policy (:mod:`bandits.methods.user_methods`) or a
            record. The module may lie beside the YAML file. In Python, the object itself.
        label: name in records and figures; printable text without ``$``. The default is the
            method's name, followed by its baseline if the study has the method several times.
        options: options of the method by name; those of its dataclass.

    Raises:
        ValueError: if the method is unknown, it does not have an option, or the label is not
            printable text without ``$``.
    """

    SHORTHAND: ClassVar[str] = "method"

    method: str | Method | Callable[..., Any]
    label: str | None = None
    options: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise a ``ValueError`` for an unknown method or option, or an unprintable label."""
        if not isinstance(self.method, str):
            object.__setattr__(self, "method", find_method(self.method))
        object.__setattr__(self, "options", self.record.make_options(self.options))
        # Terminals obey control characters, and Matplotlib reads text between $ as mathematics.
        label = self.label
        if label is not None and not (label.strip() and label.isprintable() and "$" not in label):
            raise ValueError(f"`label` must be printable text without $, got {label!r}")

    @property
    def record(self) -> Method:
        """The method."""
        return find_method(self.method)

    @property
    def reference(self) -> str:
        """Name of the method in records and configurations: its name, or ``module:name``."""
        return self.method if isinstance(self.method, str) else self.record.reference


def as_method_config(item: MethodConfig | Method | Callable[..., Any] | str) -> MethodConfig:
    """Return a method of a study with the default options unless it has options already.

    Args:
        item: a method with options, a name, a record, or a function that returns a policy.

    Raises:
        ValueError: if the method is unknown.

    Examples:
        >>> as_method_config("dpo").reference
        'dpo'
    """
    return item if isinstance(item, MethodConfig) else MethodConfig(method=item)


def method_labels(methods: Sequence[MethodConfig]) -> list[str]:
    """Return the labels of methods in records and figures.

    Args:
        methods: the methods of a study.

    Returns:
        One label per method, in the same order.

    Examples:
        >>> given = MethodConfig(method="rpo", options={"baseline": "given"})
        >>> method_labels([MethodConfig(method="rpo"), given, MethodConfig(method="dpo")])
        ['rpo, chosen', 'rpo, given', 'dpo']
    """
    references = [method.reference for method in methods]
    labels = []
    for method, reference in zip(methods, references, strict=True):
        baseline = getattr(method.options, "baseline", None)
        is_repeated = references.count(reference) > 1 and baseline is not None
        name = method.record.name
        labels.append(method.label or name + (f", {baseline}" if is_repeated else ""))
    return labels
