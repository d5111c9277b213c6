"""Which quantities a run collects: the one list that a new quantity is added to."""

from collections.abc import Sequence

import torch

from fimlora.measuring.recording.batch_energies import BatchEnergies
from fimlora.measuring.recording.fisher_exact import FisherExact
from fimlora.measuring.recording.fisher_sampled import FisherSampled
from fimlora.measuring.recording.input_moments import InputMoments
from fimlora.measuring.recording.mean_gradient import MeanGradient, Signs
from fimlora.measuring.recording.quantity import Quantity
from fimlora.memory.need import SPECTRA_BYTES
from fimlora.plan import TargetModule
from fimlora.statistics.options import Estimator, Record


def quantities_for(
    modules: Sequence[TargetModule],
    *,
    estimator: Estimator,
    collect: frozenset[Record],
    rank: int,
    seed: int,
    device: torch.device,
    spectra_bytes: int = SPECTRA_BYTES,
    signs: Signs | None = None,
) -> list[Quantity]:
    """Make the quantities that were asked for.

    Args:
        modules: The target modules.
        estimator: What to estimate of the Fisher information.
        collect: What to collect besides.
        rank: Rows of the A that a sampled estimate draws.
        seed: Seed of that A.
        device: Where the modules compute.
        spectra_bytes: Memory for mean gradients; see `MeanGradient`.
        signs: Signs to sketch with, drawn before for other modules.

    Returns:
        The quantities, in the order they are added to.
    """
    wanted: list[Quantity] = []
    if Record.SPECTRA in collect:
        wanted.append(MeanGradient(modules, spectra_bytes=spectra_bytes, signs=signs))
    if Record.MOMENTS in collect:
        wanted.append(InputMoments(modules))
    if Record.BATCH_ENERGIES in collect:
        wanted.append(BatchEnergies(modules))
    if estimator.has_exact:
        wanted.append(FisherExact(modules))
    if estimator.has_sampled:
        wanted.append(FisherSampled(modules, rank=rank, seed=seed, device=device))
    return wanted
