"""On a CUDA device the statistics are those of the CPU, and streamed those of resident."""

import pytest
import torch
from torch import nn

from fimlora import Settings, measure, measure_streamed
from support.models import TINY_MODELS, make_batch, tiny
from support.reference import relative_error
from support.streaming import ALL, assert_same, batches_for, quiet, save

__all__ = ["quiet"]  # a fixture of every test here

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


class Deep(nn.Module):
    """Keeps sixteen times its input for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(x)
        for _ in range(16):
            x = torch.sin(x)
        return self.down(x)


@pytest.mark.gpu
def test_memory_that_really_runs_out_halves_the_micro_batch():
    """A batch keeps 128 MiB; the process may take 96 MiB more than it has."""
    model = Deep().cuda()
    x = torch.randn(32, 1024, 64, generator=torch.Generator().manual_seed(1))

    def run(size):
        return measure(
            model,
            [{"x": x}, {"x": x}],
            target_modules="all-linear",
            loss_fn=lambda y, batch: y.square().mean(dim=(1, 2)),
            estimator="both",
            micro_batch_size=size,
        )

    run(1)  # what torch reserves on first use is no activation
    total = torch.cuda.get_device_properties(0).total_memory
    limit = torch.cuda.memory_reserved() + 96 * 2**20
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        halved = run(None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert halved.execution is not None
    assert 1 <= halved.execution.micro_batch_size <= 16
    assert halved.to_bytes() == run(halved.execution.micro_batch_size).to_bytes()


@pytest.mark.gpu
@pytest.mark.parametrize("max_boundary_bytes", [None, 0], ids=["pinned", "on_disk"])
@pytest.mark.parametrize("name", ["bert_classifier", "gpt2_lm", "llama_gqa_lm"])
def test_streamed_equals_resident(name, max_boundary_bytes, tmp_path):
    """Bit for bit, as on a CPU: blocks come through pinned memory, on a stream of their own."""
    model, targets = tiny(name)
    resident, batches = save(model, tmp_path).cuda(), batches_for(name)
    options = {"target_modules": targets, **ALL}

    streamed = measure_streamed(
        tmp_path,
        batches,
        Settings(**options),
        device="cuda",
        max_boundary_bytes=max_boundary_bytes,
    )

    assert_same(streamed, measure(resident, batches, **options))
