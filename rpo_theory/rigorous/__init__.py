"""Rigorous certificates: duality gaps in ball arithmetic, with every rounding error enclosed.

Ball arithmetic is that of python-flint, which the extra ``rigorous`` installs. It is imported at
the first proof.
"""

from .balls import check_installed
from .gap import duality_gap_bound, exact_form

__all__ = ["check_installed", "duality_gap_bound", "exact_form"]


def __dir__() -> list[str]:
    return sorted(__all__)
