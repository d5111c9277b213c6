"""A recorder shows inputs and gradients to whatever quantities it is given."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from fimlora.measuring.recording.fisher_exact import FisherExact
from fimlora.measuring.recording.pending_sum import PendingSum
from fimlora.measuring.recording.quantity import Quantity, SeenCall, as_array
from fimlora.measuring.recording.recorder import Recorder
from fimlora.model.hooks import watch_modules
from fimlora.plan import TargetModule
from fimlora.statistics.statistics import Groups

N, T = 3, 4


class Alignment(Quantity):
    """What a new quantity amounts to: the sum of ``x . x`` weighted by ``g . g``, by token."""

    def __init__(self, modules: Sequence[TargetModule]) -> None:
        self._sums = {module.name: PendingSum() for module in modules}

    def add(self, name: str, calls: Sequence[SeenCall]) -> None:
        for (x,), g in calls:
            self._sums[name].stage((x.square().sum(2) * g.square().sum(2)).sum())

    def run_sums(self) -> Iterator[tuple[str, PendingSum]]:
        return ((f"alignment/{name}", each) for name, each in self._sums.items())

    def results(self, n_examples: int) -> Groups:
        return {"alignment": {n: as_array(s.total) / n_examples for n, s in self._sums.items()}}


def network() -> tuple[nn.Sequential, list[TargetModule]]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    layers.requires_grad_(requires_grad=False)
    return layers, [TargetModule("0", 5, 7), TargetModule("2", 7, 2)]


def run(recorder: Recorder, layers: nn.Sequential, x: Tensor, *, fails: bool = False) -> None:
    """One pass of all examples, as a batch in one piece."""
    watched = {name: layers.get_submodule(name) for name in ("0", "2")}
    with watch_modules(watched, recorder.keep, recorder.on_gradients) as watch:
        watch.begin_forward()
        recorder.begin(torch.ones(len(x)), is_whole=True)
        loss = layers(x).square().sum()
        assert not recorder.adapt(watch.calls)
        watch.backward(loss)
    if not fails:
        recorder.commit()
        recorder.end_batch()


def by_slow_loop(layers: nn.Sequential, inputs: Tensor) -> dict[str, float]:
    """The same, one token at a time, with gradients that torch itself keeps."""
    found = {"0": 0.0, "2": 0.0}
    for token in inputs.flatten(0, 1):
        x = token.clone().requires_grad_()
        first = layers[0](x)
        hidden = layers[1](first)
        second = layers[2](hidden)
        gradients = torch.autograd.grad(second.square().sum(), [first, second])
        for name, seen, g in zip(found, (x, hidden), gradients, strict=True):
            found[name] += (seen.square().sum() * g.square().sum()).item()
    return {name: total / len(inputs) for name, total in found.items()}


def test_a_new_quantity_is_what_it_keeps_adds_and_names():
    """Nothing else knows of it: passes, restarts and results come with the recorder."""
    layers, modules = network()
    first, second = torch.randn(2, N, T, 5, dtype=torch.float64)
    begun = Recorder(modules, [FisherExact(modules), Alignment(modules)])
    run(begun, layers, first)
    run(begun, layers, torch.randn(N, T, 5, dtype=torch.float64), fails=True)
    begun.discard()
    resumed = Recorder(modules, [Alignment(modules), FisherExact(modules)])
    resumed.restore(*begun.state())
    run(resumed, layers, second)

    found = resumed.groups(2 * N, {})["alignment"]

    wanted = by_slow_loop(layers, torch.cat([first, second]))
    assert {name: found[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-12)
    assert len(resumed.groups(2 * N, {})["example_energies"]["0"]) == 2 * N
