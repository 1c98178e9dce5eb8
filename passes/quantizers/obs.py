"""The second-order column recursion of GPTQ and SparseGPT (OBS, "optimal brain surgeon"). Matrices only, no graph.

A layer's output error for a change D of its weight is ``tr(D H D^T)`` with H the second moments of its inputs. Columns
are settled one at a time (rounded, or set to zero), and what each loses is made up for by the columns still to come:
with ``H^-1 = U^T U``, U upper triangular, ``e = (w_j - q_j) / U_jj`` and ``W[:, j:] -= e U[j, j:]``. Arrays may be
numpy's or torch's, on any device that has float64. A Hessian of float32, as very wide layers have it, is computed with
in float32, which the damping allows; any other in float64.
Source: Frantar et al., "GPTQ", 2022, algorithm 1; "SparseGPT", 2023.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeAlias

from graphpress.arrays import array_namespace, device, is_numpy_array
from graphpress.errors import BadRequest

Array: TypeAlias = Any

_STRIP = 16  # columns after which what was lost is made up for in the rest of a block, by one product


class Project(Protocol):
    """What settles a column. Columns are counted in the order in which they are settled."""

    @property
    def step(self) -> int:
        """Of every column whose number divides by that it is told beforehand; 0: of none."""

    def enter(self, columns: Array, start: int, diagonal: Array) -> None:
        """Column ``start`` is next.

        Args:
            columns: [O, n], the weights as they stand now from ``start`` to the end of its block.
            start: Where they begin.
            diagonal: [n], U_jj of these columns: ``(w - q)^2 / U_jj^2`` is what settling one of them costs.
        """

    def __call__(self, column: Array, j: int) -> Array:
        """What column ``j``, [O], becomes."""


def solve(
    weight: Array,
    hessian: Array,
    project: Project,
    *,
    damping: float = 0.01,
    block: int = 128,
    order: Sequence[int] | Array | None = None,
    upper: Array | None = None,
) -> Array:
    """Settle all columns of a weight.

    An input that was never anything but 0 (H_jj = 0) is settled by itself: its column neither gives nor takes. Where H
    is diagonal every column is, so that nothing is left but ``project``.

    Args:
        weight: [O, K].
        hessian: [K, K], symmetric and positive semidefinite; its scale does not matter.
        project: See ``Project``.
        damping: Added to the diagonal, as a share of its mean over inputs that are alive.
        block: Columns after which what was lost is made up for in all later ones; the result does not depend on it but
            for what ``project.enter`` sees at once.
        order: The columns in the order in which they are settled (``by_importance``); the result is in their own.
        upper: ``factor(hessian, damping, order)``, where it is known already.

    Returns:
        [O, K], float64 unless the Hessian is float32.

    Raises:
        BadRequest: The Hessian holds NaN, or is not positive definite even with the damping.
    """
    xp, size = array_namespace(weight), weight.shape[1]
    chosen = xp.asarray(range(size) if order is None else order, device=device(weight))
    u = factor(hessian, damping, chosen) if upper is None else upper
    columns = xp.astype(weight.T[chosen, :], u.dtype)  # as rows: one after another in memory
    diagonal = xp.linalg.diagonal(u)
    for start in range(0, size, block):
        end = min(start + block, size)
        lost = xp.empty_like(columns[start:end, :])
        for a, b in _strips(start, end, project.step):
            if project.step and a % project.step == 0:
                project.enter(columns[a:end, :].T, a, diagonal[a:end])
            here = lost[a - start : b - start, :]
            _settle(columns[a:b, :], here, u[a:b, a:b], project, a)
            columns[b:end, :] -= u[a:b, b:end].T @ here
        columns[end:, :] -= u[start:end, end:].T @ lost
    result = xp.empty_like(columns)
    result[chosen, :] = columns
    return result.T


def _strips(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """Few columns at a time, none beyond the next that is told of."""
    while start < end:
        to_next = step - start % step if step else _STRIP
        stop = min(start + min(_STRIP, to_next), end)
        yield start, stop
        start = stop


def _settle(columns: Array, lost: Array, u: Array, project: Project, first: int) -> None:
    """Settle the columns of a strip, from number ``first``, each making up for those before it; all as rows."""
    for i in range(columns.shape[0]):
        settled = project(columns[i, :], first + i)
        lost[i, :] = (columns[i, :] - settled) / u[i, i]
        columns[i, :] = settled
        columns[i + 1 :, :] -= u[i, i + 1 :][:, None] * lost[i, :][None, :]


def by_importance(hessian: Array) -> Array:
    """Columns by falling H_jj ("act-order"): the inputs with most energy are settled first, while all can help."""
    xp = array_namespace(hessian)
    return xp.argsort(-xp.linalg.diagonal(hessian), stable=True)


def factor(hessian: Array, damping: float, order: Sequence[int] | Array | None = None) -> Array:
    """U, upper triangular, with ``U^T U`` the inverse of the damped Hessian.

    From the Cholesky factor of H with rows and columns reversed, so that H is never inverted: R R^T = H, U = R^-1.

    Args:
        hessian, damping: As for ``solve``.
        order: Rows and columns in another order: U is of that one.

    Raises:
        BadRequest: As for ``solve``.
    """
    xp, size = array_namespace(hessian), hessian.shape[0]
    backwards = xp.flip(xp.asarray(range(size) if order is None else order, device=device(hessian)))
    wide = hessian.dtype == xp.float32
    h = xp.astype(hessian[backwards[:, None], backwards[None, :]], xp.float32 if wide else xp.float64, copy=False)
    diagonal = xp.asarray(xp.linalg.diagonal(h), copy=True)
    if not bool(xp.isfinite(xp.sum(h))) and not bool(xp.all(xp.isfinite(h))):
        raise BadRequest("the moments of the input hold NaN or infinity", where="hessian")
    dead = diagonal == 0
    h[dead, :] = 0
    h[:, dead] = 0
    alive = xp.flip(diagonal)[xp.flip(~dead)]  # in the order of the columns: a sum depends on it
    mean = float(xp.mean(alive)) if not bool(xp.all(dead)) else 1.0
    places = xp.arange(size, device=device(h))
    h[places, places] = xp.where(dead, mean, diagonal) + damping * mean
    inverse = _inverse_factor(h)
    if inverse is None:
        raise BadRequest("the Hessian is not positive definite", where=f"damping {damping}", fix="Raise the damping.")
    return xp.asarray(xp.flip(inverse), copy=True)


def _inverse_factor(h: Array) -> Array | None:
    """The inverse of the lower Cholesky factor, in numpy in the memory of ``h``; None where there is none."""
    if is_numpy_array(h):
        from scipy.linalg import lapack

        cholesky, invert = (lapack.spotrf, lapack.strtri) if h.itemsize == 4 else (lapack.dpotrf, lapack.dtrtri)
        lower, failed = cholesky(h.T, lower=1, clean=1, overwrite_a=1)
        return None if failed else invert(lower, lower=1, overwrite_c=1)[0]
    import torch

    lower, failed = torch.linalg.cholesky_ex(h)
    one = torch.eye(len(h), dtype=h.dtype, device=h.device)
    return None if int(failed) else torch.linalg.solve_triangular(lower, one, upper=False)
