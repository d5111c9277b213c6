"""The update of a module, ``s * B @ A``, through its singular values.

An O x I matrix is never made: with B = Q_B R_B and A^T = Q_A R_A, the SVD of the r x r core
``R_B @ R_A^T`` has all there is. Everything is computed in float64. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fimlora.adapter.trained.read import TrainedAdapter
from fimlora.adapter.trained.tensors import Floats
from fimlora.errors import InvalidAdapter

_ROUNDING = 1e-14  # of the largest singular value, in float64
_FRESH_NORM = 3**-0.5  # of a row that is drawn from U(-1/sqrt(I), 1/sqrt(I))


@dataclass(frozen=True, slots=True)
class Update:
    """A module's update ``U diag(sigma) V^T``, falling.

    Attributes:
        left: U, O x k.
        sigma: The singular values, k.
        right: V^T, k x I.
    """

    left: Floats
    sigma: Floats
    right: Floats

    def factors(self, rank: int, *, scale: int | float) -> tuple[Floats, Floats]:
        """Factor the nearest update of a lower rank, balanced between both factors.

        Args:
            rank: The rank; what there is not so much of is filled up with zeros.
            scale: The effective scale that the factors will have.

        Returns:
            A (rank I) and B (O rank).
        """
        root = np.sqrt(self.sigma[:rank] / scale)
        A = np.zeros((rank, self.right.shape[1]))
        B = np.zeros((len(self.left), rank))
        # A direction without strength keeps a row of A as long as a fresh one: with zeros on both
        # sides neither has a gradient, and training that goes on would never use the rank.
        is_empty = self.sigma[:rank] <= _ROUNDING * self.sigma[0]
        A[: len(root)] = np.where(is_empty, _FRESH_NORM, root)[:, None] * self.right[:rank]
        B[:, : len(root)] = self.left[:, :rank] * np.where(is_empty, 0.0, root)
        return A, B


def update_of(adapter: TrainedAdapter, name: str) -> Update:
    """Decompose the update of a module.

    Args:
        adapter: The adapter.
        name: The module.

    Returns:
        The update.

    Raises:
        InvalidAdapter: Its values are too large to be multiplied.
    """  # noqa: DOC502 - `_decompose` raises
    A, B = adapter.matrices(name)
    return _decompose(name, A, B, adapter.modules[name].scale)


def spectra_of(adapter: TrainedAdapter) -> dict[str, Floats]:
    """Singular values of every update.

    Args:
        adapter: The adapter.

    Returns:
        As many per module name as its rank, falling; those that a small module cannot have
        are zero.
    """
    spectra = {}
    for name, module in adapter.modules.items():
        sigma = update_of(adapter, name).sigma
        spectra[name] = np.pad(sigma, (0, module.rank - len(sigma)))
    return spectra


def distances(adapter: TrainedAdapter, other: TrainedAdapter) -> dict[str, float]:
    """How far the updates of two adapters lie apart, as they are stored.

    Args:
        adapter: The adapter.
        other: One on the same base model; a module that it is not on has the update zero.

    Returns:
        The Frobenius norm of the difference, per module name of the first.
    """
    found = {}
    for name, module in adapter.modules.items():
        A, B = adapter.matrices(name)
        if name in other.modules:
            A2, B2 = other.matrices(name)
            ratio = other.modules[name].scale / module.scale
            if ratio == 1 and _are_equal(A, A2) and _are_equal(B.T, B2.T):
                found[name] = 0.0
                continue
            A, B = np.concatenate([A, A2]), np.concatenate([B, -ratio * B2], axis=1)
        found[name] = float(np.linalg.norm(_core(name, A, B)[1])) * module.scale
    return found


def unpadded_rank(A: Floats, B: Floats) -> int:
    """The rank of a module without the zeros at its end.

    Args:
        A: r x I.
        B: O x r.

    Returns:
        The number of the last rank of which a row of A or a column of B is not zero. Of a
        fresh adapter B is zero and A is not, so that it keeps its rank; so does a module that
        is zero altogether, of which nothing tells padding from ranks.
    """
    used = np.flatnonzero(A.any(axis=1) | B.any(axis=0))
    return int(used[-1]) + 1 if len(used) else len(A)


def _are_equal(rows: Floats, others: Floats) -> bool:
    """Whether two matrices differ by rows of zeros at the end at most."""
    n = min(len(rows), len(others))
    is_same = np.array_equal(rows[:n], others[:n])
    return is_same and not rows[n:].any() and not others[n:].any()


def total(values: Mapping[str, float]) -> float:
    """Put norms together.

    Args:
        values: The norm of each part.

    Returns:
        The norm of all.
    """
    return float(np.linalg.norm(list(values.values())))


def _core(name: str, A: Floats, B: Floats) -> tuple[Floats, Floats, Floats]:
    """Orthonormal bases of B's columns and A's rows, and the product of what is left."""
    Q_B, R_B = np.linalg.qr(B)
    Q_A, R_A = np.linalg.qr(A.T)
    with np.errstate(over="ignore", invalid="ignore"):
        core = R_B @ R_A.T
    if not np.isfinite(core).all():
        raise InvalidAdapter(f"{name}: the values of A and B are too large to be multiplied")
    return Q_B, core, Q_A


def _decompose(name: str, A: Floats, B: Floats, scale: float) -> Update:
    Q_B, core, Q_A = _core(name, A, B)
    try:
        U, sigma, Vh = np.linalg.svd(core, full_matrices=False)
    except np.linalg.LinAlgError as error:
        raise InvalidAdapter(f"{name}: the SVD of its update does not converge") from error
    return Update(Q_B @ U, sigma * scale, Vh @ Q_A.T)
