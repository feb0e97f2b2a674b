"""The Numba kernel of Laplacian programs: against the JAX method, and the bits of its results."""

from __future__ import annotations

import os
import sys

import jax
import numpy as np
import pytest

from rpo_theory.numerics import laplacian_kernel, laplacian_qp
from rpo_theory.numerics.kernel_threads import map_rows

PARITY = 1e-12
"""Relative: hundreds of roundings of sums of positive numbers."""
ROUNDOFF = 1e-14

Programs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def random_programs(n: int, n_nodes: int) -> Programs:
    """Draw sparse graphs over twelve decades with all kinds of constraints."""
    rng = np.random.default_rng(n_nodes)
    pairs = 10.0 ** -rng.uniform(0.0, 12.0, (n, n_nodes, n_nodes))
    pairs *= rng.random(pairs.shape) < rng.uniform(0.1, 0.7, (n, 1, 1))
    linear = rng.dirichlet(np.ones(n_nodes), n)
    linear -= np.eye(n_nodes)[rng.integers(n_nodes, size=n)]
    share, position = rng.uniform(0.0, 0.5, (n, 1)), rng.random((n, n_nodes))
    return pairs, linear, position < share, position > 1.0 - share, np.full(n, ROUNDOFF)


def same_bits(first: laplacian_kernel.KernelOptimum, second: tuple) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.fixture(scope="module")
def programs() -> Programs:
    return random_programs(400, 6)


def test_parity_the_kernel_agrees_with_the_jax_method(programs: Programs) -> None:
    pairs, linear, low, high, roundoff = programs
    edges = pairs + pairs.swapaxes(1, 2)
    edges[:, np.arange(6), np.arange(6)] = 0.0
    with jax.enable_x64(True):
        problems = laplacian_qp.LaplacianQP(edges, linear, low, high)  # type: ignore[arg-type]
        expected = jax.jit(jax.vmap(laplacian_qp.solve))(problems, roundoff)
    actual = laplacian_kernel.solve(*programs)
    assert actual.converged.all()
    values = np.asarray(expected.objective)
    assert 40 <= np.isinf(values).sum() <= 360
    np.testing.assert_allclose(actual.objective, values, rtol=PARITY)


def test_property_a_program_has_the_same_bits_beside_any_others(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = laplacian_kernel.solve(*programs)
    order = np.random.default_rng(0).permutation(400)
    shuffled = laplacian_kernel.solve(*(array[order] for array in programs))
    assert same_bits(shuffled, tuple(array[order] for array in all_of_them))
    one = laplacian_kernel.solve(*(array[7:8] for array in programs))
    assert same_bits(one, tuple(array[7:8] for array in all_of_them))
    # Tasks of 16 programs, on five threads.
    monkeypatch.setattr(laplacian_kernel, "PROGRAMS_PER_TASK", 16)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert same_bits(laplacian_kernel.solve(*programs), tuple(all_of_them))


def test_property_a_compiled_kernel_replaces_no_module(programs: Programs) -> None:
    laplacian_kernel._functions.cache_clear()  # pyright: ignore[reportFunctionMemberAccess]
    laplacian_kernel.solve(*(array[:1] for array in programs))
    assert sys.modules[laplacian_kernel.__name__] is laplacian_kernel


def test_closed_form_slices_cover_the_rows_in_order() -> None:
    for n_rows, size in ((7, 3), (6, 3), (1, 9)):
        rows = map_rows(lambda part: np.arange(100)[part], n_rows, size)
        assert max(map(len, rows)) <= size
        assert np.concatenate(rows).tolist() == list(range(n_rows))
