r"""The guarantee: how far the policy may fall short of any comparator that the data cover.

Every bound here is one inequality. With probability at least :math:`1-\delta`, for every comparator
at once,

.. math:: J(\pi) - J(\hat\pi) \le \frac{C^2\eta}{8m} + \frac{3\iota^2}{\eta N}
          + \beta\,E_{d_0}KL(\pi\|\pi_{ref}),

where :math:`m` is such that the squared Hellinger distance of two labels is at least :math:`m`
times the squared difference of their reward margins. Three values of :math:`m` are here:

========= =============================== ========================================================
name      :math:`m`
========= =============================== ========================================================
printed   :math:`\kappa^2`                the paper's; too large by a factor up to 2
corrected :math:`\kappa^2/2`              what the paper's proof supports
tight     :math:`h=\sigma'(R_{max})/8`    the largest that holds, :func:`hellinger_curvature`
========= =============================== ========================================================

Corollary 5.7 is the same inequality for the RPO policy :math:`\pi_{\hat r}` (it needs A 5.5: a
compact convex class). Bounds are in units of reward; arguments broadcast like arrays.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from .preference import curvature, hellinger_curvature
from .types import ArrayLike

Numbers: TypeAlias = Float[ArrayLike, "..."] | float | int
"""Numbers or arrays; arguments broadcast against each other."""


def covering_scale(n_pairs: Numbers, reward_max: Numbers) -> Float[Array, "..."]:
    r"""Scale at which the theorem covers the class, :math:`\epsilon = 1/(6(1+e^{R_{max}})N)`.

    Args:
        n_pairs: :math:`N`.
        reward_max: :math:`R_{max}`.

    Returns:
        :math:`\epsilon`, in units of reward.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> round(1.0 / float(covering_scale(10, 0.0)), 3)
        120.0
    """
    return 1.0 / (6.0 * (1.0 + jnp.exp(reward_max)) * n_pairs)


def complexity(log_covering: Numbers, delta: float) -> Float[Array, "..."]:
    r"""What the class costs, :math:`\iota = \sqrt{\log(\mathcal N_\epsilon/\delta)}`.

    Args:
        log_covering: :math:`\log\mathcal N_\epsilon` at :func:`covering_scale`, from
            :func:`rpo_theory.rewards.log_covering_number`.
        delta: :math:`\delta`, the probability that the guarantee may fail; less than 1/e.

    Returns:
        :math:`\iota > 1`.

    Raises:
        ValueError: :math:`\delta` out of range.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> round(float(complexity(3.0, 0.05)), 4)
        2.4486
    """
    if not 0.0 < delta < math.exp(-1.0):
        raise ValueError(
            f"`delta` must be greater than 0 and less than 1/e = .3679, got {delta}: "
            "the guarantee is stated for small failure probabilities only"
        )
    return jnp.sqrt(log_covering - math.log(delta))


def printed_modulus(reward_max: Numbers) -> Float[Array, "..."]:
    r"""The paper's :math:`m = \kappa^2 = (1+e^{R_{max}})^{-4}`; does not hold below .333.

    Its proof takes :math:`D_H^2 \ge D_{TV}^2` for :math:`D_H^2 = 1-\sum\sqrt{pq}`, which fails by
    a factor up to 2. A loose step elsewhere makes good for it when :math:`R_{max}\ge .333`.

    Args:
        reward_max: :math:`R_{max}`.

    Returns:
        :math:`m` in (0, 1/16].

    References:
        `liu:24`, eqs. A.31 and A.44.

    Examples:
        >>> float(printed_modulus(0.0))
        0.0625
    """
    return jnp.square(curvature(reward_max))


def corrected_modulus(reward_max: Numbers) -> Float[Array, "..."]:
    r"""Half the paper's, :math:`m = \kappa^2/2`: holds for every :math:`R_{max}`.

    Args:
        reward_max: :math:`R_{max}`.

    Returns:
        :math:`m` in (0, 1/32].

    Examples:
        >>> float(corrected_modulus(0.0))
        0.03125
    """
    return 0.5 * printed_modulus(reward_max)


def tight_modulus(reward_max: Numbers) -> Float[Array, "..."]:
    r"""The largest valid modulus, :math:`m = h = \sigma'(R_{max})/8`.

    :math:`\sqrt h` stands in the place of :math:`\kappa`.

    Args:
        reward_max: :math:`R_{max}`.

    Returns:
        :math:`m` in (0, 1/32].

    Examples:
        >>> float(tight_modulus(0.0))
        0.03125
    """
    return hellinger_curvature(reward_max)


def theorem_beta(n_pairs: Numbers) -> Float[Array, "..."]:
    r"""The theorem's KL weight, :math:`\beta = 1/\sqrt N`.

    Args:
        n_pairs: :math:`N`.

    Returns:
        :math:`\beta`, reward per nat.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> float(theorem_beta(64))
        0.125
    """
    return 1.0 / jnp.sqrt(n_pairs)


def tuned_eta(
    modulus: Numbers, *, n_pairs: Numbers, complexity: Numbers, coverage: Numbers = 1.0
) -> Float[Array, "..."]:
    r"""Weight of the adversarial term, :math:`\eta = \sqrt{24 m}\,\iota/(C\sqrt N)`.

    The best for the coefficient :math:`C` if that is known. The theorem does not know it and takes
    :math:`C = 1` with the printed modulus, :math:`\eta = \kappa\sqrt{24}\,\iota/\sqrt N`. (A.45)
    prints this without :math:`\kappa`; the theorem, with it, is the consistent one.

    Args:
        modulus: :math:`m`.
        n_pairs: :math:`N`.
        complexity: :math:`\iota`.
        coverage: :math:`C > 0`, if known.

    Returns:
        :math:`\eta`, nats per unit of reward.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> m = printed_modulus(0.0)
        >>> round(float(tuned_eta(m, n_pairs=100, complexity=2.0)), 4)
        0.2449
    """
    return jnp.sqrt(24.0 * modulus / n_pairs) * complexity / coverage


def regularized_gap_bound(
    modulus: Numbers, *, n_pairs: Numbers, complexity: Numbers, coverage: Numbers, eta: Numbers
) -> Float[Array, "..."]:
    r"""Bound on the gap of :math:`J - \beta E\,KL`, for any :math:`\beta`.

    .. math:: \frac{C^2\eta}{8m} + \frac{3\iota^2}{\eta N}

    Args:
        modulus: :math:`m`.
        n_pairs: :math:`N`.
        complexity: :math:`\iota`.
        coverage: :math:`C` of the comparator, :func:`rpo_theory.coverage.coverage_coefficient`.
        eta: :math:`\eta > 0`.

    Returns:
        Expected reward minus KL cost that the policy may lack.

    Examples:
        >>> terms = {"n_pairs": 100, "complexity": 2.0, "coverage": 1.0, "eta": 0.25}
        >>> round(float(regularized_gap_bound(printed_modulus(0.0), **terms)), 4)
        0.98
    """
    bias = jnp.square(coverage) * eta / (8.0 * modulus)
    return bias + 3.0 * jnp.square(complexity) / (eta * n_pairs)


def suboptimality_bound(
    modulus: Numbers,
    *,
    n_pairs: Numbers,
    complexity: Numbers,
    coverage: Numbers,
    eta: Numbers,
    beta: Numbers,
    kl: Numbers,
) -> Float[Array, "..."]:
    r"""Bound on the gap before tuning: :func:`regularized_gap_bound` plus :math:`\beta E\,KL`.

    Args:
        modulus: :math:`m`; the printed one gives (A.44).
        n_pairs: :math:`N`.
        complexity: :math:`\iota`.
        coverage: :math:`C` of the comparator.
        eta: :math:`\eta > 0`.
        beta: :math:`\beta > 0`.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Expected reward that the policy may lack.

    References:
        `liu:24`, eq. A.44.

    Examples:
        >>> terms = {"n_pairs": 100, "complexity": 2.0, "coverage": 1.0, "eta": 0.25}
        >>> round(float(suboptimality_bound(printed_modulus(0.0), **terms, beta=0.1, kl=0.2)), 4)
        1.0
    """
    regularised = regularized_gap_bound(
        modulus, n_pairs=n_pairs, complexity=complexity, coverage=coverage, eta=eta
    )
    return regularised + beta * kl


def theorem_bound_printed(
    *, n_pairs: Numbers, reward_max: Numbers, complexity: Numbers, coverage: Numbers, kl: Numbers
) -> Float[Array, "..."]:
    r"""Theorem 5.3 as printed; holds for :math:`R_{max}\ge .333`.

    .. math:: \frac{\sqrt6\,(1+e^{R_{max}})^2 (C^2+1)\,\iota + 4\,E\,KL}{4\sqrt N}

    Args:
        n_pairs: :math:`N`.
        reward_max: :math:`R_{max}`.
        complexity: :math:`\iota`.
        coverage: :math:`C` of the comparator.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Expected reward that the policy may lack, with the theorem's :math:`\eta` and
        :math:`\beta`.

    References:
        `liu:24`, Theorem 5.3 and Corollary 5.7.

    Examples:
        >>> terms = {"n_pairs": 6, "reward_max": 0.0, "coverage": 1.0, "kl": 0.0}
        >>> round(float(theorem_bound_printed(**terms, complexity=2.0)), 4)
        4.0
    """
    slope = (jnp.square(coverage) + 1.0) / curvature(reward_max)
    return (math.sqrt(6.0) * slope * complexity + 4.0 * kl) / (4.0 * jnp.sqrt(n_pairs))


def theorem_bound_corrected(
    *, n_pairs: Numbers, reward_max: Numbers, complexity: Numbers, coverage: Numbers, kl: Numbers
) -> Float[Array, "..."]:
    r"""Theorem 5.3 with the constant that its proof supports, for every :math:`R_{max}`.

    The same :math:`\eta` and :math:`\beta`; :math:`2C^2+1` stands in the place of :math:`C^2+1`.

    Args:
        n_pairs: :math:`N`.
        reward_max: :math:`R_{max}`.
        complexity: :math:`\iota`.
        coverage: :math:`C` of the comparator.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Expected reward that the policy may lack.

    References:
        `liu:24`, Theorem 5.3, with Lemma A.1 put right.

    Examples:
        >>> terms = {"n_pairs": 6, "reward_max": 0.0, "coverage": 1.0, "kl": 0.0}
        >>> round(float(theorem_bound_corrected(**terms, complexity=2.0)), 4)
        6.0
    """
    slope = (2.0 * jnp.square(coverage) + 1.0) / curvature(reward_max)
    return (math.sqrt(6.0) * slope * complexity + 4.0 * kl) / (4.0 * jnp.sqrt(n_pairs))


def theorem_bound_tight(
    *, n_pairs: Numbers, reward_max: Numbers, complexity: Numbers, coverage: Numbers, kl: Numbers
) -> Float[Array, "..."]:
    r"""The sharpest form: :math:`\sqrt h` for :math:`\kappa`, in the bound and in :math:`\eta`.

    :math:`1/\sqrt h` grows like :math:`e^{R_{max}/2}`, the printed :math:`1/\kappa` like
    :math:`e^{2R_{max}}`. For the policy tuned by ``tuned_eta(tight_modulus(reward_max), ...)``.

    Args:
        n_pairs: :math:`N`.
        reward_max: :math:`R_{max}`.
        complexity: :math:`\iota`.
        coverage: :math:`C` of the comparator.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Expected reward that the policy may lack.

    Examples:
        >>> terms = {"n_pairs": 3, "reward_max": 0.0, "coverage": 1.0, "kl": 0.0}
        >>> round(float(theorem_bound_tight(**terms, complexity=1.0)), 4)
        4.0
    """
    slope = (jnp.square(coverage) + 1.0) / jnp.sqrt(tight_modulus(reward_max))
    return (math.sqrt(6.0) * slope * complexity + 4.0 * kl) / (4.0 * jnp.sqrt(n_pairs))


def prompt_shift_factor(
    target_weights: Float[ArrayLike, " x"], context_weights: Float[ArrayLike, " x"]
) -> Float[Array, ""]:
    r"""What a bound is multiplied by when the policy meets other prompts, :math:`\sup_x d_1/d_0`.

    For a comparator that is optimal at every prompt: then no prompt has a negative gap.

    Args:
        target_weights: :math:`d_1(x)`, the law of the prompts met.
        context_weights: :math:`d_0(x)`, the law of the prompts trained on.

    Returns:
        At least 1; ``inf`` where a prompt is met that was never trained on.

    References:
        `liu:24`, Corollary 5.8.

    Examples:
        >>> float(prompt_shift_factor(jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])))
        2.0
    """
    met, trained = jnp.asarray(target_weights), jnp.asarray(context_weights)
    ratio = jnp.where(trained > 0, met / jnp.where(trained > 0, trained, 1.0), jnp.inf)
    return jnp.max(jnp.where(met > 0, ratio, 0.0))
