"""A file of tensors is read back bit for bit, or refused."""

import itertools

import pytest
import torch
from safetensors import safe_open

from fimlora.measuring.resume.tensor_file import read_tensors, write_tensors

FACTS = {"batches": 3, "names": ["ä", 'with "quotes"'], "share": 0.1, "none": None}


def some_tensors() -> dict[str, torch.Tensor]:
    """One of each dtype, an empty one, a scalar, and two that are not contiguous."""
    torch.manual_seed(0)
    return {
        "double": torch.randn(3, 5, dtype=torch.float64),
        "single": torch.tensor([0.0, -0.0, float("inf"), float("nan"), 1e-45]),
        "half": torch.randn(7).half(),
        "brain": torch.randn(7).bfloat16(),
        "whole": torch.tensor([-(2**63), 2**63 - 1]),
        "bytes": torch.arange(11, dtype=torch.uint8),
        "empty": torch.empty(0, 4),
        "scalar": torch.tensor(2.5),
        "transposed": torch.randn(4, 6).T,
        "strided": torch.randn(9, 4)[::2, 1:3],
    }


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert bits(found[name]) == bits(tensor), name


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    """Signs of zero and NaN too; nothing else is left in the folder."""
    tensors, file = some_tensors(), tmp_path / "sums"

    write_tensors(file, tensors, FACTS)
    found, facts = read_tensors(file)

    assert_same_bits(found, tensors)
    assert facts == FACTS
    assert [path.name for path in tmp_path.iterdir()] == ["sums"]


def test_others_can_read_it_too(tmp_path):
    """It is a safetensors file."""
    tensors, file = some_tensors(), tmp_path / "sums"
    write_tensors(file, tensors, FACTS)

    with safe_open(file, framework="pt") as opened:
        found = {name: opened.get_tensor(name) for name in tensors}

    assert_same_bits(found, tensors)


def test_nothing_but_facts(tmp_path):
    """A run that has summed nothing yet."""
    write_tensors(tmp_path / "sums", {}, FACTS)

    assert read_tensors(tmp_path / "sums") == ({}, FACTS)


@pytest.fixture
def small(tmp_path):
    """A file that is small enough to damage it everywhere."""
    file = tmp_path / "small"
    write_tensors(file, {"a": torch.arange(3.0), "b": torch.arange(2)}, {"n": 1})
    return file


def test_a_flipped_byte_is_refused(small):
    """Wherever it is, in the header's length, in the header or in the data."""
    content = small.read_bytes()

    for at, mask in itertools.product(range(len(content)), (0x01, 0x80)):
        damaged = bytearray(content)
        damaged[at] ^= mask
        small.write_bytes(damaged)
        with pytest.raises(ValueError):  # noqa: PT011 - said in as many ways as there are damages
            read_tensors(small)


def test_a_cut_file_is_refused(small):
    """At whatever byte it ends, none included."""
    content = small.read_bytes()

    for n_bytes in range(len(content)):
        small.write_bytes(content[:n_bytes])
        with pytest.raises(ValueError, match=r"no header|longer than the file|end at byte"):
            read_tensors(small)


@pytest.mark.parametrize("tail", [b"\0", b"x" * 8])
def test_a_file_with_a_tail_is_refused(tail, small):
    """It is not what was written."""
    small.write_bytes(small.read_bytes() + tail)

    with pytest.raises(ValueError, match="end at byte"):
        read_tensors(small)


@pytest.mark.parametrize(
    ("tensors", "facts", "error"),
    [
        ({"a": torch.ones(2), "b": torch.ones(2, dtype=torch.complex64)}, {}, KeyError),
        ({"a": torch.ones(2), "b": torch.empty(2, device="meta")}, {}, NotImplementedError),
        ({"a": torch.ones(2)}, {"n": object()}, TypeError),
    ],
    ids=["a dtype without a name", "a tensor without values", "facts that are no data"],
)
def test_a_failure_in_writing_leaves_the_old_file(tensors, facts, error, small):
    """Before the first byte or after some; and nothing half-written lies beside it."""
    content = small.read_bytes()

    with pytest.raises(error):
        write_tensors(small, tensors, facts)

    assert small.read_bytes() == content
    assert [path.name for path in small.parent.iterdir()] == [small.name]
