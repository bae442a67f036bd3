"""Compiled kernels for symmetric eigenproblems, many at a time. Classical algorithms; only their layout is chosen here.

LAPACK spends most of its time on call overhead and latency for sides of 64 to 150, and its tridiagonal solver works on
one matrix at a time. `reduce_rows` is one loop nest without calls. `eigenvalues` solves `LANES` tridiagonal problems in
lockstep, so that each step of the latency-bound recurrence is one vector instruction for all.

`R` matrices, `n` side, `W` lanes, `k` vectors. Kernels release the GIL and are compiled once, then read from numba's
cache.
"""

# mypy: disable-error-code="assignment"
# Indices are unsigned machine integers in the compiled code, whatever type the annotations of numpy give them.

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

LANES = 16
MAX_SWEEPS = 60
_ROW, _E2 = np.uintp(2 * LANES), np.uintp(LANES)
_G, _H, _S, _ON, _MOVE, _BOUND, _SHIFT = (np.uintp(k * LANES) for k in range(7))

_compiled = njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


@_compiled
def reduce_rows(matrices: NDArray, diagonal: NDArray, off: NDArray, tau: NDArray) -> None:
    """Householder tridiagonalisation from axis 0 on (Golub and Van Loan 2013, algorithm 8.3.1).

    Args:
        matrices: (R, n, n), of which the lower triangles are read. Overwritten: row k holds the k-th reflection's
            vector from column k + 2 on (its entry k + 1 is 1), where `undo_reductions` reads it in one piece.
        diagonal: (R, n) float64 output.
        off: (R, n) float64 output; entry j couples j and j + 1, the last is 0.
        tau: (R, n) output, reflection k is I - tau_k v v^T.
    """
    n = matrices.shape[1]
    # A step's rank-2 update is held back until the next step multiplies: one pass over the matrix a step.
    v, u, held_v, held_u = np.zeros((4, n), matrices.dtype)
    for row in range(matrices.shape[0]):
        a = matrices[row]
        held_v[:] = 0
        held_u[:] = 0
        for k in range(n):
            for i in range(k, n):
                a[i, k] -= held_v[i] * held_u[k] + held_u[i] * held_v[k]
            diagonal[row, k] = a[k, k]
            if k == n - 1:
                off[row, k], tau[row, k] = 0, 0
                break
            total = a[k, k] * 0
            for i in range(k + 2, n):
                v[i] = a[i, k]
                total += v[i] * v[i]
            alpha = a[k + 1, k]
            t, scale, beta = total * 0, total * 0, alpha
            if total > 0:
                length = np.sqrt(alpha * alpha + total)
                beta = -length if alpha >= 0 else length
                t = (beta - alpha) / beta
                scale = 1 / (alpha - beta)
            off[row, k], tau[row, k] = beta, t
            v[k + 1] = 1
            for i in range(k + 2, n):
                v[i] *= scale
                a[k, i] = v[i]
            # loops from 0 over views: indices that cannot be negative are what lets the compiler use vectors
            x, y, p, q, m = v[k + 1 :], u[k + 1 :], held_v[k + 1 :], held_u[k + 1 :], n - k - 1
            for i in range(m):
                y[i] = 0
            for i in range(m):
                line = a[k + 1 + i][k + 1 :]
                x_i, p_i, q_i = x[i], p[i], q[i]
                line[i] -= 2 * p_i * q_i
                dot = line[i] * x_i
                for j in range(i):
                    entry = line[j] - (p_i * q[j] + q_i * p[j])
                    line[j] = entry
                    dot += entry * x[j]
                    y[j] += entry * x_i
                y[i] += dot
            dot = t * 0
            for i in range(m):
                dot += y[i] * x[i]
            half = t * t * dot / 2
            for i in range(m):
                y[i] = t * y[i] - half * x[i]
            v, held_v = held_v, v
            u, held_u = held_u, u


