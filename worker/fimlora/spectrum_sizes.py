"""How much memory the mean gradients of modules take, whole or sketched, from their sides alone.

Symbols: Y, Z, Omega, Psi, P and Q as in `fimlora.spectra`. Nothing here imports torch, so a
service can tell beforehand what a worker will need.
"""

from collections.abc import Iterable, Sequence

from fimlora.plan import TargetModule

# Singular values kept per module: as many ranks can be told apart.
N_VALUES = 64
# P; four times the values kept, as values near P drown in the tail.
SKETCH_WIDTH = 4 * N_VALUES
# Memory for mean gradients; above it they are sketched. A pass needs as much again, for
# what it adds to them.
SPECTRA_BYTES = 2**30
_BYTES_PER_ENTRY = 4
_PSI_WIDTH = 2 * SKETCH_WIDTH + 1  # Q


def sketch_is_smaller(module: TargetModule, *, width: int = SKETCH_WIDTH) -> bool:
    """Compare the entries of Y and Z with those of the gradient.

    Returns:
        Whether a sketch saves memory for a module of this size.
    """
    long, short = max(module.d_in, module.d_out), min(module.d_in, module.d_out)
    return width * long + (2 * width + 1) * short < long * short


def gradients_fit(modules: Iterable[TargetModule], spectra_bytes: int) -> bool:
    """Compare the memory for the gradients of all modules with what it may be.

    Returns:
        Whether none needs to be sketched.
    """
    return _BYTES_PER_ENTRY * sum(m.d_in * m.d_out for m in modules) <= spectra_bytes


def bytes_for_spectra(
    modules: Sequence[TargetModule],
    *,
    spectra_bytes: int = SPECTRA_BYTES,
    itemsize: int = _BYTES_PER_ENTRY,
) -> int:
    """Count the sums, as much again that a pass adds to them, and the signs of sketches.

    Args:
        modules: The modules that are measured at once.
        spectra_bytes: As for `fimlora.measure`.
        itemsize: Bytes per number of a sum.

    Returns:
        Bytes while the second pass is under way and later.
    """
    signs: set[tuple[int, int]] = set()
    fits, n_numbers = gradients_fit(modules, spectra_bytes), 0
    for module in modules:
        if fits or not sketch_is_smaller(module):
            n_numbers += module.d_in * module.d_out
            continue
        short, long = sorted((module.d_in, module.d_out))
        n_numbers += long * SKETCH_WIDTH + _PSI_WIDTH * short  # Y and Z
        signs |= {(short, SKETCH_WIDTH), (long, _PSI_WIDTH)}
    return itemsize * (2 * n_numbers + sum(rows * columns for rows, columns in signs))
