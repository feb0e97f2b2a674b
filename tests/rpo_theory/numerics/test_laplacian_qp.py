"""Networks with diodes against rational arithmetic, laws of circuits, and dense solves."""

from __future__ import annotations

import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpo_theory.numerics import laplacian_qp
from rpo_theory.numerics.laplacian_qp import Network, connected_parts, dissipated_energy, operate

RATIONAL_TOLERANCE = 1e-13
"""Tens of roundings; weights of 1e-12 beside 1 must not cost a digit."""
DENSE_TOLERANCE = 1e-11
"""What NumPy's own solve of a few hundred well-conditioned equations guarantees."""
ROUNDOFF = 1e-14
"""Net current that counts as none."""

compiled_energy = jax.jit(dissipated_energy)


def network_of(conductance: np.ndarray, current: np.ndarray, **diodes: np.ndarray) -> Network:
    nowhere = np.zeros(current.size, bool)
    fields = (
        conductance,
        current,
        diodes.get("nonnegative", nowhere),
        diodes.get("nonpositive", nowhere),
    )
    return Network(*map(jnp.asarray, fields))


def energy_of(network: Network) -> float:
    energy, settled = compiled_energy(network, jnp.array(ROUNDOFF))
    assert bool(settled)
    return float(energy)


def random_conductance(rng: np.random.Generator, n: int, decades: float) -> np.ndarray:
    upper = np.triu(10.0 ** -rng.uniform(0.0, decades, (n, n)), 1)
    return upper + upper.T


def exact_laplacian(conductance: jax.Array) -> list[list[Fraction]]:
    w = [[Fraction(float(g)) for g in row] for row in conductance]
    n = range(len(w))
    return [[(sum(w[i], Fraction(0)) if i == j else -w[i][j]) for j in n] for i in n]


def solve_exactly(matrix: list[list[Fraction]], right: list[Fraction]) -> list[Fraction]:
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    n = len(rows)
    for k in range(n):
        pivot = next(i for i in range(k, n) if rows[i][k] != 0)
        rows[k], rows[pivot] = rows[pivot], rows[k]
        rows[k] = [entry / rows[k][k] for entry in rows[k]]
        for i in range(n):
            if i != k and rows[i][k] != 0:
                rows[i] = [a - rows[i][k] * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] for row in rows]


def energy_by_enumeration(network: Network) -> float:
    """All ways in which diodes can conduct, in rational arithmetic: the one without a wrong sign.

    For a connected network with diodes and a net current, so that some diode conducts.
    """
    laplacian = exact_laplacian(network.conductance)
    c = [Fraction(float(i)) for i in network.current]
    n = len(c)
    sign = np.asarray(network.nonnegative, int) - np.asarray(network.nonpositive, int)
    tied = [i for i in range(n) if sign[i] != 0]
    for size in range(1, len(tied) + 1):
        for ground in itertools.combinations(tied, size):
            free = [i for i in range(n) if i not in ground]
            solved = solve_exactly(
                [[laplacian[i][j] for j in free] for i in free], [c[i] for i in free]
            )
            d = [Fraction(0)] * n
            for i, value in zip(free, solved, strict=True):
                d[i] = value
            surplus = [sum(laplacian[i][j] * d[j] for j in range(n)) - c[i] for i in range(n)]
            if all(int(sign[i]) * d[i] >= 0 and int(sign[i]) * surplus[i] >= 0 for i in tied):
                return float(sum(a * b for a, b in zip(c, d, strict=True)))
    raise AssertionError("no state of the diodes is right")


@pytest.mark.parametrize("seed", range(30))
def test_parity_with_rational_arithmetic_over_twelve_decades(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 7))
    kind = rng.integers(0, 3, n)
    kind[:2] = 1, 2
    network = network_of(
        random_conductance(rng, n, 12.0),
        rng.standard_normal(n),
        nonnegative=kind == 1,
        nonpositive=kind == 2,
    )
    expected = energy_by_enumeration(network)
    np.testing.assert_allclose(energy_of(network), expected, rtol=RATIONAL_TOLERANCE)


def test_closed_form_series_adds_resistances_and_parallel_adds_conductances() -> None:
    chain = np.zeros((4, 4))
    for i, conductance in enumerate((1e-12, 1.0, 1e3)):
        chain[i, i + 1] = chain[i + 1, i] = conductance
    through = np.array([1.0, 0.0, 0.0, -1.0])
    expected = 1e12 + 1.0 + 1e-3
    np.testing.assert_allclose(
        energy_of(network_of(chain, through)), expected, rtol=RATIONAL_TOLERANCE
    )
    doubled = chain.copy()
    doubled[0, 3] = doubled[3, 0] = 2.0
    expected = 1.0 / (2.0 + 1.0 / expected)
    np.testing.assert_allclose(
        energy_of(network_of(doubled, through)), expected, rtol=RATIONAL_TOLERANCE
    )


def test_closed_form_a_diode_shortens_the_way() -> None:
    chain = np.diag(np.ones(2), 1)
    chain = chain + chain.T
    through = np.array([1.0, 0.0, -1.0])
    middle = np.array([False, True, False])
    # At potentials (1, 0, -1) the middle stands at ground anyway: its diode changes nothing.
    assert energy_of(network_of(chain, through, nonnegative=middle)) == 2.0
    # With the last node kept at 0 or above and the middle at 0 or below, one resistor is left.
    last = np.array([False, False, True])
    assert energy_of(network_of(chain, through, nonnegative=last, nonpositive=middle)) == 1.0


