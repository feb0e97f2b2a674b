r"""Exact forms of reward classes: what a proof in ball arithmetic needs to know of a class.

A class whose method ``exact_form(shape)`` returns one of these can be certified rigorously, see
:mod:`rpo_theory.rigorous`. The float64 numbers of a form are exact: they define the class of the
proof. Methods such as ``project`` and ``linear_minimum`` round, so they prove nothing.

================ ==========================================================================
form             rewards
================ ==========================================================================
``Inequalities`` tables between two bounds that satisfy linear inequalities
``FeatureBall``  linear rewards :math:`\langle\theta,\phi\rangle` with :math:`\|\theta\|\le B`
``Members``      a list of tables
================ ==========================================================================
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int


class Inequalities(NamedTuple):
    r"""Polyhedron of tables :math:`r_i = u_{g(i)}`, :math:`l \le u \le h`, :math:`Au \le cb`.

    Tables are flat: entry ``x * n_actions + a`` is the reward of context ``x`` and action ``a``.

    Attributes:
        lower: lower bound :math:`l` of every reward.
        upper: upper bound :math:`h` of every reward.
        matrix: :math:`A`, a sparse array of SciPy with one column per group; None without
            inequalities.
        limits: :math:`b`, one number per row of the matrix; None without inequalities.
        scale: :math:`c`, a factor of all limits.
        groups: :math:`g`, the group of each entry of the table; entries of one group are equal.
            None if every entry is a group of its own.
    """

    lower: float
    upper: float
    matrix: Any = None
    limits: Float[np.ndarray, " m"] | None = None
    scale: float = 1.0
    groups: Int[np.ndarray, " n"] | None = None


class FeatureBall(NamedTuple):
    r"""Linear rewards :math:`\langle\theta,\phi(x,a)\rangle` with :math:`\|\theta\|\le B`.

    Attributes:
        features: :math:`\phi(x,a)`, shape ``[x a d]``.
        radius: :math:`B > 0`.
        gram: inner products of the features, shape ``[n n]``, if they are a factor of it that has
            been rounded: minima then cover both. None otherwise.
    """

    features: Float[np.ndarray, "x a d"]
    radius: float
    gram: Float[np.ndarray, "n n"] | None = None


class Members(NamedTuple):
    """Finite list of tables.

    Attributes:
        rewards: the members, shape ``[k x a]``.
    """

    rewards: Float[np.ndarray, "k x a"]


ExactForm: TypeAlias = Inequalities | FeatureBall | Members
"""Any of the three forms."""
