"""The second-order column recursion of GPTQ and SparseGPT (OBS, "optimal brain surgeon"). Matrices only, no graph.

A layer's output error for a change D of its weight is ``tr(D H D^T)`` with H the second moments of its inputs. Columns
are settled one at a time (rounded, or set to zero), and what each loses is made up for by the columns still to come:
with ``H^-1 = U^T U``, U upper triangular, ``e = (w_j - q_j) / U_jj`` and ``W[:, j:] -= e U[j, j:]``.
Source: Frantar et al., "GPTQ", 2022, algorithm 1; "SparseGPT", 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from graphpress.errors import BadRequest


class Project(Protocol):
    """What settles a column. Columns are counted in the order in which they are settled."""

    def enter(self, columns: np.ndarray, start: int, diagonal: np.ndarray) -> None:
        """Column ``start`` is next.

        Args:
            columns: [O, n], the weights as they stand now from ``start`` to the end of its block.
            start: Where they begin.
            diagonal: [n], U_jj of these columns: ``(w - q)^2 / U_jj^2`` is what settling one of them costs.
        """

    def __call__(self, column: np.ndarray, j: int) -> np.ndarray:
        """What column ``j``, [O], becomes."""


def solve(
    weight: np.ndarray,
    hessian: np.ndarray,
    project: Project,
    *,
    damping: float = 0.01,
    block: int = 128,
    order: Sequence[int] | np.ndarray | None = None,
) -> np.ndarray:
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

    Returns:
        float64 [O, K].

    Raises:
        BadRequest: The Hessian holds NaN, or is not positive definite even with the damping.
    """
    size = weight.shape[1]
    chosen = np.arange(size) if order is None else np.asarray(order)
    w = np.array(weight, np.float64)[:, chosen]
    u = factor(np.asarray(hessian)[np.ix_(chosen, chosen)], damping)
    for start in range(0, size, block):
        end = min(start + block, size)
        lost = np.empty((w.shape[0], end - start))
        for j in range(start, end):
            project.enter(w[:, j:end], j, u.diagonal()[j:end])
            settled = project(w[:, j], j)
            lost[:, j - start] = (w[:, j] - settled) / u[j, j]
            w[:, j] = settled
            w[:, j + 1 : end] -= np.outer(lost[:, j - start], u[j, j + 1 : end])
        w[:, end:] -= lost @ u[start:end, end:]
    result = np.empty_like(w)
    result[:, chosen] = w
    return result


def by_importance(hessian: np.ndarray) -> np.ndarray:
    """Columns by falling H_jj ("act-order"): the inputs with most energy are settled first, while all can help."""
    return np.argsort(-hessian.diagonal(), kind="stable")


def factor(hessian: np.ndarray, damping: float) -> np.ndarray:
    """U, upper triangular, with ``U^T U`` the inverse of the damped Hessian.

    From the Cholesky factor of H with rows and columns reversed, so that H is never inverted: R R^T = H, U = R^-1.

    Raises:
        BadRequest: As for ``solve``.
    """
    from scipy.linalg import lapack

    h = np.array(hessian, np.float64)
    if not np.isfinite(h).all():
        raise BadRequest("the moments of the input hold NaN or infinity", where="hessian")
    diagonal = h.diagonal().copy()
    dead = diagonal == 0
    h[dead] = 0
    h[:, dead] = 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    h[np.diag_indices_from(h)] = np.where(dead, mean, diagonal) + damping * mean
    lower, failed = lapack.dpotrf(h[::-1, ::-1], lower=1, clean=1)
    if failed:
        raise BadRequest("the Hessian is not positive definite", where=f"damping {damping}", fix="Raise the damping.")
    inverse, _ = lapack.dtrtri(lower, lower=1)
    return np.ascontiguousarray(inverse[::-1, ::-1])
