"""Products of half precision on a CPU without units for them: wide, and rounded once."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fimlora import half_on_cpu, measure, measure_streamed, wide_products
from fimlora.half_on_cpu import widened_dtypes, widened_for, widened_products, without_units
from support.models import tiny
from support.reference import relative_error
from support.streaming import ALL, assert_same, batches_for, quiet, save

__all__ = ["quiet"]  # a fixture of every test here
HALF = (torch.bfloat16, torch.float16)
aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._grouped_mm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class Products(TorchDispatchMode):
    """Counts the products that reach torch, by the dtype of a factor."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in PRODUCTS:
            self.count[args[1].dtype] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_units(monkeypatch):
    """Whatever this machine has."""
    monkeypatch.setattr(half_on_cpu, "_has_units", lambda dtype: False)


def draw(*shape, dtype):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


def apply(case, dtype):
    """One kind of product, and the same of the same numbers in float64."""
    left, right = draw(6, 40, dtype=dtype), draw(40, 300, dtype=dtype)
    lefts, rights = draw(5, 6, 40, dtype=dtype), draw(5, 40, 30, dtype=dtype)
    row, block = draw(300, dtype=dtype), draw(5, 6, 30, dtype=dtype)
    name, *given = {
        "mm": (torch.mm, left, right),
        "of a transposed weight": (torch.mm, left, draw(300, 40, dtype=dtype).t()),
        "addmm": (torch.addmm, row, left, right),
        "addmm of a matrix": (torch.addmm, draw(6, 300, dtype=dtype), left, right),
        "bmm": (torch.bmm, lefts, rights),
        "of transposed matrices": (torch.bmm, lefts, draw(5, 30, 40, dtype=dtype).mT),
        "baddbmm": (torch.baddbmm, block, lefts, rights),
        "baddbmm of a row": (torch.baddbmm, row[:30], lefts, rights),
        "linear": (torch.nn.functional.linear, lefts, draw(30, 40, dtype=dtype), row[:30]),
        "nothing inside": (torch.mm, left[:, :0], right[:0]),
        "no tokens": (torch.mm, left[:0], right),
    }[case]
    factors = {"beta": 0.5, "alpha": 2} if "add" in case else {}
    return name(*given, **factors), name(*(t.double() for t in given), **factors)


@pytest.mark.parametrize("entries", [2**20, 200])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "case",
    [
        "mm", "of a transposed weight", "addmm", "addmm of a matrix", "bmm",
        "of transposed matrices", "baddbmm", "baddbmm of a row", "linear", "nothing inside",
        "no tokens",
    ],
)  # fmt: skip
def test_products_are_rounded_once(case, dtype, entries, monkeypatch):
    """In one piece and in several; half a unit in the last place, and float32's own error."""
    monkeypatch.setattr(wide_products, "_PIECE_ENTRIES", entries)

    with Products() as inner, widened_products([dtype]):
        found, wanted = apply(case, dtype)

    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert dtype not in inner.count
    torch.testing.assert_close(
        found.double(), wanted, rtol=torch.finfo(dtype).eps / 2, atol=1e-5
    )


@pytest.mark.parametrize("dtype", HALF)
def test_the_rows_of_experts_are_rounded_once(dtype):
    """Each by the matrix of its expert, forward and back; one has no rows."""
    x, experts = draw(9, 40, dtype=dtype), draw(4, 40, 30, dtype=dtype)
    ends, g = [3, 3, 7, 9], draw(9, 30, dtype=dtype)
    x.requires_grad_()

    with Products() as inner, widened_products([dtype]):
        found = torch._grouped_mm(x, experts, offs=torch.tensor(ends, dtype=torch.int32))
        found.backward(g)

    assert dtype not in inner.count
    by_row = experts.double()[[0] * 3 + [2] * 4 + [3] * 2]
    wanted = torch.einsum("ni,nio->no", x.detach().double(), by_row)
    of_input = torch.einsum("no,nio->ni", g.double(), by_row)
    once = {"rtol": torch.finfo(dtype).eps / 2, "atol": 1e-5}
    torch.testing.assert_close(found.detach().double(), wanted, **once)
    torch.testing.assert_close(x.grad.double(), of_input, **once)


@pytest.mark.parametrize("mask", ["none", "causal", "of numbers", "of flags"])
@pytest.mark.parametrize("dtype", HALF)
def test_attention_is_rounded_once(dtype, mask):
    """Forward and back; gradients are those at the rounded output, as torch has them."""
    q, k, v, g = (draw(2, 3, n, 8, dtype=dtype) for n in (5, 7, 7, 5))
    flags = draw(2, 1, 5, 7, dtype=dtype) > -1
    numbers = torch.zeros_like(flags, dtype=dtype).masked_fill(~flags, -1e4)
    options = {
        "none": {},
        "causal": {"is_causal": True},
        "of numbers": {"attn_mask": numbers},
        "of flags": {"attn_mask": flags},
    }[mask]
    inputs = [t.requires_grad_() for t in (q, k, v)]
    wide = [t.detach().double().requires_grad_() for t in inputs]

    with Products() as inner, widened_products([dtype]):
        found = torch.nn.functional.scaled_dot_product_attention(*inputs, **options)
        found.backward(g)
    if mask == "of numbers":
        options = {"attn_mask": numbers.double()}
    wanted = torch.nn.functional.scaled_dot_product_attention(*wide, **options)
    wanted.backward(g.double())

    assert set(inner.count) == {torch.float32}
    eps = torch.finfo(dtype).eps
    once = {"rtol": eps / 2, "atol": 1e-5}
    torch.testing.assert_close(found.detach().double(), wanted.detach(), **once)
    for narrow, exact in zip(inputs, wide, strict=True):
        assert narrow.grad.dtype == dtype
        torch.testing.assert_close(narrow.grad.double(), exact.grad, rtol=eps, atol=2 * eps)


