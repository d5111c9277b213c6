"""Products that nobody reads are told from those that count, and are then not computed."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fimlora.measuring.streamed.blocks import find_blocks
from fimlora.measuring.streamed.skipped_products import skip_products, track_uses
from fimlora.model.targets import find_targets
from support.models import make_batch, tiny


class Block(nn.Module):
    """A residual block; what becomes of its last product is up to the test."""

    def __init__(self, ending):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(16, 8)
        self.ending = ending

    def forward(self, x):
        return self.ending(x, self.down(torch.relu(self.up(x))))


def clamped_where_it_overflows(x, y):
    """What T5 does in float16: the value decides, and no graph shows it."""
    return (x + y).clamp(-1, 1) if torch.isinf(y).any() else x + y


ENDINGS = {
    "added": (lambda x, y: x + y, {"down"}),
    "added in place": (lambda x, y: y.add_(x), {"down"}),
    "reshaped and added": (lambda x, y: (x, x.flatten() + y.view(-1)), {"down"}),
    "returned": (lambda x, y: y, {"down"}),
    "normalised": (lambda x, y: nn.functional.layer_norm(x + y, (8,)), set()),
    "multiplied": (lambda x, y: x * y, set()),
    "changed in place": (lambda x, y: (x + y).relu_(), set()),
    "looked at": (clamped_where_it_overflows, set()),
    "looked at behind": (lambda x, y: (x + y)[:, : 1 + int((x + y).argmax() > -1)], set()),
    "chosen by": (lambda x, y: x * (y > 0) + y, set()),
    "kept aside": (lambda x, y: (x + y, y.detach().exp()), set()),
}


@pytest.mark.parametrize("name", sorted(ENDINGS))
def test_a_product_is_unused_only_if_it_is_passed_on(name):
    """Sums and views pass it on; a derivative, a decision or another operation reads it."""
    ending, wanted = ENDINGS[name]
    x = torch.randn(3, 4, 8, requires_grad=True)

    block = Block(ending)
    with track_uses(block) as uses:
        block(x)

    assert uses.unused == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama_gqa_lm", {"mlp.down_proj"}),
        ("gpt2_lm", {"mlp.c_proj"}),
        ("bert_classifier", set()),
    ],
)
def test_gradients_are_the_same_without_the_unused_product(name, wanted):
    """Blocks of real architectures; the work that is saved is that of the product."""
    model, targets = tiny(name)
    blocks = find_blocks(model, find_targets(model, targets))
    block = next(iter(blocks.values()))
    calls = []
    handle = block.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    model.config.use_cache = False  # it would grow from run to run
    model.eval().requires_grad_(False)(**make_batch(name, [5, 5], seed=0))
    handle.remove()
    ((hidden, *args), kwargs) = calls[0]

    def gradient(unused):
        x = hidden.detach().requires_grad_()
        with FlopCounterMode(display=False) as counter, skip_products(block, unused):
            made = block(x, *args, **kwargs)
        output = made[0] if isinstance(made, tuple) else made
        output.backward(torch.ones_like(output))
        return x.grad, counter.get_total_flops()

    with track_uses(block) as uses:
        block(hidden.detach().requires_grad_(), *args, **kwargs)
    full, all_flops = gradient(set())
    left_out, flops = gradient(uses.unused)

    assert uses.unused == wanted
    assert torch.equal(full, left_out)
    weights = [block.get_submodule(one).weight for one in wanted]
    assert all_flops - flops == sum(2 * 2 * 5 * weight.numel() for weight in weights)


def test_a_module_that_is_read_once_of_two_times_is_read():
    """Its other product is not left out either."""
    block = Block(lambda x, y: x + y)
    block.ending = lambda x, y: x + y + block.up(x).sigmoid().sum() + block.up(y).sum()

    with track_uses(block) as uses:
        block(torch.randn(2, 3, 8, requires_grad=True))

    assert uses.unused == set()


def test_a_wrapped_forward_is_put_back_as_it_was():
    """Also one that was wrapped before, and when the block raises."""
    block = Block(lambda x, y: x + y)
    wrapped = block.down.forward
    block.down.forward = wrapped

    with pytest.raises(KeyError), skip_products(block, {"down", "up"}):
        raise KeyError
    with track_uses(block):
        pass

    assert block.down.__dict__["forward"] is wrapped
    assert "forward" not in block.up.__dict__
