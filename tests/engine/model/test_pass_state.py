"""A pass begins from what was there, whatever the last one has left on a module."""

import pytest
import torch
from torch import nn

from fimlora.model.pass_state import PassState


class Part(nn.Module):
    """Remembers in each of the ways that a pass may leave something."""

    def __init__(self):
        super().__init__()
        self.longest, self.cached = 7, None
        self.inner = nn.Linear(2, 2)
        self.register_buffer("frequencies", torch.ones(3), persistent=False)
        self.register_buffer("saved", torch.ones(3))


def rename(part):
    """The same value as before, in the same place, under another name."""
    held = list(vars(part).items())
    vars(part).clear()
    vars(part).update({"renamed" if k == "cached" else k: value for k, value in held})


LEFT = {
    "another value": (lambda part: setattr(part, "longest", 9), {"longest"}),
    "a new name": (lambda part: setattr(part, "grown", 1), {"grown"}),
    "a name that is gone": (lambda part: delattr(part, "longest"), {"longest"}),
    "another name": (rename, {"cached", "renamed"}),
    "another module": (lambda part: setattr(part, "inner", nn.Linear(2, 2)), {"inner"}),
    "another buffer": (
        lambda part: setattr(part, "frequencies", torch.zeros(3)),
        {"frequencies"},
    ),
    "numbers in a buffer": (lambda part: part.frequencies.mul_(2), {"frequencies"}),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_a_pass_leaves_is_seen_and_put_back(kind):
    """Also when it happens again, and with a pass's own changes in between."""
    leave, names = LEFT[kind]
    model = nn.Sequential(Part(), Part())
    part = model[0]
    state, before, inner = PassState(model), dict(vars(part)), part.inner
    assert state.changes() == []

    for _ in range(2):
        leave(part)
        found = state.changes()
        assert {(module, name) for module, _, name, _ in found} == {(part, n) for n in names}
        state.set()
        assert state.changes() == []
        state.set(found)
        assert {name for _, _, name, _ in state.changes()} == names
        state.set()

    assert dict(vars(part)) == before
    assert part.inner is inner
    assert torch.equal(part.frequencies, torch.ones(3))


def test_what_a_checkpoint_holds_is_none_of_it():
    """Weights and saved buffers come and go as a streamed model needs them."""
    model = nn.Sequential(Part())
    state = PassState(model)

    model[0].saved = torch.zeros(3)
    model[0].inner.weight = nn.Parameter(torch.zeros(2, 2))
    model.eval()

    assert state.changes() == []
