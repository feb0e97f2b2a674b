r"""Schedules of the constants of an objective over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from .checks import at_least, one_of, zero_or_positive

ScheduleKind = Literal["constant", "linear", "cosine", "stepwise"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How a constant moves from its value to another one over the steps of a run.

    Attributes:
        kind: ``"constant"``; ``"linear"``; ``"cosine"``, half a period; or ``"stepwise"``, in
            ``drops`` equal changes after equal times.
        end: value at the end of the schedule; needed unless the schedule is constant.
        share: share of the steps of the run after which the end is reached, in (0, 1]. The value
            stays there.
        drops: number of changes of ``"stepwise"``.

    Raises:
        ValueError: if a value is out of range, or ``end`` is missing or has no effect.

    Examples:
        >>> ScheduleConfig(kind="linear", end=0.0).share
        1.0
    """

    SHORTHAND: ClassVar[str] = "kind"

    kind: ScheduleKind = "constant"
    end: float | None = None
    share: float = 1.0
    drops: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        one_of("kind", self.kind, ScheduleKind)
        at_least("drops", self.drops, 1)
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` must be in (0, 1], got {self.share}")
        if self.end is not None:
            zero_or_positive("end", self.end)
        if (self.end is None) != (self.kind == "constant"):
            rule = "must be given for" if self.end is None else "has no effect for"
            raise ValueError(f"`end` {rule} the kind {self.kind!r}")
