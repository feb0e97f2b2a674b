r"""Reward classes :math:`\mathcal R`: the sets that the adversary chooses its reward from.

The theorem needs a compact class of rewards in :math:`[0, R_{max}]` (`liu:24`, A 5.1, A 5.5).

=============== ============================== ================================================
class           members                        Theorem 5.6
=============== ============================== ================================================
``TabularBox``  tables between bounds          holds: compact and convex
``LinearBall``  linear in features             holds: compact and convex
``KernelBall``  bounded norm of a kernel       holds: compact and convex
``Polytope``    linear inequalities            holds: compact and convex
``Lipschitz``   small steps between near cells holds: compact and convex
``FiniteClass`` a list of tables               can fail: compact but not convex
``Unbounded``   all tables                     the minimum need not be attained: not compact
=============== ============================== ================================================

Any other class works too if it is a JAX pytree with the two methods of
:class:`~rpo_theory.rewards.protocol.RewardClass`.
"""

from .ball import LinearBall
from .box import TabularBox
from .check import check_reward_class
from .dtypes import to_float64
from .finite import FiniteClass
from .kernel import KernelBall
from .lipschitz import Lipschitz
from .polytope import Polytope
from .protocol import (
    ROUNDING,
    AnyRewardClass,
    Minimum,
    RewardClass,
    class_residual,
    contains,
    gradient_move,
    is_compact,
    is_convex,
    is_smooth,
    linear_gap,
    linear_minimum,
    log_covering_number,
    reward_max,
)
from .unbounded import Unbounded

__all__ = [
    "ROUNDING",
    "AnyRewardClass",
    "FiniteClass",
    "KernelBall",
    "LinearBall",
    "Lipschitz",
    "Minimum",
    "Polytope",
    "RewardClass",
    "TabularBox",
    "Unbounded",
    "check_reward_class",
    "class_residual",
    "contains",
    "gradient_move",
    "is_compact",
    "is_convex",
    "is_smooth",
    "linear_gap",
    "linear_minimum",
    "log_covering_number",
    "reward_max",
    "to_float64",
]
