"""The seeded LoRA-A: what it depends on, and its distribution."""

import hashlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fimlora import TargetModule
from fimlora.numerics.seeded_draws import draw_example_signs, draw_lora_a

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


def test_an_examples_signs_are_its_own_whatever_it_is_drawn_with():
    """They depend on its number, their count and the seed, and on nothing else."""
    together = draw_example_signs([3, 0, 7], 20, seed=1)

    assert torch.equal(together[1:], draw_example_signs([0, 7], 20, seed=1))
    others = [draw_example_signs([3], 20, seed=2), draw_example_signs([4], 20, seed=1)]
    assert all(not torch.equal(together[:1], other) for other in others)
    assert not torch.equal(together[:1], draw_example_signs([3], 28, seed=1)[:, :20])


def test_signs_of_examples_are_pinned():
    """By a generator of the standard library; bits from the highest of each byte."""
    bits = int.from_bytes(hashlib.shake_256(b"signs of 11:5:2").digest(2)) >> 5

    wanted = [2.0 * int(bit) - 1 for bit in f"{bits:011b}"]
    assert draw_example_signs([2], 11, seed=5).tolist() == [wanted]


def test_signs_of_examples_are_even_and_unrelated():
    """As many of one kind as of the other, in rows, columns and products of rows."""
    signs = draw_example_signs(range(400), 900, seed=0)

    assert signs.abs().eq(1).all()
    assert signs.mean().abs() < 4 / (400 * 900) ** 0.5
    assert signs.mean(dim=0).abs().max() < 5 / 400**0.5
    products = (signs @ signs.T).fill_diagonal_(0) / 900**0.5  # standard normal, about
    assert products.abs().max() < 6
    assert products.square().mean() == pytest.approx(1, abs=0.05)
