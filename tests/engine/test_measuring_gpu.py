"""On a CUDA device the statistics are those of the CPU."""

import pytest
import torch

from fimlora import measure
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error

# Other kernels add in another order.
FLOAT64 = 1e-9


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_the_device_changes_nothing(name):
    """Batches stay on the CPU, as a loader gives them; the sampled A is drawn there too."""
    model, targets = tiny(name, torch.float64)
    batches = [make_batch(name, [9, 4, 6]), make_batch(name, [3, 5], seed=1)]
    options = {"target_modules": targets, "estimator": "both", "rank": 4}
    wanted = measure(model, batches, **options)
    state = torch.cuda.get_rng_state()

    found = measure(model.cuda(), batches, **options)

    assert torch.equal(torch.cuda.get_rng_state(), state)
    for group in ("row_energies", "example_energies", "squared_gradients"):
        for module, values in getattr(wanted, group).items():
            assert relative_error(getattr(found, group)[module], values) <= FLOAT64