@_compiled
def eigenvalues(diagonal: NDArray, off: NDArray, found: NDArray) -> int:
    """Eigenvalues of symmetric tridiagonal matrices by the rational QL method (Reinsch 1973, algorithm 464: tqlrat).

    Args:
        diagonal: (R, n) float64. Graded matrices lose least when they grow from index 0 on.
        off: (R, n) float64; entry j couples j and j + 1, the last is not read.
        found: (R, n) float64 output, in no order; accurate to about 1e-16 of the largest of each row.

    Returns:
        How many eigenvalues took more than `MAX_SWEEPS` sweeps: 0 unless input is not finite.
    """
    n_rows, n = diagonal.shape
    eps = 2.220446049250313e-16
    # One flat array with constant strides (diagonal and squared off-diagonal of each lane, row by row) and unsigned
    # indices: the compiler then sees that lanes do not overlap, and uses vectors.
    table = np.zeros((n + 1) * 2 * LANES)
    state = np.zeros(7 * LANES)
    unconverged = 0
    for start in range(0, n_rows, LANES):
        lanes = min(LANES, n_rows - start)
        n_lanes = np.uintp(lanes)
        for lane in range(lanes):
            column = np.uintp(lane)
            largest = 0.0
            for i in range(n):
                coupling = off[start + lane, i] if i < n - 1 else 0.0
                at = np.uintp(i) * _ROW + column
                table[at] = diagonal[start + lane, i]
                table[at + _E2] = coupling * coupling
                largest = max(largest, abs(diagonal[start + lane, i]), abs(coupling))
            state[_BOUND + column] = 0.25 * eps * largest + 1e-150
            state[_SHIFT + column] = 0.0
        for first in range(n):
            top = np.uintp(first) * _ROW
            any_on = False
            for w in range(n_lanes):
                on = table[top + _E2 + w] > state[_BOUND + w] ** 2
                state[_ON + w] = 1.0 if on else 0.0
                any_on = any_on or on
            sweep = 0
            while any_on:
                if sweep == MAX_SWEEPS:
                    unconverged += 1
                    break
                sweep += 1
                for w in range(n_lanes):
                    on = state[_ON + w] > 0
                    root = np.sqrt(table[top + _E2 + w]) if on else 1.0
                    p = (table[top + _ROW + w] - table[top + w]) / (2.0 * root)
                    r = np.sqrt(p * p + 1.0)
                    moved = table[top + w] - root / (p + (r if p >= 0.0 else -r))
                    state[_MOVE + w] = moved if on else 0.0
                    state[_SHIFT + w] += state[_MOVE + w]
                for i in range(first, n):
                    here = np.uintp(i) * _ROW
                    for w in range(n_lanes):
                        table[here + w] -= state[_MOVE + w]
                for w in range(n_lanes):
                    last = table[np.uintp(n - 1) * _ROW + w]
                    state[_G + w] = last if last != 0.0 else state[_BOUND + w]
                    state[_H + w] = state[_G + w]
                    state[_S + w] = 0.0
                for i in range(n - 2, first - 1, -1):
                    here = np.uintp(i) * _ROW
                    below = here + _ROW
                    for w in range(n_lanes):
                        # all loads first: one inside a condition would keep the compiler from using vectors
                        bound = state[_BOUND + w]
                        on = state[_ON + w] > 0
                        g = state[_G + w]
                        h = state[_H + w]
                        d = table[here + w]
                        e2 = table[here + _E2 + w]
                        p = g * h
                        r = p + e2
                        both = 1.0 / (r * g)  # one division instead of two
                        inverse = g * both
                        ratio = e2 * inverse
                        new_e2 = state[_S + w] * r
                        new_d = h + ratio * (h + d)
                        lower = d - e2 * r * both
                        lower = lower if lower != 0.0 else bound
                        state[_H + w] = lower * p * inverse
                        state[_G + w] = lower
                        state[_S + w] = ratio
                        old_e2 = table[below + _E2 + w]
                        old_d = table[below + w]
                        table[below + _E2 + w] = new_e2 if on else old_e2
                        table[below + w] = new_d if on else old_d
                any_on = False
                for w in range(n_lanes):
                    if state[_ON + w] > 0:
                        e2 = state[_S + w] * state[_G + w] * state[_H + w]
                        table[top + _E2 + w] = e2
                        table[top + w] = state[_H + w]
                        on = abs(e2) > state[_BOUND + w] ** 2
                        state[_ON + w] = 1.0 if on else 0.0
                        any_on = any_on or on
            for lane in range(lanes):
                column = np.uintp(lane)
                found[start + lane, first] = table[top + column] + state[_SHIFT + column]
    return unconverged