def test_factors_of_two_dtypes_are_refused_as_ever():
    """A model that torch would not run is not run."""
    left, right = draw(6, 40, dtype=torch.bfloat16), draw(40, 30, dtype=torch.float16)

    with widened_products(HALF), pytest.raises(RuntimeError, match="same dtype"):
        left @ right


def test_gradients_are_those_of_the_layer():
    """Torch's own formulas, with wide products in them."""
    layer = torch.nn.Linear(40, 30, dtype=torch.bfloat16)
    x, g = (draw(2, 7, n, dtype=torch.bfloat16) for n in (40, 30))
    x.requires_grad_()

    with widened_products([torch.bfloat16]):
        layer(x).backward(g)

    assert x.grad.dtype == layer.weight.grad.dtype == torch.bfloat16
    wide = {"rtol": 2**-8, "atol": 1e-5}
    torch.testing.assert_close(x.grad.double(), g.double() @ layer.weight.double(), **wide)
    of_weight = g.flatten(0, 1).double().mT @ x.detach().flatten(0, 1).double()
    torch.testing.assert_close(layer.weight.grad.double(), of_weight, **wide)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_other_dtypes_are_left_alone(dtype):
    """To the last bit, and they still reach torch."""
    left, right = draw(6, 40, dtype=dtype), draw(40, 30, dtype=dtype)

    with Products() as seen, widened_products(HALF):
        found = left @ right

    assert seen.count == {dtype: 1}
    assert torch.equal(found, left @ right)


def test_it_ends_with_the_block():
    """Also when the block raises, and inner blocks give back what outer ones had."""

    def stop_inside():
        with widened_products(HALF):
            assert widened_dtypes() == HALF
            raise RuntimeError("stop")

    with widened_products([torch.bfloat16]):
        with pytest.raises(RuntimeError, match="stop"):
            stop_inside()
        assert widened_dtypes() == (torch.bfloat16,)
    assert widened_dtypes() == ()
    with Products() as seen:
        draw(6, 40, dtype=torch.bfloat16) @ draw(40, 30, dtype=torch.bfloat16)
    assert seen.count == {torch.bfloat16: 1}


def test_only_what_a_model_computes_in_is_widened(no_units):
    """A model in float32 pays for nothing, and other devices than CPUs are never asked."""
    cpu = torch.device("cpu")
    layers = {dtype: torch.nn.Linear(2, 2, dtype=dtype) for dtype in (torch.float32, *HALF)}

    assert without_units(layers[torch.float32], cpu) == ()
    for dtype in HALF:
        assert without_units(layers[dtype], cpu) == (dtype,)
        assert without_units(layers[dtype], torch.device("cuda")) == ()
    with torch.autocast("cpu", torch.bfloat16):
        assert without_units(layers[torch.float32], cpu) == (torch.bfloat16,)
        with widened_for(layers[torch.float16], cpu):
            assert widened_dtypes() == HALF


def test_units_are_used_where_there_are_some(monkeypatch):
    """Then a measurement multiplies as torch does."""
    monkeypatch.setattr(half_on_cpu, "_has_units", lambda dtype: True)
    model, targets = tiny("llama_gqa_lm", torch.bfloat16)

    with Products() as seen:
        measure(model, batches_for("llama_gqa_lm"), target_modules=targets)

    assert seen.count[torch.bfloat16] > 0


@pytest.mark.parametrize("name", ["llama_gqa_lm", "bert_classifier", "gpt2_lm", "mixtral_lm"])
def test_no_narrow_product_is_left_in_a_measurement(name, no_units, tmp_path):
    """Forward, back, streamed, in head and experts; streamed still equals resident bit for bit."""
    model, targets = tiny(name, torch.bfloat16)
    resident, batches = save(model, tmp_path), batches_for(name)
    options = {"target_modules": targets, **ALL}

    with Products() as seen:
        wanted = measure(resident, batches, **options)
        streamed = measure_streamed(tmp_path, batches, **options)

    assert seen.count[torch.float32] > 0
    assert torch.bfloat16 not in seen.count
    assert_same(streamed, wanted)
    wide = measure(resident.float(), batches, **options)
    for module in wide.modules:
        found = wanted.row_energies[module.name]
        assert relative_error(found, wide.row_energies[module.name]) <= 0.1
