"""The commands as typed functions: they compute, write the same files, and return typed results.

The functions print nothing. They report through :mod:`logging`, under the loggers ``rpo``,
``bandits`` and ``llm``, and raise a :class:`ValueError` or :class:`OSError` with the message that
the command would print.

Examples:
    >>> from rpo import api
    >>> answer = api.solve(votes="votes.csv", eta=0.01)  # doctest: +SKIP
    >>> answer.policy, answer.duality_gap, answer.plot()  # doctest: +SKIP
"""

from rpo.report.figure_files import FigureFormat
from rpo.runtime.processes import ProcessGroup

from .evaluation import evaluate
from .inference import generate, score
from .studies import estimate_study, study
from .theory import demo, solve, verify
from .training import estimate_train, export, plan, plan_inference, train

__all__ = [
    "FigureFormat",
    "ProcessGroup",
    "demo",
    "estimate_study",
    "estimate_train",
    "evaluate",
    "export",
    "generate",
    "plan",
    "plan_inference",
    "score",
    "solve",
    "study",
    "train",
    "verify",
]


def __dir__() -> list[str]:
    return sorted(__all__)
