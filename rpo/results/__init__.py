"""Results of the functions of ``rpo.api``: typed fields, tables for notebooks, figures, JSON.

A result holds what its function computed; records of a study, metrics of a run and scores are read
from the written files on access. A plot draws into the given axes, or into new ones, and returns
them.
"""

from .base import Result
from .language_models import (
    Evaluation,
    ExportResult,
    GeneratedReplies,
    InferencePlanResult,
    PlanResult,
    Reply,
    Scores,
    TrainEstimate,
    TrainResult,
)
from .studies import StudyEstimate, StudyKindEstimate, StudyKindResult, StudyResult
from .theory import (
    Answer,
    CertifiedSolution,
    Claim,
    Demonstration,
    Improvement,
    Verification,
)

__all__ = [
    "Answer",
    "CertifiedSolution",
    "Claim",
    "Demonstration",
    "Evaluation",
    "ExportResult",
    "GeneratedReplies",
    "Improvement",
    "InferencePlanResult",
    "PlanResult",
    "Reply",
    "Result",
    "Scores",
    "StudyEstimate",
    "StudyKindEstimate",
    "StudyKindResult",
    "StudyResult",
    "TrainEstimate",
    "TrainResult",
    "Verification",
]


def __dir__() -> list[str]:
    return sorted(__all__)
