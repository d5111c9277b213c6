"""A quantised model counts as many parameters as the model it was quantised from."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from transformers import LlamaConfig, LlamaForCausalLM

from fimlora.model.targets import count_base_parameters

CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2,
)  # fmt: skip
MAKERS = {}


def maker(function):
    MAKERS[function.__name__] = function
    return function


class Packed(nn.Module):
    """A linear map whose weight lies packed; what a quantiser leaves of it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features


def integers(*sides: int, dtype=torch.int32) -> torch.Tensor:
    return torch.zeros(sides, dtype=dtype)


@maker
def bitsandbytes_4bit(linear):
    """Two numbers to a byte, in one column; a subclass of Linear."""
    packed = nn.Linear(linear.in_features, linear.out_features, bias=False)
    n = math.prod(linear.weight.shape)
    packed.weight = Parameter(integers(n // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.weight.quant_state = SimpleNamespace(shape=linear.weight.shape)
    return packed


@maker
def bitsandbytes_8bit(linear):
    """A byte each, in the shape of the map, beside its scales."""
    packed = nn.Linear(linear.in_features, linear.out_features, bias=False)
    shape = linear.weight.shape
    packed.weight = Parameter(integers(*shape, dtype=torch.int8), requires_grad=False)
    packed.weight.SCB = torch.ones(shape[0])
    return packed


@maker
def gptq(linear):
    """Eight numbers to an integer, as buffers."""
    packed = Packed(linear)
    d_in, d_out = linear.in_features, linear.out_features
    packed.register_buffer("qweight", integers(d_in // 8, d_out))
    packed.register_buffer("qzeros", integers(2, d_out // 8))
    packed.register_buffer("scales", torch.ones(2, d_out))
    packed.register_buffer("g_idx", integers(d_in))
    packed.bias = None
    return packed


@maker
def compressed_tensors(linear):
    """Eight numbers to an integer, as parameters."""
    packed = Packed(linear)
    d_in, d_out = linear.in_features, linear.out_features
    for name, tensor in {
        "weight_packed": integers(d_out, d_in // 8),
        "weight_shape": integers(2),
        "weight_scale": torch.ones(d_out, 1),
    }.items():
        packed.register_parameter(name, Parameter(tensor, requires_grad=False))
    return packed


@maker
def fp8(linear):
    """A byte each, beside the inverse scale of each block."""
    packed = nn.Linear(linear.in_features, linear.out_features, bias=False)
    weight = torch.zeros(linear.weight.shape, dtype=torch.float8_e4m3fn)
    packed.weight = Parameter(weight, requires_grad=False)
    packed.weight_scale_inv = Parameter(torch.ones(1, 1))
    return packed


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_packed_weights_count_as_the_numbers_they_stand_for(make):
    """Scales, zero points and orders of columns are no parameters of the model."""
    model = LlamaForCausalLM(CONFIG)
    expected = sum(p.numel() for p in model.parameters())
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name, linear in linears:
        if name != "lm_head":
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, make(linear))

    assert count_base_parameters(model) == expected


def test_a_weight_that_two_modules_share_counts_once():
    """Tied embeddings are one parameter."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight

    assert count_base_parameters(model) == 20
