r"""Suboptimality bounds of the RPO policy against any comparator that the data cover.

All bounds are instances of one inequality. With probability at least :math:`1-\delta`, for all
comparators at once,

.. math:: J(\pi) - J(\hat\pi) \le \frac{C^2\eta}{8m} + \frac{3\iota^2}{\eta N}
          + \beta\,E_{d_0}KL(\pi\|\pi_{ref}),

where the modulus :math:`m` is such that the squared Hellinger distance of two label distributions
is at least :math:`m` times the squared difference of their reward margins. It has three values:

========= =============================== ========================================================
name      :math:`m`
========= =============================== ========================================================
printed   :math:`\kappa^2`                as in the paper; too large by a factor up to 2
corrected :math:`\kappa^2/2`              as the proof in the paper supports
tight     :math:`h=\sigma'(R_{max})/8`    the largest valid value, :func:`hellinger_curvature`
========= =============================== ========================================================

Corollary 5.7 is the same inequality for the RPO policy :math:`\pi_{\hat r}`; it needs A 5.5, a
compact convex class. Bounds are in units of reward; arguments broadcast like arrays. An argument
that is out of range raises a ``ValueError`` that names it; values of traced arrays are not checked.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from .array_checks import as_float, check_terms, is_traced, validate_policy
from .preference import curvature, hellinger_curvature
from .types import ArrayLike

Numbers: TypeAlias = Float[ArrayLike, "..."] | Int[ArrayLike, "..."] | np.number | float | int
"""Numbers or arrays; arguments broadcast against each other."""


def covering_scale(n_pairs: Numbers, reward_max: Numbers) -> Float[Array, "..."]:
    r"""Return the covering scale of the theorem, :math:`\epsilon = 1/(6(1+e^{R_{max}})N)`.

    Args:
        n_pairs: number :math:`N` of comparisons.
        reward_max: range :math:`R_{max}` of the rewards.

    Returns:
        :math:`\epsilon`, in units of reward.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> round(1.0 / float(covering_scale(10, 0.0)), 3)
        120.0
    """
    check_terms(positive={"n_pairs": n_pairs}, non_negative={"reward_max": reward_max})
    return 1.0 / (6.0 * (1.0 + jnp.exp(reward_max)) * as_float(n_pairs))


def complexity(log_covering: Numbers, delta: Numbers) -> Float[Array, "..."]:
    r"""Return the complexity of a class, :math:`\iota = \sqrt{\log(\mathcal N_\epsilon/\delta)}`.

    Args:
        log_covering: :math:`\log\mathcal N_\epsilon` at :func:`covering_scale`, from
            :func:`rpo_theory.rewards.log_covering_number`.
        delta: failure probability :math:`\delta` of the guarantee; less than 1/e.

    Returns:
        :math:`\iota > 1`.

    Raises:
        ValueError: if :math:`\delta` is out of range.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> round(float(complexity(3.0, 0.05)), 4)
        2.4486
    """
    check_terms(non_negative={"log_covering": log_covering})
    if not is_traced(delta) and not 0.0 < delta < math.exp(-1.0):
        raise ValueError(
            f"`delta` must be greater than 0 and less than 1/e = .3679, got {delta}: "
            "the guarantee is stated for small failure probabilities only"
        )
    log_delta = jnp.log(delta) if is_traced(delta) else math.log(delta)
    return jnp.sqrt(log_covering - log_delta)


def printed_modulus(reward_max: Numbers) -> Float[Array, "..."]:
    r"""Return the modulus as printed in the paper, :math:`m = \kappa^2 = (1+e^{R_{max}})^{-4}`.

    It is not valid for :math:`R_{max} < .333`. The proof uses :math:`D_H^2 \ge D_{TV}^2` for
    :math:`D_H^2 = 1-\sum\sqrt{pq}`, which fails by a factor up to 2. For :math:`R_{max}\ge .333`
    another, loose step of the proof compensates.

    Args:
        reward_max: range :math:`R_{max}` of the rewards.

    Returns:
        :math:`m` in (0, 1/16].

    References:
        `liu:24`, eqs. A.31 and A.44.

    Examples:
        >>> float(printed_modulus(0.0))
        0.0625
    """
    check_terms(non_negative={"reward_max": reward_max})
    return jnp.square(curvature(as_float(reward_max)))


def corrected_modulus(reward_max: Numbers) -> Float[Array, "..."]:
    r"""Return the corrected modulus :math:`m = \kappa^2/2`, valid for every :math:`R_{max}`.

    Args:
        reward_max: range :math:`R_{max}` of the rewards.

    Returns:
        :math:`m` in (0, 1/32].

    Examples:
        >>> float(corrected_modulus(0.0))
        0.03125
    """
    return 0.5 * printed_modulus(reward_max)


def tight_modulus(reward_max: Numbers) -> Float[Array, "..."]:
    r"""Return the largest valid modulus, :math:`m = h = \sigma'(R_{max})/8`.

    Args:
        reward_max: range :math:`R_{max}` of the rewards.

    Returns:
        :math:`m` in (0, 1/32].

    Examples:
        >>> float(tight_modulus(0.0))
        0.03125
    """
    check_terms(non_negative={"reward_max": reward_max})
    return hellinger_curvature(as_float(reward_max))


def theorem_beta(n_pairs: Numbers) -> Float[Array, "..."]:
    r"""Return the KL weight of the theorem, :math:`\beta = 1/\sqrt N`.

    Args:
        n_pairs: number :math:`N` of comparisons.

    Returns:
        :math:`\beta`, in units of reward per nat.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> float(theorem_beta(64))
        0.125
    """
    check_terms(positive={"n_pairs": n_pairs})
    return 1.0 / jnp.sqrt(as_float(n_pairs))


def tuned_eta(
    modulus: Numbers, *, n_pairs: Numbers, complexity: Numbers, coverage: Numbers = 1.0
) -> Float[Array, "..."]:
    r"""Return the weight of the adversarial term, :math:`\eta = \sqrt{24 m}\,\iota/(C\sqrt N)`.

    It minimizes the bound for a known coverage coefficient :math:`C`. The theorem does not assume
    that it is known, and takes :math:`C = 1` with the printed modulus,
    :math:`\eta = \kappa\sqrt{24}\,\iota/\sqrt N`. Equation (A.45) prints this without
    :math:`\kappa`; the theorem, with it, is the consistent one.

    Args:
        modulus: modulus :math:`m`.
        n_pairs: number :math:`N` of comparisons.
        complexity: complexity :math:`\iota` of the class.
        coverage: coverage coefficient :math:`C > 0`; 1 if it is not known.

    Returns:
        :math:`\eta`, nats per unit of reward.

    References:
        `liu:24`, Theorem 5.3.

    Examples:
        >>> m = printed_modulus(0.0)
        >>> round(float(tuned_eta(m, n_pairs=100, complexity=2.0)), 4)
        0.2449
    """
    positive = {"modulus": modulus, "n_pairs": n_pairs, "coverage": coverage}
    check_terms(positive=positive, non_negative={"complexity": complexity})
    return jnp.sqrt(24.0 * modulus / as_float(n_pairs)) * complexity / coverage


def regularized_gap_bound(
    modulus: Numbers, *, n_pairs: Numbers, complexity: Numbers, coverage: Numbers, eta: Numbers
) -> Float[Array, "..."]:
    r"""Return the bound on the gap of :math:`J - \beta E\,KL`, for any :math:`\beta`.

    .. math:: \frac{C^2\eta}{8m} + \frac{3\iota^2}{\eta N}

    Args:
        modulus: modulus :math:`m`.
        n_pairs: number :math:`N` of comparisons.
        complexity: complexity :math:`\iota` of the class.
        coverage: coverage coefficient :math:`C` of the comparator, from
            :func:`rpo_theory.coverage.coverage_coefficient`.
        eta: weight of the adversarial term, :math:`\eta > 0`.

    Returns:
        Upper bound on the shortfall of expected reward minus KL cost.

    Examples:
        >>> terms = {"n_pairs": 100, "complexity": 2.0, "coverage": 1.0, "eta": 0.25}
        >>> round(float(regularized_gap_bound(printed_modulus(0.0), **terms)), 4)
        0.98
    """
    positive = {"modulus": modulus, "n_pairs": n_pairs, "eta": eta}
    check_terms(positive=positive, non_negative={"complexity": complexity, "coverage": coverage})
    bias = jnp.square(coverage) * eta / (8.0 * modulus)
    return bias + 3.0 * jnp.square(complexity) / (eta * as_float(n_pairs))


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
    r"""Return the bound on the gap of :math:`J`, for any :math:`\eta` and :math:`\beta`.

    It is :func:`regularized_gap_bound` plus :math:`\beta E\,KL`.

    Args:
        modulus: modulus :math:`m`; the printed one gives (A.44).
        n_pairs: number :math:`N` of comparisons.
        complexity: complexity :math:`\iota` of the class.
        coverage: coverage coefficient :math:`C` of the comparator.
        eta: weight of the adversarial term, :math:`\eta > 0`.
        beta: weight of the KL term, :math:`\beta > 0`.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Upper bound on the shortfall of expected reward.

    References:
        `liu:24`, eq. A.44.

    Examples:
        >>> terms = {"n_pairs": 100, "complexity": 2.0, "coverage": 1.0, "eta": 0.25}
        >>> round(float(suboptimality_bound(printed_modulus(0.0), **terms, beta=0.1, kl=0.2)), 4)
        1.0
    """
    check_terms(positive={"beta": beta}, non_negative={"kl": kl})
    regularized = regularized_gap_bound(
        modulus, n_pairs=n_pairs, complexity=complexity, coverage=coverage, eta=eta
    )
    return regularized + beta * kl


def theorem_bound_printed(
    *, n_pairs: Numbers, reward_max: Numbers, complexity: Numbers, coverage: Numbers, kl: Numbers
) -> Float[Array, "..."]:
    r"""Return the bound of Theorem 5.3 as printed, valid for :math:`R_{max}\ge .333`.

    .. math:: \frac{\sqrt6\,(1+e^{R_{max}})^2 (C^2+1)\,\iota + 4\,E\,KL}{4\sqrt N}

    Args:
        n_pairs: number :math:`N` of comparisons.
        reward_max: range :math:`R_{max}` of the rewards.
        complexity: complexity :math:`\iota` of the class.
        coverage: coverage coefficient :math:`C` of the comparator.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Upper bound on the shortfall of expected reward, with :math:`\eta` and :math:`\beta` of the
        theorem.

    References:
        `liu:24`, Theorem 5.3 and Corollary 5.7.

    Examples:
        >>> terms = {"n_pairs": 6, "reward_max": 0.0, "coverage": 1.0, "kl": 0.0}
        >>> round(float(theorem_bound_printed(**terms, complexity=2.0)), 4)
        4.0
    """
    statistical = (jnp.square(coverage) + 1.0) / curvature(as_float(reward_max))
    return _theorem_bound(statistical, n_pairs, reward_max, complexity, coverage, kl)


def theorem_bound_corrected(
    *, n_pairs: Numbers, reward_max: Numbers, complexity: Numbers, coverage: Numbers, kl: Numbers
) -> Float[Array, "..."]:
    r"""Return the bound of Theorem 5.3 with the constant that its proof supports.

    It is valid for every :math:`R_{max}`. With the same :math:`\eta` and :math:`\beta`,
    :math:`2C^2+1` replaces :math:`C^2+1`.

    Args:
        n_pairs: number :math:`N` of comparisons.
        reward_max: range :math:`R_{max}` of the rewards.
        complexity: complexity :math:`\iota` of the class.
        coverage: coverage coefficient :math:`C` of the comparator.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Upper bound on the shortfall of expected reward.

    References:
        `liu:24`, Theorem 5.3, with Lemma A.1 corrected.

    Examples:
        >>> terms = {"n_pairs": 6, "reward_max": 0.0, "coverage": 1.0, "kl": 0.0}
        >>> round(float(theorem_bound_corrected(**terms, complexity=2.0)), 4)
        6.0
    """
    statistical = (2.0 * jnp.square(coverage) + 1.0) / curvature(as_float(reward_max))
    return _theorem_bound(statistical, n_pairs, reward_max, complexity, coverage, kl)


def theorem_bound_tight(
    *, n_pairs: Numbers, reward_max: Numbers, complexity: Numbers, coverage: Numbers, kl: Numbers
) -> Float[Array, "..."]:
    r"""Return the tight bound, with :math:`\sqrt h` for :math:`\kappa` in bound and :math:`\eta`.

    :math:`1/\sqrt h` grows like :math:`e^{R_{max}/2}`, the printed :math:`1/\kappa` like
    :math:`e^{2R_{max}}`. The bound is for the policy with
    ``eta=tuned_eta(tight_modulus(reward_max), ...)``.

    Args:
        n_pairs: number :math:`N` of comparisons.
        reward_max: range :math:`R_{max}` of the rewards.
        complexity: complexity :math:`\iota` of the class.
        coverage: coverage coefficient :math:`C` of the comparator.
        kl: :math:`E_{d_0} KL(\pi\|\pi_{ref})` of the comparator, nats.

    Returns:
        Upper bound on the shortfall of expected reward.

    Examples:
        >>> terms = {"n_pairs": 3, "reward_max": 0.0, "coverage": 1.0, "kl": 0.0}
        >>> round(float(theorem_bound_tight(**terms, complexity=1.0)), 4)
        4.0
    """
    statistical = (jnp.square(coverage) + 1.0) / jnp.sqrt(tight_modulus(reward_max))
    return _theorem_bound(statistical, n_pairs, reward_max, complexity, coverage, kl)


def _theorem_bound(statistical: Numbers, n_pairs: Numbers, *terms: Numbers) -> Float[Array, "..."]:
    names = ("reward_max", "complexity", "coverage", "kl")
    by_name: dict[str, Numbers] = dict(zip(names, terms, strict=True))
    check_terms(positive={"n_pairs": n_pairs}, non_negative=by_name)
    numerator = math.sqrt(6.0) * statistical * by_name["complexity"] + 4.0 * by_name["kl"]
    return jnp.asarray(numerator) / (4.0 * jnp.sqrt(as_float(n_pairs)))


def prompt_shift_factor(
    target_weights: Float[ArrayLike, " x"], context_weights: Float[ArrayLike, " x"]
) -> Float[Array, ""]:
    r"""Return the factor :math:`\sup_x d_1/d_0` of a bound for another prompt distribution.

    If the comparator is optimal in every context, the gap under :math:`d_1` is at most this factor
    times a bound for :math:`d_0`. Otherwise the gap of a single context may be negative.

    Args:
        target_weights: prompt distribution :math:`d_1(x)` at test time.
        context_weights: prompt distribution :math:`d_0(x)` of the training data.

    Returns:
        At least 1; ``inf`` if a prompt of the test distribution has no training weight.

    References:
        `liu:24`, Corollary 5.8.

    Examples:
        >>> float(prompt_shift_factor(jnp.array([0.5, 0.5]), jnp.array([0.75, 0.25])))
        2.0
    """
    if not is_traced(target_weights, context_weights):
        validate_policy("target_weights", target_weights, np.shape(target_weights))
        validate_policy("context_weights", context_weights, np.shape(target_weights))
    target, trained = jnp.asarray(target_weights), jnp.asarray(context_weights)
    ratio = jnp.where(trained > 0, target / jnp.where(trained > 0, trained, 1.0), jnp.inf)
    return jnp.max(jnp.where(target > 0, ratio, 0.0))