@pytest.mark.parametrize(
    ("current", "diodes", "finite"),
    [
        ([1.0, 1.0], {"nonpositive": [True, False]}, True),
        ([1.0, 1.0], {"nonnegative": [True, True]}, False),
        ([-1.0, -1.0], {"nonnegative": [False, True]}, True),
        ([-1.0, -1.0], {"nonpositive": [True, True]}, False),
        ([1.0, -1.0], {}, True),
        ([1.0, -1.0 + 1e-12], {}, False),
        ([1.0, -1.0 + 1e-15], {}, True),
    ],
)
def test_extreme_infinite_exactly_where_net_current_cannot_leave(
    current: list[float], diodes: dict[str, list[bool]], finite: bool
) -> None:
    wire = np.array([[0.0, 1.0], [1.0, 0.0]])
    tied = {name: np.array(nodes) for name, nodes in diodes.items()}
    assert np.isfinite(energy_of(network_of(wire, np.array(current), **tied))) == finite


@pytest.mark.parametrize("tied", [False, True])
def test_extreme_rounded_masses_send_no_current_through_a_weak_link(tied: bool) -> None:
    """A net current within the roundoff stays with the nodes that it was rounded at."""
    weak = np.zeros((3, 3))
    weak[0, 1] = weak[1, 0] = 1e-12
    weak[1, 2] = weak[2, 1] = 1.0
    ground = np.array([tied, False, False])
    network = network_of(weak, np.array([0.0, 1.0, -1.0 + 1e-7]), nonnegative=ground)
    energy, settled = compiled_energy(network, jnp.array(1e-6))
    assert bool(settled)
    np.testing.assert_allclose(energy, 1.0, rtol=1e-6)


@pytest.mark.parametrize("panel", [3, 64])
@pytest.mark.parametrize("n", [1, 7, 150])
def test_parity_operation_with_a_dense_solve_for_any_panel_width(
    n: int, panel: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(laplacian_qp, "PANEL", panel)
    rng = np.random.default_rng(n)
    network = network_of(random_conductance(rng, n, 1.0), rng.standard_normal(n))
    grounded = rng.random(n) < 0.2
    grounded[-1] = True
    laplacian = np.diag(network.conductance.sum(axis=1)) - np.asarray(network.conductance)
    expected = np.zeros(n)
    free = ~grounded
    expected[free] = np.linalg.solve(
        laplacian[np.ix_(free, free)], np.asarray(network.current)[free]
    )
    surplus = laplacian @ expected - np.asarray(network.current)
    # A new function for every width: the cache of ``jit`` cannot know of the patch.
    found = jax.jit(lambda *given: operate(*given))(network, jnp.asarray(grounded))
    np.testing.assert_allclose(found.potential, expected, atol=DENSE_TOLERANCE)
    np.testing.assert_allclose(found.surplus, surplus, atol=DENSE_TOLERANCE)
    energy = float(np.asarray(network.current) @ expected)
    np.testing.assert_allclose(found.energy, energy, atol=DENSE_TOLERANCE)


def test_property_rounding_errors_stay_within_their_bounds() -> None:
    rng = np.random.default_rng(3)
    n = 12
    network = network_of(random_conductance(rng, n, 8.0), rng.standard_normal(n))
    grounded = np.arange(n) == 0
    laplacian = [row[1:] for row in exact_laplacian(network.conductance)[1:]]
    exact = solve_exactly(laplacian, [Fraction(float(i)) for i in network.current[1:]])
    found = operate(network, jnp.asarray(grounded))
    error = np.abs(np.asarray(found.potential)[1:] - np.array([float(d) for d in exact]))
    assert np.all(error <= np.asarray(found.potential_error)[1:])


def test_closed_form_parts_of_a_long_path_and_an_island() -> None:
    path = np.zeros((40, 40))
    i = np.arange(38)
    path[i, i + 1] = path[i + 1, i] = 1e-300
    together = np.asarray(connected_parts(jnp.asarray(path)))
    assert together[:39, :39].all()
    assert together[39].sum() == together[:, 39].sum() == 1


def test_extreme_the_game_settles_where_only_one_node_moves_a_step() -> None:
    n = 120
    path = np.diag(np.ones(n - 1), 1)
    current = np.zeros(n)
    current[0], current[-1] = 1.0, -1.0
    network = network_of(path + path.T, current, nonnegative=np.ones(n, bool))
    np.testing.assert_allclose(energy_of(network), n - 1.0, rtol=DENSE_TOLERANCE)


def test_compiles_once_under_vmap() -> None:
    rng = np.random.default_rng(0)
    batched = jax.jit(jax.vmap(dissipated_energy, in_axes=(0, None)))
    for _ in range(2):
        members = [
            network_of(random_conductance(rng, 4, 1.0), np.array([1.0, 0.0, 0.0, -1.0]))
            for _ in range(3)
        ]
        stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *members)
        energy, _ = batched(stacked, jnp.array(ROUNDOFF))
        np.testing.assert_allclose(energy, [energy_of(m) for m in members], rtol=DENSE_TOLERANCE)
    assert batched._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