@_compiled
def eigenvectors(diagonal: NDArray, off: NDArray, values: NDArray, found: NDArray) -> None:
    """Eigenvectors of symmetric tridiagonal matrices by inverse iteration with Gram-Schmidt.

    Args:
        diagonal, off: (R, n) float64, as for `eigenvalues`.
        values: (R, k) eigenvalues, from large to small.
        found: (R, k, n) float64 output, orthonormal rows.
    """
    n_rows, n = diagonal.shape
    pivot, upper, second, factor, x = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    swapped = np.zeros(n, np.bool_)
    for row in range(n_rows):
        d, e = diagonal[row], off[row]
        size = 1e-100
        for i in range(n):
            size = max(size, abs(d[i]), abs(e[i]))
        tiny = 2.220446049250313e-16 * size
        shift = values[row, 0] + 8 * tiny
        for k in range(values.shape[1]):
            # equal eigenvalues are drawn apart a little, so that Gram-Schmidt has something to separate
            shift = min(values[row, k], shift - 4 * tiny)
            p, q = d[0] - shift, e[0]
            for i in range(n - 1):
                after = e[i + 1] if i + 2 < n else 0.0
                swapped[i] = abs(p) < abs(e[i])
                if swapped[i]:
                    factor[i] = p / e[i]
                    pivot[i], upper[i], second[i] = e[i], d[i + 1] - shift, after
                    p, q = q - factor[i] * (d[i + 1] - shift), -factor[i] * after
                else:
                    pivot[i] = p if abs(p) > tiny else tiny
                    factor[i] = e[i] / pivot[i]
                    upper[i], second[i] = q, 0.0
                    p, q = d[i + 1] - shift - factor[i] * q, after
            pivot[n - 1] = p if abs(p) > tiny else tiny
            for i in range(n):
                x[i] = 1.0 + 0.5 * ((i * 7919 + k * 104729) % 1009) / 1009
            for _ in range(3):
                for i in range(n - 1):
                    if swapped[i]:
                        x[i], x[i + 1] = x[i + 1], x[i]
                    x[i + 1] -= factor[i] * x[i]
                x[n - 1] /= pivot[n - 1]
                if n > 1:
                    x[n - 2] = (x[n - 2] - upper[n - 2] * x[n - 1]) / pivot[n - 2]
                for i in range(n - 3, -1, -1):
                    x[i] = (x[i] - upper[i] * x[i + 1] - second[i] * x[i + 2]) / pivot[i]
                largest = 0.0
                for i in range(n):
                    largest = max(largest, abs(x[i]))
                for i in range(n):
                    x[i] /= largest
                for other in range(k):
                    dot = 0.0
                    for i in range(n):
                        dot += x[i] * found[row, other, i]
                    for i in range(n):
                        x[i] -= dot * found[row, other, i]
                norm = 0.0
                for i in range(n):
                    norm += x[i] * x[i]
                norm = np.sqrt(norm)
                for i in range(n):
                    x[i] /= norm
            for i in range(n):
                found[row, k, i] = x[i]


@_compiled
def undo_reductions(reflections: NDArray, tau: NDArray, vectors: NDArray) -> None:
    """Turn eigenvectors of the tridiagonal matrices (R, k, n) into those of the matrices, in place.

    Args:
        reflections, tau: what `reduce_rows` left.
        vectors: (R, k, n) float64, one vector a row.
    """
    n = reflections.shape[1]
    for row in range(reflections.shape[0]):
        for k in range(n - 2, -1, -1):
            v = reflections[row, k][k + 2 :]
            for c in range(vectors.shape[1]):
                z = vectors[row, c][k + 2 :]
                dot = 0.0
                for i in range(n - k - 2):
                    dot += v[i] * z[i]
                dot = tau[row, k] * (dot + vectors[row, c, k + 1])
                vectors[row, c, k + 1] -= dot
                for i in range(n - k - 2):
                    z[i] -= dot * v[i]
