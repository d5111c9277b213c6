"""What the rule of a request has recorded beside the energies, counted as the worker counts it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fimlora.memory.need import SPECTRA_BYTES, bytes_for_spectra, gradients_fit
from fimlora.plan import TargetModule
from fimlora_contract.requests import CalibrationRequest
from fimlora_service.calibrations.checkpoint_sizes import (
    BLOCK,
    OUTSIDE,
    find_matrices,
    find_target_shapes,
)
from fimlora_service.resolve.model_files import Shapes
from fimlora_service.resolve.target_checks import is_inner


@dataclass(frozen=True, slots=True)
class Recorded:
    """Bytes on the device.

    Attributes:
        whole: With all target modules there.
        block: With those of one block at a time, of the block that takes most.
    """

    whole: int
    block: int


NOTHING = Recorded(0, 0)


def find_recorded(
    request: CalibrationRequest, *, shapes: Shapes, config: Mapping[str, Any]
) -> Recorded:
    """Bytes that a request has recorded.

    Where only the loaded model knows its targets, all inner matrices are counted. That is more
    than it takes, unless all need to be sketched and the targets do not, or weights are packed.
    """
    if request.allocation.rule != "spectral":
        return NOTHING
    matrices = find_target_shapes(request.target_modules, shapes=shapes, config=config)
    if matrices is None:
        found = find_matrices(shapes)
        matrices = {name: sides for name, sides in found.items() if is_inner(name)}
    modules = [TargetModule(name, d_in, d_out) for name, (d_out, d_in) in matrices.items()]
    # Whether gradients are sketched is decided once, for all of them.
    limit = SPECTRA_BYTES if gradients_fit(modules, SPECTRA_BYTES) else 0
    blocks = defaultdict(list)
    for module in modules:
        found_block = BLOCK.match(module.name)
        blocks[found_block[1] if found_block else OUTSIDE].append(module)
    return Recorded(
        whole=bytes_for_spectra(modules),
        block=max(
            (bytes_for_spectra(b, spectra_bytes=limit) for b in blocks.values()), default=0
        ),
    )
