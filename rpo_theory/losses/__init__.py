r"""Preference losses as functions of log-probabilities.

Every function takes per-example log-probabilities of whole responses (sums over tokens, nats) and
returns per-example losses in nats; nothing is reduced inside. The bandit solvers and the
language-model trainer call these same functions. With the log-ratios
:math:`u_a=\log(\pi(a|x)/\pi_{ref}(a|x))` of the chosen response :math:`w` and the rejected response
:math:`l`, and the *margin* :math:`h=u_w-u_l`, the loss of Algorithm 2 (`liu:24`, eq. 4.8) is

.. math:: -\log\sigma(\beta h) - \eta\beta\log\pi(a^0|x), \qquad a^0\sim\pi_{base}.

Masked examples (``where=False``) have zero loss *and* zero gradient, whatever their values are.

======================  ============================================================================
module                  losses
======================  ============================================================================
``regularized``         ``rpo`` and ``sft``
``margins``             functions of the margin: ``dpo``, ``ipo``, ``hinge``, ``robust``,
                        ``exo_pair``, ``discopop`` and ``sigmoid_norm``
``links``               other implicit rewards: ``dpop``, ``chi_po``, ``f_dpo``
``single_responses``    responses one by one: ``kto``, ``nca_pair``, ``bco_pair``, ``sppo_hard``,
                        ``apo_zero``, ``apo_down``
``reference_free``      without a reference: ``cpo``, ``slic``, ``simpo``, ``orpo``, ``power``
``batches``             sorted over the whole batch: ``aot``, ``aot_unpaired``
``rankings``            ``plackett_luce``
``tokens``              ``wpo_weights`` and ``length_desensitized_weights``
``soft_labels``         ``expected_over_labels``
======================  ============================================================================
"""

from .._log_probs import PairLogProbs
from .batches import aot, aot_unpaired
from .links import Divergence, chi_po, dpop, f_dpo
from .margins import discopop, dpo, exo_pair, hinge, ipo, margin, robust, sigmoid_norm
from .rankings import plackett_luce
from .reference_free import cpo, orpo, power, simpo, slic
from .regularized import rpo, sft
from .single_responses import apo_down, apo_zero, bco_pair, kto, nca_pair, sppo_hard
from .soft_labels import expected_over_labels
from .tokens import length_desensitized_weights, wpo_weights

__all__ = [
    "Divergence",
    "PairLogProbs",
    "aot",
    "aot_unpaired",
    "apo_down",
    "apo_zero",
    "bco_pair",
    "chi_po",
    "cpo",
    "discopop",
    "dpo",
    "dpop",
    "exo_pair",
    "expected_over_labels",
    "f_dpo",
    "hinge",
    "ipo",
    "kto",
    "length_desensitized_weights",
    "margin",
    "nca_pair",
    "orpo",
    "plackett_luce",
    "power",
    "robust",
    "rpo",
    "sft",
    "sigmoid_norm",
    "simpo",
    "slic",
    "sppo_hard",
    "wpo_weights",
]


def __dir__() -> list[str]:
    return sorted(__all__)
