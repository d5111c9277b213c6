"""Running out of memory costs time, never a result."""

import errno
import gc
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fimlora import Statistics, measure
from fimlora.errors import OutOfDeviceMemory, OutOfMemory
from fimlora.memory.out_of_memory import bytes_asked_for, format_bytes, is_out_of_memory
from support.models import make_batch, tiny
from support.statistics import GROUPS, assert_close, assert_identical
from support.toys import WIDTH, squared_sum, toy_batch

# Only the order of additions differs, in float64; small singular values show it most.
SAME = 1e-9
ERRORS: dict[str, Callable[[], Exception]] = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "python": MemoryError,
}


class _Limited(torch.autograd.Function):
    """Identity that has no room for more than so many examples, on its way there or back."""

    @staticmethod
    def forward(ctx, x, limit, error, where):
        ctx.limit, ctx.error, ctx.where = limit, error, where
        if where == "forward" and len(x) > limit():
            raise error()
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if ctx.where == "backward" and len(g) > ctx.limit():
            raise ctx.error()
        return g, None, None, None


class Limited(nn.Module):
    """Four linear maps, the first called twice or not; memory runs out after the second.

    So when it does in the backward pass, the last two have given their part already.
    """

    def __init__(
        self, where: str, limit: Callable[[], int], error: str = "gpu", *, n_calls: int = 2
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.dropout = nn.Dropout(0.3)
        self.double()
        self.where, self.limit, self.error = where, limit, ERRORS[error]
        self.tried: list[int] = []
        self.n_calls = n_calls

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        self.tried.append(len(x))
        a, b, c, d = self.maps
        for _ in range(self.n_calls):
            x = torch.tanh(a(x))
        x = self.dropout(torch.tanh(b(x)))
        x = _Limited.apply(x, self.limit, self.error, self.where)
        return d(self.dropout(torch.tanh(c(x))))


def measured(model: nn.Module, batches: list, **options) -> Statistics:
    options = {
        "estimator": "both",
        "record": ["spectra", "moments", "batch_energies"],
    } | options
    return measure(model, batches, target_modules="all-linear", loss_fn=squared_sum, **options)


@pytest.mark.parametrize("error", sorted(ERRORS))
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_halved_run_is_a_run_with_smaller_micro_batches(where, error):
    """To the last bit: what failed left nothing behind, wherever in the pass it failed."""
    batches = [toy_batch(8), toy_batch(5)]
    model = Limited(where, lambda: 2, error)

    found = measured(model, batches)

    assert_identical(found, measured(Limited(where, lambda: 99), batches, micro_batch_size=2))
    assert_close(found, measured(Limited(where, lambda: 99), batches), SAME, groups=GROUPS)
    # A module that runs twice has each pass begun again once, by the recorder.
    assert list(dict.fromkeys(model.tried)) == [8, 4, 2, 1]
    assert found.execution is not None
    assert found.execution.micro_batch_size == 2


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_what_was_measured_before_stays(where):
    """Memory runs out in the second batch, after the first of its micro-batches."""
    batches = [toy_batch(6), toy_batch(7)]
    limits = iter([99] * 3 + [3] * 99 if where == "forward" else [99] * 2 + [3] * 99)
    model = Limited(where, lambda: next(limits))

    found = measured(model, batches, micro_batch_size=4)

    assert_close(found, measured(Limited(where, lambda: 99), batches), SAME, groups=GROUPS)
    assert found.execution is not None
    assert found.execution.micro_batch_size == 2


def test_dropout_draws_what_it_would_have_drawn():
    """A pass that is run again begins at the random numbers that it began at before."""
    batches = [toy_batch(6), toy_batch(3)]

    found = measured(Limited("backward", lambda: 3, n_calls=1), batches, train_mode=True)

    model = Limited("backward", lambda: 99, n_calls=1)
    assert_identical(found, measured(model, batches, train_mode=True, micro_batch_size=3))


def test_one_example_that_does_not_fit_is_refused_by_need_and_limit():
    """The error says how much was asked for and what was left, and is a MemoryError."""
    model = Limited("backward", lambda: 0)

    with pytest.raises(OutOfMemory) as caught:
        measured(model, [toy_batch(4)])

    assert isinstance(caught.value, MemoryError)
    message = str(caught.value)
    assert "one example of batch 1 of 1 does not fit; cut examples shorter" in message
    assert "another 20.0 MiB was asked for when " in message
    assert message.endswith(" was left on cpu")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_failure_keeps_no_activation_alive():
    """Tracebacks hold the variables of a failed pass; by the next pass they are gone."""
    alive: list[weakref.ref] = []
    held: list[int] = []

    class Noting(Limited):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            held.append(sum(ref() is not None for ref in alive))
            activation = x * 1
            alive.append(weakref.ref(activation))
            return super().forward(activation, scale)

    gc.disable()
    try:
        with pytest.raises(OutOfMemory) as caught:
            measured(Noting("backward", lambda: 0), [toy_batch(4)], estimator="sampled")
    finally:
        gc.enable()

    assert held == [0, 0, 0]
    assert sum(ref() is not None for ref in alive) == 0, caught


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    """A shape that does not fit is the caller's to see, at once."""
    model = Limited("forward", lambda: 99)
    batch = toy_batch(4) | {"x": torch.zeros(4, 3, WIDTH + 1, dtype=torch.float64)}

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        measured(model, [batch])
    assert model.tried == [4]


def test_errors_of_torch_are_recognised_and_read():
    """Those it really raises, and what they say was asked for."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, dtype=torch.uint8)

    assert is_out_of_memory(refused.value)
    assert bytes_asked_for(refused.value) == 1 << 50
    assert bytes_asked_for(ERRORS["gpu"]()) == 20 * 2**20
    assert bytes_asked_for(RuntimeError("unable to mmap 77 bytes from file <x>")) == 77
    assert bytes_asked_for(MemoryError()) is None
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert [format_bytes(n) for n in (7, 2048, 3 << 19, 5 << 30)] == [
        "7 bytes", "2.0 KiB", "1.5 MiB", "5.0 GiB",
    ]  # fmt: skip
    assert (OutOfMemory.code, OutOfDeviceMemory.code) == (
        "out_of_memory_host",
        "out_of_memory_gpu",
    )


def test_how_a_run_was_carried_out_is_no_part_of_what_it_measured(tmp_path):
    """Not of the file, not of the rank map, not of merged statistics."""
    model, targets = tiny("bert_classifier")
    batch = make_batch("bert_classifier", [5, 3])

    found = [
        measure(model, [batch], target_modules=targets, micro_batch_size=size)
        for size in (None, None)
    ]

    execution = found[0].execution
    assert execution is not None
    assert (execution.executor, execution.micro_batch_size) == ("resident", 2)
    assert execution.peak_memory_bytes > 2**20
    assert "execution" not in found[0].provenance()
    found[0].save(tmp_path / "s.safetensors")
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert loaded.execution is None
    assert loaded.to_bytes() == found[1].to_bytes()
    merged = found[0].merge(loaded)
    assert merged.execution is None


MEASURE = """
import resource, torch
from pathlib import Path
from fimlora import measure
torch.set_num_threads(1)

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)

    def forward(self, x):
        x = self.up(x)
        for _ in range(16):
            x = torch.sin(x)
        return self.down(x)

