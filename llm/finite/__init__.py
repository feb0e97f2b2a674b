"""Language models over a finite set of responses, compared with the exact theory.

Names are imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .minimax_agreement import DECODER_SIZES, AgreementCurve, train_to_minimax
    from .overoptimization import ToyProblem, TrainingCurve, make_toy_problem, train_on_toy_problem
    from .policy_table import (
        Comparisons,
        ResponseSpace,
        all_responses,
        comparison_batch,
        log_policy,
        make_problem,
    )

_EXPORTS = {
    "DECODER_SIZES": "minimax_agreement",
    "AgreementCurve": "minimax_agreement",
    "train_to_minimax": "minimax_agreement",
    "ToyProblem": "overoptimization",
    "TrainingCurve": "overoptimization",
    "make_toy_problem": "overoptimization",
    "train_on_toy_problem": "overoptimization",
    "Comparisons": "policy_table",
    "ResponseSpace": "policy_table",
    "all_responses": "policy_table",
    "comparison_batch": "policy_table",
    "log_policy": "policy_table",
    "make_problem": "policy_table",
}

__all__ = [
    "DECODER_SIZES",
    "AgreementCurve",
    "Comparisons",
    "ResponseSpace",
    "ToyProblem",
    "TrainingCurve",
    "all_responses",
    "comparison_batch",
    "log_policy",
    "make_problem",
    "make_toy_problem",
    "train_on_toy_problem",
    "train_to_minimax",
]


if not TYPE_CHECKING:  # pyright would give every name the type Any

    def __getattr__(name: str) -> Any:
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
