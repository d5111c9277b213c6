"""Products keep float32 accuracy whichever way they are taken."""

from collections.abc import Iterator

import pytest
import torch

from fimlora.measuring.recording.energies import (
    gram_blocks,
    lora_b_gradient,
    project,
    row_energies_by_gram,
)
from fimlora.numerics.products import multiply, multiply_split, multiply_wide, writes_float32
from support.reference import relative_error


def factors(*batch):
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(*batch, 9, 300, generator=generator)
    right = torch.randn(*batch, 300, 7, generator=generator).bfloat16()
    return left, right, left.double() @ right.double()


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("n_parts", "error"), [(1, 2**-8), (2, 2**-16), (3, 2**-20)])
def test_a_factor_in_parts_is_right_to_8_bits_for_each(batch, n_parts, error):
    """Three parts are all of a float32 number."""
    left, right, wanted = factors(*batch)

    found = multiply_split(left, right, n_parts=n_parts)

    assert found.dtype == torch.float32
    assert relative_error(found, wanted) <= error
    assert n_parts == 3 or relative_error(found, wanted) > error / 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_no_product_is_rounded_to_half(dtype):
    """It is that of the same numbers in float64, to float32's own rounding."""
    left, right, _ = factors(2)
    left, right = left.to(dtype), right.to(dtype)

    found = multiply(left, right)

    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert relative_error(found, left.double() @ right.double()) <= 2**-20


def test_a_wide_factor_is_multiplied_whole_where_that_is_no_slower():
    """On a CPU nothing is split, and float64 stays float64."""
    left, right, wanted = factors()

    assert relative_error(multiply_wide(left, right, n_parts=1), wanted) <= 2**-20
    assert multiply_wide(left, right.double(), n_parts=1).dtype == torch.float64


def test_a_device_without_such_a_kernel_is_found_out():
    """By trying; the CPU of today's torch has none."""
    assert writes_float32(torch.bfloat16, "cpu") is False


@pytest.fixture
def kernels_that_write_float32() -> Iterator[None]:
    """Give the CPU's torch the kernels that it lacks."""

    def product(left, right, _out_dtype):
        return left.float() @ right.float()

    library = torch.library.Library("aten", "IMPL")
    for kernel in ("mm.dtype", "bmm.dtype"):
        library.impl(kernel, product, "CPU")
    writes_float32.cache_clear()
    yield
    library._destroy()
    writes_float32.cache_clear()


def by_energies(x, g, A, weights):
    """Row energies and the gradient of B: all that goes through such products."""
    gradient = lora_b_gradient(project(A, x), g, weights)
    return row_energies_by_gram(gram_blocks(x), g), gradient


@pytest.fixture
def narrow():
    """Inputs and gradients in bfloat16, an A and weights in float32."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(2, 70, n, generator=generator).bfloat16() for n in (5, 40))
    return x, g, torch.randn(3, 5, generator=generator), torch.tensor([0.3, 0.7])


@pytest.fixture
def widened(narrow):
    """What widened factors give: asked for before the kernels are there."""
    return by_energies(*narrow)


def test_energies_by_kernels_that_write_float32(narrow, widened, kernels_that_write_float32):
    """What a GPU does, with kernels that the CPU lacks: within 1e-5 of widened factors."""
    energies, gradient = by_energies(*narrow)

    assert writes_float32(torch.bfloat16, "cpu")
    assert relative_error(energies, widened[0]) <= 1e-5
    assert relative_error(gradient, widened[1]) <= 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_multiplied_as_it_is_on_a_gpu(dtype):
    """And the product is that of the widened numbers."""
    left, right, _ = factors(2)
    left, right = (tensor.to("cuda", dtype) for tensor in (left, right))
    if not writes_float32(dtype, "cuda"):
        pytest.skip("this torch or GPU has no such kernel")

    assert (
        relative_error(multiply(left, right).cpu(), left.double().cpu() @ right.double().cpu())
        <= 2**-20
    )
