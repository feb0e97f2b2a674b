"""Problem, solution and status: the data that travels between functions, and the shape legend.

Shape legend, the same in every module:

====== ==========================================================
letter meaning
====== ==========================================================
``x``  contexts (prompts)
``a``  actions (responses)
``n``  preference pairs
``d``  features
``k``  members of a finite reward class
``m``  sets of actions that a choice was made from
====== ==========================================================

:class:`Problem` and :class:`Solution` are named tuples of arrays, so they pass through ``jit`` and
``vmap``. Their plain constructors check nothing; :meth:`Problem.from_wins`,
:meth:`Problem.from_votes` and :func:`rpo_theory.validation.validate` do.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal, NamedTuple

from jax import Array
from jaxtyping import Float, Int

from .array_types import ArrayLike
from .preference_data import Choices, Ties


class Problem(NamedTuple):
    r"""Max-min problem of RPO, apart from its reward class.

    Attributes:
        context_weights: prompt distribution :math:`d_0(x)`, shape ``[x]``.
        reference_policy: :math:`\pi_{ref}(a|x)`, rows sum to one, shape ``[x a]``.
        baseline_policy: :math:`\pi_{base}(a|x)`, rows sum to one, shape ``[x a]``.
        wins: ``wins[x, w, l]`` counts the comparisons in context ``x`` that ``w`` won against
            ``l``, shape ``[x a a]``. Counts may be fractional (expected counts). They are a
            sufficient statistic of the preference data.
        beta: weight of the KL term, :math:`\beta > 0`, in units of reward per nat.
        eta: weight of the adversarial term, :math:`\eta \ge 0`; 0 gives maximum likelihood (DPO).
        choices: choices from sets of more than two actions, and rankings; None without them.
        ties: ties, whose model then holds for ``wins`` too; None for the Bradley-Terry model.
    """

    context_weights: Float[ArrayLike, " x"]
    reference_policy: Float[ArrayLike, "x a"]
    baseline_policy: Float[ArrayLike, "x a"]
    wins: Float[ArrayLike, "x a a"]
    beta: Float[ArrayLike, ""] | float
    eta: Float[ArrayLike, ""] | float
    choices: Choices | None = None
    ties: Ties | None = None

    @classmethod
    def from_wins(
        cls,
        wins: Float[ArrayLike, "x a a"] | Int[ArrayLike, "x a a"],
        *,
        beta: Float[ArrayLike, ""] | float,
        eta: Float[ArrayLike, ""] | float,
        context_weights: Literal["comparisons", "uniform"] | Float[ArrayLike, " x"] = "comparisons",
        reference_policy: Float[ArrayLike, "x a"] | None = None,
        baseline_policy: Literal["chosen", "reference"] | Float[ArrayLike, "x a"] = "chosen",
        choices: Choices | None = None,
        ties: Float[ArrayLike, "x a a"] | Int[ArrayLike, "x a a"] | None = None,
        tie_model: Literal["davidson", "rao_kupper"] | None = None,
        tie_parameter: float | None = None,
    ) -> Problem:
        r"""Build and validate a problem from win counts, and from choices and ties beside them.

        Args:
            wins: ``wins[x, w, l]``, the number of comparisons in context ``x`` that ``w`` won
                against ``l``; 0 for ``w = l``.
            beta: weight of the KL term, greater than 0. Theorem 5.3 takes :math:`1/\sqrt N` for
                :math:`N` comparisons.
            eta: weight of the adversarial term, at least 0.
            context_weights: prompt distribution. ``"comparisons"`` weights a context by its share
                of the observations, so a context without data gets weight 0; ``"uniform"`` weights
                all contexts equally.
            reference_policy: :math:`\pi_{ref}(a|x)`; uniform over the actions if None.
            baseline_policy: ``"chosen"`` for the empirical distribution of the winners in each
                context (contexts without data take the reference policy), ``"reference"`` for the
                reference policy, or a table. The winner of a ranking is its first action; the two
                actions of a tie count half each.
            choices: choices from sets and rankings, see :func:`rpo_theory.count_choices`; None
                without them. Choices from two actions are comparisons, and join the win counts
                unless the problem has ties.
            ties: ``ties[x, i, j]``, the number of ties of ``i`` and ``j`` in context ``x``; None
                without ties. ``(i, j)`` and ``(j, i)`` add up.
            tie_model: model of wins and ties, ``"davidson"`` or ``"rao_kupper"``; required with
                ties. See :class:`rpo_theory.DavidsonTies` and :class:`rpo_theory.RaoKupperTies`.
            tie_parameter: parameter of the model; if None, that of maximum likelihood, see
                :func:`rpo_theory.fit_tie_parameter`.

        Returns:
            The problem in float64, with distributions that sum to one.

        Raises:
            ValueError: if an argument is invalid; the message names it.

        Examples:
            >>> import numpy as np
            >>> problem = Problem.from_wins(np.array([[[0, 3], [1, 0]]]), beta=0.5, eta=0.1)
            >>> problem.reference_policy.tolist(), problem.baseline_policy.tolist()
            ([[0.5, 0.5]], [[0.75, 0.25]])
        """
        from .problems import problem_from_wins

        return problem_from_wins(
            wins,
            beta=beta,
            eta=eta,
            context_weights=context_weights,
            reference_policy=reference_policy,
            baseline_policy=baseline_policy,
            choices=choices,
            ties=ties,
            tie_model=tie_model,
            tie_parameter=tie_parameter,
        )

    @classmethod
    def from_votes(
        cls,
        contexts: Iterable[Hashable],
        winners: Iterable[Hashable],
        losers: Iterable[Hashable],
        counts: Iterable[int | float] | None = None,
        *,
        beta: Float[ArrayLike, ""] | float,
        eta: Float[ArrayLike, ""] | float,
        tied: Iterable[bool] | None = None,
        tie_model: Literal["davidson", "rao_kupper"] | None = None,
        tie_parameter: float | None = None,
        context_labels: Sequence[Hashable] | None = None,
        action_labels: Sequence[Hashable] | None = None,
        context_weights: Literal["comparisons", "uniform"] | Float[ArrayLike, " x"] = "comparisons",
        reference_policy: Float[ArrayLike, "x a"] | None = None,
        baseline_policy: Literal["chosen", "reference"] | Float[ArrayLike, "x a"] = "chosen",
    ) -> Problem:
        r"""Build and validate a problem from the columns of a table of votes.

        Context ``i`` of the problem is the ``i``-th label of ``sorted(set(contexts))``, and action
        ``j`` the ``j``-th label of the winners and losers together, sorted. Equal votes add up.
        Two spellings of one label, which differ only in spaces or the Unicode form, are refused.

        Args:
            contexts: label of the context of each vote, such as a prompt or its index.
            winners: label of the preferred action of each vote.
            losers: label of the other action of each vote.
            counts: number of times that each vote was cast; 1 if None.
            beta: weight of the KL term, greater than 0.
            eta: weight of the adversarial term, at least 0.
            tied: whether each vote was a tie of its two actions; no vote was if None.
            tie_model: see :meth:`from_wins`; required with ties.
            tie_parameter: see :meth:`from_wins`.
            context_labels: all contexts in the wanted order; the sorted labels if None.
            action_labels: all actions in the wanted order; the sorted labels if None.
            context_weights: see :meth:`from_wins`.
            reference_policy: :math:`\pi_{ref}(a|x)`; if None, uniform over the actions that occur
                in the votes of a context, and over all actions in a context without votes.
            baseline_policy: see :meth:`from_wins`.

        Returns:
            The problem in float64, with distributions that sum to one.

        Raises:
            ValueError: if an argument is invalid; the message names it.

        Examples:
            >>> winners, losers = ["ada", "ada", "bob"], ["bob", "bob", "ada"]
            >>> problem = Problem.from_votes(["q"] * 3, winners, losers, beta=0.5, eta=0.1)
            >>> problem.wins.tolist()
            [[[0.0, 2.0], [1.0, 0.0]]]
        """
        from .labeled_problems import problem_from_votes

        return problem_from_votes(
            contexts,
            winners,
            losers,
            counts,
            tied=tied,
            tie_model=tie_model,
            tie_parameter=tie_parameter,
            context_labels=context_labels,
            action_labels=action_labels,
            reference_policy=reference_policy,
            beta=beta,
            eta=eta,
            context_weights=context_weights,
            baseline_policy=baseline_policy,
        )

    @classmethod
    def from_rankings(
        cls,
        contexts: Iterable[Hashable],
        rankings: Iterable[Iterable[Hashable]],
        counts: Iterable[int | float] | None = None,
        *,
        beta: Float[ArrayLike, ""] | float,
        eta: Float[ArrayLike, ""] | float,
        context_labels: Sequence[Hashable] | None = None,
        action_labels: Sequence[Hashable] | None = None,
        context_weights: Literal["comparisons", "uniform"] | Float[ArrayLike, " x"] = "comparisons",
        reference_policy: Float[ArrayLike, "x a"] | None = None,
        baseline_policy: Literal["chosen", "reference"] | Float[ArrayLike, "x a"] = "chosen",
    ) -> Problem:
        r"""Build and validate a problem from rankings, under the Plackett-Luce model.

        Args:
            contexts: label of the context of each ranking.
            rankings: the labels of the compared actions of each ranking, from best to worst.
                Rankings may differ in length; one of two actions is a comparison.
            counts: number of times that each ranking was given; 1 if None.
            beta: weight of the KL term, greater than 0.
            eta: weight of the adversarial term, at least 0.
            context_labels: all contexts in the wanted order; the sorted labels if None.
            action_labels: all actions in the wanted order; the sorted labels if None.
            context_weights: see :meth:`from_wins`.
            reference_policy: see :meth:`from_votes`.
            baseline_policy: see :meth:`from_wins`.

        Returns:
            The problem in float64, with distributions that sum to one.

        Raises:
            ValueError: if an argument is invalid; the message names it.

        References:
            `plackett:75`.

        Examples:
            >>> rankings = [["ada", "bob", "cai"], ["bob", "ada"]]
            >>> problem = Problem.from_rankings(["q", "q"], rankings, beta=0.5, eta=0.1)
            >>> problem.baseline_policy.tolist()
            [[0.5, 0.5, 0.0]]
        """
        from .labeled_problems import problem_from_rankings

        return problem_from_rankings(
            contexts,
            rankings,
            counts,
            beta=beta,
            eta=eta,
            context_labels=context_labels,
            action_labels=action_labels,
            context_weights=context_weights,
            reference_policy=reference_policy,
            baseline_policy=baseline_policy,
        )

    @classmethod
    def from_choices(
        cls,
        contexts: Iterable[Hashable],
        subsets: Iterable[Iterable[Hashable]],
        winners: Iterable[Hashable],
        counts: Iterable[int | float] | None = None,
        *,
        beta: Float[ArrayLike, ""] | float,
        eta: Float[ArrayLike, ""] | float,
        context_labels: Sequence[Hashable] | None = None,
        action_labels: Sequence[Hashable] | None = None,
        context_weights: Literal["comparisons", "uniform"] | Float[ArrayLike, " x"] = "comparisons",
        reference_policy: Float[ArrayLike, "x a"] | None = None,
        baseline_policy: Literal["chosen", "reference"] | Float[ArrayLike, "x a"] = "chosen",
    ) -> Problem:
        r"""Build and validate a problem from choices of the best of a set.

        Args:
            contexts: label of the context of each choice.
            subsets: the labels of the actions that each choice was made from.
            winners: label of the chosen action of each choice.
            counts: number of times that each choice was made; 1 if None.
            beta: weight of the KL term, greater than 0.
            eta: weight of the adversarial term, at least 0.
            context_labels: all contexts in the wanted order; the sorted labels if None.
            action_labels: all actions in the wanted order; the sorted labels if None.
            context_weights: see :meth:`from_wins`.
            reference_policy: see :meth:`from_votes`.
            baseline_policy: see :meth:`from_wins`.

        Returns:
            The problem in float64, with distributions that sum to one.

        Raises:
            ValueError: if an argument is invalid; the message names it.

        References:
            `plackett:75`.

        Examples:
            >>> subsets, winners = [["ada", "bob", "cai"], ["ada", "bob"]], ["ada", "bob"]
            >>> problem = Problem.from_choices(["q"] * 2, subsets, winners, beta=1.0, eta=1.0)
            >>> problem.wins.tolist(), problem.choices.wins.tolist()
            ([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], [[1.0, 0.0, 0.0]])
        """
        from .labeled_problems import problem_from_choices

        return problem_from_choices(
            contexts,
            subsets,
            winners,
            counts,
            beta=beta,
            eta=eta,
            context_labels=context_labels,
            action_labels=action_labels,
            context_weights=context_weights,
            reference_policy=reference_policy,
            baseline_policy=baseline_policy,
        )


class Status(enum.IntEnum):
    """Outcome of a solve; solvers return its integer code.

    Attributes:
        sentence: the outcome in words.
    """

    sentence: str

    def __new__(cls, code: int, sentence: str) -> Status:  # noqa: D102
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    SOLVED = 0, "Solved: the certificate proves the answer optimal to the tolerance."
    NOT_ATTAINED = (
        1,
        "Solved in the limit: the infimum is not attained, because the rewards of some responses "
        "grow without bound relative to those of others; the policy is the limit, and responses "
        "whose rewards tend to minus infinity have probability zero.",
    )
    MAX_STEPS = (
        2,
        "Not solved: the step limit, or the precision of float64, was reached before the "
        "certificate met the tolerance.",
    )
    UNBOUNDED = (
        3,
        "No solution: the objective is unbounded below, because the baseline policy picks "
        "responses that the reference policy never gives, and the data hold too few losses of "
        "these responses.",
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
