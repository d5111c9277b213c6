"""The seeded LoRA-A: what it depends on, and its distribution."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fimlora import TargetModule
from fimlora.numerics.seeded_draws import draw_lora_a

MODULE = TargetModule("model.layers.0.q_proj", d_in=64, d_out=8)


def draw(module=MODULE, rank=8, seed=0):
    return draw_lora_a(module, rank=rank, seed=seed)


def test_the_same_module_and_seed_give_the_same_numbers():
    """Whatever the state of the random generator, which is left alone."""
    first, state = draw(), torch.get_rng_state()
    torch.manual_seed(5)

    assert torch.equal(draw(), first)
    torch.set_rng_state(state)
    draw()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"module": TargetModule("model.layers.1.q_proj", d_in=64, d_out=8)}],
    ids=["another_seed", "another_name"],
)
def test_another_seed_or_name_gives_other_numbers(other):
    """No two modules share their A."""
    assert not torch.equal(draw(**other), draw())


def test_its_values_are_pinned():
    """A change of the draw would change every sampled score ever published."""
    A = draw(TargetModule("a", d_in=3, d_out=1), rank=1, seed=0)

    torch.testing.assert_close(A, torch.tensor([[-0.3163285, -0.0648382, -0.2167243]]))


def test_it_is_drawn_as_peft_draws_it():
    """Uniform within 1/sqrt(d_in), of variance 1/(3 d_in)."""
    ours = draw(TargetModule("a", d_in=256, d_out=1), rank=400)
    config = LoraConfig(r=400, target_modules=["0"])
    theirs = get_peft_model(nn.Sequential(nn.Linear(256, 4)), config).base_model.model[0]
    theirs = theirs.lora_A["default"].weight

    assert ours.abs().max() <= 256**-0.5
    assert ours.abs().max() == pytest.approx(theirs.abs().max().item(), rel=1e-3)
    assert ours.var().item() == pytest.approx(1 / (3 * 256), rel=0.01)
    assert theirs.var().item() == pytest.approx(1 / (3 * 256), rel=0.01)
