"""While tests run, what the engine's annotations say is checked: types, and shapes of arrays."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from fimlora.allocation.proportional import allocate_ranks
from fimlora.measuring.recording.energies import gram_blocks
from fimlora.numerics.products import multiply
from fimlora.numerics.seeded_draws import draw_lora_a
from fimlora.plan import TargetModule


def test_an_axis_too_few_is_refused():
    """Where a module names axes, their number counts."""
    with pytest.raises(TypeCheckError):
        gram_blocks(torch.zeros(2, 3))


def test_axes_of_one_name_have_one_length():
    """Over all arguments of a call."""
    with pytest.raises(TypeCheckError):
        multiply(torch.zeros(2, 3), torch.zeros(4, 2))


def test_another_type_is_refused_beside_shapes_and_without():
    """By functions of both kinds of modules, and by the fields of a dataclass."""
    with pytest.raises(TypeCheckError):
        draw_lora_a("a", rank=1, seed=0)
    with pytest.raises(BeartypeCallHintViolation):
        allocate_ranks("a", limit=1, lowest={}, highest={})
    with pytest.raises(BeartypeCallHintViolation):
        TargetModule(1, 64, 64)
