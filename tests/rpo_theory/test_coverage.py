"""Coverage coefficients against closed forms, convex programs and the definition."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpo_theory import coverage as coverage_module
from rpo_theory.coverage import (
    coverage_coefficient,
    coverage_coefficient_batch,
)
from rpo_theory.density_ratio import density_ratio_bound
from rpo_theory.problems import InvalidProblemError
from rpo_theory.rewards import FiniteClass, LinearBall, RewardClass, TabularBox, Unbounded
from rpo_theory.tangent_cones import entry_constraints, has_entry_constraints

CLOSED_FORM = 1e-12
"""Tens of roundings."""
CONVEX_PROGRAM = 1e-6
"""Clarabel stops at 1e-8; norm constraints of ill-conditioned data lose further digits."""
SEES_INFINITY = 1e-6
"""A direction without data improves the linear program by this much, or not at all (1e-9)."""
SLACK = 1e-9
"""Relative rounding allowed in an inequality between two computed numbers."""


class Setting(NamedTuple):
    true_reward: np.ndarray
    comparator: np.ndarray
    baseline: np.ndarray
    context_weights: np.ndarray
    pair_distribution: np.ndarray

    def coverage(self, reward_class: RewardClass) -> float:
        return float(coverage_coefficient(reward_class, **self._asdict()))

    def weight(self) -> np.ndarray:
        return self.context_weights[:, None] * (self.comparator - self.baseline)

    def differences(self) -> np.ndarray:
        """Return rows whose squared product with a flat table is the denominator of the ratio."""
        n_contexts, n_actions = self.true_reward.shape
        rows = []
        for x, i, j in np.argwhere(self.pair_distribution > 0):
            row = np.zeros((n_contexts, n_actions))
            row[x, i] += 1.0
            row[x, j] -= 1.0
            rows.append(np.sqrt(self.pair_distribution[x, i, j]) * row.ravel())
        return np.array(rows).reshape(-1, n_contexts * n_actions)

    def ratio(self, reward: np.ndarray) -> float:
        """Return the ratio of the definition for one member; 0/0 is 0."""
        shortfall = (self.true_reward - reward).ravel()
        signed = float(self.weight().ravel() @ shortfall)
        seen = float(np.linalg.norm(self.differences() @ shortfall))
        return signed / seen if seen > 0 else 0.0


N_FEATURES = 12
SHAPES = [(1, 6), (2, 3), (3, 4)]
"""Numbers of contexts and actions; few, because each is compiled."""


def random_setting(rng: np.random.Generator, *, pairs: float = 0.5) -> Setting:
    """Draw sparse data over three decades, faces of the box, some deterministic policies."""
    n_contexts, n_actions = SHAPES[rng.integers(len(SHAPES))]
    table = (n_contexts, n_actions)
    law = 10.0 ** -rng.uniform(0.0, 3.0, (*table, n_actions))
    law *= rng.random(law.shape) < pairs / n_actions * 2
    law[0, 0, 1] += 0.1
    comparator = rng.dirichlet(np.ones(n_actions), n_contexts)
    baseline = np.eye(n_actions)[rng.integers(0, n_actions, n_contexts)]
    return Setting(
        true_reward=np.clip(rng.uniform(-0.7, 1.7, table), 0.0, 1.0),
        comparator=comparator,
        baseline=baseline,
        context_weights=rng.dirichlet(np.ones(n_contexts)),
        pair_distribution=law / law.sum(),
    )


def convex_program(
    form: np.ndarray, rows: np.ndarray, cone: Sequence[cp.Constraint], d: cp.Expression
) -> float:
    """Maximize -form.d over the cone with |rows d| <= 1; inf for a direction without data."""
    unseen = cp.Problem(cp.Maximize(-form @ d), [rows @ d == 0, cp.norm_inf(d) <= 1, *cone])
    unseen.solve(cp.CLARABEL)
    if -form @ direction(d) > SEES_INFINITY:
        return np.inf
    seen = cp.Problem(cp.Maximize(-form @ d), [cp.norm(rows @ d) <= 1, *cone])
    seen.solve(cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    return -float(form @ direction(d))


def direction(d: cp.Expression) -> np.ndarray:
    return np.asarray(d.value, np.float64)


def box_program(setting: Setting) -> float:
    """Directions are multiples of r - r*, written by perspective, without the cone at r*."""
    truth = setting.true_reward.ravel()
    d, multiple = cp.Variable(truth.size), cp.Variable(nonneg=True)
    cone = [d + multiple * truth >= 0, d + multiple * truth <= multiple]
    return convex_program(setting.weight().ravel(), setting.differences(), cone, d)


def assert_same(actual: list[float], expected: list[float], *, both_kinds: bool = True) -> None:
    if both_kinds:
        assert min(np.isinf(expected).sum(), np.isfinite(expected).sum()) >= 10
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    np.testing.assert_allclose(actual, expected, rtol=CONVEX_PROGRAM, atol=CONVEX_PROGRAM)


def by_numba(reward_class: RewardClass, settings_: Sequence[Setting]) -> list[float]:
    """Return the coefficients by the Numba kernel, in one call per shape."""
    found: dict[int, float] = {}
    for shape in SHAPES:
        rows = [i for i, s in enumerate(settings_) if s.true_reward.shape == shape]
        fields = zip(*(settings_[i] for i in rows), strict=True)
        batch = Setting(*map(np.stack, fields))._asdict()
        batch["pair_distribution"] = 7.0 * batch["pair_distribution"]  # counts may be given
        coefficients = coverage_coefficient_batch(reward_class, **batch, kernel="numba")
        found |= zip(rows, coefficients.tolist(), strict=True)
    return [found[i] for i in range(len(settings_))]


def test_parity_box_with_a_convex_program_on_faces_and_disconnected_graphs() -> None:
    settings_ = [random_setting(np.random.default_rng(seed)) for seed in range(50)]
    box = TabularBox(np.array(1.0))
    expected = [box_program(s) for s in settings_]
    assert_same([s.coverage(box) for s in settings_], expected)
    assert_same(by_numba(box, settings_), expected)


def test_parity_the_numba_kernel_with_jax() -> None:
    settings_ = [random_setting(np.random.default_rng(seed), pairs=0.7) for seed in range(60)]
    for reward_class in (TabularBox(np.array(1.0)), Unbounded()):
        expected = [s.coverage(reward_class) for s in settings_]
        assert min(np.isinf(expected).sum(), np.isfinite(expected).sum()) >= 5
        np.testing.assert_allclose(by_numba(reward_class, settings_), expected, rtol=CLOSED_FORM)
    # Without data; and a comparator that is the baseline.
    arms = two_arms(0.0)
    same = arms._replace(comparator=arms.baseline)
    batch = Setting(*map(np.stack, zip(arms, same, strict=True)))._asdict()
    box = TabularBox(np.array(1.0))
    assert coverage_coefficient_batch(box, **batch, kernel="numba").tolist() == [np.inf, 0.0]
    # Other classes are solved as by JAX.
    members = FiniteClass(np.stack([arms.true_reward, 0.5 * arms.true_reward])[None])
    batch = {name: table[:1] for name, table in batch.items()}
    by_jax = coverage_coefficient_batch(members, **batch)
    assert (coverage_coefficient_batch(members, **batch, kernel="numba") == by_jax).all()


def test_parity_unbounded_with_a_convex_program() -> None:
    settings_ = [random_setting(np.random.default_rng(seed), pairs=0.7) for seed in range(50)]
    expected = []
    for s in settings_:
        d = cp.Variable(s.true_reward.size)
        expected.append(convex_program(s.weight().ravel(), s.differences(), [], d))
    assert_same([s.coverage(Unbounded()) for s in settings_], expected)


def random_ball(rng: np.random.Generator) -> tuple[LinearBall, Setting, np.ndarray]:
    """Zero to two directions without data; the parameter inside the ball or on its boundary."""
    setting = random_setting(rng)
    n_contexts, n_actions = setting.true_reward.shape
    rank = np.linalg.matrix_rank(setting.differences())
    d = min(rank + int(rng.integers(0, 3)), n_contexts * n_actions)
    # Columns of zeros, which change nothing, give every instance the same shape.
    features = np.zeros((n_contexts, n_actions, N_FEATURES))
    features[..., :d] = rng.standard_normal((n_contexts, n_actions, d))
    theta = np.where(np.arange(N_FEATURES) < d, rng.standard_normal(N_FEATURES), 0.0)
    theta *= (1.0 if rng.random() < 0.7 else 0.5) / np.linalg.norm(theta)
    setting = setting._replace(true_reward=features @ theta)
    return LinearBall(features, np.array(1.0)), setting, theta


def ball_program(ball: LinearBall, setting: Setting, theta: np.ndarray) -> float:
    features = np.asarray(ball.features).reshape(-1, theta.size)
    d = cp.Variable(theta.size)
    cone = [theta @ d <= 0] if np.linalg.norm(theta) > 0.99 else []
    form, rows = setting.weight().ravel() @ features, setting.differences() @ features
    return convex_program(form, rows, cone, d)


def test_parity_ball_with_a_convex_program_inside_and_on_the_boundary() -> None:
    cases = [random_ball(np.random.default_rng(seed)) for seed in range(50)]
    actual = [setting.coverage(ball) for ball, setting, _ in cases]
    assert_same(actual, [ball_program(*case) for case in cases])


def test_parity_finite_with_the_definition() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        setting = random_setting(rng, pairs=2.0)
        rewards = np.stack([setting.true_reward, *rng.random((7, *setting.true_reward.shape))])
        expected = max(0.0, *(setting.ratio(reward) for reward in rewards))
        actual = setting.coverage(FiniteClass(rewards))
        np.testing.assert_allclose(actual, expected, rtol=CLOSED_FORM)


def two_arms(weight: float, truth: tuple[float, float] = (0.5, 0.5)) -> Setting:
    """Return arm 1 against the baseline arm 2, which a share ``weight`` of the pairs compares."""
    law = np.array([[[1.0 - weight, weight], [0.0, 0.0]]])
    first, second = np.eye(2)[:1], np.eye(2)[1:]
    return Setting(np.array([truth]), first, second, np.ones(1), law)


@pytest.mark.parametrize("share", [1.0, 0.3, 1e-12])
def test_closed_form_coverage_is_necessary_instance(share: float) -> None:
    """A share p of informative pairs gives 1/sqrt(p); 0 if the baseline is the better arm."""
    informative = two_arms(share)
    for reward_class in (TabularBox(np.array(1.0)), Unbounded()):
        np.testing.assert_allclose(
            informative.coverage(reward_class), share**-0.5, rtol=CLOSED_FORM
        )
    two_worlds = FiniteClass(np.array([[[0.2, 0.0]], [[0.0, 0.2]]]))
    better = informative._replace(true_reward=np.array([[0.2, 0.0]]))
    worse = informative._replace(true_reward=np.array([[0.0, 0.2]]))
    np.testing.assert_allclose(better.coverage(two_worlds), share**-0.5, rtol=CLOSED_FORM)
    assert worse.coverage(two_worlds) == 0.0


def four_arms(n: int) -> tuple[LinearBall, Setting]:
    """Parameters have sum zero; there are n - 1 pairs of arms 1 and 2, and one of arms 2 and 3."""
    features = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    sum_zero = np.array([[1.0, 1.0], [-1.0, 1.0], [0.0, -2.0]]) / np.sqrt([2.0, 6.0])
    theta = np.array([-1.0, 0.1, 0.9])
    law = np.zeros((1, 4, 4))
    law[0, 0, 1], law[0, 1, 2] = n - 1, 1
    arms = np.eye(4)[:, None, :]
    setting = Setting((features @ theta)[None], arms[3], arms[2], np.ones(1), law)
    return LinearBall((features @ sum_zero)[None], np.array(2.0)), setting


@pytest.mark.parametrize("n", [4, 20, 10_000, 10**9])
def test_closed_form_four_arms_instance(n: int) -> None:
    """C^2 = n/(n-1) for the safe baseline, n + .2 for the chosen responses."""
    ball, setting = four_arms(n)
    np.testing.assert_allclose(setting.coverage(ball) ** 2, n / (n - 1), rtol=CLOSED_FORM)
    win_rate = 1.0 / (1.0 + np.exp(-0.1))
    chosen = np.array([[(n - 1) * win_rate, (n - 1) * (1 - win_rate) + 1, 0.0, 0.0]]) / n
    squared = setting._replace(baseline=chosen).coverage(ball) ** 2
    # n + .2256 in the limit, printed as n + .2.
    assert abs(squared - n - 0.2256) < 5.0 / n + 1e-3


def test_closed_form_effective_resistance() -> None:
    """For deterministic policies C^2 is the resistance between two nodes of a network."""
    rng = np.random.default_rng(7)
    conductance = np.triu(rng.random((6, 6)), 1)
    conductance /= conductance.sum()
    arms = np.eye(6)[:, None, :]
    inside = np.full((1, 6), 0.5)
    six = Setting(inside, arms[1], arms[4], np.ones(1), conductance[None])
    both_ways = conductance + conductance.T
    inverse = np.linalg.pinv(np.diag(both_ways.sum(axis=1)) - both_ways)
    resistance = inverse[1, 1] + inverse[4, 4] - 2 * inverse[1, 4]
    for reward_class in (TabularBox(np.array(1.0)), Unbounded()):
        np.testing.assert_allclose(six.coverage(reward_class) ** 2, resistance, rtol=CLOSED_FORM)


def test_closed_form_prompts_add_with_the_square_of_their_weight() -> None:
    """Contexts separate, each with its share of the data: C^2 = sum d0^2 C_x^2 / share."""
    single = two_arms(0.5)
    both = Setting(
        np.repeat(single.true_reward, 2, axis=0),
        np.repeat(single.comparator, 2, axis=0),
        np.repeat(single.baseline, 2, axis=0),
        np.array([0.3, 0.7]),
        np.concatenate([0.9 * single.pair_distribution, 0.1 * single.pair_distribution]),
    )
    expected = 2.0 * (0.3**2 / 0.9 + 0.7**2 / 0.1)
    np.testing.assert_allclose(both.coverage(Unbounded()) ** 2, expected, rtol=CLOSED_FORM)
    only_first = both._replace(context_weights=np.array([1.0, 0.0]))
    without_data = np.concatenate([single.pair_distribution, 0.0 * single.pair_distribution])
    actual = only_first._replace(pair_distribution=without_data).coverage(Unbounded())
    np.testing.assert_allclose(actual**2, 2.0, rtol=CLOSED_FORM)


def test_closed_form_coverage_on_a_face_can_exceed_the_matrix_norm() -> None:
    """Faces balance the mass of each component: the coefficient is 1, the norm gives 1/2."""
    law = np.zeros((1, 3, 3))
    law[0, 0, 1] = 1.0
    arms = np.eye(3)[:, None, :]
    three = Setting(np.array([[0.5, 0.0, 1.0]]), arms[0], arms[2], np.ones(1), law)
    rows, form = three.differences(), three.weight().ravel()
    norm = np.sqrt(form @ np.linalg.pinv(rows.T @ rows) @ form)
    np.testing.assert_allclose(norm, 0.5, rtol=CLOSED_FORM)
    np.testing.assert_allclose(three.coverage(TabularBox(np.array(1.0))), 1.0, rtol=CLOSED_FORM)
    assert three.coverage(Unbounded()) == np.inf


@pytest.mark.parametrize(
    ("theta", "expected"),
    [
        ([0.5, 0.0], np.inf),  # inside: the direction without data counts
        ([1.0, 0.0], 1.0),  # on the boundary: one multiplier cancels the direction without data
        ([-1.0, 0.0], np.inf),  # on the boundary, with the opposite sign
        ([0.0, -1.0], np.inf),  # the boundary does not limit the direction without data
    ],
)
def test_closed_form_ball_with_a_direction_without_data(
    theta: list[float], expected: float
) -> None:
    """Feature (1, 0) of arm 1 has no data, and the comparator is the arm opposite to it."""
    features = np.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [-1.0, 1.0]]])
    law = np.zeros((1, 4, 4))
    law[0, 1, 2] = 1.0
    arms = np.eye(4)[:, None, :]
    truth = (features @ np.array(theta))[:, :]
    four = Setting(truth, arms[3], arms[1], np.ones(1), law)
    actual = four.coverage(LinearBall(features, np.array(1.0)))
    np.testing.assert_allclose(actual, expected, rtol=CLOSED_FORM)


def test_closed_form_ball_on_the_boundary_with_data_in_all_directions() -> None:
    """For v = -theta* no direction has a positive numerator; for v = +theta* all count."""
    features = np.array([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    law = np.zeros((1, 3, 3))
    law[0, 0, 1] = law[0, 2, 1] = 0.5
    arms = np.eye(3)[:, None, :]
    ball = LinearBall(features, np.array(1.0))
    best = Setting(np.array([[1.0, 0.0, 0.0]]), arms[0], arms[1], np.ones(1), law)
    np.testing.assert_allclose(best.coverage(ball), np.sqrt(2.0), rtol=CLOSED_FORM)
    worst = best._replace(comparator=arms[1], baseline=arms[0])
    assert worst.coverage(ball) == 0.0


def test_property_redundant_features_change_nothing() -> None:
    """Doubled columns with a rescaled radius give the same class, by the least-norm parameter."""
    for seed in range(10):
        ball, setting, _ = random_ball(np.random.default_rng(seed))
        doubled = np.concatenate([ball.features, ball.features], axis=-1)
        same_class = LinearBall(doubled, np.array(np.sqrt(0.5)))
        expected = setting.coverage(ball)
        np.testing.assert_allclose(setting.coverage(same_class), expected, rtol=SLACK, atol=SLACK)


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_closed_form_coverage_of_the_baseline_itself_is_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ball, setting, _ = random_ball(rng)
    same = setting._replace(baseline=setting.comparator)
    assert same.coverage(ball) == 0.0
    inside = same._replace(true_reward=np.clip(setting.true_reward, 0.0, 1.0))
    finite = FiniteClass(np.stack([inside.true_reward, rng.random(inside.true_reward.shape)]))
    for reward_class in (TabularBox(np.array(1.0)), Unbounded(), finite):
        assert inside.coverage(reward_class) == 0.0


@settings(deadline=None, max_examples=25)
@given(seeds)
def test_property_coverage_grows_with_the_class_up_to_the_density_ratio(seed: int) -> None:
    rng = np.random.default_rng(seed)
    setting = random_setting(rng, pairs=2.0)
    if seed % 2:
        setting = setting._replace(pair_distribution=setting.pair_distribution + 1e-3)
    setting = setting._replace(
        pair_distribution=setting.pair_distribution / setting.pair_distribution.sum()
    )
    members = np.stack([setting.true_reward, *rng.random((5, *setting.true_reward.shape))])
    chain = [
        setting.coverage(FiniteClass(members[:3])),
        setting.coverage(FiniteClass(members)),
        setting.coverage(TabularBox(np.array(1.0))),
        setting.coverage(TabularBox(np.array(2.0))),
        setting.coverage(Unbounded()),
        float(density_ratio_bound(*setting[1:])),
    ]
    for smaller, larger in itertools.pairwise(chain):
        assert smaller <= larger * (1.0 + SLACK)


@settings(deadline=None, max_examples=25)
@given(seeds, st.floats(1e-6, 0.1))
def test_property_no_member_of_the_class_beats_the_coefficient(seed: int, near: float) -> None:
    rng = np.random.default_rng(seed)
    setting = random_setting(rng)
    box = TabularBox(np.array(1.0))
    moved = setting.true_reward + near * rng.standard_normal((200, *setting.true_reward.shape))
    best = max(setting.ratio(reward) for reward in np.clip(moved, 0.0, 1.0))
    # Differences of close rewards have a relative rounding error of one over their distance.
    assert best <= setting.coverage(box) * (1.0 + 1e-12 / near) + SLACK


def test_limit_a_fine_sample_of_the_ball_approaches_the_ball() -> None:
    ball, setting = four_arms(20)
    setting = setting._replace(
        pair_distribution=setting.pair_distribution / setting.pair_distribution.sum()
    )
    theta = np.asarray(ball.parameter(setting.true_reward))
    angle = np.linspace(0.0, 2.0 * np.pi, 10_000)
    around = theta + 0.1 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    members = np.einsum("xad,kd->kxa", np.asarray(ball.features), around)
    finite = FiniteClass(np.concatenate([setting.true_reward[None], members]))
    # The ratio is flat at its maximum: an angle of 6e-4 costs its square, times 20 for the data.
    np.testing.assert_allclose(setting.coverage(finite), setting.coverage(ball), rtol=1e-5)
    assert setting.coverage(finite) <= setting.coverage(ball) * (1.0 + SLACK)


def test_extreme_single_action_empty_data_and_rounded_probabilities() -> None:
    one = np.ones((1, 1))
    single = Setting(0.5 * one, one, one, np.ones(1), np.zeros((1, 1, 1)))
    ball = LinearBall(np.ones((1, 1, 2)), np.array(1.0))
    for reward_class in (TabularBox(np.array(1.0)), Unbounded(), ball):
        assert single.coverage(reward_class) == 0.0
    no_data = two_arms(0.0)
    for reward_class in (TabularBox(np.array(1.0)), Unbounded()):
        assert no_data.coverage(reward_class) == np.inf
    exact = two_arms(0.5)
    rounded = exact._replace(comparator=np.array([[0.9999996, 0.0]]))
    np.testing.assert_allclose(rounded.coverage(Unbounded()), 2.0**0.5, rtol=CLOSED_FORM)
    single = Setting(*(np.asarray(field, np.float32) for field in random_policies()))
    actual, expected = single.coverage(Unbounded()), random_policies().coverage(Unbounded())
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def random_policies() -> Setting:
    """Two components whose masses balance; in float32 only up to rounding."""
    rng = np.random.default_rng(5)
    law = np.zeros((1, 6, 6))
    law[0, [0, 1, 3, 4], [1, 2, 4, 5]] = 0.25
    parts = rng.dirichlet(np.ones(3), 4)
    comparator = np.concatenate([0.37 * parts[0], 0.63 * parts[1]])
    baseline = np.concatenate([0.37 * parts[2], 0.63 * parts[3]])
    return Setting(np.full((1, 6), 0.5), comparator[None], baseline[None], np.ones(1), law)


def test_property_batches_agree_with_single_instances_across_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coverage_module, "GROUP", 100)
    drawn = [random_setting(np.random.default_rng(seed)) for seed in range(60)]
    same = [s for s in drawn if s.true_reward.shape == (3, 4)]
    assert len(same) > 10
    batch = Setting(*(np.stack(fields) for fields in zip(*same, strict=True)))
    actual = coverage_coefficient_batch(TabularBox(np.ones(len(same))), **batch._asdict())
    box = TabularBox(np.array(1.0))
    np.testing.assert_allclose(actual, [s.coverage(box) for s in same], rtol=CLOSED_FORM)


def test_compiles_once_for_instances_of_one_shape() -> None:
    solve = coverage_module._coefficients
    before = solve._cache_size()  # pyright: ignore[reportAttributeAccessIssue]
    law = np.full((1, 7, 7), 1.0 / 49.0)
    arms = np.eye(7)[:, None, :]
    for action in (1, 2, 3):
        seven = Setting(np.full((1, 7), 0.5), arms[0], arms[action], np.ones(1), law)
        seven.coverage(TabularBox(np.array(1.0)))
    assert solve._cache_size() == before + 1  # pyright: ignore[reportAttributeAccessIssue]


def test_property_results_do_not_depend_on_the_configuration_of_jax() -> None:
    """Callers without float64 get the same digits."""
    setting = random_policies()
    expected = setting.coverage(Unbounded())
    with jax.enable_x64(False):
        assert setting.coverage(Unbounded()) == expected


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("comparator", np.array([[0.7, 0.2]]), "`comparator"),
        ("baseline", np.array([[1.5, -0.5]]), "`baseline"),
        ("true_reward", np.array([[np.nan, 0.0]]), "`true_reward"),
        ("true_reward", np.array([[1.1, 0.0]]), "`true_reward` must be in the reward class"),
        ("true_reward", np.array([[0.5, -0.1]]), "`true_reward` must be in the reward class"),
        (
            "pair_distribution",
            -np.ones((1, 2, 2)),
            "`pair_distribution` must be at least 0, got -1",
        ),
    ],
)
def test_raises_names_the_field_and_the_rule(field: str, value: np.ndarray, message: str) -> None:
    broken = two_arms(0.5)._replace(**{field: value})
    with pytest.raises(ValueError, match=message):
        broken.coverage(TabularBox(np.array(1.0)))


def test_raises_for_a_reward_outside_the_ball_or_the_span_of_its_features() -> None:
    features = np.array([[[1.0], [0.0]]])
    for truth in ([[2.0, 0.0]], [[0.5, 0.5]]):
        with pytest.raises(ValueError, match="must be in the reward class"):
            two_arms(0.5)._replace(true_reward=np.array(truth)).coverage(
                LinearBall(features, np.array(1.0))
            )
    with pytest.raises(InvalidProblemError, match="`context_weights"):
        two_arms(0.5)._replace(context_weights=np.array([0.5])).coverage(Unbounded())


def test_closed_form_entries_at_their_bounds() -> None:
    box, truth = TabularBox(np.array(2.0)), np.array([[0.0, 1.0, 2.0]])
    assert has_entry_constraints(box)
    lower, upper = entry_constraints(box, truth, jnp.asarray(1e-12))
    assert (lower.tolist(), upper.tolist()) == ([[True, False, False]], [[False, False, True]])
    assert not has_entry_constraints(LinearBall(np.ones((1, 3, 1)), np.array(1.0)))
