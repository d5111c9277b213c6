"""Tensors in and out of safetensors files, against torch and the library."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fimlora.adapter.trained.tensors import (
    copied,
    narrowed,
    new_floats,
    read_entries,
    read_floats,
    widened,
    write_tensors,
)
from fimlora.errors import InvalidAdapter

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
LIMIT = 1 << 20


def numbers(n: int = 20_000) -> torch.Tensor:
    """Normal, tiny and subnormal numbers, and ties between neighbours of bfloat16."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(n, generator=generator, dtype=torch.float64)
    powers = torch.randint(-160, 15, (n,), generator=generator).double()
    ties = 1 + torch.arange(512, dtype=torch.float64) / 256
    return torch.cat([drawn * 2**powers, ties, -ties, torch.zeros(1).double()])


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_are_rounded_and_read_as_torch_does(dtype):
    """Bit for bit, ties and subnormals included."""
    values = numbers()
    if dtype == "F16":
        values = values.clamp(-60_000, 60_000)

    stored = narrowed(values.numpy(), dtype)

    wanted = values.to(TYPES[dtype])
    assert stored == wanted.view(torch.uint8).numpy().tobytes()
    assert np.array_equal(widened(stored, dtype), wanted.double().numpy())


@pytest.mark.parametrize(("dtype", "value"), [("F16", 7e4), ("BF16", 3.4e38), ("F32", 1e39)])
def test_a_number_beyond_its_type_is_refused(dtype, value):
    """Never infinity in its place."""
    with pytest.raises(InvalidAdapter, match=dtype):
        narrowed(np.array([1.0, value]), dtype)


def test_the_library_reads_what_is_written(tmp_path):
    """Types side by side, empty and odd sizes, and tensors copied from another file."""
    given = {
        "b": torch.randn(5, 3).to(torch.bfloat16),
        "a": torch.randn(2, 1),
        "whole": torch.arange(7),
        "odd": torch.tensor([True, False, True]),
    }
    save_file(given, tmp_path / "in.safetensors")
    entries = read_entries(tmp_path / "in.safetensors", max_header_bytes=LIMIT).tensors
    tensors = {name: copied(tmp_path / "in.safetensors", e) for name, e in entries.items()}
    tensors["new"] = new_floats((2, 3), "BF16", lambda: np.arange(6.0).reshape(2, 3))

    write_tensors(tmp_path / "out.safetensors", tensors)

    wanted = given | {"new": torch.arange(6.0).reshape(2, 3).to(torch.bfloat16)}
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_named(tmp_path, value):
    """With the tensor's name and how many there are."""
    save_file({"x": torch.tensor([1.0, value, value])}, tmp_path / "in.safetensors")
    entry = read_entries(tmp_path / "in.safetensors", max_header_bytes=LIMIT).tensors["x"]

    with pytest.raises(InvalidAdapter, match="x has 2 values that are NaN or infinite"):
        read_floats(tmp_path / "in.safetensors", "x", entry)


def test_a_shape_of_many_sides_is_refused_at_once(tmp_path):
    """Its product would be a number of millions of digits."""
    header = b'{"a":{"dtype":"F32","shape":[' + b"9," * 100_000 + b'9],"data_offsets":[0,4]}}'
    file = tmp_path / "in.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))

    with pytest.raises(InvalidAdapter, match="shape of 100001 sides"):
        read_entries(file, max_header_bytes=LIMIT)
