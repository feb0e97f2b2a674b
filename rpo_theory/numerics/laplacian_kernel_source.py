"""Laplacian quadratic programs, one after the other, as Numba compiles them.

The method is that of :mod:`rpo_theory.numerics.laplacian_qp`: elimination of the nodes that are not
held at zero, inside policy iteration over the constraints. Only the upper triangle of the edge
weights is kept, with the held nodes last. The text of this module is the source code of the kernel;
nothing else imports it.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types

LOADED = "CACHE" in globals()  # set by the loader; an imported module compiles nothing
CACHE = globals().get("CACHE", False)
ERROR_GROWTH = 16.0  # bound on the rounding errors of an elimination, per node
EPSILON = 2.0**-52
TABLE, MATRICES = (types.Array(types.float64, n, "C", readonly=True) for n in (2, 3))
SIGNS = types.Array(types.boolean, 2, "C", readonly=True)
NUMBERS = types.Array(types.float64, 1, "C", readonly=True)
SOLVE = types.void(MATRICES, TABLE, SIGNS, SIGNS, NUMBERS, types.float64[::1], types.boolean[::1])


@njit(nogil=True, error_model="numpy")
def find_components(edges, component, queue):
    """Label the connected components of a graph, and return their number."""
    n_nodes, n_components = len(component), 0
    component[:] = -1
    for start in range(n_nodes):
        if component[start] >= 0:
            continue
        component[start] = n_components
        queue[0], length, position = start, 1, 0
        while position < length:
            node = queue[position]
            position += 1
            for other in range(n_nodes):
                joined = edges[node, other] > 0.0 or edges[other, node] > 0.0
                if joined and component[other] < 0:
                    component[other] = n_components
                    queue[length] = other
                    length += 1
        n_components += 1
    return n_components


@njit(nogil=True, error_model="numpy")
def eliminate(edges, linear, held, order, weights, loads, bounds, degree):
    """Eliminate the nodes that are not held, and return the value of the program.

    Row ``k`` of the results belongs to node ``order[k]``; held nodes come last.
    """
    n_nodes, n_free = len(linear), 0
    for node in range(n_nodes):
        if not held[node]:
            order[n_free] = node
            n_free += 1
    last = n_free
    for node in range(n_nodes):
        if held[node]:
            order[last] = node
            last += 1
    for i in range(n_nodes):
        loads[i], bounds[i] = linear[order[i]], abs(linear[order[i]])
        for j in range(i + 1, n_nodes):
            weights[i, j] = edges[order[i], order[j]] + edges[order[j], order[i]]
    objective = 0.0
    for k in range(n_free):
        pivot = 0.0
        for j in range(k + 1, n_nodes):
            pivot += weights[k, j]
        degree[k] = pivot
        if pivot > 0.0:
            # Eliminating a node replaces the star of its edges by a mesh between its neighbors.
            for i in range(k + 1, n_nodes):
                share = weights[k, i] / pivot
                loads[i] += share * loads[k]
                bounds[i] += share * bounds[k]
                for j in range(i + 1, n_nodes):
                    weights[i, j] += share * weights[k, j]
            objective += loads[k] * loads[k] / pivot
    return n_free, objective


@njit(nogil=True, error_model="numpy")
def substitute(n_free, order, weights, loads, bounds, degree, point, point_bound):
    """Compute the maximizer and a bound on its rounding error, from the last node to the first."""
    for k in range(len(order) - 1, -1, -1):
        entry, bound = 0.0, 0.0
        if k < n_free and degree[k] > 0.0:
            entry, bound = loads[k], bounds[k]
            for j in range(k + 1, n_free):
                entry += weights[k, j] * point[order[j]]
                bound += weights[k, j] * point_bound[order[j]]
            entry, bound = entry / degree[k], bound / degree[k]
        point[order[k]], point_bound[order[k]] = entry, bound


@njit(nogil=True, error_model="numpy")
def change_held(n_free, order, loads, bounds, point, point_bound, low, high, held):
    """Change which nodes are held, toward the optimal active set; return whether any changed."""
    n_nodes = len(order)
    error = ERROR_GROWTH * n_nodes * EPSILON
    for side in range(2):
        # The nonnegative constraints are updated until they are optimal, then the others improve.
        signed = low if side == 0 else high
        sign = 1.0 if side == 0 else -1.0
        changed = False
        for k in range(n_nodes):
            node = order[k]
            if signed[node]:
                is_free = k < n_free
                value = point[node] if is_free else -loads[k]
                bound = point_bound[node] if is_free else bounds[k]
                if sign * value < -error * bound:
                    held[node] = not held[node]
                    changed = True
        if changed:
            return True
    return False


@njit(SOLVE if LOADED else None, nogil=True, error_model="numpy", cache=CACHE)  # pyright: ignore[reportCallIssue, reportArgumentType]
def solve(edges, linear, nonnegative, nonpositive, roundoff, objective, converged):
    """Solve every program of a batch; see ``laplacian_qp.solve``."""
    n_programs, n_nodes = linear.shape
    limit = 100 + 10 * n_nodes
    component, queue, order = np.empty((3, n_nodes), np.int64)
    c, loads, bounds, degree, point, point_bound = np.empty((6, n_nodes))
    net, magnitude = np.empty((2, n_nodes))
    low, high, held, has_low, has_high, seen = np.empty((6, n_nodes), np.bool_)
    weights = np.empty((n_nodes, n_nodes))
    for program in range(n_programs):
        graph = edges[program]
        n_components = find_components(graph, component, queue)
        net[:n_components] = 0.0
        magnitude[:n_components] = 0.0
        has_low[:n_components] = False
        has_high[:n_components] = False
        seen[:n_components] = False
        for i in range(n_nodes):
            part = component[i]
            net[part] += linear[program, i]
            magnitude[part] += abs(linear[program, i])
            has_low[part] |= nonnegative[program, i]
            has_high[part] |= nonpositive[program, i]
        infinite = False
        for part in range(n_components):
            above, below = net[part] > roundoff[program], net[part] < -roundoff[program]
            infinite |= (above and not has_high[part]) or (below and not has_low[part])
        converged[program] = True
        if infinite:
            objective[program] = np.inf
            continue
        any_signs = False
        for i in range(n_nodes):
            part = component[i]
            c[i], low[i], high[i] = (
                linear[program, i],
                nonnegative[program, i],
                nonpositive[program, i],
            )
            if abs(net[part]) <= roundoff[program]:
                # A sum within roundoff is subtracted in proportion, so that it becomes zero.
                if magnitude[part] > 0.0:
                    c[i] -= net[part] * (abs(c[i]) / magnitude[part])
            elif net[part] < 0.0:
                # Flipped, the player who moves last keeps an active node.
                c[i], low[i], high[i] = -c[i], high[i], low[i]
            is_anchor = not (seen[part] or has_low[part] or has_high[part])
            seen[part] = True
            held[i] = low[i] or high[i] or is_anchor
            any_signs |= low[i] or high[i]
        changed, steps, value = True, 0, 0.0
        while changed and steps < limit:
            n_free, value = eliminate(graph, c, held, order, weights, loads, bounds, degree)
            changed = False
            if any_signs:
                substitute(n_free, order, weights, loads, bounds, degree, point, point_bound)
                changed = change_held(
                    n_free, order, loads, bounds, point, point_bound, low, high, held
                )
            steps += 1
        objective[program], converged[program] = value, not changed
