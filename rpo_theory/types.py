"""Arrays that travel, and the letters of their shapes.

Shape legend, the same in every module:

====== ==========================================================
letter meaning
====== ==========================================================
``x``  contexts (prompts)
``a``  actions (responses)
``n``  preference pairs
``d``  features
``k``  members of a finite reward class
====== ==========================================================

Everything here is a ``NamedTuple`` of arrays without validation, so that it passes freely through
``jit`` and ``vmap``; values are validated where they enter (:func:`rpo_theory.problems.validate`).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import numpy as np
from jax import Array
from jaxtyping import Float, Int

ArrayLike = Array | np.ndarray


class Problem(NamedTuple):
    r"""One instance of the max-min problem of RPO, without its reward class.

    Attributes:
        context_weights: law of the prompts, :math:`d_0(x)`, probabilities, shape ``[x]``.
        reference_policy: :math:`\pi_{ref}(a|x)`, rows sum to one, shape ``[x a]``.
        baseline_policy: :math:`\pi_{base}(a|x)`, rows sum to one, shape ``[x a]``.
        wins: ``wins[x, w, l]`` counts the comparisons in context ``x`` that ``w`` won against
            ``l``; may be fractional (expected counts), shape ``[x a a]``. A sufficient statistic
            of the preference data.
        beta: weight of the KL term, :math:`\beta > 0`, in units of reward per nat.
        eta: weight of the adversarial term, :math:`\eta \ge 0`; 0 is DPO / maximum likelihood.
    """

    context_weights: Float[ArrayLike, " x"]
    reference_policy: Float[ArrayLike, "x a"]
    baseline_policy: Float[ArrayLike, "x a"]
    wins: Float[ArrayLike, "x a a"]
    beta: Float[ArrayLike, ""]
    eta: Float[ArrayLike, ""]


class Status(enum.IntEnum):
    """How a solve ended; ``sentence`` says it in words. Solvers return the integer code."""

    sentence: str

    def __new__(cls, code: int, sentence: str) -> Status:  # noqa: D102
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    SOLVED = 0, "Solved: the certificate proves the answer optimal to the tolerance."
    NOT_ATTAINED = (
        1,
        "Solved in the limit: the infimum is not attained, because some responses never win "
        "against any that the baseline policy reaches, so their rewards tend to minus infinity; "
        "the policy is the limit and gives them probability zero.",
    )
    MAX_STEPS = (
        2,
        "Not solved: the step limit, or the precision of the numbers, came before the certificate "
        "met the tolerance.",
    )
    UNBOUNDED = (
        3,
        "No solution: the objective is unbounded below, because the baseline policy picks a "
        "response that the reference policy never gives.",
    )
    NOT_FINITE = 4, "Not solved: a number that is not finite appeared in the iteration."


class Solution(NamedTuple):
    r"""Result of a solver, with a leading batch axis on every array if it solved a batch.

    Attributes:
        policy: RPO policy :math:`\hat\pi(a|x)`, shape ``[x a]``.
        reward: adversarial reward :math:`\hat r(x,a)`, shape ``[x a]``.
        objective: minimax objective :math:`F(\hat r)`, eq. 4.4, nats.
        status: integer code of :class:`Status`.
        stats: diagnostics of the solver by name, such as ``"steps"`` and ``"residual"``.
    """

    policy: Float[ArrayLike, "x a"]
    reward: Float[ArrayLike, "x a"]
    objective: Float[ArrayLike, ""]
    status: Int[ArrayLike, ""]
    stats: dict[str, Array]