def run(size):
    x = torch.randn(32, 1024, 64, generator=torch.Generator().manual_seed(1))
    loss = lambda y, batch: y.square().mean(dim=(1, 2))
    return measure(Wide(), [{"x": x}, {"x": x}], target_modules="all-linear", loss_fn=loss,
                   estimator="both", micro_batch_size=size)

run(1)  # what torch loads on first use is no activation
lines = Path("/proc/self/status").read_text().splitlines()
data = dict(line.split(":", 1) for line in lines)["VmData"]
limit = int(data.split()[0]) * 1024 + 80 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
halved = run(None)
resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY,) * 2)
size = halved.execution.micro_batch_size
print(size, halved.to_bytes() == run(size).to_bytes())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads and limits memory as Linux does")
def test_memory_that_really_runs_out_halves_the_micro_batch():
    """A batch needs 160 MiB for what it saves alone; the process may take 80 MiB more."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        env={
            "PYTHONPATH": str(Path(__file__).parents[3] / "worker"),
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": str(
                2**17
            ),  # what is freed is free, however the heap lies
            "PATH": "",
            "HOME": tempfile.gettempdir(),
        },
        timeout=120,
        check=False,
    )

    assert done.stdout.split()[1:] == ["True"], done.stderr[-2000:]
    assert 1 <= int(done.stdout.split()[0]) <= 16
